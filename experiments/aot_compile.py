"""Compiles the training step for TPU slices that are not there, and prints what it takes.

    python -m experiments.aot_compile --gin_file=experiments/configs/models/1b.gin \\
        --topology=v5p:8x8x4 --mesh=data=1,fsdp=256,tensor=1 --gin.REMAT=dots

Any machine will do: the package `libtpu` compiles without a TPU. The step is the function that the
trainer runs, at the shapes of `experiments/configs/runs/pretrain.gin` and the Gin files given after
it; no data is read. The batch has the run's rows, or as many more as the mesh needs to divide them;
`--rows_per_device` fixes them instead. `--slices=2` compiles for two slices joined by the data
center's network, along data or, where that has too few parts, along fsdp.

The table says how each figure was made. Attention's work depends on the documents of a batch, which
is taken to be a typical one (`experiments/aot/attention_estimates.py`).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from typing import Any

import gin
import jax
from absl import flags

from data_pipelines.training.dataset import DataConfig, SourceConfig
from experiments.aot.compile import compile_step
from experiments.common import cli, gin_config
from experiments.common.outputs import write_json
from experiments.common.step_config import StepConfig
from lst_jax.model.attention import BACKENDS
from lst_jax.sharding import MESH_AXES, MeshConfig
from lst_jax.vocabulary import Vocabulary

_PRETRAIN = "experiments/configs/runs/pretrain.gin"
_ATTENTION = "auto"
_SIZE = re.compile(r"-?[0-9]+")  # -1 for what is left


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_string("topology", None, "Chip and shape, e.g. v5p:8x8x4.", required=True)
    flags.DEFINE_string("mesh", "", "Mesh axes, e.g. data=1,fsdp=256,tensor=1.")
    flags.DEFINE_integer("slices", 1, "Slices of that shape.", lower_bound=1)
    flags.DEFINE_integer("rows_per_device", None, "Rows of each device.", lower_bound=1)
    flags.DEFINE_integer("text_size", 32000, "Pieces of the text tokenizer.", lower_bound=3)
    flags.DEFINE_enum("attention", _ATTENTION, BACKENDS, "Attention backend.")
    flags.DEFINE_string("output", None, "JSON file to write the report to.")


def main(argv: Sequence[str]) -> None:
    """Compiles and reports."""
    cli.check_no_arguments(list(argv))
    jax.config.update("jax_platforms", "cpu")  # of what is computed here, beside the compilation
    values = flags.FLAGS
    mesh = parse_mesh(values.mesh)
    config = read_config(values.gin_file, values.gin_binding, values.text_size, values.attention)
    report = compile_step(config, values.topology, mesh, values.slices, values.rows_per_device)
    print(format_table(report))
    print(json.dumps(report, indent=1))
    if values.output:
        write_json(values.output, report)


def read_config(
    files: Sequence[str],
    bindings: Sequence[str],
    text_size: int = 32000,
    attention: str = _ATTENTION,
) -> StepConfig:
    """The step that Gin files describe, after those of the paper's run.

    Args:
      files: a model file, and what should differ from `runs/pretrain.gin`.
      bindings: `NAME=VALUE` each.
      text_size: pieces of the text tokenizer; Llama 2 has 32,000.
      attention: backend, in place of the one that the files name.

    Raises:
      OSError, ValueError: see `gin_config.parse`; or no file gives a model.
    """
    gin_config.parse([_PRETRAIN, *files], [*bindings])
    try:
        gin.query_parameter("train.model")
    except ValueError:
        raise ValueError("train.model is not set, expected a model file (--gin_file)") from None
    data = gin.get_configurable(DataConfig)(sources=(SourceConfig("none", "text"),))
    experiment = gin.get_configurable("train")(tokenizer="none", data=data)
    vocabulary = Vocabulary(text_size, unit_count=experiment.unit_count)
    return StepConfig(
        model=experiment.model(vocab_size=vocabulary.size, attention=attention),
        vocabulary=vocabulary,
        optimizer=experiment.optimizer,
        training=experiment.training,
        patching=data.patching,
        num_patches=data.patches_per_row,
        num_tokens=data.tokens_per_row,
        num_rows=data.batch_size,
    )


def parse_mesh(text: str) -> MeshConfig:
    """`data=1,fsdp=256,tensor=1`; axes that are not named have their default size.

    Raises:
      ValueError: it is not of that form.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition("=")
        if name not in MESH_AXES or name in sizes or not _SIZE.fullmatch(size):
            axes = ",".join(f"{axis}=SIZE" for axis in MESH_AXES)
            raise ValueError(f"mesh is {text!r}, expected {axes}")
        sizes[name] = int(size)
    return MeshConfig(**sizes)


