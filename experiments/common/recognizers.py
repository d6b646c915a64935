"""What turns the speech of models into text: recognizers of units, and all others by a vocoder.

| specification                              | hears                                       |
|--------------------------------------------|---------------------------------------------|
| `lst:CHECKPOINT`                           | units, by a model fine-tuned for recognition |
| `command:LINE,takes=units`                 | units, numbers in its standard input        |
| `python:MODULE:FUNCTION,takes=units`       | units, of all utterances                    |
| what `open_recognizer` opens               | sound, as the vocoder makes it              |
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.speech.audio import resample
from data_pipelines.speech.programs import Command, import_function
from data_pipelines.speech.registry import check_options, open_recognizer, parse_specification
from data_pipelines.speech.vocoder import decode_known
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.inference.transcription import transcribe
from lst_jax.settings import given, require
from lst_jax.speech.interfaces import Recognizer, Vocoder

# From the units of utterances, (U,) int32 each with U ≥ 1, to their texts.
UnitRecognizer = Callable[[Sequence[np.ndarray]], Sequence[str]]


def hear(recognizer: UnitRecognizer, utterances: Sequence[np.ndarray]) -> list[str]:
    """Returns what a recognizer understands of utterances; nothing of those without units.

    Args:
      recognizer: of this module.
      utterances: units, (U,) each with U ≥ 0.

    Raises:
      ValueError: the recognizer does not return a text for each, or raises it.
    """
    spoken = [units for units in utterances if len(units)]
    texts = recognizer(spoken) if spoken else []
    is_texts = isinstance(texts, Sequence) and all(isinstance(text, str) for text in texts)
    if not is_texts or len(texts) != len(spoken):
        raise ValueError(
            f"recognizer returned {reprlib.repr(texts)}, expected a list of {len(spoken)} texts, "
            "one for each utterance"
        )
    heard = iter(texts)
    return [next(heard) if len(units) else "" for units in utterances]


def model_recognizer(trained: TrainedModel, batch_rows: int) -> UnitRecognizer:
    """Returns a model that was fine-tuned for recognition."""

    def run(utterances: Sequence[np.ndarray]) -> list[str]:
        return [answer.text for answer in transcribe(trained, utterances, batch_rows=batch_rows)]

    return run


def sound_recognizer(recognizer: Recognizer, vocoder: Vocoder) -> UnitRecognizer:
    """Returns what hears units as a vocoder speaks them."""

    def run(utterances: Sequence[np.ndarray]) -> list[str]:
        sounds = [decode_known(vocoder, units) for units in utterances]
        given = [
            resample(sound, vocoder.sample_rate, recognizer.sample_rate)
            for sound in sounds
            if sound.size
        ]
        heard = iter(recognizer.recognize(given))
        return [
            " ".join(word.text for word in next(heard)) if sound.size else "" for sound in sounds
        ]

    return run


def make_recognizer(
    specification: str,
    load_model: Callable[[str], UnitRecognizer],
    vocoder: Vocoder | None,
) -> UnitRecognizer:
    """Returns the recognizer of a specification, see the module.

    Args:
      specification: of the recognizer.
      load_model: is called with the checkpoint of `lst:CHECKPOINT`.
      vocoder: speaks where sound is heard.

    Raises:
      ImportError, OSError: see `open_recognizer`.
      ValueError: see `open_recognizer`; or sound is heard and there is no vocoder.
    """
    parts = parse_specification(specification, "recognizer")
    argument = parts.argument or ""
    if parts.kind == "lst":
        check_options("lst", parts.options, ())
        require(argument != "", "recognizer", specification, "lst:CHECKPOINT")
        return load_model(argument)
    if parts.kind in ("command", "python") and "takes" in parts.options:
        check_options(parts.kind, parts.options, ("takes",))
        takes = parts.options["takes"]
        require(takes == "units", f"takes of {parts.kind}", takes, "units, or none of it for sound")
        if parts.kind == "python":
            return import_function(argument)
        command = Command(argument)
        return lambda utterances: [
            command.run({}, " ".join(map(str, units.tolist()))) for units in utterances
        ]
    recognizer = open_recognizer(specification)
    speaker = given(vocoder, "--vocoder", "one: this recognizer hears sound, not units")
    return sound_recognizer(recognizer, speaker)
