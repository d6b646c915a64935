r"""What our conventions cost or gain against the published model's, on the built-in corpus.

    python -m experiments.benchmarks.conventions --workdir=runs/conventions \
        --output=experiments/benchmarks/results/conventions.json

trains the tiny LST of the demo with our settings, and again with each of the published model's in
turn, for several seeds of the parameters. Every run sees the same batches, so the losses of their
last steps compare. What a workdir holds is not done again.
"""

from __future__ import annotations

import math
import pathlib
import statistics
import sys
from typing import Any

from absl import app, flags

from data_pipelines.microworld.build import MicroworldConfig, MicroworldPaths, build_corpus
from experiments.common import cli, gin_config
from experiments.common.experiment import run_experiment
from experiments.common.machine import cpu_model
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.training.metrics import read_records

_WORKDIR = define_path("workdir", "Directory of the corpus and runs.", required=True)
_OUTPUT = define_path("output", "JSON file to write the results to.")
_STEPS = flags.DEFINE_integer("steps", 300, "Steps of each run.", lower_bound=3)
_SEEDS = flags.DEFINE_integer("seeds", 3, "Seeds of the parameters.", lower_bound=2)

_FILES = (
    "experiments/configs/models/tiny.gin",
    "experiments/configs/data/speech_text.gin",
    "experiments/configs/runs/demo.gin",
)
_VARIANTS = {
    "ours": (),
    "residual added twice": ("CROSS_RESIDUAL=double",),
    "cross-attention across documents": ("DOCUMENT_CROSS_MASKING=False",),
    "patches visible one token early": ("VISIBILITY=reference",),
}
# The losses are means over the last third, where the curriculum has ended.
_RECORDS = 3


def main(argv: list[str]) -> None:
    """Trains and compares."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    workdir = pathlib.Path(_WORKDIR.value)
    corpus = build_corpus(MicroworldConfig(test_items=1), workdir / "corpus")
    losses = {
        name: [_train(workdir, corpus, name, bindings, seed) for seed in range(_SEEDS.value)]
        for name, bindings in _VARIANTS.items()
    }
    results = [_compare(name, runs, losses["ours"]) for name, runs in losses.items()]
    print(f"{'':<36}{'text':>18}{'speech':>18}{'text − ours':>20}{'speech − ours':>20}")
    for row in results:
        cells = [f"{row[key][0]:.3f} ± {row[key][1]:.3f}" for key in ("text", "speech")]
        gaps = [f"{row[key][0]:+.3f} ± {row[key][1]:.3f}" for key in ("text_gap", "speech_gap")]
        print(f"{row['variant']:<36}{cells[0]:>18}{cells[1]:>18}{gaps[0]:>20}{gaps[1]:>20}")
    if _OUTPUT.value:
        write_json(
            _OUTPUT.value,
            {
                "command": "python -m experiments.benchmarks.conventions "
                + " ".join(arg for arg in sys.argv[1:] if "workdir" not in arg),
                "cpu": cpu_model(),
                "steps": _STEPS.value,
                "unit": "nats a target, mean over the last third of the steps; [mean, standard"
                " error] over the seeds, of the gaps to ours over pairs of runs with the same seed",
                "results": results,
                "runs": losses,
            },
        )


def _train(
    workdir: pathlib.Path,
    corpus: MicroworldPaths,
    name: str,
    bindings: tuple[str, ...],
    seed: int,
) -> dict[str, float]:
    """Returns the losses of text and speech at the end of a run."""
    run = workdir / f"{name.replace(' ', '_')}_{seed}"
    settings = [
        f"TOKENIZER={corpus.tokenizer.absolute()}",
        f"SPEECH_RECORDS={corpus.speech_records.absolute()}",
        f"TEXT_RECORDS={corpus.text_records.absolute()}",
        f"NUM_STEPS={_STEPS.value}",
        f"LOG_EVERY={math.ceil(_STEPS.value / 3 / _RECORDS)}",
        f"CHECKPOINT_EVERY={_STEPS.value}",
        f"SEED={seed}",
        *bindings,
    ]
    gin_config.parse(_FILES, settings)
    if not run_experiment(gin_config.build_experiment(), run).finished:
        print("stopped; the same command continues", file=sys.stderr)
        sys.exit(int(cli.ExitCode.STOPPED))
    records = read_records(run)[-_RECORDS:]
    return {
        kind: statistics.fmean(x for record in records if (x := record[f"loss_{kind}"]) is not None)
        for kind in ("text", "speech")
    }


def _compare(
    name: str, runs: list[dict[str, float]], ours: list[dict[str, float]]
) -> dict[str, Any]:
    """Returns means and standard errors of a variant's losses, and of their differences to ours."""
    row: dict[str, Any] = {"variant": name}
    for kind in ("text", "speech"):
        row[kind] = _mean_and_error([run[kind] for run in runs])
        gaps = [run[kind] - own[kind] for run, own in zip(runs, ours, strict=True)]
        row[f"{kind}_gap"] = _mean_and_error(gaps)
    return row


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values))
    return round(statistics.fmean(values), 4), round(error, 4)


if __name__ == "__main__":
    app.run(main)
