"""What turns recordings into units and words, and units into recordings, whatever does it.

Waveforms are float32 (S,), mono, full scale at ±1, S at least 1, at the sample rate that the object
names; the caller resamples. All methods take utterances by the list, so that an implementation can
batch them; the results are those of each utterance alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np


@dataclasses.dataclass(frozen=True)
class TimedText:
    """A word or a character and when it is spoken.

    Attributes:
      text: the word as it was given, or the character.
      start_s, end_s: seconds from the start of the recording, start_s ≤ end_s.
      score: mean log-probability of its frames, at most 0. None: the source has no scores.
    """

    text: str
    start_s: float
    end_s: float
    score: float | None = None


@dataclasses.dataclass(frozen=True)
class Alignment:
    """The words of one utterance in the order of time, not overlapping.

    Attributes:
      words: every word of the transcript.
      characters: what the words were aligned by. None: the aligner has only words.
    """

    words: tuple[TimedText, ...]
    characters: tuple[TimedText, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Rejection:
    """Why there is no result for an utterance, in one line without its name.

    Attributes:
      kind: one word or a few with hyphens, by which rejects are counted: "missing-letter".
      reason: what was found and what was expected.
    """

    kind: str
    reason: str


@runtime_checkable
class UnitEncoder(Protocol):
    """Waveforms to units.

    Attributes:
      sample_rate: of the waveforms that `encode` takes.
      frame_rate: units a second.
      unit_count: units are 0 … unit_count − 1.
      fingerprint: SHA-256, hexadecimal, of all that decides which units come out.
    """

    @property
    def sample_rate(self) -> int: ...

    @property
    def frame_rate(self) -> float: ...

    @property
    def unit_count(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray | Rejection]:
        """Returns the units of each waveform, int32 (U,) with U ≥ 1, not deduplicated.

        A waveform that is too short for a unit is a rejection.

        Raises:
          ValueError: a waveform is empty, not finite, or of another shape or type.
        """
        ...


@runtime_checkable
class Aligner(Protocol):
    """Waveforms and what is said in them to words with times.

    Attributes:
      sample_rate: of the waveforms that `align` takes.
    """

    @property
    def sample_rate(self) -> int: ...

    def align(
        self, waveforms: Sequence[np.ndarray], transcripts: Sequence[str]
    ) -> list[Alignment | Rejection]:
        """Returns an alignment of each transcript's words, those between whitespace.

        Raises:
          ValueError: see `UnitEncoder.encode`; or there are not as many transcripts.
        """
        ...


@runtime_checkable
class Recognizer(Protocol):
    """Waveforms to words with times.

    Attributes:
      sample_rate: of the waveforms that `recognize` takes.
    """

    @property
    def sample_rate(self) -> int: ...

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[tuple[TimedText, ...]]:
        """Returns the words heard in each waveform, none where there is no speech.

        Raises:
          ValueError: see `UnitEncoder.encode`.
        """
        ...


@runtime_checkable
class Synthesizer(Protocol):
    """Text to waveforms.

    Attributes:
      sample_rate: of the waveforms that `synthesize` returns.
    """

    @property
    def sample_rate(self) -> int: ...

    def synthesize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the waveform of each text.

        Raises:
          ValueError: a text is empty or cannot be spoken.
        """
        ...


@dataclasses.dataclass(frozen=True)
class TextScore:
    """How likely a text is to a language model.

    Attributes:
      log_probability: of its scored tokens, natural logarithm, summed.
      token_count: of these; 0 where there is none.
    """

    log_probability: float
    token_count: int


@runtime_checkable
class LanguageModel(Protocol):
    """Texts to how likely they are."""

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """Returns the score of each text.

        Raises:
          ValueError: a text is too long for the model.
        """
        ...


@runtime_checkable
class Vocoder(Protocol):
    """Units to waveforms; the way back from a `UnitEncoder`.

    Attributes:
      sample_rate: of the waveforms that `decode` returns.
      frame_rate: units a second.
      unit_count: units are 0 … unit_count − 1.
      encoder_fingerprint: of the encoder whose units it takes. None: not known.
    """

    @property
    def sample_rate(self) -> int: ...

    @property
    def frame_rate(self) -> float: ...

    @property
    def unit_count(self) -> int: ...

    @property
    def encoder_fingerprint(self) -> str | None: ...

    def decode(self, units: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the waveform of each sequence of units, (U,) integers with U ≥ 1.

        Raises:
          ValueError: empty, of another shape or type, or a unit out of range.
        """
        ...
