"""The stages of the accelerator benchmark as jobs, in the order of their value."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import os
import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import attention_timing, decode_timing
from experiments.benchmarks.job_runner import (
    Job,
    Record,
)
from experiments.benchmarks.step_timing import (
    StepMeasurement,
    largest_batch,
    make_batches,
    planned_bytes,
)
from experiments.common.step_config import StepConfig, preset
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.hardware import peak_rate
from lst_jax.model.attention import best_backend
from lst_jax.model.attention.gpu import KERNELS, best_kernel
from lst_jax.model.attention.numerics import relative_errors
from lst_jax.model.attention.platform import target
from lst_jax.model.models import count_parameters
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import make_mesh
from lst_jax.training.optimizers import OptimizerConfig

STAGES = (
    "device",
    "numerics",
    "step",
    "trace",
    "attention",
    "parts",
    "decoding",
    "convergence",
)

_POLICIES = ("none", "dots", "full")
# Batches of fewer rows leave matrix units idle, so the next policy is tried besides.
_ENOUGH_ROWS = 4
# Of the memory that JAX may take; fragments and what runs beside the step need the rest.
_MEMORY_SHARE = 0.93
_STEPS = 10
_TRACED_STEPS = 3
_HEAVIEST_KERNELS = 40
_CONVERGENCE_STEPS = 200
_ATTENTION_ROWS = 2


@dataclasses.dataclass
class _Best:
    """The fastest setting of a model's step that was found, ready to run again."""

    measurement: StepMeasurement
    patches_per_second: float
    remat: str
    rows: int


