"""Measures time and peak memory of the model's four attentions against the tokens of a row.

  python -m experiments.benchmarks.attention \
      --output=experiments/benchmarks/results/attention.json

Rows of N tokens hold documents of the training data's kinds and lengths, and `lst_key_ranges` makes
the four key ranges of them: token self-attention, encoder cross-attention, the global transformer's
attention and decoder cross-attention. In `packed` rows the documents are apart, in `one` rows they
are taken for a single document, the most that a row can cost. Memory is what the compiled function
takes besides its arguments and outputs, as XLA plans it. Times are the median of `--repeats` runs
after a first one, or of as many as fit in ten seconds; the backends of one case are measured one
after another in the same process.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments.benchmarks.attention_timing import (
    AttentionCase,
    attend_with,
    attention_cases,
    time_attention,
)
from experiments.common.cli import check_no_arguments, run_main
from experiments.common.machine import command_line, device_name, versions
from experiments.common.paths import define_path
from lst_jax.config import LSTConfig
from lst_jax.files import write_json
from lst_jax.model.attention import best_backend
from lst_jax.vocabulary import Vocabulary

_LENGTHS = flags.DEFINE_list("lengths", ["1536", "3072", "6144", "12288"], "Tokens N of a row.")
_BACKENDS = flags.DEFINE_list(
    "backends", None, "Backends to measure; by default dense, blocked and the device's own."
)
_DOCUMENTS = flags.DEFINE_list("documents", ["packed", "one"], "Kinds of rows: packed, one.")
_WINDOW = flags.DEFINE_integer("window", 512, "Window of the three local attentions.", 1)
_ROWS = flags.DEFINE_integer("rows", 1, "Rows of a batch.", 1)
_HEADS = flags.DEFINE_integer("heads", 1, "Heads of every attention.", 1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Type of the arrays.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Runs of which the median counts.", 1)
_OUTPUT = define_path("output", "JSON file to write the results to.")

_VOCABULARY = Vocabulary(text_size=32_000)
_LATENT_VECTORS = 2
_WIDTHS = {"token self": 64, "encoder cross": 64, "global": 128, "decoder cross": 64}
# Patch slots for a row's tokens: 4096 for 5632, as the 1b model is trained.
_TOKENS_PER_PATCH = 1.375


def main(argv: list[str]) -> None:
    """Measures every case on the default device and reports."""
    check_no_arguments(argv)
    lengths = _parse_lengths(_LENGTHS.value)
    load = os.getloadavg()[0]
    results = []
    print(f"{'row':>8}{'attention':>15}{'N':>8}{'backend':>12}", end="")
    print(f"{'forward':>13}{'and backward':>14}{'memory':>12}{'and backward':>14}")
    for documents in _DOCUMENTS.value:
        for length in lengths:
            for case in _cases(documents, length):
                results += _measure_case(documents, length, case)
    report = {
        "command": command_line("attention"),
        "device": device_name(),
        "cores": os.cpu_count(),
        "load_average_before": round(load, 2),
        "versions": versions("jax", "jaxlib"),
        "shape": {
            "rows": _ROWS.value,
            "heads": _HEADS.value,
            "head_widths": _WIDTHS,
            "window": _WINDOW.value,
            "latent_vectors_per_patch": _LATENT_VECTORS,
            "dtype": _DTYPE.value,
        },
        "results": results,
        "blocked_against_dense": _speedups(results),
    }
    _print_speedups(report["blocked_against_dense"])
    if _OUTPUT.value:
        write_json(_OUTPUT.value, report)
    else:
        print(json.dumps(report, indent=1))


def _parse_lengths(texts: Sequence[str]) -> list[int]:
    if not texts or not all(text.isdecimal() and int(text) for text in texts):
        raise ValueError(f"lengths is {','.join(texts)!r}, expected positive integers")
    return [int(text) for text in texts]


def _device_backends() -> list[str]:
    """Returns the backends that any device has, and its platform's best."""
    return list(dict.fromkeys(["dense", "blocked", best_backend(jax.default_backend())]))


