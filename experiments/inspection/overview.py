"""What a configuration means, as JSON-able values and as text."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from experiments.aot.attention_estimates import typical_batch
from experiments.common.step_config import StepConfig
from experiments.inspection.memory import memory_per_device
from experiments.inspection.modules import Module, module_table
from lst_jax.checkpoints.train_state import state_shardings
from lst_jax.model.flops import BACKWARD_FACTOR
from lst_jax.model.models import count_parameters
from lst_jax.settings import require
from lst_jax.sharding import MESH_AXES, MeshConfig, batch_mesh_size, check_heads, check_rows
from lst_jax.training.optimizers import make_optimizer

_TYPICAL_ROWS = 8


def abstract_mesh(config: MeshConfig, num_devices: int | None = None) -> jax.sharding.AbstractMesh:
    """Returns a mesh without devices.

    Args:
      config: sizes of the axes.
      num_devices: what an axis of -1 fills; None: that axis has one.

    Raises:
      ValueError: the sizes do not make that number.
    """
    sizes = [getattr(config, axis) for axis in MESH_AXES]
    given = math.prod(size for size in sizes if size != -1)
    total = given if num_devices is None else num_devices
    sizes = [total // given if size == -1 else size for size in sizes]
    shape = dict(zip(MESH_AXES, sizes, strict=True))
    require(math.prod(sizes) == total, "mesh", shape, f"sizes that fill {total} devices")
    return jax.sharding.AbstractMesh(tuple(sizes), MESH_AXES)


def describe(config: StepConfig, mesh: jax.sharding.AbstractMesh) -> dict[str, Any]:
    """Returns what a step means, as JSON-able values; nothing is computed.

    Args:
      config: the step.
      mesh: over which it is split.

    Returns:
      `settings`, `mesh`, `batch` (rows, patches and tokens), `flops` of a step, `memory` (bytes a
      device) and `modules`.

    Raises:
      ValueError: heads, rows or axes of the model do not divide among the devices.
    """
    check_heads(config.model, mesh)
    accumulation = config.training.accumulation_steps
    parts = batch_mesh_size(mesh) * accumulation
    check_rows(config.num_rows, mesh, accumulation)
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    shapes = state_shardings(config.model, optimizer, mesh)[0]
    batch = typical_batch(
        config.vocabulary, config.patching, config.num_patches, config.num_tokens, _TYPICAL_ROWS
    )
    modules = module_table(config.model, batch, shapes.params)
    memory = memory_per_device(config, shapes, config.num_rows // parts)
    forward = modules[0].forward_flops * config.num_rows
    real_tokens = float((batch.document_ids > 0).sum()) / _TYPICAL_ROWS
    real_patches = sum(map(_num_patches, batch.patch_ids, batch.document_ids))
    return {
        "settings": {
            field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)
        },
        "parameters": count_parameters(config.model),
        "mesh": dict(mesh.shape),
        "batch": {
            "rows": config.num_rows,
            "rows_per_device": config.num_rows // batch_mesh_size(mesh),
            "accumulation_steps": accumulation,
            "patches_per_row": config.num_patches,
            "tokens_per_row": config.num_tokens,
            "typical_patches_per_row": real_patches / _TYPICAL_ROWS,
            "typical_tokens_per_row": real_tokens,
        },
        "flops": {"forward": forward, "step": (1 + BACKWARD_FACTOR) * forward},
        "memory": memory | {"sum_estimate": sum(memory.values())},
        "modules": [_module_json(module) for module in modules],
    }


def _num_patches(patch_ids: Any, document_ids: Any) -> int:
    return len(set(patch_ids[document_ids > 0].tolist()))


def _plain(value: Any) -> Any:
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    return {"kind": type(value).__name__, **dataclasses.asdict(value)}


def _module_json(module: Module) -> dict[str, Any]:
    specs = {name: _spec_json(spec) for name, spec in module.shardings.items()}
    return module._asdict() | {"path": "/".join(module.path), "shardings": specs}


def _spec_json(spec: PartitionSpec) -> list[Any]:
    return [list(axes) if isinstance(axes, tuple) else axes for axes in spec]


def format_description(description: dict[str, Any], depth: int | None = None) -> str:
    """Returns the description as text.

    Args:
      description: see `describe`.
      depth: levels of modules to show; None: all.
    """
    sections = [
        _settings_lines(description["settings"]),
        _batch_lines(description),
        _module_lines(description["modules"], depth),
        _memory_lines(description["memory"]),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections)


def _settings_lines(settings: dict[str, Any]) -> list[str]:
    lines = []
    for name, values in settings.items():
        if not isinstance(values, dict):
            lines.append(f"{name} = {values!r}")
            continue
        lines.append(f"{name}: {values['kind']}")
        lines += [f"  {key} = {value!r}" for key, value in values.items() if key != "kind"]
    return lines


def _batch_lines(description: dict[str, Any]) -> list[str]:
    batch, flops = description["batch"], description["flops"]
    mesh = " ".join(f"{axis}={size}" for axis, size in description["mesh"].items())
    accumulated = f", in {batch['accumulation_steps']} parts" * (batch["accumulation_steps"] > 1)
    return [
        f"mesh        {mesh}: {math.prod(description['mesh'].values()):,} devices",
        f"batch       {batch['rows']} rows, {batch['rows_per_device']} a device{accumulated}",
        f"row         {batch['patches_per_row']:,} patches, {batch['tokens_per_row']:,} tokens; "
        f"of typical documents {batch['typical_patches_per_row']:,.0f} and "
        f"{batch['typical_tokens_per_row']:,.0f}",
        f"parameters  {description['parameters']:,}",
        f"FLOPs       {flops['step']:.4g} a step, {flops['forward']:.4g} forward (the model's, for "
        "typical documents)",
    ]


def _module_lines(modules: Sequence[dict[str, Any]], depth: int | None) -> list[str]:
    header = ("module", "kind", "inputs", "outputs", "parameters", "FLOPs a row", "sharding")
    rows: list[tuple[str, ...]] = [header]
    for module in modules:
        names = module["path"].split("/") if module["path"] else []
        if depth is not None and len(names) > depth:
            continue
        layers = f" × {module['layers']}" if module["layers"] > 1 else ""
        specs = (f"{name} {_format_spec(spec)}" for name, spec in module["shardings"].items())
        name = "  " * len(names) + (names[-1] if names else "model")
        shapes = (_format_shapes(module[side]) for side in ("inputs", "outputs"))
        size, flops = f"{module['parameters']:,}", f"{module['forward_flops']:.3g}"
        rows.append((name, module["kind"] + layers, *shapes, size, flops, ", ".join(specs)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _format_shapes(shapes: Sequence[Sequence[int]]) -> str:
    """Returns the shapes of floating arrays first; token ids and ranges of rows are not shown."""
    states = [shape for shape in shapes if len(shape) > 2] or shapes[:1]
    return " ".join("×".join(map(str, shape[1:])) for shape in states)


def _format_spec(spec: Sequence[Any]) -> str:
    parts = ("+".join(axes) if isinstance(axes, list) else axes or "·" for axes in spec)
    return f"({', '.join(parts)})"


def _memory_lines(memory: dict[str, int]) -> list[str]:
    what = {
        "parameters": "float32",
        "gradients": "float32, sharded as the parameters",
        "optimizer": "both moments, sharded as the parameters",
        "activations_estimate": "estimate: kept for the backward pass, before XLA's fusions",
        "sum_estimate": "estimate: without a layer's working set; experiments.aot_compile has it",
    }
    lines = ["memory a device"]
    for name, size in memory.items():
        label = name.removesuffix("_estimate")
        lines.append(f"  {label:<12}{size / 2**30:>10.3f} GiB  {what[name]}")
    return lines