def format_table(report: dict[str, Any]) -> str:
    """The report as lines of quantity, value and how the value was made."""
    lines = [_header(report), *_memory_lines(report)]
    if report["fits"] and "work" in report:
        lines += [*_work_lines(report), *_roofline_lines(report)]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}}  {how}".rstrip() for name, value, how in lines
    )


_Line = tuple[str, str, str]


def _header(report: dict[str, Any]) -> _Line:
    setup = report["setup"]
    mesh = " ".join(f"{axis}={size}" for axis, size in setup["mesh"].items())
    slices = f"{setup['slices']} × " if setup["slices"] > 1 else ""
    what = f"{setup['rows']} rows of {setup['patches_per_row']} patches, remat "
    return f"{slices}{setup['topology']}", mesh, what + setup["model"]["remat"]


def _memory_lines(report: dict[str, Any]) -> list[_Line]:
    memory = report["memory"]
    peak = ("peak", _gib(memory["peak"]), f"of {_gib(memory['hbm'])} of HBM")
    if "limit" in memory:  # the compiler gave up at the first figure that is too large
        how = f"at least; the compiler has {_gib(memory['limit'])} of {_gib(memory['hbm'])} of HBM"
        peak = (*peak[:2], how)
    if "exceeded_by" in memory:
        remedy = report.get("remedy")
        advice = f"it fits with remat {remedy}" if remedy else "no remat policy makes it fit"
        excess = _gib(memory["exceeded_by"])
        return [peak, ("does not fit", excess, f"too much; {advice}")]
    made = "memory_analysis(), a device"
    lines = [(name, _gib(memory[name]), made) for name in ("arguments", "outputs", "temporaries")]
    sum_of = "; arguments + outputs - aliased + temporaries + code"
    return [*lines, (*peak[:2], peak[2] + sum_of)]


def _work_lines(report: dict[str, Any]) -> list[_Line]:
    work = report["work"]
    share = work["flops"] / work["model_flops"]
    lines = [
        ("model FLOPs", _tera(work["model_flops"]), "analytic, real tokens, a device"),
        ("FLOPs", _tera(work["flops"]), f"HLO, loops by their turns; {share:.3f} of the model's"),
        ("in kernels", _tera(work["kernel_flops"]), "blocks visited in a typical batch"),
        (
            "HBM traffic",
            _giga(work["memory_bytes"]),
            "operands and results of the HLO's instructions",
        ),
    ]
    lines += [
        (kind, _giga(sent), "HLO, sent by a device in a ring")
        for kind, sent in work["collective_bytes"].items()
    ]
    lines += [("not counted", "", name) for name in work["not_counted"]]
    return lines


def _roofline_lines(report: dict[str, Any]) -> list[_Line]:
    roofline = report["roofline"]
    lines = [
        (f"time of {name}", f"{1e3 * seconds:.1f} ms", f"at the {roofline['chip']['name']}'s rate")
        for name, seconds in roofline["seconds"].items()
    ]
    serial = f"{roofline['mfu_without_overlap']:.1%} if nothing overlapped"
    warnings = report["partitioner_warnings"]
    return [
        *lines,
        ("step", f"{1e3 * roofline['step_seconds']:.1f} ms", f"the largest, {roofline['bound']}"),
        ("MFU", f"{roofline['mfu']:.1%}", f"model FLOPs over that time; {serial}"),
        ("compilation", f"{report['compile_seconds']:.0f} s", "on this machine"),
        ("warnings", str(len(warnings)), "involuntary full rematerialization (compiler's log)"),
        *(("", "", warning) for warning in warnings),
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP"


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
