"""Trains two commits, meshes or sets of options from one seed and says where their losses part.

    python -m experiments.compare_losses HEAD~3 . --steps=20
    python -m experiments.compare_losses . . --mesh_b=data=2,fsdp=2
    python -m experiments.compare_losses . . --gin_b=REMAT=full
    python -m experiments.compare_losses . tests/testdata/golden_losses.json

A side is a commit in Git's words, `.` for the files as they are, or a file of recorded losses,
which brings its settings for the other side. Without `--gin_file` the tiny model trains on a few
documents. Sides run one after the other, on the CPU unless `JAX_PLATFORMS` says otherwise, with
XLA's flags fixed (experiments/inspection/loss_runs.py).

The exit code is 0 where losses and gradient norms are equal bit for bit (or within `--tolerance`),
4 where they are not, 2 where a side cannot run. `--record=FILE` puts the losses of the first side
into the file, for the versions in use.
"""

from __future__ import annotations

import sys

from absl import flags

from experiments.common import cli, gin_config
from experiments.common.paths import define_path
from experiments.inspection import loss_gate

_STEPS = flags.DEFINE_integer("steps", None, "Steps that each side trains; 20.", lower_bound=1)
_TOLERANCE = flags.DEFINE_float(
    "tolerance", 0.0, "Largest relative difference that counts as equal.", lower_bound=0
)
_JSON = flags.DEFINE_bool("json", False, "Print the result as JSON.")
_RECORD = define_path("record", "File that gets the losses of the only side.")
_GIN_A = flags.DEFINE_multi_string("gin_a", [], "NAME=VALUE of side A alone.")
_GIN_B = flags.DEFINE_multi_string("gin_b", [], "NAME=VALUE of side B alone.")
_MESH_A = flags.DEFINE_string("mesh_a", None, "Mesh of side A, as data=2,fsdp=2,tensor=1.")
_MESH_B = flags.DEFINE_string("mesh_b", None, "Mesh of side B.")
gin_config.define_flags()


def main(argv: list[str]) -> None:
    """Compares as the flags say."""
    options = loss_gate.GateOptions(
        steps=_STEPS.value,
        files=flags.FLAGS.gin_file,
        bindings=flags.FLAGS.gin_binding,
        own_bindings=(_GIN_A.value, _GIN_B.value),
        meshes=(_MESH_A.value, _MESH_B.value),
        tolerance=_TOLERANCE.value,
        json=_JSON.value,
        record=_RECORD.value,
    )
    if not loss_gate.run(argv[1:], options):
        sys.exit(int(cli.ExitCode.DIFFERENT))


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
