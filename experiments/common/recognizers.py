"""What turns synthesized speech into text: a trained model, a command, or a Python function."""

from __future__ import annotations

import importlib
import pathlib
import reprlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.vocoder import UnitVocoder, decode_known
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.inference.transcription import transcribe
from lst_jax.settings import quote

# From the units of utterances, (U,) int32 each with U ≥ 1, to their texts.
Recognizer = Callable[[Sequence[np.ndarray]], Sequence[str]]

_WAV = "{wav}"


def hear(recognizer: Recognizer, utterances: Sequence[np.ndarray]) -> list[str]:
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


def model_recognizer(trained: TrainedModel, batch_rows: int) -> Recognizer:
    """Returns a model that was fine-tuned for recognition."""

    def run(utterances: Sequence[np.ndarray]) -> list[str]:
        return [answer.text for answer in transcribe(trained, utterances, batch_rows=batch_rows)]

    return run


def command_recognizer(command: str, vocoder: UnitVocoder | None) -> Recognizer:
    """Returns a command that prints what it understands of one utterance.

    Args:
      command: with `{wav}` where the name of a wav file goes; without it, the command reads units,
        numbers apart by spaces, from its standard input.
      vocoder: makes the wav files.

    Raises:
      ValueError: the command takes sound and there is no vocoder, or it cannot be parsed.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"recognizer_command is {quote(command)}: {error}") from error
    if not words:
        raise ValueError(f"recognizer_command is {quote(command)}, expected a command")
    takes_sound = any(_WAV in word for word in words)
    if takes_sound and vocoder is None:
        raise ValueError(
            f"recognizer_command is {quote(command)}; {_WAV} needs --encoder for a vocoder"
        )

    def run_one(units: np.ndarray, folder: str) -> str:
        wav, given = pathlib.Path(folder) / "utterance.wav", " ".join(map(str, units.tolist()))
        if takes_sound and vocoder is not None:
            samples = decode_known(vocoder, units)
            if not samples.size:
                return ""
            write_wav(wav, samples, vocoder.sample_rate)
        filled = [word.replace(_WAV, str(wav)) for word in words]
        done = subprocess.run(
            filled,
            input=given,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise ValueError(f"recognizer_command failed with status {done.returncode}: {reason}")
        return done.stdout.strip()

    def run(utterances: Sequence[np.ndarray]) -> list[str]:
        with tempfile.TemporaryDirectory() as folder:
            return [run_one(units, folder) for units in utterances]

    return run


def function_recognizer(name: str) -> Recognizer:
    """Returns a Python function `package.module:function` from units of utterances to their texts.

    Raises:
      ValueError: there is no such function.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"recognizer is {quote(name)}, expected package.module:function ({error})"
        ) from error
    if not callable(found):
        raise ValueError(f"recognizer is {quote(name)}, expected a function")
    return cast(Recognizer, found)
