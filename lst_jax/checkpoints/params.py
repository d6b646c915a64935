"""The parameters of a checkpoint, read on their own."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging

from lst_jax.checkpoints.description import (
    DataDescription,
    ModelDescription,
    description_difference,
    read_description,
)
from lst_jax.checkpoints.layout import (
    UnreadableCheckpointError,
    find_checkpoint,
    params_directory,
    reading_checkpoint,
)
from lst_jax.checkpoints.reading import read_step
from lst_jax.checkpoints.train_state import param_shapes
from lst_jax.sharding import DEFAULT_RULES, LogicalRules

_CHUNK_BYTES = 2**26  # of a stored chunk of parameters, at most


def restore_params(
    path: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
    description: ModelDescription | None = None,
) -> Any:
    """Returns the parameters of a run, on any mesh; see `restore_step_params`.

    Returns:
      The parameter tree of `read_description(path).model`.
    """
    return restore_step_params(path, mesh, rules, description)[0]


def restore_step_params(
    path: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
    description: ModelDescription | None = None,
) -> tuple[Any, pathlib.Path]:
    """Returns the parameters of a run, on any mesh, and the step that they are of.

    Args:
      path: a workdir (its last checkpoint is read, or the one before it where that is damaged) or
        a step's directory in it.
      mesh: that the parameters are placed on.
      rules: logical axis to mesh axes.
      description: of the run, where it has been read.

    Returns:
      `(params, checkpoint)`: the parameter tree of `read_description(path).model` and the step's
      directory.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      OSError: a file cannot be read.
      ValueError: the mesh does not divide the model's axes, or the parameters are not of the
        description's shape, or damaged, or were deleted meanwhile.
    """
    description = description or read_description(find_checkpoint(path))
    shapes = param_shapes(description.model, mesh, rules)

    def read(checkpoint: pathlib.Path, whole: bool) -> tuple[Any, pathlib.Path]:
        directory = params_directory(checkpoint)
        if not directory.is_dir():
            raise UnreadableCheckpointError(f"{directory} is missing, expected a run's parameters")
        with ocp.StandardCheckpointer() as reader:
            with reading_checkpoint(directory, whole):
                stored = stored_tree(reader, directory)
            _check_shapes(stored, shapes, directory)
            with reading_checkpoint(directory, whole):
                return reader.restore(directory, shapes), checkpoint

    return read_step(path, read)


def stored_tree(reader: ocp.StandardCheckpointer, directory: pathlib.Path) -> Any:
    """Returns the tree of what is stored, of metadata in place of arrays."""
    metadata = reader.metadata(directory).item_metadata
    if metadata is None:
        raise ValueError("its metadata are missing or damaged")
    return metadata.tree


def _check_shapes(stored: Any, expected: Any, directory: pathlib.Path) -> None:
    """Checks that stored parameters are those that `model.json` describes."""
    stored, expected = map(_shapes_by_name, (stored, expected))
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise ValueError(
                f"{directory} is not of the model that model.json describes: {name} has shape "
                f"{stored.get(name, 'none')} there, expected {expected.get(name, 'none')}"
            )


def _shapes_by_name(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def restore_initial_params(
    path: str | pathlib.Path,
    description: ModelDescription,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> Any:
    """Reads the parameters that another run, described by `description`, starts from.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP of a run with the same model; it may
        have been computed in another way (type, remat, attention). Another visibility, patch size
        or place of `<s>` is warned of.
      description: of the run that starts.
      mesh: whose devices they are placed on.
      rules: logical axis to mesh axes.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      ValueError: it is of another model, vocabulary or tokenizer.
    """
    there = read_description(find_checkpoint(path))
    if there.tokenizer_fingerprint is None:  # ported, so nobody knows
        there = dataclasses.replace(there, tokenizer_fingerprint=description.tokenizer_fingerprint)
    difference = description_difference(there, description)
    if difference:
        raise ValueError(
            f"checkpoint {path} to start from is of another model than this run: {difference}"
        )
    for name, old, new in _changed_conventions(there.data, description.data):
        logging.warning(
            "checkpoint %s was trained with %s %r, this run has %r", path, name, old, new
        )
    return restore_params(path, mesh, rules, there)


def _changed_conventions(
    there: DataDescription, here: DataDescription
) -> Iterator[tuple[str, Any, Any]]:
    """Yields name and both values of changed conventions that a model relies on."""
    pairs = [("visibility", there.visibility, here.visibility)]
    if there.patching is not None and here.patching is not None:
        for name in ("patch_size", "join_speech_mode"):
            old, new = getattr(there.patching, name), getattr(here.patching, name)
            pairs.append((f"patching.{name}", old, new))
    for name, old, new in pairs:
        if None not in (old, new) and old != new:
            yield name, old, new


def params_save_args(params: Any) -> Any:
    """Returns how Orbax cuts parameters into chunks: by layers, each readable alone.

    Args:
      params: parameter tree, of arrays or whatever stands for them.

    Returns:
      The same tree of `ocp.SaveArgs`.
    """

    def chunks(path: Any, _: Any) -> ocp.SaveArgs:
        stacked = jax.tree_util.DictKey("layers") in path
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(chunks, params)
