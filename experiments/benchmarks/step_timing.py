"""Times the training step and its parts, for the benchmarks that report them.

Batches are rows of typical documents (`experiments/aot/attention_estimates.py`), speech and text
1:2 in tokens, whose ids are drawn: log-uniform for text, whose words follow Zipf's law, uniform for
units.
Nothing here needs Gin or what reads data.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from experiments.aot.attention_estimates import typical_batch
from experiments.benchmarks.step_parts import Part, backpropagate, make_update
from experiments.common.step_config import StepConfig
from lst_jax.batch import Batch
from lst_jax.checkpoints.train_state import TrainState, init_state, state_shardings
from lst_jax.hardware import PeakRate
from lst_jax.model.flops import BACKWARD_FACTOR, forward_flops
from lst_jax.sharding import (
    abstract_batch,
    batch_mesh_size,
    batch_sharding,
    check_rows,
    mesh_context,
    shard_batch,
)
from lst_jax.training.optimizers import make_optimizer
from lst_jax.training.step import TrainStep, make_train_step
from lst_jax.vocabulary import Vocabulary

NUM_BATCHES = 4
_WARM_UP = 2
# Runs of one function stop after so many seconds, or as soon as there are a few.
_BUDGET_S = 10.0
_FEWEST_RUNS = 3

_ALLOCATION = re.compile(r"out of memory|allocat", re.IGNORECASE)
# On-chip memory, of which no number of rows takes less.
_ON_CHIP = re.compile(r"shared memory|vmem|smem", re.IGNORECASE)


def make_batches(config: StepConfig, rows: int) -> list[Batch]:
    """Returns different batches of `rows` typical rows, with drawn ids."""
    rng = np.random.default_rng(0)
    shape = config.num_patches, config.num_tokens, rows
    return [
        _draw_ids(typical_batch(config.vocabulary, config.patching, *shape, seed), config, rng)
        for seed in range(NUM_BATCHES)
    ]


def _draw_ids(batch: Batch, config: StepConfig, rng: np.random.Generator) -> Batch:
    """Returns the batch with ids drawn for its text and units, which are all one id each in it.

    All tokens would look up the same two rows of the embedding else, and add to its gradient there.
    """
    vocabulary: Vocabulary = config.vocabulary
    tokens, real = batch.tokens.copy(), batch.document_ids > 0
    text = real & vocabulary.is_text(tokens)
    first = 1 + max(vocabulary.bos_id, vocabulary.eos_id)
    ranks = (vocabulary.text_size - first) ** rng.random(text.sum())
    tokens[text] = first + np.floor(ranks - 1).astype(np.int32)
    unit = real & vocabulary.is_unit(tokens)
    tokens[unit] = vocabulary.first_unit_id + rng.integers(vocabulary.unit_count, size=unit.sum())
    targets, document = batch.targets.copy(), batch.document_ids
    follows = (document[:, 1:] == document[:, :-1]) & real[:, 1:]
    targets[:, :-1][follows] = tokens[:, 1:][follows]
    return dataclasses.replace(batch, tokens=tokens, targets=targets)


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
      policies: of rematerialization, by name.
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
        measurement = StepMeasurement(
            dataclasses.replace(config, model=model, num_rows=total),
            mesh,
            [jax.tree.map(lambda x, count=total: x[:count], batch) for batch in batches],
            num_steps,
            peak,
        )
        # The state goes through all combinations; lost where one ran out of memory, it is remade.
        figures, state = _within_memory(functools.partial(measurement.measure_step, state))
        result |= figures
        yield result
        if "out_of_memory" in result:
            exhausted[policy] = number
        elif with_parts and state is not None:
            figures, state = _within_memory(functools.partial(measurement.measure_parts, state))
            yield result | {"breakdown": figures}


def _within_memory(
    measure: Callable[[], tuple[dict[str, Any], TrainState]],
) -> tuple[dict[str, Any], TrainState | None]:
    """Returns the figures and the state after them; where memory ran out, why, and no state."""
    try:
        return measure()
    except jax.errors.JaxRuntimeError as error:
        return {"out_of_memory": _out_of_memory(error)}, None
    finally:
        gc.collect()


def _out_of_memory(error: RuntimeError) -> str:
    """Returns what the device said when its memory ran out; other errors are raised again."""
    message = " ".join(str(error).split())
    exhausted = "RESOURCE_EXHAUSTED" in message and _ALLOCATION.search(message)
    if not exhausted or _ON_CHIP.search(message):
        raise error
    return message[:300]


class StepMeasurement:
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
        self._compiled: Any = None
        self._compile_s = 0.0

    def compile(self) -> Any:
        """Returns the compiled step; it is compiled once."""
        if self._compiled is None:
            config = self._config
            with mesh_context(self._mesh):
                state = state_shardings(config.model, self._optimizer, self._mesh)[0]
                start = time.perf_counter()
                self._compiled = compile_for(self._step(), state, self._abstract_batch())
                self._compile_s = time.perf_counter() - start
        return self._compiled

    def lower(self) -> jax.stages.Lowered:
        """Returns the step, lowered for arrays of these shapes; none is made."""
        config = self._config
        with mesh_context(self._mesh):
            state = state_shardings(config.model, self._optimizer, self._mesh)[0]
            return self._step().lower(state, self._abstract_batch())

    def planned_memory(self) -> dict[str, int]:
        """Returns the bytes that the compiled step takes on a device."""
        return planned_memory(self.compile())

    def init_state(self) -> TrainState:
        """Returns a new state."""
        config = self._config
        return init_state(config.model, self._optimizer, config.training.seed, self._mesh)

    def measure_step(self, state: TrainState | None) -> tuple[dict[str, Any], TrainState]:
        """Measures the step; returns the state after it, too. None is a new one to begin with."""
        with mesh_context(self._mesh):
            return self._measure_step(self.init_state() if state is None else state)

    def run_steps(self, state: TrainState, count: int) -> TrainState:
        """Returns the state after some steps, once they are done."""
        return self._run(state, count)[0]

    def losses(self, count: int) -> list[float]:
        """Returns the losses of the first steps from a new state, in nats a target."""
        history = jax.device_get(self._run(self.init_state(), count)[1])
        return [_loss(sums) for sums in history]

    def _run(self, state: TrainState, count: int) -> tuple[TrainState, list[Any]]:
        compiled, history = self.compile(), []
        with mesh_context(self._mesh):
            batches = [shard_batch(batch, self._mesh) for batch in self._batches]
            for _, batch in zip(range(count), itertools.cycle(batches), strict=False):
                state, sums = compiled(state, batch)
                history.append(sums)
        return jax.block_until_ready(state), history

    def measure_parts(self, state: TrainState) -> tuple[dict[str, Any], TrainState]:
        """Measures each part, in the order of the forward pass; returns the last state, too."""
        with mesh_context(self._mesh):
            parts, state = self._measure_parts(state)
        total = sum(part["median_ms"] for part in parts)
        parts = [part | {"share": part["median_ms"] / total} for part in parts]
        return {"parts": parts, "sum_ms": total}, state

    def _abstract_batch(self) -> Batch:
        batch = self._batches[0]
        shape = batch.num_patches, batch.tokens.shape[1], len(batch.tokens)
        return abstract_batch(*shape, batch_sharding(self._mesh))

    def _step(self) -> TrainStep:
        config = self._config
        return make_train_step(
            config.model,
            config.optimizer,
            config.training,
            config.vocabulary.first_unit_id,
            self._mesh,
        )

    def _measure_step(self, state: TrainState) -> tuple[dict[str, Any], TrainState]:
        before = _device_peak(self._mesh)
        batches = [shard_batch(batch, self._mesh) for batch in self._batches]
        compiled = self.compile()
        turns = itertools.cycle(batches)
        history = []

        def advance() -> tuple[TrainState, Any]:
            nonlocal state
            state, sums = compiled(state, next(turns))
            history.append(sums)
            return state, sums

        times, _ = time_runs(advance, self._num_steps)
        sums = [jax.device_get(sums) for sums in history[-len(times) :]]
        mean = {name: float(np.mean([x[name] for x in sums])) for name in sums[0]}
        seconds = statistics.median(times)
        after = _device_peak(self._mesh)
        memory = planned_memory(compiled) | {
            "device_peak_bytes": after if after is None or after > (before or 0) else None,
            "device_limit_bytes": device_memory(self._mesh, "bytes_limit"),
        }
        return {
            "compile_seconds": round(self._compile_s, 1),
            "step": spread(times),
            "patches_per_step": mean["patches"],
            "tokens_per_step": mean["tokens"],
            "patches_per_second": mean["patches"] / seconds,
            "patches_per_second_per_device": mean["patches"] / seconds / self._mesh.size,
            "tokens_per_second": mean["tokens"] / seconds,
            "model_flops_per_step": mean["flops"],
            "mfu": mean["flops"] / seconds / self._rate,
            "loss": _loss(mean),
            "memory": memory,
        }, state

    def _measure_parts(self, state: TrainState) -> tuple[list[dict[str, Any]], TrainState]:
        config = self._config
        turns = config.training.accumulation_steps
        rows = config.num_rows // turns
        batch = shard_batch(jax.tree.map(lambda x: x[:rows], self._batches[0]), self._mesh)
        shardings = state_shardings(config.model, self._optimizer, self._mesh)[1]
        forward = forward_flops(config.model, batch)
        records = []

        def run(part: Part, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
            times, results = time_runs(lambda: function(*arguments), self._num_steps)
            flops = (1.0 + BACKWARD_FACTOR) * float(forward[part.flops])
            records.append(self._record(part.name, function, times, flops, turns))
            return results

        _, gradients = backpropagate(
            config.model,
            state.params,
            shardings.params,
            batch,
            self._mesh,
            compile_for,
            run,
        )
        records.reverse()
        update = compile_for(
            make_update(self._optimizer, shardings), state.params, state.opt_state, gradients
        )

        def advance() -> TrainState:
            nonlocal state
            params, opt_state = update(state.params, state.opt_state, gradients)
            state = state.replace(params=params, opt_state=opt_state)
            return state

        times, _ = time_runs(advance, self._num_steps)
        return [*records, self._record("optimizer", update, times, 0.0, 1)], state

    def _record(
        self, name: str, compiled: Any, times: Sequence[float], flops: float, turns: int
    ) -> dict[str, Any]:
        """Measures a part that a step runs `turns` times."""
        seconds = turns * statistics.median(times)
        flops = turns * flops
        return {
            "part": name,
            **spread([turns * x for x in times]),
            "model_flops": flops,
            "mfu": flops / seconds / self._rate if flops else None,
            "temporary_bytes": planned_memory(compiled)["temporaries"],
        }


def _loss(sums: Mapping[str, Any]) -> float:
    """Returns nats a target, from the sums of a step."""
    weight = sums["text_weight"] + sums["speech_weight"]
    return float((sums["text_nll"] + sums["speech_nll"]) / weight)


def planned_bytes(config: StepConfig, mesh: jax.sharding.Mesh, policy: str, rows: int) -> int:
    """Returns the bytes that the step takes on a device of the mesh, which need not be there.

    Args:
      config: of the step; its number of rows and its policy are not used.
      mesh: the device mesh.
      policy: of rematerialization, by name.
      rows: of the batch.
    """
    model = dataclasses.replace(config.model, remat=policy)
    config = dataclasses.replace(config, model=model, num_rows=rows)
    measurement = StepMeasurement(config, mesh, make_batches(config, rows), 1, PeakRate(1.0, ""))
    on_gpu = mesh.devices.flat[0].platform == "gpu"
    # Faster kernels take no other memory, and choosing them takes long.
    options: dict[str, Any] | None = {"xla_gpu_autotune_level": 0} if on_gpu else None
    return planned_memory(measurement.lower().compile(compiler_options=options))["planned_peak"]


def largest_batch(one_row: int, two_rows: int, limit: int) -> int:
    """Returns the most rows that fit, from the bytes for one and two: every row adds as much."""
    return max(0, 1 + (limit - one_row) // max(two_rows - one_row, 1))


def compile_for(function: Any, *arguments: Any) -> Any:
    """Returns a jitted function compiled for arguments of these shapes."""
    return function.lower(*arguments).compile()


def time_runs(run: Callable[[], Any], count: int) -> tuple[list[float], Any]:
    """Returns the seconds of each run after a warm-up, at most `count`, and the last result."""
    times: list[float] = []
    result = None
    for _ in range(_WARM_UP + count):
        result = None  # so that no two results are in memory
        start = time.perf_counter()
        result = jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
        if sum(times) > _BUDGET_S and len(times) >= _WARM_UP + _FEWEST_RUNS:
            break
    return times[_WARM_UP:], result


def spread(times: Sequence[float]) -> dict[str, Any]:
    """Returns the median, quartiles and all times, in milliseconds."""
    milliseconds = [1e3 * x for x in times]
    low, high = np.percentile(milliseconds, (25, 75))
    return {
        "median_ms": statistics.median(milliseconds),
        "quartiles_ms": [float(low), float(high)],
        "times_ms": [round(x, 3) for x in milliseconds],
    }


def planned_memory(compiled: Any) -> dict[str, int]:
    """Returns the bytes that a compiled function takes on a device, by XLA's plan."""
    stats = compiled.memory_analysis()
    aliased = stats.alias_size_in_bytes
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    return {**sizes, "aliased": aliased, "planned_peak": sum(sizes.values()) - aliased}


def device_memory(mesh: jax.sharding.Mesh, name: str) -> int | None:
    """Returns the largest such figure of the devices' allocators; None where they keep none."""
    stats = [device.memory_stats() or {} for device in mesh.local_devices]
    return max((x[name] for x in stats if name in x), default=None)


def _device_peak(mesh: jax.sharding.Mesh) -> int | None:
    return device_memory(mesh, "peak_bytes_in_use")
