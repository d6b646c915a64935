r"""Measures generation of speech: the LST against its baseline, cached against recomputed.

    python -m experiments.benchmarks.decode --gin_file=experiments/configs/models/420m.gin \
        --gin.DTYPE=float32 --output=experiments/benchmarks/results/decode.json

Both models have random parameters and the same global transformer. Prompts are random units,
continuations are drawn and go on to their full length (eos is not drawn before). For every batch
size and length of the prompt, after a first call that compiles:

* time to the first unit: reading the prompts, and one unit;
* units per second of the whole batch: the units after the first, over the time they take;
* steps of the global transformer per unit;
* bytes of the caches, and of the parameters.

Recomputing is what a model without caches does: the full forward pass over prompt and half of the
continuation for every unit. One pass is timed, at the last batch size and the first prompt length.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments.benchmarks.decode_timing import (
    make_subject,
    measure_decoding,
    measure_recomputing,
)
from experiments.common import cli, gin_config
from experiments.common.gin_steps import read_config
from experiments.common.machine import command_line, device_name, versions
from experiments.common.paths import define_path
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.evaluation.tables import format_rows
from lst_jax.files import write_json
from lst_jax.patching import PatchingConfig

_HEADER = ("model", "rows", "prompt", "first unit", "units/s", "global steps a unit", "cache")


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_list("batch_rows", ["1", "8"], "Batch sizes.")
    flags.DEFINE_list("prompt_seconds", ["30", "7.5", "60"], "Lengths of the prompts.")
    flags.DEFINE_float("seconds", 30.0, "Length of the continuations.", 0.08)
    define_path("output", "JSON file to write the results to.")


def main(argv: Sequence[str]) -> None:
    """Measures as the flags say."""
    cli.check_no_arguments(list(argv))
    values = flags.FLAGS
    config = read_config(values.gin_file, values.gin_binding)
    if not isinstance(config.model, LSTConfig):
        raise ValueError(f"Experiment.model is {type(config.model).__name__}, expected LSTConfig")
    batches = [int(rows) for rows in values.batch_rows]
    prompts = [float(seconds) for seconds in values.prompt_seconds]
    static = dataclasses.replace(config.patching, strategy="static")
    results: list[dict[str, Any]] = []
    recomputed = {}
    table: list[list[str]] = [list(_HEADER)]
    for name, model, patching in (
        ("LST", config.model, static),
        ("baseline", baseline_of(config.model), PatchingConfig("none")),
    ):
        subject = make_subject(name, model, config.vocabulary, patching)
        for rows in batches:
            for seconds in prompts:
                result = measure_decoding(subject, rows, seconds, values.seconds)
                results.append(result)
                table.append(_row(result))
                print("  ".join(table[-1]), file=sys.stderr, flush=True)
        recomputed[name] = measure_recomputing(subject, batches[-1], prompts[0], values.seconds)
        print(f"{name} recomputed: {recomputed[name]:.1f} s a unit", file=sys.stderr, flush=True)
    ratios = _ratios(results, recomputed, batches[-1], prompts[0])
    print(format_rows(table, 1))
    print("\n".join(f"{name}: {value:.2f}" for name, value in ratios.items()))
    if values.output:
        write_json(
            values.output,
            {
                "command": command_line("decode"),
                "device": device_name(),
                "versions": versions("jax", "jaxlib", "flax"),
                "model": dataclasses.asdict(config.model),
                "results": results,
                "recomputed_seconds_per_unit": recomputed,
                "ratios": ratios,
            },
        )


def _ratios(
    results: Sequence[dict[str, Any]], recomputed: dict[str, float], rows: int, prompt_s: float
) -> dict[str, float]:
    """Returns the figures that the goals are about, at one batch size and prompt."""
    lst, baseline = (
        next(
            result
            for result in results
            if (result["model"], result["rows"], result["prompt_seconds"]) == (name, rows, prompt_s)
        )
        for name in ("LST", "baseline")
    )
    return {
        "units per second, LST / baseline": lst["units_per_second"] / baseline["units_per_second"],
        "global steps, LST / baseline": lst["global_steps_per_unit"]
        / baseline["global_steps_per_unit"],
        "LST, cached / recomputed": lst["units_per_second"] * recomputed["LST"] / rows,
        "baseline, cached / recomputed": baseline["units_per_second"]
        * recomputed["baseline"]
        / rows,
    }


def _row(result: dict[str, Any]) -> list[str]:
    return [
        result["model"],
        str(result["rows"]),
        f"{result['prompt_seconds']:g} s",
        f"{result['first_unit_seconds']:.2f} s",
        f"{result['units_per_second']:.1f}",
        f"{result['global_steps_per_unit']:.2f}",
        f"{result['cache_bytes'] / 2**20:.0f} MiB",
    ]


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
