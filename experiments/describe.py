"""Shows what a configuration means, without computing anything.

    python -m experiments.describe --gin_file=experiments/configs/models/7b.gin \\
        --mesh=data=1,fsdp=256,tensor=1

The settings in force, after `experiments/configs/runs/pretrain.gin`; the batch; every module with
its inputs and outputs for one row, parameters, FLOPs and shardings; and the memory of a device.
Neither data nor devices are needed, seconds on a laptop are enough for the largest model. FLOPs are
the model's for typical documents (`experiments/aot/attention_estimates.py`); what is an estimate
says so. `--json` prints all of it for programs.
"""

from __future__ import annotations

import json
import sys

import jax
from absl import flags

from experiments.common import cli, gin_config
from experiments.common.gin_steps import mesh_in_force, read_config
from experiments.common.mesh_text import parse_mesh
from experiments.inspection.overview import abstract_mesh, describe, format_description

gin_config.define_flags()
_MESH = flags.DEFINE_string("mesh", None, "Mesh axes, as fsdp=256; by default the Gin files'.")
_DEVICES = flags.DEFINE_integer(
    "devices", None, "Devices that a mesh axis of -1 fills; by default one.", lower_bound=1
)
_TEXT_SIZE = flags.DEFINE_integer(
    "text_size", 32000, "Pieces of the text tokenizer.", lower_bound=3
)
_DEPTH = flags.DEFINE_integer("depth", None, "Levels of modules to show.", lower_bound=0)
_JSON = flags.DEFINE_bool("json", False, "Print JSON.")


def main(argv: list[str]) -> None:
    """Describes what the flags name."""
    cli.check_no_arguments(argv)
    jax.config.update("jax_platforms", "cpu")
    config = read_config(flags.FLAGS.gin_file, flags.FLAGS.gin_binding, _TEXT_SIZE.value)
    mesh_config = mesh_in_force() if _MESH.value is None else parse_mesh(_MESH.value)
    description = describe(config, abstract_mesh(mesh_config, _DEVICES.value))
    if _JSON.value:
        print(json.dumps(description, indent=1))
    else:
        print(format_description(description, _DEPTH.value))


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
