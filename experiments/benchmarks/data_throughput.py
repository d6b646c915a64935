"""Measures records → batches at the shape of the 1b model: tokens per second and fill of rows.

  python -m experiments.benchmarks.data_throughput --num_workers=0,1,2 \
      --output=experiments/benchmarks/results/data_throughput.json

Records are synthetic, with the lengths of real ones: utterances like those of Multilingual
LibriSpeech (35–50 words of 5.8 units, silences of 3.8 between them, about 410 units), text of 1.3
tokens a word and a lognormal length. With `--num_workers=0` everything runs in one thread of this
process, bound to one core; with n workers, in n processes, and the consumer in another. Batches
made ahead while the clock was not running are at most 2 a worker.
"""

from __future__ import annotations

import json
import os
import pathlib
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import sentencepiece
from absl import app, flags

from data_pipelines.records.storage import SILENCE, TextDocument, Utterance, write_records
from data_pipelines.training.dataset import DataConfig, SourceConfig, make_training_dataset
from data_pipelines.training.mixture import RatioUnit
from experiments.common.machine import command_line, cpu_model, versions
from experiments.common.paths import define_path
from lst_jax.batch import Batch
from lst_jax.files import write_json
from lst_jax.patching import PatchingConfig, Strategy
from lst_jax.vocabulary import TextTokenizer

_NUM_WORKERS = flags.DEFINE_list("num_workers", ["0", "1", "2"], "Worker processes to measure.")
_OUTPUT = define_path("output", "JSON file to write the results to.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 16, "Rows of a batch.", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 60, "Batches to measure.", lower_bound=1)
_DOCUMENTS = flags.DEFINE_integer("documents", 10_000, "Records of each source.", lower_bound=1)
_PATCHES = flags.DEFINE_integer("patches_per_row", 4096, "Patch slots of a row.")
_TOKENS = flags.DEFINE_integer("tokens_per_row", 5632, "Token slots of a row.")
_OPEN_ROWS = flags.DEFINE_integer("open_rows", 8, "Rows each stream keeps open.")
_LARGEST_GAP = flags.DEFINE_float("largest_gap", 0.05, "Largest share of a row left empty.")
_RATIO_UNIT = flags.DEFINE_enum("ratio_unit", "tokens", ["words", "tokens"], "Unit of the 1:2.")
_STRATEGIES = flags.DEFINE_list("strategies", ["static"], "Patching strategies to measure.")

_WORDS = (35, 50)
_MEAN_WORD_UNITS = 5.78
_MEAN_SILENCE_UNITS = 3.80
_PIECES_PER_WORD = 1.3
_TEXT_TOKENS = (50, 2000)
_TEXT_MEDIAN = 300.0
_TEXT_SIGMA = 0.8
_NUM_UNITS = 502


def main(argv: Sequence[str]) -> None:
    """Writes the records, measures and reports."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as directory:
        tokenizer, sources = _write_sources(pathlib.Path(directory))
        results = [
            _measure(_make_config(sources, cast(Strategy, strategy)), tokenizer, int(workers))
            for strategy in _STRATEGIES.value
            for workers in _NUM_WORKERS.value
        ]
    report = {
        "command": command_line("data_throughput"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_before": round(load, 2),
        "versions": {"python": platform.python_version(), **versions("numpy", "grain")},
        "shape": {
            "batch_size": _BATCH_SIZE.value,
            "patches_per_row": _PATCHES.value,
            "tokens_per_row": _TOKENS.value,
            "open_rows": _OPEN_ROWS.value,
            "largest_gap": _LARGEST_GAP.value,
            "mixture": f"1:2 in {_RATIO_UNIT.value}",
        },
        "results": results,
    }
    _print_table(results)
    print(json.dumps(report, indent=2))
    if _OUTPUT.value:
        write_json(_OUTPUT.value, report)


def _make_config(sources: tuple[SourceConfig, ...], strategy: Strategy) -> DataConfig:
    patches = _TOKENS.value if strategy == "none" else _PATCHES.value
    # The middle of the curriculum: half of the examples are aligned.
    steps = 10**6
    patching = PatchingConfig(
        strategy, curriculum_start=0, curriculum_end=steps if strategy == "curriculum" else 0
    )
    return DataConfig(
        sources=sources,
        batch_size=_BATCH_SIZE.value,
        patches_per_row=patches,
        tokens_per_row=_TOKENS.value,
        ratio_unit=cast(RatioUnit, _RATIO_UNIT.value),
        patching=patching,
        open_rows=_OPEN_ROWS.value,
        largest_gap=_LARGEST_GAP.value,
    )


def _measure(config: DataConfig, tokenizer: TextTokenizer, num_workers: int) -> dict[str, Any]:
    cores = os.sched_getaffinity(0)
    if not num_workers:
        os.sched_setaffinity(0, {min(cores)})
    try:
        dataset = make_training_dataset(
            config,
            tokenizer.vocabulary(_NUM_UNITS),
            num_workers=num_workers,
            prefetch=2 if num_workers else 0,
        )
        iterator = iter(dataset)
        # The first batches come out only after the windows of open rows have been filled once.
        for _ in range(5):
            next(iterator)
        patches = tokens = 0
        start, cpu_start = time.perf_counter(), time.process_time()
        for _ in range(_STEPS.value):
            batch = next(iterator)
            tokens += int((batch.document_ids > 0).sum())
            patches += _count_patches(batch)
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        iterator.close()
    finally:
        os.sched_setaffinity(0, cores)
    rows = _STEPS.value * config.batch_size
    return {
        "strategy": config.patching.strategy,
        "num_workers": num_workers,
        "tokens_per_second": round(tokens / seconds),
        # Without workers, what the core would do if nothing else ran on it.
        "tokens_per_cpu_second": None if num_workers else round(tokens / cpu_seconds),
        "patch_slots_real": round(patches / (rows * config.patches_per_row), 4),
        "token_slots_real": round(tokens / (rows * config.tokens_per_row), 4),
        "tokens_per_patch": round(tokens / patches, 4),
    }


def _count_patches(batch: Batch) -> int:
    patch_ids = batch.patch_ids
    return int((np.where(patch_ids < batch.num_patches, patch_ids, -1).max(axis=1) + 1).sum())


def _write_sources(directory: pathlib.Path) -> tuple[TextTokenizer, tuple[SourceConfig, ...]]:
    tokenizer = _make_tokenizer(directory)
    rng = np.random.default_rng(0)
    write_records(directory / "speech", "speech", _utterances(rng, tokenizer.size), tokenizer)
    write_records(directory / "text", "text", _documents(rng, tokenizer.size), tokenizer)
    return tokenizer, tuple(
        SourceConfig(str(directory / kind), kind) for kind in ("speech", "text")
    )


def _make_tokenizer(directory: pathlib.Path) -> TextTokenizer:
    """Makes some SentencePiece model; the pieces of the records are random, so any will do."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a small model of a few pieces"] * 10),
        model_prefix=str(directory / "pieces"),
        vocab_size=24,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return TextTokenizer(directory / "pieces.model")