def _cases(documents: str, length: int) -> list[AttentionCase]:
    """Returns the four attentions over one batch."""
    if documents not in ("packed", "one"):
        raise ValueError(f"documents is {documents!r}, expected packed or one")
    return attention_cases(
        _make_config(),
        _VOCABULARY,
        round(length / _TOKENS_PER_PATCH),
        length,
        _ROWS.value,
        one_document=documents == "one",
    )


def _make_config() -> LSTConfig:
    window, heads = _WINDOW.value, _HEADS.value
    return LSTConfig(
        vocab_size=_VOCABULARY.size,
        dim_local=heads * _WIDTHS["token self"],
        dim_global=heads * _WIDTHS["global"],
        num_layers_encoder=1,
        num_layers_global=1,
        num_layers_decoder=1,
        num_heads_local=heads,
        num_heads_global=heads,
        latent_vectors_per_patch=_LATENT_VECTORS,
        local_window=window,
        encoder_cross_window=window,
        decoder_cross_window=window,
    )


def _measure_case(documents: str, length: int, case: AttentionCase) -> list[dict[str, Any]]:
    results = []
    for name in _BACKENDS.value or _device_backends():
        times = time_attention(attend_with(name), case, _DTYPE.value, _REPEATS.value)
        results.append(
            {
                "documents": documents,
                "attention": case.name,
                "tokens": length,
                "queries": case.query_shape[1],
                "keys": case.key_shape[1],
                "pairs": case.pairs,
                "backend": name,
                "forward_ms": round(1e3 * times.forward_s, 2),
                "forward_backward_ms": round(1e3 * times.both_s, 2),
                "forward_temp_mib": round(times.forward_bytes / 2**20, 3),
                "forward_backward_temp_mib": round(times.both_bytes / 2**20, 3),
            }
        )
        print(
            f"{documents:>8}{case.name:>15}{length:>8}{name:>12}"
            f"{1e3 * times.forward_s:>10.1f} ms{1e3 * times.both_s:>11.1f} ms"
            f"{times.forward_bytes / 2**20:>8.1f} MiB{times.both_bytes / 2**20:>10.1f} MiB",
            flush=True,
        )
    return results


def _speedups(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns, at the largest N, dense over blocked time, and how blocked memory grew with N."""
    by_case: dict[tuple[str, str, int, str], dict[str, Any]] = {
        (r["documents"], r["attention"], r["tokens"], r["backend"]): r for r in results
    }
    shortest, longest = (pick(int(n) for n in _LENGTHS.value) for pick in (min, max))
    rows = []
    for documents, attention, tokens, backend in by_case:
        dense = by_case.get((documents, attention, longest, "dense"))
        if backend != "blocked" or tokens != longest or dense is None:
            continue
        blocked = by_case[documents, attention, longest, "blocked"]
        first = by_case[documents, attention, shortest, "blocked"]
        rows.append(
            {
                "documents": documents,
                "attention": attention,
                "tokens": longest,
                "forward": round(dense["forward_ms"] / blocked["forward_ms"], 1),
                "forward_backward": round(
                    dense["forward_backward_ms"] / blocked["forward_backward_ms"], 1
                ),
                "tokens_growth": round(longest / shortest, 2),
                "blocked_memory_growth": round(
                    blocked["forward_backward_temp_mib"] / first["forward_backward_temp_mib"], 2
                ),
            }
        )
    return rows


def _print_speedups(rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        print(
            f"{row['documents']}, {row['attention']}, N = {row['tokens']}: blocked is "
            f"{row['forward']} times as fast as dense, {row['forward_backward']} with the backward "
            f"pass; {row['tokens_growth']} times the tokens take {row['blocked_memory_growth']} "
            f"times the memory"
        )


if __name__ == "__main__":
    run_main(main)
