"""Compiles the training step for TPU slices that are not there, and prints what it takes.

    python -m experiments.aot_compile --gin_file=experiments/configs/models/1b.gin \\
        --topology=v5p:8x8x4 --mesh=data=1,fsdp=256,tensor=1 --gin.REMAT=dots

Any machine will do: the package `libtpu` compiles without a TPU. The step is the function that the
trainer runs, at the shapes of `experiments/configs/runs/pretrain.gin` and the Gin files given after
it; no data is read. The batch has the run's rows, or as many more as the mesh needs to divide them;
`--rows_per_device` fixes them instead. `--slices=2` compiles for two slices joined by the data
center's network, along data or, where that has too few parts, along fsdp.

The table says how each figure was made, and of each collective whether the compiler's schedule runs
it beside products (`experiments/aot/hlo_schedule.py`). `--xla_option=NAME=VALUE`, as often as
needed, is what `LIBTPU_INIT_ARGS=--NAME=VALUE` would be for a run. Attention's work depends on the
documents of a batch, which is taken to be a typical one (`experiments/aot/attention_estimates.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence

import jax
from absl import flags

from experiments.aot.compile import compile_step
from experiments.aot.report_lines import format_table
from experiments.common import cli, gin_config
from experiments.common.gin_steps import read_config
from experiments.common.mesh_text import parse_mesh
from experiments.common.outputs import check_output
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.model.attention import BACKENDS
from lst_jax.settings import quote


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_string("topology", None, "Chip and shape, e.g. v5p:8x8x4.", required=True)
    flags.DEFINE_string("mesh", "", "Mesh axes, e.g. data=1,fsdp=256,tensor=1.")
    flags.DEFINE_integer("slices", 1, "Slices of that shape.", lower_bound=1)
    flags.DEFINE_integer("rows_per_device", None, "Rows of each device.", 1, 2**20)
    flags.DEFINE_multi_string("xla_option", [], "Option of XLA's, NAME=VALUE.")
    flags.DEFINE_integer("text_size", 32000, "Pieces of the text tokenizer.", 3, 2**21)
    flags.DEFINE_enum("attention", "auto", BACKENDS, "Attention backend.")
    define_path("output", "JSON file to write the report to.")


def parse_options(texts: Sequence[str]) -> dict[str, str]:
    """Returns options of XLA from texts NAME=VALUE.

    Raises:
      ValueError: a text has another form.
    """
    for text in texts:
        if not re.fullmatch(r"xla_\w+=[^=\s]+", text):
            raise ValueError(f"xla_option is {quote(text)}, expected xla_NAME=VALUE")
    return dict(text.split("=", 1) for text in texts)


def main(argv: Sequence[str]) -> None:
    """Compiles and reports."""
    cli.check_no_arguments(list(argv))
    jax.config.update("jax_platforms", "cpu")  # of what is computed here, beside the compilation
    values = flags.FLAGS
    check_output(values.output)
    mesh = parse_mesh(values.mesh)
    config = read_config(values.gin_file, values.gin_binding, values.text_size, values.attention)
    report = compile_step(
        config,
        values.topology,
        mesh,
        values.slices,
        values.rows_per_device,
        parse_options(values.xla_option),
    )
    print(format_table(report))
    print(json.dumps(report, indent=1))
    if values.output:
        write_json(values.output, report)


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
