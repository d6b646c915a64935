"""Speech for the built-in corpus: eSpeak NG, with the exact time of every word and phoneme.

The library and its voices come from the PyPI package `espeakng-loader`; nothing is installed on
the system. eSpeak NG reports, while it speaks, at which sample each word and each phoneme starts,
so the alignment is a by-product of synthesis and needs no aligner.

eSpeak NG keeps global state, part of which (phase of the glottal pulse, flutter) survives from one
utterance to the next. Here an utterance is a pure function of its text and voice: the library is
unloaded and loaded afresh for each one, which costs about five milliseconds.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import itertools
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import numpy as np

from lst_jax.extras import import_extra
from lst_jax.settings import Bounds, NotEmpty, configuration
from lst_jax.speech.interfaces import TimedText

# speak_lib.h: espeak_AUDIO_OUTPUT, initialization options, event types, parameters, text flags.
_OUTPUT_SYNCHRONOUS = 2
_OPTION_PHONEME_EVENTS = 0x0001
_OPTION_DONT_EXIT = 0x8000
_EVENT_LIST_TERMINATED = 0
_EVENT_WORD = 1
_EVENT_PHONEME = 7
_PARAMETER_RATE = 1
_PARAMETER_PITCH = 3
_POSITION_CHARACTER = 1
_TEXT_UTF8 = 0x0001
_TEXT_END_PAUSE = 0x1000
_PHONEME_SEPARATOR = ord("|")

_NOISE_SEED = 1

_WORD = re.compile(r"\S+")
# eSpeak NG makes no pause between sentences of which the second begins in lower case.
_SENTENCE_START = re.compile(r"(?<=[.!?]\s)[a-z]")


class _EventId(ctypes.Union):
    _fields_ = (
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    )


class _Event(ctypes.Structure):
    """espeak_EVENT of speak_lib.h."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),  # characters before it, counted from 1
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # milliseconds
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    )


_SynthCallback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


@configuration
class Voice:
    """A voice of eSpeak NG.

    Attributes:
      name: Language file below `espeak-ng-data/lang`, such as "gmw/en-US".
      variant: Speaker variant below `espeak-ng-data/voices/!v`, such as "f2"; "" for none.
      rate: Words per minute, 80…450.
      pitch: 0…99; 50 is the voice's own.
    """

    name: Annotated[str, NotEmpty("a language file such as 'gmw/en-US'")]
    variant: str
    rate: Annotated[int, Bounds(least=80, most=450)]
    pitch: Annotated[int, Bounds(least=0, most=99)]

    @property
    def espeak_name(self) -> str:
        """Returns language and variant as eSpeak NG names the pair."""
        return f"{self.name}+{self.variant}" if self.variant else self.name


VOICES: tuple[Voice, ...] = (
    Voice("gmw/en-US", "", 260, 50),
    Voice("gmw/en-US", "m1", 270, 50),
    Voice("gmw/en-US", "m3", 280, 50),
)
"""Speakers of the built-in corpus: three men of one accent, fast talkers. A small model's training
should go into what words mean, not into how they sound: knowing the word, its units have 3.5 nats
left, against 4.5 with a woman among the three and 5.9 with six speakers at 200–230 words a
minute."""


@dataclasses.dataclass(frozen=True)
class TimedSpeech:
    """One utterance.

    Attributes:
      samples: (S,) int16, mono.
      sample_rate: Samples per second.
      words: One timing per whitespace word, in order, not overlapping. What lies between them,
        before the first and after the last is silence.
      phoneme_starts_s: For every word the seconds at which its phonemes start, in order, the first
        with the word; one or more.
    """

    samples: np.ndarray
    sample_rate: int
    words: tuple[TimedText, ...]
    phoneme_starts_s: tuple[tuple[float, ...], ...]

    @property
    def duration_s(self) -> float:
        """Returns the length of the audio in seconds."""
        return self.samples.size / self.sample_rate


@dataclasses.dataclass(frozen=True)
class _WordEvent:
    character: int  # offset in the text, from 0
    sample: int
    phonemes_before: int  # events of phonemes before this one


@dataclasses.dataclass(frozen=True)
class _PhonemeEvent:
    name: str
    sample: int

    @property
    def is_pause(self) -> bool:
        return self.name.startswith("_")


