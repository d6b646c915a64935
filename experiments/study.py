r"""Plans, runs and reports studies: many training runs that answer one question.

    python -m experiments.study plan --gin_file=experiments/configs/studies/pilot.gin \
        --gin.CORPUS=runs/demo/corpus --workdir=runs/pilot

| verb     | what it does                                                               |
|----------|----------------------------------------------------------------------------|
| `plan`   | prints what every cell costs, and what difference the study can see         |
| `run`    | trains and evaluates the cells that nobody has yet; then as `report`        |
| `status` | says which cells are scored, failed, missing, or in whose hands             |
| `report` | writes `report.html`, `results.json`, `results.csv` and `figures/`          |
| `fit`    | fits loss and accuracy of each arm against size, data and FLOPs            |
| `predict`| says what a run of `--size` parameters and `--flops` FLOPs would reach     |

Any number of workers may run one study in one workdir, on one machine or on several that see it.
What is stopped or killed goes on when the same command is given again. `docs/studies.md` has all.
"""

from __future__ import annotations

import pathlib
import sys

import jax
from absl import flags

from experiments.common import cli, gin_config
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from experiments.studies import commands
from lst_jax.settings import quote

VERBS = ("plan", "run", "status", "report", "fit", "predict")


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    define_path("workdir", "Directory of the study.", required=True)
    flags.DEFINE_string("cells", None, "I/N: of every N cells the I-th, 1 … N.")
    flags.DEFINE_multi_string("cell", [], "Name of a cell; may be given several times.")
    flags.DEFINE_integer("threads", None, "Cores that a cell is kept to.", lower_bound=1)
    flags.DEFINE_string(
        "device", None, "Number of the accelerator that a cell is kept to; several by commas."
    )
    flags.DEFINE_float("max_hours", None, "Refuse to run what takes longer.", lower_bound=0)
    flags.DEFINE_bool("measure", True, "Measure a step of each arm, for the hours.")
    define_path("pilot", "results.json of a pilot study, whose spread is the study's.")
    flags.DEFINE_string("topology", None, "Chips to plan for in place of this machine: v5p:2x2x1.")
    flags.DEFINE_string("mesh", "", "Mesh axes on these chips, e.g. fsdp=4.")
    flags.DEFINE_float("size", None, "Parameters of the model to predict.", lower_bound=1)
    flags.DEFINE_float("flops", None, "Training FLOPs of the run to predict.", lower_bound=1)


def main(argv: list[str]) -> None:
    """Does what the verb says."""
    if len(argv) < 2 or argv[1] not in VERBS:
        given = quote(argv[1]) if len(argv) > 1 else "missing"
        raise ValueError(f"the verb is {given}, expected one of {', '.join(VERBS)}")
    cli.check_no_arguments(argv[1:])
    # Cells have the accelerators; what this process computes is small.
    jax.config.update("jax_platforms", "cpu")
    values = flags.FLAGS
    workdir = pathlib.Path(values.workdir)
    check_writable(workdir)
    study = commands.StudyCommands(
        values.gin_file,
        values.gin_binding,
        workdir,
        commands.StudyOptions(
            share=values.cells,
            names=tuple(values.cell),
            threads=values.threads,
            device=values.device,
            max_hours=values.max_hours,
            measure=values.measure,
            pilot=values.pilot,
            topology=values.topology,
            mesh=values.mesh,
            size=values.size,
            flops=values.flops,
        ),
    )
    sys.exit(int(getattr(study, argv[1])()))


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
