r"""Measures the training step on the devices that are there: rates, MFU, memory, and its parts.

    python -m experiments.benchmarks.train_step --gin_file=experiments/configs/models/1b.gin \
        --rows=4,8,16 --remat=dots,full --output=experiments/benchmarks/results/train_step_gpu.json

The step is the function that the trainer runs, its state donated, at the shapes of
`experiments/configs/runs/pretrain.gin` and the Gin files given after it. It turns through a few
batches of rows of typical documents (`experiments/attention_estimates.py`), speech and text 1:2 in
tokens, whose ids are drawn anew: log-uniform for text, whose words follow Zipf's law, uniform for
units. A unit is a patch slot that is used; for the baseline it is a token.

After a warm-up each step is timed from its call until its results are there; rates are those of the
median, and MFU is the model's FLOPs for the documents of the batches (`lst_jax/flops.py`) over the
peak of the devices. Memory is what the compiled step takes as XLA plans it, and, where the device
keeps count, the most that was in use up to the end of the steps; it counts from the start of the
process, so it is given only where this setting made it grow.

Then the parts: each module's forward and backward pass, with respect to its inputs and parameters,
is a function of its own (`experiments/benchmarks/step_parts.py`), fed with the arrays that the
model passes between them for the first batch; with accumulation, for one microbatch, times their
number. The optimizer's update is the last. The step differs from their sum by what XLA does across
parts, and by what belongs to none: key ranges and counts.

Every combination of `--rows` and `--remat` is measured; one that runs out of memory is recorded as
such, and larger ones of its policy are not tried. What is known is printed and written at once.
On a GPU, `XLA_PYTHON_CLIENT_MEM_FRACTION=0.95` in the environment lets JAX have most of the memory.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.metadata
import itertools
import os
import re
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments import cli, gin_config
from experiments.aot import StepConfig
from experiments.aot_compile import parse_mesh, read_config
from experiments.attention_estimates import typical_batch
from experiments.benchmarks.machine import device_name
from experiments.benchmarks.step_parts import Part, backpropagate, make_update
from experiments.outputs import write_json
from lst_jax.attention import BACKENDS, best_backend
from lst_jax.flops import BACKWARD_FACTOR, forward_flops
from lst_jax.hardware import PeakRate, peak_rate
from lst_jax.layers import REMAT_POLICIES
from lst_jax.models import count_parameters
from lst_jax.optimizers import make_optimizer
from lst_jax.sharding import batch_mesh_size, check_rows, make_mesh, mesh_context, shard_batch
from lst_jax.train_state import TrainState, init_state, state_shardings
from lst_jax.trainer import make_train_step
from lst_jax.vocabulary import Vocabulary

# The paper's 200k steps of 524,288 units took 32 H100 17 hours (1B model); our goal on one H200.
_PAPER_UNITS_PER_GPU_S = 200_000 * 524_288 / (17 * 3600) / 32
_GOAL_UNITS_PER_GPU_S = 60_000

_NUM_BATCHES = 4
_WARM_UP = 2
# Runs of one function stop after so many seconds, or as soon as there are a few.
_BUDGET_S = 10.0
_FEWEST_RUNS = 3

# From the policy that keeps most to the one that keeps least.
_POLICIES = tuple(REMAT_POLICIES)
_ALLOCATION = re.compile(r"out of memory|allocat", re.IGNORECASE)
# On-chip memory, of which no number of rows takes less.
_ON_CHIP = re.compile(r"shared memory|vmem|smem", re.IGNORECASE)

Batch = dict[str, np.ndarray]


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
    flags.DEFINE_string("output", None, "JSON file to write the results to.")


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
    """Different row counts, ascending.

    Raises:
      ValueError: there are none, or one is not a positive integer.
    """
    if not texts or not all(text.isdecimal() and int(text) for text in texts):
        raise ValueError(f"rows is {','.join(texts)!r}, expected positive integers such as 1,2,4")
    return sorted({int(text) for text in texts})


def check_policies(names: Sequence[str]) -> list[str]:
    """The policies, each once.

    Raises:
      ValueError: one is unknown.
    """
    for name in names:
        if name not in _POLICIES:
            raise ValueError(f"remat is {name!r}, expected some of {','.join(_POLICIES)}")
    return list(dict.fromkeys(names))


def describe(config: StepConfig, mesh: jax.sharding.Mesh) -> dict[str, Any]:
    """What is measured, on what, and with what."""
    device = mesh.devices.flat[0]
    peak = peak_rate(device)
    model = dataclasses.asdict(config.model)
    del model["remat"]  # each result has its own
    if model["attention"] == "auto":
        model["attention"] = best_backend(device.platform)
    report = {
        "command": shlex.join(["python", "-m", "experiments.benchmarks.train_step", *sys.argv[1:]]),
        "device": device_name(),
        "platform": device.platform,
        "num_devices": mesh.size,
        "mesh": dict(mesh.shape),
        "peak": peak._asdict(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "versions": {
            name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")
        },
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
            "batches": _NUM_BATCHES,
        },
    }
    if device.platform == "gpu":
        report["anchor"] = {
            "paper_units_per_second_per_gpu": round(_PAPER_UNITS_PER_GPU_S),
            "goal_units_per_second_per_gpu": _GOAL_UNITS_PER_GPU_S,
        }
    return report


def make_batches(config: StepConfig, rows: int) -> list[Batch]:
    """Different batches of `rows` typical rows, with drawn ids."""
    rng = np.random.default_rng(0)
    shape = config.num_patches, config.num_tokens, rows
    return [
        _draw_ids(typical_batch(config.vocabulary, config.patching, *shape, seed), config, rng)
        for seed in range(_NUM_BATCHES)
    ]


def _draw_ids(batch: Batch, config: StepConfig, rng: np.random.Generator) -> Batch:
    """The batch with ids drawn for its text and units, which are all one id each in it.

    All tokens would look up the same two rows of the embedding else, and add to its gradient there.
    """
    vocabulary: Vocabulary = config.vocabulary
    tokens, real = batch["tokens"].copy(), batch["document_ids"] > 0
    text = real & vocabulary.is_text(tokens)
    first = 1 + max(vocabulary.bos_id, vocabulary.eos_id)
    ranks = (vocabulary.text_size - first) ** rng.random(text.sum())
    tokens[text] = first + np.floor(ranks - 1).astype(np.int32)
    unit = real & vocabulary.is_unit(tokens)
    tokens[unit] = vocabulary.first_unit_id + rng.integers(vocabulary.unit_count, size=unit.sum())
    targets, document = batch["targets"].copy(), batch["document_ids"]
    follows = (document[:, 1:] == document[:, :-1]) & real[:, 1:]
    targets[:, :-1][follows] = tokens[:, 1:][follows]
    return batch | {"tokens": tokens, "targets": targets}


def measure_all(
    config: StepConfig,
    mesh: jax.sharding.Mesh,
    rows: Sequence[int],
    policies: Sequence[str],
    num_steps: int,
    with_parts: bool,
    peak: PeakRate,
) -> Iterator[dict[str, Any]]:
    """Measures the step under each policy with each number of rows.

    Args:
      config: the step; its number of rows and its policy are not used.
      mesh: the device mesh.
      rows: of each device, ascending.
      policies: of rematerialisation, by name.
      num_steps: timed runs.
      with_parts: whether the parts are timed, too.
      peak: of one device.

    Yields:
      JSON-able results of each combination, and again with its `breakdown`; in either,
      `out_of_memory` says why there are no figures.

    Raises:
      ValueError: the rows, or the model's axes, do not divide among the devices.
    """
    for number in rows:
        check_rows(number * batch_mesh_size(mesh), mesh, config.training.accumulation_steps)
    batches = make_batches(config, max(rows) * batch_mesh_size(mesh))
    state = None
    exhausted: dict[str, int] = {}
    for policy, number in itertools.product(policies, rows):
        total = number * batch_mesh_size(mesh)
        result = {"remat": policy, "rows_per_device": number, "rows": total}
        if policy in exhausted:
            reason = f"not tried, {exhausted[policy]} row(s) ran out of memory"
            yield result | {"out_of_memory": reason}
            continue
        model = dataclasses.replace(config.model, remat=policy)
        measurement = _Measurement(
            dataclasses.replace(config, model=model, num_rows=total),
            mesh,
            [{name: array[:total] for name, array in batch.items()} for batch in batches],
            num_steps,
            peak,
        )
        # The state goes through all combinations; lost where one ran out of memory, it is remade.
        figures, state = _within_memory(measurement.measure_step, state)
        result |= figures
        yield result
        if "out_of_memory" in result:
            exhausted[policy] = number
        elif with_parts:
            figures, state = _within_memory(measurement.measure_parts, state)
            yield result | {"breakdown": figures}


def _within_memory(
    measure: Callable[[TrainState | None], tuple[dict[str, Any], TrainState]],
    state: TrainState | None,
) -> tuple[dict[str, Any], TrainState | None]:
    """The figures and the state after them; where memory ran out, why, and no state."""
    try:
        return measure(state)
    except jax.errors.JaxRuntimeError as error:
        return {"out_of_memory": _out_of_memory(error)}, None
    finally:
        gc.collect()


def _out_of_memory(error: jax.errors.JaxRuntimeError) -> str:
    """What the device said when its memory ran out; other errors are raised again."""
    message = " ".join(str(error).split())
    exhausted = "RESOURCE_EXHAUSTED" in message and _ALLOCATION.search(message)
    if not exhausted or _ON_CHIP.search(message):
        raise error
    return message[:300]


class _Measurement:
    """One combination: what is compiled, run and timed for it, inside its mesh's context."""

    def __init__(
        self,
        config: StepConfig,
        mesh: jax.sharding.Mesh,
        batches: Sequence[Batch],
        num_steps: int,
        peak: PeakRate,
    ) -> None:
        self._config, self._mesh, self._batches = config, mesh, batches
        self._num_steps = num_steps
        self._rate = peak.flops_per_second * mesh.size
        self._optimizer = make_optimizer(config.optimizer, config.training.num_steps)

    def measure_step(self, state: TrainState | None) -> tuple[dict[str, Any], TrainState]:
        """Figures of the step, and the state after it; begins with a new one where it gets none."""
        with mesh_context(self._mesh):
            return self._measure_step(self._init_state() if state is None else state)

    def measure_parts(self, state: TrainState) -> tuple[dict[str, Any], TrainState]:
        """Figures of each part, in the order of the forward pass, and the state after them."""
        with mesh_context(self._mesh):
            parts, state = self._measure_parts(state)
        total = sum(part["median_ms"] for part in parts)
        parts = [part | {"share": part["median_ms"] / total} for part in parts]
        return {"parts": parts, "sum_ms": total}, state

    def _init_state(self) -> TrainState:
        config = self._config
        return init_state(config.model, self._optimizer, config.training.seed, self._mesh)

    def _measure_step(self, state: TrainState) -> tuple[dict[str, Any], TrainState]:
        config = self._config
        before = _device_peak(self._mesh)
        batches = [shard_batch(batch, self._mesh) for batch in self._batches]
        step = make_train_step(
            config.model,
            config.optimizer,
            config.training,
            config.vocabulary.first_unit_id,
            config.num_patches,
            self._mesh,
        )
        start = time.perf_counter()
        compiled = _compile(step, state, batches[0])
        compile_s = time.perf_counter() - start
        turns = itertools.cycle(batches)
        history = []

        def advance() -> tuple[TrainState, Any]:
            nonlocal state
            state, sums = compiled(state, next(turns))
            history.append(sums)
            return state, sums

        times, _ = _time(advance, self._num_steps)
        sums = [jax.device_get(sums) for sums in history[-len(times) :]]
        mean = {name: float(np.mean([x[name] for x in sums])) for name in sums[0]}
        seconds = statistics.median(times)
        after = _device_peak(self._mesh)
        memory = _planned_memory(compiled) | {
            "device_peak_bytes": after if after is None or after > (before or 0) else None,
            "device_limit_bytes": _device_memory(self._mesh, "bytes_limit"),
        }
        weight = mean["text_weight"] + mean["speech_weight"]
        return {
            "compile_seconds": round(compile_s, 1),
            "step": _spread(times),
            "units_per_step": mean["patches"],
            "tokens_per_step": mean["tokens"],
            "units_per_second": mean["patches"] / seconds,
            "units_per_second_per_device": mean["patches"] / seconds / self._mesh.size,
            "tokens_per_second": mean["tokens"] / seconds,
            "model_flops_per_step": mean["flops"],
            "mfu": mean["flops"] / seconds / self._rate,
            "loss": (mean["text_nll"] + mean["speech_nll"]) / weight,
            "memory": memory,
        }, state

    def _measure_parts(self, state: TrainState) -> tuple[list[dict[str, Any]], TrainState]:
        config = self._config
        turns = config.training.accumulation_steps
        rows = config.num_rows // turns
        batch = shard_batch({k: x[:rows] for k, x in self._batches[0].items()}, self._mesh)
        shardings = state_shardings(config.model, self._optimizer, self._mesh)[1]
        forward = forward_flops(config.model, batch, config.num_patches)
        records = []

        def run(part: Part, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
            times, results = _time(lambda: function(*arguments), self._num_steps)
            flops = (1.0 + BACKWARD_FACTOR) * float(forward[part.flops])
            records.append(self._record(part.name, function, times, flops, turns))
            return results

        _, gradients = backpropagate(
            config.model,
            state.params,
            shardings.params,
            batch,
            config.num_patches,
            self._mesh,
            _compile,
            run,
        )
        records.reverse()
        update = _compile(
            make_update(self._optimizer, shardings), state.params, state.opt_state, gradients
        )

        def advance() -> TrainState:
            nonlocal state
            params, opt_state = update(state.params, state.opt_state, gradients)
            state = state.replace(params=params, opt_state=opt_state)
            return state

        times, _ = _time(advance, self._num_steps)
        return [*records, self._record("optimizer", update, times, 0.0, 1)], state

    def _record(
        self, name: str, compiled: Any, times: Sequence[float], flops: float, turns: int
    ) -> dict[str, Any]:
        """Figures of a part that a step runs `turns` times."""
        seconds = turns * statistics.median(times)
        flops = turns * flops
        return {
            "part": name,
            **_spread([turns * x for x in times]),
            "model_flops": flops,
            "mfu": flops / seconds / self._rate if flops else None,
            "temporary_bytes": _planned_memory(compiled)["temporaries"],
        }


def _compile(function: Any, *arguments: Any) -> Any:
    """A jitted function compiled for arguments of these shapes."""
    return function.lower(*arguments).compile()


def _time(run: Callable[[], Any], count: int) -> tuple[list[float], Any]:
    """Seconds of each run after a warm-up, at most `count` of them, and the last result."""
    times: list[float] = []
    for _ in range(_WARM_UP + count):
        result = None  # so that no two results are in memory
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
        if sum(times) > _BUDGET_S and len(times) >= _WARM_UP + _FEWEST_RUNS:
            break
    return times[_WARM_UP:], result


def _spread(times: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and all times, in milliseconds."""
    milliseconds = [1e3 * x for x in times]
    low, high = np.percentile(milliseconds, (25, 75))
    return {
        "median_ms": statistics.median(milliseconds),
        "quartiles_ms": [float(low), float(high)],
        "times_ms": [round(x, 3) for x in milliseconds],
    }


def _planned_memory(compiled: Any) -> dict[str, int]:
    """Bytes that a compiled function takes on a device, by XLA's plan."""
    stats = compiled.memory_analysis()
    aliased = stats.alias_size_in_bytes
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**sizes, "aliased": aliased, "planned_peak": sum(sizes.values()) - aliased}


def _device_memory(mesh: jax.sharding.Mesh, name: str) -> int | None:
    """The largest such figure of the devices' allocators; None where they keep none."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return max((x[name] for x in stats if name in x), default=None)


def _device_peak(mesh: jax.sharding.Mesh) -> int | None:
    return _device_memory(mesh, "peak_bytes_in_use")


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
    """What takes less memory than so many rows under that policy."""
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
    """The lines of one combination."""
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
        f"  units/s      {result['units_per_second']:,.0f}, "
        f"{result['units_per_second_per_device']:,.0f} a device",
        f"  tokens/s     {result['tokens_per_second']:,.0f}",
        f"  MFU          {result['mfu']:.1%} of {report['num_devices']} × "
        f"{report['peak']['flops_per_second']:.3g} FLOP/s",
        f"  memory       {_gib(memory['planned_peak'])} planned, of it "
        f"{_gib(memory['temporaries'])} temporary{in_use}",
    ]
    if "anchor" in report:
        lines.append(_format_anchor(result["units_per_second_per_device"], report["anchor"]))
    return "\n".join(lines)


def _format_anchor(measured: float, anchor: dict[str, int]) -> str:
    paper, goal = anchor.values()
    return (
        f"  anchor       {measured:,.0f} units/s a GPU; the paper's 1B run on 32 H100 {paper:,} "
        f"({measured / paper:.2f} of it), goal at 1b on one H200 {goal:,} ({measured / goal:.2f})"
    )


def format_breakdown(result: dict[str, Any], _: dict[str, Any]) -> str:
    """The lines of the parts of one combination."""
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