class _Recorder:
    """Collects what one call of espeak_Synth says."""

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.words: list[_WordEvent] = []
        self.phonemes: list[_PhonemeEvent] = []
        self.callback = _SynthCallback(self._receive)

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if count > 0:
            self.chunks.append(ctypes.string_at(wave, 2 * count))
        for i in range(sys.maxsize):
            event = events[i]
            if event.type == _EVENT_LIST_TERMINATED:
                break
            if event.type == _EVENT_WORD:
                start = _WordEvent(event.text_position - 1, event.sample, len(self.phonemes))
                self.words.append(start)
            elif event.type == _EVENT_PHONEME:
                name = event.id.string.decode("utf-8", "replace")
                self.phonemes.append(_PhonemeEvent(name, event.sample))
        return 0

    def samples(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.chunks), dtype=np.int16)


def _unload(library: ctypes.CDLL) -> None:
    handle = ctypes.c_void_p(library._handle)
    if sys.platform == "win32":
        ctypes.WinDLL("kernel32").FreeLibrary(handle)
    else:
        ctypes.CDLL(None).dlclose(handle)


@contextlib.contextmanager
def _fresh_library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """Yields an eSpeak NG that has not spoken yet, and its sample rate."""
    loader = import_extra("demo", "espeakng_loader")
    library = ctypes.CDLL(loader.get_library_path())
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    try:
        sample_rate = library.espeak_Initialize(
            _OUTPUT_SYNCHRONOUS,
            0,
            str(loader.get_data_path()).encode(),
            _OPTION_DONT_EXIT | _OPTION_PHONEME_EVENTS,
        )
        if sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG did not start from {loader.get_data_path()}")
        # It starts from the clock; the breath of some voices is drawn from this.
        library.espeak_ng_SetRandSeed(ctypes.c_long(_NOISE_SEED))
        yield library, sample_rate
        library.espeak_Terminate()
    finally:
        _unload(library)


# The library's state belongs to the process, so one utterance is spoken at a time.
_LOCK = threading.Lock()