class Bench:
    """The jobs of every stage; what one finds (the best batch) serves the next."""

    def __init__(
        self, models: Sequence[str], output: pathlib.Path, most_rows: int, attention: str
    ) -> None:
        """Takes the presets, the trace's directory, the largest batch, the models' backend."""
        self._configs = {name: _with_model(preset(name), attention=attention) for name in models}
        self._first, self._last = models[0], models[-1]
        self._output, self._most_rows = output, most_rows
        self._mesh = make_mesh(devices=jax.local_devices()[:1])
        self._peak = peak_rate(jax.local_devices()[0])
        self._on_cpu = jax.default_backend() == "cpu"
        self._plans: dict[str, dict[str, int]] = {}
        self._best: dict[str, _Best] = {}
        self._state: TrainState | None = None  # of the model whose step ran last
        self._state_of = ""

    def recall(self, records: Iterable[Record]) -> None:
        """Takes over the plans and the best settings that earlier workers of this run found."""
        for record in records:
            if record["stage"] != "step" or record.get("status") != "ok":
                continue
            model, policy, rows = record["model"], record["remat"], record["rows"]
            if "one_row_bytes" in record:
                self._plans.setdefault(model, {})[policy] = rows
            elif "patches_per_second" in record:
                measurement = self._measurement(model, policy, rows)
                self._keep_best(model, measurement, record["patches_per_second"], policy, rows)

    def jobs(self, stages: Iterable[str]) -> Iterator[Job]:
        """Yields the jobs of the stages, in their order."""
        for stage in stages:
            yield from getattr(self, f"_{stage}_jobs")()

    # ---- device

    def _device_jobs(self) -> Iterator[Job]:
        yield Job("device", "rates", 15, self._device_rates)

    def _device_rates(self) -> Iterator[Record]:
        """Yields the two ceilings: FLOP/s of a product in bfloat16, bytes a second of a copy."""
        size, length = (1024, 2**20) if self._on_cpu else (8192, 2**30)
        key = jax.random.key(0)
        a, b = (jax.random.normal(k, (size, size), jnp.bfloat16) for k in jax.random.split(key))
        x = jax.random.normal(key, (length,), jnp.bfloat16)
        product = _median_seconds(jax.jit(jnp.matmul), a, b)
        copy = _median_seconds(jax.jit(lambda x: -x), x)
        yield {
            "product_size": size,
            "product_flops_per_second": 2 * size**3 / product,
            "copied_bytes_per_second": 2 * x.nbytes / copy,
            "peak_flops_per_second": self._peak.flops_per_second,
            "peak_source": self._peak.source,
        }

    # ---- numerics

    def _numerics_jobs(self) -> Iterator[Job]:
        for dtype in ("bfloat16", "float32"):
            for backend in self._backends():
                run = functools.partial(self._numerics, backend, dtype)
                yield Job("numerics", f"{backend} {dtype}", 12, run)
        yield Job("numerics", "auto", 15, self._auto)

    def _backends(self) -> list[str]:
        """Returns the backends that this platform has: its kernels, and those of XLA."""
        kernels = {"gpu": KERNELS, "tpu": ("pallas_tpu",)}.get(jax.default_backend(), ())
        return [*kernels, "lockstep", *(() if jax.default_backend() == "gpu" else ("blocked",))]

    def _numerics(self, backend: str, dtype: str) -> Iterator[Record]:
        for width in sorted(self._head_widths()):
            reason = self._unsupported(backend, dtype, width)
            if reason:
                yield {"backend": backend, "dtype": dtype, "width": width, "unsupported": reason}
                continue
            errors = relative_errors(attention_timing.attend_with(backend), dtype, width)
            worst = max(max(case.values()) for case in errors.values())
            yield {
                "backend": backend,
                "dtype": dtype,
                "width": width,
                "worst": worst,
                "errors": errors,
            }

    def _unsupported(self, backend: str, dtype: str, width: int) -> str | None:
        if backend not in KERNELS:
            return None
        module = importlib.import_module(f"lst_jax.model.attention.{backend}")
        return module.unsupported(dtype, width, target().capability)

    def _lst(self, name: str) -> LSTConfig:
        model = self._configs[name].model
        assert isinstance(model, LSTConfig)  # as every preset's
        return model

    def _head_widths(self) -> set[int]:
        model = self._lst(self._first)
        return {
            model.dim_local // model.num_heads_local,
            model.dim_global // model.num_heads_global,
        }

    def _auto(self) -> Iterator[Record]:
        """Yields what `auto` stands for here, by dtype and width of heads."""
        chosen = best_backend(jax.default_backend())
        for dtype in ("bfloat16", "float32"):
            for width in sorted(self._head_widths()):
                kernel = None
                if chosen == "gpu":
                    kernel = best_kernel(dtype, width, target()) or "blocked"
                yield {"dtype": dtype, "width": width, "auto": kernel or chosen}

    # ---- step

    def _step_jobs(self) -> Iterator[Job]:
        for model in self._configs:
            yield Job("step", f"{model} plan", 60, functools.partial(self._plan, model))
            for policy in _POLICIES:
                run = functools.partial(self._measure_step, model, policy)
                yield Job("step", f"{model} {policy}", 90, run)

    def _measurement(self, model: str, policy: str, rows: int) -> StepMeasurement:
        config = _with_model(self._configs[model], remat=policy)
        config = dataclasses.replace(config, num_rows=rows)
        return StepMeasurement(config, self._mesh, make_batches(config, rows), _STEPS, self._peak)

    def _plan(self, model: str) -> Iterator[Record]:
        """Yields the most rows that fit under each policy, from the memory planned for 1 and 2."""
        sizes = [(policy, rows) for policy in _POLICIES for rows in (1, 2)]
        plan = functools.partial(planned_bytes, self._configs[model], self._mesh)
        with concurrent.futures.ThreadPoolExecutor(min(len(sizes), os.cpu_count() or 1)) as pool:
            planned = dict(zip(sizes, pool.map(lambda size: plan(*size), sizes), strict=True))
        limit = self._memory_limit()
        plans = self._plans[model] = {}
        for policy in _POLICIES:
            one, two = planned[policy, 1], planned[policy, 2]
            fits = self._most_rows if limit is None else largest_batch(one, two, limit)
            plans[policy] = min(fits, self._most_rows)
            yield {
                "model": model,
                "remat": policy,
                "one_row_bytes": one,
                "further_row_bytes": two - one,
                "limit_bytes": limit,
                "rows": plans[policy],
            }

    def _memory_limit(self) -> int | None:
        stats = jax.local_devices()[0].memory_stats() or {}
        return int(_MEMORY_SHARE * stats["bytes_limit"]) if "bytes_limit" in stats else None

    def _measure_step(self, model: str, policy: str) -> Iterator[Record]:
        """Times the step with the largest batch of a policy; `full` where others fit too little."""
        plans = self._plans.get(model)
        if plans is None:
            raise ValueError(f"step of {model}: its plan failed or was left out")
        rows = plans[policy]
        if policy == "full" and max(plans["none"], plans["dots"]) >= min(_ENOUGH_ROWS, rows):
            return
        self._forget_state(model)
        measurement = None
        while rows:
            measurement = self._measurement(model, policy, rows)
            measurement.compile()
            planned = measurement.planned_memory()["planned_peak"]
            limit = self._memory_limit()
            if limit is None or planned <= limit:
                break
            yield {"model": model, "remat": policy, "rows": rows, "too_large_by": planned - limit}
            rows -= 1
        if not rows or measurement is None:
            yield {"model": model, "remat": policy, "rows": 0}
            return
        figures, self._state = measurement.measure_step(self._state)
        self._state_of = model
        config = self._configs[model]
        yield {
            "model": model,
            "parameters": count_parameters(config.model),
            "remat": policy,
            "rows": rows,
            "patches_per_row": config.num_patches,
            "tokens_per_row": config.num_tokens,
            "dtype": config.model.dtype,
            **figures,
        }
        self._keep_best(model, measurement, figures["patches_per_second"], policy, rows)

    def _keep_best(
        self, model: str, measurement: StepMeasurement, rate: float, policy: str, rows: int
    ) -> None:
        best = self._best.get(model)
        if best is None or rate > best.patches_per_second:
            self._best[model] = _Best(measurement, rate, policy, rows)

    def _forget_state(self, model: str = "") -> None:
        """Frees the state of another model."""
        if self._state_of != model:
            self._state, self._state_of = None, ""

    def _best_step(self) -> _Best:
        """Returns the best setting of the first model; without the stage `step`, one row, full."""
        if self._first not in self._best:
            measurement = self._measurement(self._first, "full", 1)
            self._best[self._first] = _Best(measurement, 0.0, "full", 1)
        return self._best[self._first]

    # ---- attention

    def _attention_jobs(self) -> Iterator[Job]:
        config = self._configs[self._first]
        rows = min(_ATTENTION_ROWS, self._most_rows)
        cases = attention_timing.attention_cases(
            self._lst(self._first),
            config.vocabulary,
            config.num_patches,
            config.num_tokens,
            rows,
        )
        for case in cases:
            names = [*self._backends(), "dense"]
            for name in names:
                run = functools.partial(
                    self._time_attention, case, name, attention_timing.attend_with(name), True
                )
                yield Job("attention", f"{case.name}, {name}", 10, run)
            if jax.default_backend() == "gpu":
                for name, (attention, exact) in attention_timing.alternatives(case).items():
                    run = functools.partial(self._time_attention, case, name, attention, exact)
                    yield Job("attention", f"{case.name}, {name}", 10, run)

    def _time_attention(
        self,
        case: attention_timing.AttentionCase,
        name: str,
        attention: attention_timing.Attention,
        exact: bool,
    ) -> Iterator[Record]:
        dtype = self._configs[self._first].model.dtype
        times = attention_timing.time_attention(attention, case, dtype, _STEPS, budget_s=3.0)
        _, _, heads, width = case.query_shape
        flops = 4.0 * width * heads * case.pairs
        yield {
            "attention": case.name,
            "backend": name,
            "exact": exact,
            "dtype": dtype,
            "rows": case.query_shape[0],
            "queries": case.query_shape[1],
            "keys": case.key_shape[1],
            "heads": heads,
            "width": width,
            "pairs": case.pairs,
            "forward_ms": 1e3 * times.forward_s,
            "forward_backward_ms": 1e3 * times.both_s,
            "forward_backward_temp_bytes": times.both_bytes,
            # Two products forward and four backward; what is computed again does not count.
            "model_flops_per_second": 3 * flops / times.both_s,
        }

    # ---- parts and trace

    def _parts_jobs(self) -> Iterator[Job]:
        yield Job("parts", self._first, 90, self._measure_parts)

    def _measure_parts(self) -> Iterator[Record]:
        self._forget_state(self._first)
        best = self._best_step()
        # Each part keeps its inputs and outputs besides, so batches are smaller.
        rows = max(best.rows // 2, 1)
        measurement = self._measurement(self._first, best.remat, rows)
        state = measurement.init_state() if self._state is None else self._state
        self._state = None  # the parts' optimizer takes it over
        figures, self._state = measurement.measure_parts(state)
        self._state_of = self._first
        yield {"model": self._first, "remat": best.remat, "rows": rows, **figures}

    def _trace_jobs(self) -> Iterator[Job]:
        yield Job("trace", self._first, 60, self._trace)

    def _trace(self) -> Iterator[Record]:
        """Traces a few steps into the output directory; yields the kernels that took longest."""
        self._forget_state(self._first)
        best = self._best_step()
        best.measurement.compile()
        state = best.measurement.init_state() if self._state is None else self._state
        self._state = None
        state = best.measurement.run_steps(state, 1)
        directory = self._output / "trace"
        with jax.profiler.trace(str(directory)):
            state = best.measurement.run_steps(state, _TRACED_STEPS)
        self._state, self._state_of = state, self._first
        files = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
        yield {
            "model": self._first,
            "remat": best.remat,
            "rows": best.rows,
            "steps": _TRACED_STEPS,
            "file": str(files[-1].relative_to(self._output)),
            "kernels_ms_per_step": _heaviest_kernels(files[-1]),
        }

    # ---- decoding

    def _decoding_jobs(self) -> Iterator[Job]:
        for name in ("LST", "baseline"):
            for rows in (1, 8) if not self._on_cpu else (1,):
                run = functools.partial(self._decode, name, rows)
                yield Job("decoding", f"{name}, {rows} rows", 40, run)

    def _decode(self, name: str, rows: int) -> Iterator[Record]:
        self._forget_state()
        config = self._configs[self._last]
        model, patching = config.model, PatchingConfig("static")
        if name == "baseline":
            model, patching = baseline_of(self._lst(self._last)), PatchingConfig("none")
        subject = decode_timing.make_subject(name, model, config.vocabulary, patching)
        prompt_s, seconds = (7.5, 15.0) if not self._on_cpu else (1.0, 1.0)
        yield {
            "preset": self._last,
            **decode_timing.measure_decoding(subject, rows, prompt_s, seconds),
        }

    # ---- convergence

    def _convergence_jobs(self) -> Iterator[Job]:
        yield Job("convergence", self._last, 120, self._converge)

    def _converge(self) -> Iterator[Record]:
        """Yields losses of 200 steps on a few batches, from the same parameters in both dtypes."""
        self._forget_state()
        config = self._configs[self._last]
        length = max(config.num_patches // 4, 64)
        steps = _CONVERGENCE_STEPS if not self._on_cpu else 20
        losses = {}
        for dtype in ("bfloat16", "float32"):
            short = dataclasses.replace(
                _with_model(config, dtype=dtype, remat="dots"),
                optimizer=OptimizerConfig(warmup_steps=steps // 10),
                training=dataclasses.replace(config.training, num_steps=steps),
                num_patches=length,
                num_tokens=length * config.num_tokens // config.num_patches,
                num_rows=min(4, self._most_rows),
            )
            batches = make_batches(short, short.num_rows)
            measurement = StepMeasurement(short, self._mesh, batches, steps, self._peak)
            losses[dtype] = measurement.losses(steps)
        low, high = (np.array(losses[dtype]) for dtype in ("bfloat16", "float32"))
        tail = max(steps // 10, 1)
        yield {
            "preset": self._last,
            "steps": steps,
            "patches_per_row": length,
            "losses": losses,
            "largest_difference": float(np.max(np.abs(low - high))),
            "last_tenth": {"bfloat16": low[-tail:].mean(), "float32": high[-tail:].mean()},
        }


def _with_model(config: StepConfig, **changes: Any) -> StepConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))


def _median_seconds(function: Callable[..., Any], *arrays: Any) -> float:
    """Returns the median of ten runs after a warm-up of three."""
    times = []
    for _ in range(13):
        start = time.perf_counter()
        jax.block_until_ready(function(*arrays))
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def _heaviest_kernels(path: pathlib.Path) -> dict[str, float]:
    """Returns the milliseconds a step of the kernels that took longest, by name, from a trace."""
    data = jax.profiler.ProfileData.from_file(str(path))
    totals: Counter[str] = Counter()
    for plane in data.planes:
        if "/device:" not in plane.name and "CPU" not in plane.name:
            continue
        for line in plane.lines:
            if plane.name.startswith("/device:") and not line.name.startswith("Stream"):
                continue
            for event in line.events:
                totals[event.name[:120]] += event.duration_ns
    return {
        name: round(total / 1e6 / _TRACED_STEPS, 4)
        for name, total in totals.most_common(_HEAVIEST_KERNELS)
    }
