"""Recognizers and synthesizers of the user's: a command, or a Python function.

    command:transcribe {wav}            prints what it hears; the wav file has 16 bits
    command:say -o {wav} {text}         writes what it says; without {text}, it reads the text
    python:package.module:function      from waveforms to texts, from texts to waveforms

All take `rate=…`, samples a second of the waveforms, 16,000 unless it is given; recordings of
another rate are resampled. A command is started once for each utterance, without a shell.
"""

from __future__ import annotations

import importlib
import pathlib
import re
import reprlib
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.speech.audio import float_samples, read_audio, write_wav
from data_pipelines.speech.registry import check_options, number_option
from lst_jax.settings import quote, require
from lst_jax.speech.interfaces import TimedText

_WAV, _TEXT = "{wav}", "{text}"


class Command:
    """A command line with fields to fill in."""

    def __init__(self, line: str, *fields: str) -> None:
        """Parses it as a shell would, without expanding anything.

        Raises:
          ValueError: it cannot be parsed, is empty, or lacks one of the fields.
        """
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise ValueError(f"command is {quote(line)}: {error}") from error
        require(bool(self._words), "command", line, "a command line")
        for field in fields:
            require(self.has(field), "command", line, f"one with {field}")

    def has(self, field: str) -> bool:
        """Returns whether a word has the field in it."""
        return any(field in word for word in self._words)

    def run(self, values: Mapping[str, str], given: str = "") -> str:
        """Returns what the command prints, stripped.

        Args:
          values: by field; each is one word, or a part of one, whatever is in it.
          given: the command's standard input.

        Raises:
          OSError: it cannot be started.
          ValueError: it ends with another status than 0.
        """
        # One pass: a text may hold `{wav}`.
        fields = re.compile("|".join(map(re.escape, values)) or "(?!)")
        words = [fields.sub(lambda match: values[match[0]], word) for word in self._words]
        done = subprocess.run(
            words,
            input=given,
            capture_output=True,
            check=False,
            encoding="utf-8",
            errors="replace",
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            shown = quote(self._words[0])
            raise ValueError(f"command {shown} failed with status {done.returncode}: {reason}")
        return done.stdout.strip()


class CommandRecognizer:
    """A command that prints what it hears in a wav file."""

    def __init__(self, command: Command, sample_rate: int) -> None:
        """Makes a recognizer of a command with `{wav}`."""
        self._command = command
        self.sample_rate = sample_rate

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[tuple[TimedText, ...]]:
        """See `Recognizer.recognize`; of a word's time no more is known than the waveform's."""
        with tempfile.TemporaryDirectory() as folder:
            wav = pathlib.Path(folder) / "utterance.wav"
            heard = []
            for waveform in waveforms:
                write_wav(wav, waveform, self.sample_rate)
                heard.append(self._command.run({_WAV: str(wav)}))
        return _time_words(heard, waveforms, self.sample_rate)


class CommandSynthesizer:
    """A command that writes what it says to a wav file."""

    def __init__(self, command: Command, sample_rate: int) -> None:
        """Makes a synthesizer of a command with `{wav}`."""
        self._command = command
        self.sample_rate = sample_rate

    def synthesize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Synthesizer.synthesize`."""
        with tempfile.TemporaryDirectory() as folder:
            wav = pathlib.Path(folder) / "utterance.wav"
            waveforms = []
            for text in texts:
                _check_text(text)
                values = {_WAV: str(wav), _TEXT: text}
                self._command.run(values, "" if self._command.has(_TEXT) else text)
                if not wav.exists():
                    raise ValueError(f"command wrote no wav file of {quote(text)}")
                waveforms.append(read_audio(wav, self.sample_rate))
                wav.unlink()
        return waveforms


class FunctionRecognizer:
    """A function from waveforms to texts, or to words with times."""

    def __init__(self, name: str, sample_rate: int) -> None:
        """Imports the function; see `import_function`."""
        self._function = import_function(name)
        self.sample_rate = sample_rate

    def recognize(self, waveforms: Sequence[np.ndarray]) -> list[tuple[TimedText, ...]]:
        """See `Recognizer.recognize`; words without times have the whole waveform's."""
        given = [float_samples(waveform) for waveform in waveforms]
        heard = check_answers(self._function(given), len(given), "texts or tuples of TimedText")
        return _time_words(heard, waveforms, self.sample_rate)


class FunctionSynthesizer:
    """A function from texts to waveforms."""

    def __init__(self, name: str, sample_rate: int) -> None:
        """Imports the function; see `import_function`."""
        self._function = import_function(name)
        self.sample_rate = sample_rate

    def synthesize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """See `Synthesizer.synthesize`."""
        for text in texts:
            _check_text(text)
        return [
            float_samples(waveform)
            for waveform in check_answers(self._function([*texts]), len(texts), "waveforms")
        ]


def import_function(name: str) -> Callable[[Sequence[Any]], Any]:
    """Returns a function by its name, `package.module:function`.

    Raises:
      ValueError: there is none.
    """
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError, TypeError, RecursionError) as error:
        expected = "package.module:function"
        raise ValueError(f"python is {quote(name)}, expected {expected} ({error})") from error
    require(callable(found), "python", name, "a function")
    return found


def check_answers(answers: Any, count: int, noun: str) -> Sequence[Any]:
    """Returns the answers of a function of the user's; raises a `ValueError` unless so many."""
    if not isinstance(answers, Sequence) or isinstance(answers, str) or len(answers) != count:
        shown = reprlib.repr(answers)
        raise ValueError(f"a function returned {shown}, expected a list of {count} {noun}")
    return answers


def _time_words(
    heard: Sequence[Any], waveforms: Sequence[np.ndarray], sample_rate: int
) -> list[tuple[TimedText, ...]]:
    result = []
    for answer, waveform in zip(heard, waveforms, strict=True):
        if isinstance(answer, str):
            seconds = len(waveform) / sample_rate
            answer = tuple(TimedText(word, 0.0, seconds) for word in answer.split())
        is_words = isinstance(answer, Sequence) and all(isinstance(x, TimedText) for x in answer)
        require(is_words, "what was heard", answer, "a text, or a tuple of TimedText")
        result.append(tuple(answer))
    return result


def _check_text(text: str) -> None:
    require(bool(text.strip()), "text", text, "words")


def _rate(kind: str, options: Mapping[str, str]) -> int:
    check_options(kind, options, ("rate",))
    return int(number_option(kind, options, "rate", 16_000, least=1))


def open_command_recognizer(argument: str, options: Mapping[str, str]) -> CommandRecognizer:
    """Opens `command:LINE[,rate=RATE]`, see the module."""
    return CommandRecognizer(Command(argument, _WAV), _rate("command", options))


def open_command_synthesizer(argument: str, options: Mapping[str, str]) -> CommandSynthesizer:
    """Opens `command:LINE[,rate=RATE]`, see the module."""
    return CommandSynthesizer(Command(argument, _WAV), _rate("command", options))


def open_python_recognizer(argument: str, options: Mapping[str, str]) -> FunctionRecognizer:
    """Opens `python:MODULE:FUNCTION[,rate=RATE]`, see the module."""
    return FunctionRecognizer(argument, _rate("python", options))


def open_python_synthesizer(argument: str, options: Mapping[str, str]) -> FunctionSynthesizer:
    """Opens `python:MODULE:FUNCTION[,rate=RATE]`, see the module."""
    return FunctionSynthesizer(argument, _rate("python", options))