def synthesize(text: str, voice: Voice) -> TimedSpeech:
    """Speaks a text.

    The same text and voice always give the same samples, whatever was spoken before.

    Args:
      text: At least one word; its whitespace words are what is timed.
      voice: Who speaks.

    Returns:
      The audio, with the pause that ends a sentence, and the time of every word. A word that
      eSpeak NG runs together with the one before ("of the") is cut off at a phoneme boundary.

    Raises:
      ValueError: Empty text, text with a NUL character, or an unknown voice.
      ImportError: The package espeakng-loader is missing.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    if not spans:
        raise ValueError(f"text is {text!r}; expected at least one word")
    if "\0" in text:
        raise ValueError(f"text is {text!r}; expected no NUL character")
    recorder = _Recorder()
    with _LOCK, _fresh_library() as (library, sample_rate):
        library.espeak_SetSynthCallback(recorder.callback)
        if library.espeak_SetVoiceByName(voice.espeak_name.encode()) != 0:
            raise ValueError(f"voice is {voice.espeak_name!r}; eSpeak NG has no such voice")
        library.espeak_SetParameter(_PARAMETER_RATE, voice.rate, 0)
        library.espeak_SetParameter(_PARAMETER_PITCH, voice.pitch, 0)
        spoken_text = _SENTENCE_START.sub(lambda letter: letter[0].upper(), text)
        data = spoken_text.encode() + b"\0"
        status = library.espeak_Synth(
            data, len(data), 0, _POSITION_CHARACTER, 0, _TEXT_UTF8 | _TEXT_END_PAUSE, None, None
        )
        if status != 0:
            raise RuntimeError(f"eSpeak NG failed with status {status} on {text!r}")
        anchors = _anchors(recorder.words, spans)
        merged = [text[slice(*spans[i])] for i in _merged_words(anchors, len(spans))]
        phoneme_counts = {word: _phoneme_count(library, word) for word in merged}
    samples = recorder.samples()
    words = [text[slice(*span)] for span in spans]
    bounds = _word_bounds(words, anchors, recorder.phonemes, samples.size, phoneme_counts)
    timings = tuple(
        TimedText(word, places[0] / sample_rate, places[-1] / sample_rate)
        for word, places in zip(words, bounds, strict=True)
    )
    starts = tuple(tuple(start / sample_rate for start in places[:-1]) for places in bounds)
    return TimedSpeech(samples, sample_rate, timings, starts)


def _anchors(
    events: Sequence[_WordEvent], spans: Sequence[tuple[int, int]]
) -> dict[int, _WordEvent]:
    """Returns word index -> its event, for the words that have their own event.

    Of the events of one word ("ice-cream" has two) the first counts. The first word always has
    one: what is spoken before the first event is its.
    """
    ends = np.array([end for _, end in spans])
    anchors: dict[int, _WordEvent] = {}
    last = -1
    for event in events:
        index = int(np.searchsorted(ends, event.character, side="right"))
        if last < index < len(spans):
            anchors[index if anchors else 0] = event
            last = index
    return anchors or {0: _WordEvent(0, 0, 0)}


def _groups(anchors: dict[int, _WordEvent], count: int) -> list[tuple[int, int]]:
    """Returns the ranges of words that begin with an anchored word, together all `count` words."""
    return list(itertools.pairwise([*sorted(anchors), count]))


def _merged_words(anchors: dict[int, _WordEvent], count: int) -> list[int]:
    """Returns the indices of the words whose time must be found inside a group."""
    groups = (range(*group) for group in _groups(anchors, count))
    return [index for group in groups if len(group) > 1 for index in group]


def _phoneme_count(library: ctypes.CDLL, word: str) -> int:
    """Returns the number of phonemes of a word spoken alone; 0 for punctuation."""
    text = ctypes.create_string_buffer(word.encode())
    pointer = ctypes.c_void_p(ctypes.addressof(text))
    phonemes = library.espeak_TextToPhonemes(
        ctypes.byref(pointer), _TEXT_UTF8, _PHONEME_SEPARATOR << 8
    )
    return sum(bool(piece.strip()) for piece in (phonemes or b"").split(b"|"))


def _word_bounds(
    words: Sequence[str],
    anchors: dict[int, _WordEvent],
    phonemes: Sequence[_PhonemeEvent],
    total: int,
    phoneme_counts: dict[str, int],
) -> list[list[int]]:
    """Returns the samples at which each word's phonemes start, and its end; in order in 0…total."""
    bounds: list[list[int]] = []
    for first, end in _groups(anchors, len(words)):
        anchor = anchors[first]
        following = anchors.get(end, _WordEvent(0, total, len(phonemes)))
        # By order, not by sample: a vowel's last consonant may be reported where the next word is.
        inside = list(phonemes[anchor.phonemes_before : following.phonemes_before])
        stop = following.sample
        # The pauses that follow the group's last phoneme are silence; one inside it is not.
        while inside and inside[-1].is_pause:
            stop = inside.pop().sample
        spoken = [p.sample for p in inside if not p.is_pause]
        weights = [phoneme_counts[word] for word in words[first:end]] if end - first > 1 else [1]
        bounds.extend(_cut_group(anchor.sample, stop, spoken, weights))
    return bounds


def _cut_group(
    start: int, stop: int, spoken: Sequence[int], weights: Sequence[int]
) -> list[list[int]]:
    """Cuts [start, stop) into one interval per word.

    Args:
      start, stop: Samples of the group.
      spoken: Samples where its phonemes start.
      weights: Number of phonemes of each word spoken alone.

    Returns:
      For each word the samples where its phonemes start and where the last one ends. A word
      without phonemes gets an empty interval. Cuts are at phoneme starts in proportion to the
      weights: exact where the group has just these phonemes.
    """
    cumulative = np.cumsum([0, *weights])
    if cumulative[-1] == 0 or not spoken:
        edges = [int(x) for x in np.linspace(start, stop, len(weights) + 1).round()]
        return [list(edge) for edge in itertools.pairwise(edges)]
    bounds = np.maximum.accumulate(np.clip([start, *spoken[1:], stop], start, stop)).tolist()
    cuts = np.round(cumulative * (len(spoken) / cumulative[-1])).astype(int).tolist()
    return [
        bounds[begin : end + 1] if end > begin else [bounds[begin]] * 2
        for begin, end in itertools.pairwise(cuts)
    ]
