"""Texts to speech to units to records, in as many processes as there are."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import multiprocessing
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import numpy as np

from data_pipelines.microworld.speech import Voice, synthesize
from data_pipelines.processes import end_with_parent, starting_workers
from data_pipelines.records.types import SILENCE, Utterance, make_utterance
from data_pipelines.speech.alignment import (
    align_pieces,
    align_units,
    label_frames,
    time_pieces,
    time_words,
)
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from lst_jax.extras import import_extra
from lst_jax.speech.interfaces import TimedText
from lst_jax.vocabulary import TextTokenizer

LICENSE = "Apache-2.0"  # this program's, whose work the stories are
SOURCE = "lst-jax microworld"

_TASKS_PER_CHUNK = 8

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True)
class Task:
    """A text to speak."""

    text: str
    voice: Voice


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenUnits:
    """A spoken text: its units, shared between words and silences, its times, what it took."""

    task: Task
    units: np.ndarray
    words: tuple[str, ...]
    unit_counts: np.ndarray
    frame_rate: float
    timings: tuple[TimedText, ...]
    phoneme_starts_s: tuple[tuple[float, ...], ...]
    audio_s: float
    synthesis_cpu_s: float


def speak_frames(task: Task) -> tuple[np.ndarray, np.ndarray]:
    """Returns log-mel frames (U, M) of a spoken text and what is said in each (U,)."""
    features = MelFeatures()
    spoken = synthesize(task.text, task.voice)
    frames = features.log_mels(spoken.samples, spoken.sample_rate)
    return frames, label_frames(spoken.words, len(frames), features.frame_rate)


class _Worker:
    """What a process that encodes keeps between tasks."""

    encoder: MelKMeansEncoder | None = None


def one_thread() -> contextlib.AbstractContextManager[Any]:
    """Keeps matrix products to one thread: for the work at hand more are slower, and the order of
    their sums would depend on the number of cores."""
    return import_extra("demo", "threadpoolctl").threadpool_limits(1)


def _start_worker(encoder_path: pathlib.Path | None) -> None:
    one_thread()
    _Worker.encoder = None if encoder_path is None else MelKMeansEncoder.load(encoder_path)


def _start_process(encoder_path: pathlib.Path | None) -> None:
    end_with_parent()
    _start_worker(encoder_path)


def speak_units(task: Task) -> SpokenUnits:
    """Returns a text as units; runs in a process that was given an encoder."""
    encoder = _Worker.encoder
    if encoder is None:
        raise RuntimeError("a process was asked for units before it was given an encoder")
    started = time.process_time()
    spoken = synthesize(task.text, task.voice)
    synthesis_cpu_s = time.process_time() - started
    heard = encoder.assign(encoder.features.log_mels(spoken.samples, spoken.sample_rate))
    words, unit_counts = align_units(spoken.words, heard.size, encoder.frame_rate)
    if SILENCE in (timing.text for timing in spoken.words):
        raise ValueError(f"text is {task.text!r}, expected no word {SILENCE!r}")
    return SpokenUnits(
        task,
        heard,
        words,
        unit_counts,
        encoder.frame_rate,
        spoken.words,
        spoken.phoneme_starts_s,
        spoken.duration_s,
        synthesis_cpu_s,
    )


def make_record(story_id: str, spoken: SpokenUnits, tokenizer: TextTokenizer) -> Utterance:
    """Returns the record of a spoken story, with all that the synthesizer knows of it."""
    utterance = make_utterance(story_id, spoken.words, spoken.units, spoken.unit_counts, tokenizer)
    letters = [sum(map(str.isalnum, tokenizer.piece(piece))) for piece in utterance.pieces.tolist()]
    ends = np.cumsum(utterance.piece_counts[~utterance.is_silence]).tolist()
    of_words = [letters[start:end] for start, end in itertools.pairwise([0, *ends])]
    piece_times_ms = time_pieces(spoken.timings, spoken.phoneme_starts_s, of_words)
    return dataclasses.replace(
        utterance,
        piece_unit_counts=align_pieces(
            piece_times_ms, utterance.piece_counts, utterance.unit_counts, spoken.frame_rate
        ),
        word_times_ms=time_words(spoken.timings, spoken.words, spoken.audio_s),
        piece_times_ms=piece_times_ms,
        transcript=spoken.task.text,
        speaker=spoken.task.voice.espeak_name,
        license=LICENSE,
        source=SOURCE,
    )


@contextlib.contextmanager
def run_pool(
    processes: int, encoder_path: pathlib.Path | None = None
) -> Iterator[Callable[[Callable[[_T], _R], Iterable[_T]], Iterator[_R]]]:
    """Yields a `map` over processes that keeps the order; one process is this one."""
    if processes == 1:
        _start_worker(encoder_path)
        yield map
        return
    context = multiprocessing.get_context("spawn")
    with starting_workers():
        started = context.Pool(processes, _start_process, (encoder_path,))
    with started as pool:
        yield lambda task, items: pool.imap(task, items, _TASKS_PER_CHUNK)
