r"""Measures the training step on the devices that are there: rates, MFU, memory, and its parts.

    python -m experiments.benchmarks.train_step --gin_file=experiments/configs/models/1b.gin \
        --rows=4,8,16 --remat=dots,full --output=experiments/benchmarks/results/train_step_gpu.json

The step is the function that the trainer runs, its state donated, at the shapes of
`experiments/configs/runs/pretrain.gin` and the Gin files given after it. It turns through a few
batches of rows of typical documents (`experiments/benchmarks/step_timing.py`). A patch of the
baseline is a token.

After a warm-up each step is timed from its call until its results are there; rates are those of the
median, and MFU is the model's FLOPs for the documents of the batches (`lst_jax/model/flops.py`)
over the peak of the devices. Memory is what the compiled step takes as XLA plans it, and, where the
device keeps count, the most that was in use up to the end of the steps; it counts from the start of
the process, so it is given only where this setting made it grow.

Then the parts: each module's forward and backward pass, with respect to its inputs and parameters,
is a separate function (`experiments/benchmarks/step_parts.py`), fed with the arrays that the
model passes between them for the first batch; with accumulation, for one microbatch, times their
number. The optimizer's update is the last. The step differs from their sum by what XLA does across
parts, and by what belongs to none: key ranges and counts.

Every combination of `--rows` and `--remat` is measured; one that runs out of memory is recorded as
such, and larger ones of its policy are not tried. What is known is printed and written at once.
On a GPU, `XLA_PYTHON_CLIENT_MEM_FRACTION=0.95` in the environment lets JAX have most of the memory.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags

from experiments.benchmarks.step_timing import NUM_BATCHES, measure_all
from experiments.common import cli, gin_config
from experiments.common.gin_steps import read_config
from experiments.common.machine import command_line, device_name, versions
from experiments.common.mesh_text import parse_mesh
from experiments.common.paths import define_path
from experiments.common.step_config import StepConfig
from lst_jax.files import write_json
from lst_jax.hardware import PeakRate, peak_rate
from lst_jax.model.attention import BACKENDS, best_backend
from lst_jax.model.layers import REMAT_POLICIES
from lst_jax.model.models import count_parameters
from lst_jax.sharding import make_mesh

# The paper's 200k steps of 524,288 patches took 32 H100 17 hours (1B model); our goal on one H200.
PAPER_PATCHES_PER_GPU_S = 200_000 * 524_288 / (17 * 3600) / 32
_GOAL_PATCHES_PER_GPU_S = 60_000

# From the policy that keeps most to the one that keeps least.
_POLICIES = tuple(REMAT_POLICIES)


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_list("rows", ["1"], "Rows of a batch for each device (of data and fsdp).")
    flags.DEFINE_list("remat", None, "Remat policies; by default the one of the Gin files.")
    flags.DEFINE_integer("steps", 10, "Timed runs of the step and of each part.", lower_bound=1)
    flags.DEFINE_bool("parts", True, "Time the parts of the step, too.")
    flags.DEFINE_string("mesh", "", "Mesh axes, e.g. data=1,fsdp=8,tensor=1.")
    flags.DEFINE_integer("text_size", 32000, "Pieces of the text tokenizer.", lower_bound=3)
    flags.DEFINE_enum("attention", "auto", BACKENDS, "Attention backend.")
    define_path("output", "JSON file to write the results to.")


def main(argv: Sequence[str]) -> None:
    """Measures every combination and reports."""
    cli.check_no_arguments(list(argv))
    values = flags.FLAGS
    rows = parse_rows(values.rows)
    mesh_config = parse_mesh(values.mesh)
    config = read_config(values.gin_file, values.gin_binding, values.text_size, values.attention)
    policies = check_policies(values.remat or [config.model.remat])
    mesh = make_mesh(mesh_config)
    report = describe(config, mesh)
    print(_format_header(report), flush=True)
    peak = PeakRate(**report["peak"])
    results: dict[tuple[str, int], dict[str, Any]] = {}
    for result in measure_all(config, mesh, rows, policies, values.steps, values.parts, peak):
        setting = result["remat"], result["rows_per_device"]
        format_news = format_breakdown if setting in results else format_result
        results[setting] = result
        print(format_news(result, report), flush=True)
        report["results"] = list(results.values())
        if values.output:
            write_json(values.output, report)
    check_measured(report["results"])


def parse_rows(texts: Sequence[str]) -> list[int]:
    """Returns different row counts, ascending.

    Raises:
      ValueError: there are none, or one is not a positive integer.
    """
    if not texts or not all(text.isdecimal() and int(text) for text in texts):
        raise ValueError(f"rows is {','.join(texts)!r}, expected positive integers such as 1,2,4")
    return sorted({int(text) for text in texts})


def check_policies(names: Sequence[str]) -> list[str]:
    """Returns the policies, each once.

    Raises:
      ValueError: one is unknown.
    """
    for name in names:
        if name not in _POLICIES:
            raise ValueError(f"remat is {name!r}, expected some of {','.join(_POLICIES)}")
    return list(dict.fromkeys(names))


def describe(config: StepConfig, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """Returns what is measured, on what, and with what."""
    device = mesh.devices.flat[0]
    peak = peak_rate(device)
    model = dataclasses.asdict(config.model)
    del model["remat"]  # each result has its own
    if model["attention"] == "auto":
        model["attention"] = best_backend(device.platform)
    report = {
        "command": command_line("train_step"),
        "device": device_name(),
        "platform": device.platform,
        "num_devices": mesh.size,
        "mesh": dict(mesh.shape),
        "peak": peak._asdict(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": versions("jax", "jaxlib", "flax", "optax"),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("XLA_")},
        "configuration": {
            "model": model,
            "parameters": count_parameters(config.model),
            "optimizer": dataclasses.asdict(config.optimizer),
            "patching": "none" if config.patching.strategy == "none" else "static",
            "patch_size": config.patching.patch_size,
            "patches_per_row": config.num_patches,
            "tokens_per_row": config.num_tokens,
            "accumulation_steps": config.training.accumulation_steps,
            "batches": NUM_BATCHES,
        },
    }
    if device.platform == "gpu":
        report["anchor"] = {
            "paper_patches_per_second_per_gpu": round(PAPER_PATCHES_PER_GPU_S),
            "goal_patches_per_second_per_gpu": _GOAL_PATCHES_PER_GPU_S,
        }
    return report


def check_measured(results: Sequence[dict[str, Any]]) -> None:
    """Checks that some combination fitted.

    Raises:
      ValueError: all ran out of memory; says what would help.
    """
    if all("out_of_memory" in result for result in results):
        rows = min(result["rows_per_device"] for result in results)
        policy = max((result["remat"] for result in results), key=_POLICIES.index)
        raise ValueError(
            f"the step ran out of memory, even with {rows} row(s) a device and remat {policy}; "
            f"{_remedy(rows, policy)}"
        )


def _remedy(rows: int, policy: str) -> str:
    """Returns what takes less memory than so many rows under that policy."""
    less = _POLICIES[_POLICIES.index(policy) + 1 :]
    options = [f"--rows={rows // 2}"] if rows > 1 else []
    options += [f"--remat={','.join(less)}"] if less else []
    return f"try {' or '.join(options or ['more devices, shorter rows or a smaller model'])}"


def _format_header(report: dict[str, Any]) -> str:
    configuration = report["configuration"]
    model = configuration["model"]
    mesh = " ".join(f"{axis}={size}" for axis, size in report["mesh"].items())
    return (
        f"{configuration['parameters']:,} parameters, {model['dtype']}, attention "
        f"{model['attention']}; {configuration['patches_per_row']} patches and "
        f"{configuration['tokens_per_row']} tokens a row\n"
        f"{report['num_devices']} × {report['device']}, mesh {mesh}; peak of a device "
        f"{report['peak']['flops_per_second']:.3g} FLOP/s ({report['peak']['source']})"
    )


def format_result(result: dict[str, Any], report: dict[str, Any]) -> str:
    """Returns the lines of one combination."""
    title = f"\nremat {result['remat']}, {result['rows_per_device']} row(s) a device: "
    if "out_of_memory" in result:
        remedy = _remedy(result["rows_per_device"], result["remat"])
        return f"{title}out of memory; {remedy}\n  {result['out_of_memory']}"
    step, memory = result["step"], result["memory"]
    low, high = step["quartiles_ms"]
    device_peak = memory["device_peak_bytes"]
    in_use = f", {_gib(device_peak)} in use on the device" if device_peak else ""
    lines = [
        f"{title}compiled in {result['compile_seconds']} s",
        f"  step         {step['median_ms']:.1f} ms, quartiles {low:.1f} … {high:.1f}, "
        f"{len(step['times_ms'])} steps",
        f"  patches/s    {result['patches_per_second']:,.0f}, "
        f"{result['patches_per_second_per_device']:,.0f} a device",
        f"  tokens/s     {result['tokens_per_second']:,.0f}",
        f"  MFU          {result['mfu']:.1%} of {report['num_devices']} × "
        f"{report['peak']['flops_per_second']:.3g} FLOP/s",
        f"  memory       {_gib(memory['planned_peak'])} planned, of it "
        f"{_gib(memory['temporaries'])} temporary{in_use}",
    ]
    if "anchor" in report:
        lines.append(_format_anchor(result["patches_per_second_per_device"], report["anchor"]))
    return "\n".join(lines)


def _format_anchor(measured: float, anchor: dict[str, int]) -> str:
    paper, goal = anchor.values()
    return (
        f"  anchor       {measured:,.0f} patches/s a GPU; the paper's 1B run on 32 H100 {paper:,} "
        f"({measured / paper:.2f} of it), goal at 1b on one H200 {goal:,} ({measured / goal:.2f})"
    )


def format_breakdown(result: dict[str, Any], _: dict[str, Any]) -> str:
    """Returns the lines of the parts of one combination."""
    breakdown, step_ms = result["breakdown"], result["step"]["median_ms"]
    if "out_of_memory" in breakdown:
        return f"  the parts ran out of memory: {breakdown['out_of_memory']}"
    lines = [
        f"  {'part':<14}{'time':>12}{'share':>8}{'model FLOPs':>15}{'MFU':>8}{'temporary':>13}"
    ]
    for part in breakdown["parts"]:
        mfu = "" if part["mfu"] is None else f"{part['mfu']:.1%}"
        lines.append(
            f"  {part['part']:<14}{part['median_ms']:>9.1f} ms{part['share']:>8.1%}"
            f"{part['model_flops'] / 1e9:>9,.4g} GFLOP{mfu:>8}{_gib(part['temporary_bytes']):>13}"
        )
    total = breakdown["sum_ms"]
    lines.append(f"  {'sum of parts':<14}{total:>9.1f} ms")
    lines.append(f"  {'whole step':<14}{step_ms:>9.1f} ms, {step_ms - total:+.1f} ms")
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / 2**30:.3g} GiB"


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
