"""A training step compiled for TPU slices that are not there, and what it takes."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.aot.attention_estimates import AttentionEstimates, typical_batch
from experiments.aot.hlo_costs import HloCosts, ProgramCosts
from experiments.aot.hlo_messages import transfer_seconds
from experiments.aot.hlo_schedule import schedule_of
from experiments.aot.jaxpr_flops import jaxpr_flops
from experiments.aot.topologies import tpu_devices
from experiments.common.step_config import StepConfig
from lst_jax.checkpoints.train_state import state_shardings
from lst_jax.hardware import Chip, tpu_chip
from lst_jax.model.flops import training_flops
from lst_jax.settings import given, quote
from lst_jax.sharding import (
    MeshConfig,
    abstract_batch,
    batch_mesh_size,
    batch_sharding,
    check_heads,
    check_rows,
    count_parts,
    make_mesh,
    mesh_context,
)
from lst_jax.training.optimizers import make_optimizer
from lst_jax.training.step import make_train_step

# Policies from the one that keeps most to the one that keeps least.
_POLICIES = ("none", "dots", "full")
_WARNING = "Involuntary full rematerialization"
# "Used 20.5G of 15.75G hbm" of buffers placed one by one; "temporaries (20.5G) exceeds available
# HBM (15.75G)" where these alone are too large.
_OUT_OF_MEMORY = re.compile(
    r"(?:Used |temporaries \()([\d.]+)([KMG]?)\)? (?:of|exceeds available HBM) \(?([\d.]+)([KMG]?)"
)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def compile_step(
    config: StepConfig,
    topology: str,
    mesh_config: MeshConfig,
    num_slices: int = 1,
    rows_per_device: int | None = None,
    compiler_options: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Compiles the step that the trainer runs and says what it takes.

    Args:
      config: the step.
      topology: chip and shape of a slice (`experiments.aot.topologies`).
      mesh_config: devices along each mesh axis.
      num_slices: slices of that shape.
      rows_per_device: rows of the batch for each part of the mesh's batch axes; None: the fewest
        that make `config.num_rows`.
      compiler_options: XLA's, by name, such as `LIBTPU_INIT_ARGS` would give a run.

    Returns:
      JSON-able: `setup`, `memory`, `fits`, and, where the step fits, `work`, `roofline`,
      `schedule`. Where it does not, `remedy` names the first remat policy under which it does, None
      if there is none.

    Raises:
      ImportError, ValueError: see `tpu_devices`, `make_mesh`, `check_rows`.
      ValueError: XLA does not take one of the options.
    """
    place = (topology, mesh_config, num_slices, rows_per_device, compiler_options)
    report = _compile(config, *place)
    if report["fits"]:
        return report
    used = config.model.remat
    report["remedy"] = None
    for policy in _POLICIES[_POLICIES.index(used) + 1 :]:
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=policy))
        if _compile(other, *place)["fits"]:
            report["remedy"] = policy
            break
    return report