def _utterances(rng: np.random.Generator, text_size: int) -> Iterator[Utterance]:
    for number in range(_DOCUMENTS.value):
        num_words = int(rng.integers(_WORDS[0], _WORDS[1] + 1))
        piece_counts = np.zeros(2 * num_words + 1, np.int32)
        piece_counts[1::2] = 1 + rng.poisson(_PIECES_PER_WORD - 1, num_words)
        unit_counts = rng.geometric(1 / _MEAN_SILENCE_UNITS, 2 * num_words + 1).astype(np.int32)
        unit_counts[1::2] = 1 + rng.poisson(_MEAN_WORD_UNITS - 1, num_words)
        yield Utterance(
            f"utterance-{number}",
            (SILENCE, *(["word", SILENCE] * num_words)),
            rng.integers(3, text_size, piece_counts.sum(), np.int32),
            piece_counts,
            rng.integers(0, _NUM_UNITS, unit_counts.sum(), np.int32),
            unit_counts,
        )


def _documents(rng: np.random.Generator, text_size: int) -> Iterator[TextDocument]:
    for number in range(_DOCUMENTS.value):
        length = int(np.clip(rng.lognormal(np.log(_TEXT_MEDIAN), _TEXT_SIGMA), *_TEXT_TOKENS))
        pieces = rng.integers(3, text_size, length, np.int32)
        yield TextDocument(f"text-{number}", pieces, round(length / _PIECES_PER_WORD))


def _print_table(results: Sequence[dict[str, Any]]) -> None:
    names = ("strategy", "workers", "tokens/s", "tokens/CPU s", "patches", "tokens")
    print("".join(f"{name:>14}" for name in names))
    for result in results:
        per_cpu = result["tokens_per_cpu_second"]
        print(
            f"{result['strategy']:>14}{result['num_workers']:>14}"
            f"{result['tokens_per_second']:>14,}{'' if per_cpu is None else f'{per_cpu:,}':>14}"
            f"{result['patch_slots_real']:>14.1%}{result['token_slots_real']:>14.1%}"
        )


if __name__ == "__main__":
    app.run(main)