def _compile(
    config: StepConfig,
    topology: str,
    mesh_config: MeshConfig,
    num_slices: int,
    rows_per_device: int | None,
    compiler_options: Mapping[str, str] | None,
) -> dict[str, Any]:
    devices = tpu_devices(topology, num_slices)
    mesh = make_mesh(mesh_config, devices)
    chip = tpu_chip(devices[0].device_kind)
    check_heads(config.model, mesh)
    rows = batch_mesh_size(mesh) * (rows_per_device or 0)
    if not rows:
        parts = batch_mesh_size(mesh) * config.training.accumulation_steps
        rows = parts * -(-config.num_rows // parts)
    check_rows(rows, mesh, config.training.accumulation_steps)
    options: dict[str, str | bool] = dict(compiler_options or {})
    report: dict[str, Any] = {
        "setup": {
            "model": dataclasses.asdict(config.model),
            "topology": topology,
            "slices": num_slices,
            "mesh": dict(mesh.shape),
            "rows": rows,
            "rows_per_device": rows / batch_mesh_size(mesh),
            "patches_per_row": config.num_patches,
            "tokens_per_row": config.num_tokens,
            "accumulation_steps": config.training.accumulation_steps,
            "compiler_options": options,
            "versions": library_versions(),
        }
    }
    with _captured_stderr() as log:
        start = time.perf_counter()
        traced = _trace(config, mesh, rows)
        with mesh_context(mesh):
            lowered = traced.lower()
        report["lowering_seconds"] = round(time.perf_counter() - start, 1)
        start = time.perf_counter()
        try:
            compiled = lowered.compile(compiler_options=options)
        except jax.errors.JaxRuntimeError as error:
            if options and "INVALID_ARGUMENT" in str(error):
                raise ValueError(
                    f"compiler_options is {quote(options)}, expected options that XLA takes "
                    f"({quote(str(error))})"
                ) from error
            return report | _does_not_fit(error, chip)
        report["compile_seconds"] = round(time.perf_counter() - start, 1)
    report["partitioner_warnings"] = [x for x in log if _WARNING in x]
    report |= _memory(compiled.memory_analysis(), chip)
    text = given(compiled.as_text(), "as_text", "the compiled program")
    report |= _work(config, text, mesh, rows, chip)
    report["work"]["traced_flops"] = jaxpr_flops(traced.jaxpr).flops / mesh.size
    return report


def library_versions() -> dict[str, str]:
    """Returns the versions of what makes the figures."""
    return {name: importlib.metadata.version(name) for name in ("jax", "libtpu")}


def _trace(config: StepConfig, mesh: jax.sharding.Mesh, rows: int) -> jax.stages.Traced:
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    step = make_train_step(
        config.model,
        config.optimizer,
        config.training,
        config.vocabulary.first_unit_id,
        mesh,
    )
    state = state_shardings(config.model, optimizer, mesh)[0]

    batch = abstract_batch(config.num_patches, config.num_tokens, rows, batch_sharding(mesh))
    with mesh_context(mesh):
        return step.trace(state, batch)


def _memory(stats: Any, chip: Chip) -> dict[str, Any]:
    sizes = {
        "arguments": stats.argument_size_in_bytes,
        "outputs": stats.output_size_in_bytes,
        "aliased": stats.alias_size_in_bytes,
        "temporaries": stats.temp_size_in_bytes,
        "code": stats.generated_code_size_in_bytes,
    }
    peak, hbm = sum(sizes.values()) - 2 * sizes["aliased"], int(chip.memory_bytes)
    memory = sizes | {"peak": peak, "hbm": hbm}
    if peak > hbm:
        memory["exceeded_by"] = peak - hbm
    return {"memory": memory, "fits": peak <= hbm}


def _does_not_fit(error: RuntimeError, chip: Chip) -> dict[str, Any]:
    """Returns what the compiler said of a step that is too large; other errors are raised again."""
    match = _OUT_OF_MEMORY.search(str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not match:
        raise error
    used, limit = (float(match[i]) * _UNITS[match[i + 1]] for i in (1, 3))
    memory = {"peak": int(used), "hbm": int(chip.memory_bytes), "limit": int(limit)}
    return {"memory": memory | {"exceeded_by": int(used - limit)}, "fits": False}


def _work(
    config: StepConfig, text: str, mesh: jax.sharding.Mesh, rows: int, chip: Chip
) -> dict[str, Any]:
    batch = typical_batch(config.vocabulary, config.patching, config.num_patches, config.num_tokens)
    micro_rows = rows // batch_mesh_size(mesh) // config.training.accumulation_steps
    estimates = AttentionEstimates(config.model, batch, micro_rows, count_parts(mesh, "heads"))
    program = ProgramCosts(text, estimates.trip_count, estimates.kernel_cost)
    costs = program.total()
    with jax.set_mesh(None):
        per_row = float(training_flops(config.model, jax.tree.map(jnp.asarray, batch)))
    per_row /= len(batch.tokens)
    model_flops = per_row * rows / mesh.size
    return {
        "roofline": _roofline(costs, model_flops, chip),
        "schedule": _schedule(program, model_flops, chip),
        "work": {
            "model_flops": model_flops,
            "flops": costs.matrix_flops,
            "kernel_flops": costs.kernel_flops,
            "estimated_flops": costs.estimated_flops,
            "memory_bytes": costs.memory_bytes,
            "collective_bytes": _bytes_by_kind(costs),
            "not_counted": sorted(costs.unknown),
            "real_tokens": float((batch.document_ids > 0).mean()),
            "mean_document_tokens": float(
                (batch.document_ids > 0).sum() / batch.document_ids.max(axis=1).sum()
            ),
        },
    }


def _bytes_by_kind(costs: HloCosts) -> dict[str, float]:
    sums: dict[str, float] = {}
    for kind, sent in sorted(costs.collective_bytes.items(), key=lambda item: item[0].kind):
        name = kind.kind + (" between slices" if kind.crosses_slices else "")
        sums[name] = sums.get(name, 0.0) + sent
    return sums


def _schedule(program: ProgramCosts, model_flops: float, chip: Chip) -> dict[str, Any]:
    schedule = schedule_of(program, chip)
    return {
        "operation_seconds": schedule.operation_seconds,
        "exposed_seconds": schedule.exposed_seconds,
        "step_seconds": schedule.step_seconds,
        "mfu": model_flops / (schedule.step_seconds * chip.flops_per_second),
        "collectives": [dataclasses.asdict(x) for x in schedule.collectives],
    }


def _roofline(costs: HloCosts, model_flops: float, chip: Chip) -> dict[str, Any]:
    links = {True: 0.0, False: 0.0}
    for message in costs.collective_bytes.items():
        links[message[0].crosses_slices] += transfer_seconds(message, chip)
    seconds = {
        "compute": costs.matrix_flops / chip.flops_per_second,
        "memory": costs.memory_bytes / chip.memory_bandwidth,
        "interconnect": links[False],
    }
    if links[True]:
        seconds["network"] = links[True]
    bound = max(seconds, key=seconds.__getitem__)
    step, serial = seconds[bound], sum(seconds.values())
    return {
        "seconds": seconds,
        "step_seconds": step,
        "bound": bound,
        "mfu": model_flops / (step * chip.flops_per_second),
        "mfu_without_overlap": model_flops / (serial * chip.flops_per_second),
        "chip": chip._asdict(),
    }


@contextlib.contextmanager
def _captured_stderr() -> Iterator[list[str]]:
    """Collects the lines that the compiler writes to file descriptor 2, which Python cannot see."""
    lines: list[str] = []
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory) / "stderr"
        with path.open("wb") as file:
            os.dup2(file.fileno(), 2)
            try:
                yield lines
            finally:
                sys.stderr.flush()
                os.dup2(saved, 2)
                os.close(saved)
                lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
