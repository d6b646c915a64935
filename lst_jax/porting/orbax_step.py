"""Steps of our own runs, read and written layer by layer instead of leaf by leaf.

Orbax keeps each leaf of the parameter tree as one TensorStore array, which is read here directly;
writing goes through a type handler, Orbax's own way to store what is not an array in memory, so
that the files are Orbax's in every detail.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.digests import write_step_digests
from lst_jax.checkpoints.layout import (
    find_checkpoint,
    params_directory,
    quiet_orbax,
    reading_checkpoint,
)
from lst_jax.checkpoints.params import params_save_args, stored_tree
from lst_jax.checkpoints.reading import StepWatch, read_step
from lst_jax.config import ModelConfig
from lst_jax.porting.parameter_names import (
    PublishedTensor,
    parameter_shapes,
    published_tensors,
)
from lst_jax.porting.tensors import DTYPES, TensorSpec

# Layers of a leaf that share stored chunks are read together, up to this many bytes.
_MAX_READ_BYTES = 2**28


class OrbaxStep:
    """Reads the parameters of a step under their published names.

    Of a workdir, the last step that is whole is read.

    Attributes:
      specs: shape and dtype of every tensor; leaves that the model does not have, or of another
        shape, appear under their keys in the tree.
      description: of the run's model.
      step: number of the step.
    """

    def __init__(self, path: str | pathlib.Path) -> None:
        """Opens the arrays of a step, or of a run's last one.

        Raises:
          FileNotFoundError: there is no run or no step.
          ValueError: the step's parameters are damaged.
        """
        self.description = read_description(find_checkpoint(path))
        self._checkpoint, self._whole, self._arrays, self._watch = read_step(path, _open_arrays)
        self.step = int(self._checkpoint.name)
        config = self.description.model
        shapes = parameter_shapes(config)
        self._tensors: dict[str, PublishedTensor] = {}
        self.specs: dict[str, TensorSpec] = {}
        for leaf, array in self._arrays.items():
            if array.shape != shapes.get(leaf):
                self.specs["/".join(leaf)] = TensorSpec(array.shape, array.dtype.name)
        for tensor in published_tensors(config):
            array = self._arrays.get(tensor.path)
            if array is not None and array.shape == shapes[tensor.path]:
                self._tensors[tensor.name] = tensor
                self.specs[tensor.name] = TensorSpec(tensor.shape, array.dtype.name)
        self._block: tuple[tuple[str, ...], int, np.ndarray] | None = None

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor; cheapest in the order of `specs`.

        Raises:
          OSError: the files cannot be read.
          ValueError: they are damaged, or were deleted meanwhile.
        """
        tensor = self._tensors[name]
        if tensor.layer is None:
            return tensor.to_published(self._read(tensor.path, slice(None)))
        return tensor.to_published(self._read_layer(tensor.path, tensor.layer))

    def check_still_there(self) -> None:
        """Looks at the step again after the last read.

        Raises:
          StepDeletedError: it was deleted meanwhile.
        """
        failure = self._watch.explain(None)
        if failure is not None:
            raise failure

    def _read_layer(self, leaf: tuple[str, ...], layer: int) -> np.ndarray:
        """Returns one layer of a stacked leaf; keeps those stored with it for the next call."""
        if self._block is None or self._block[0] != leaf or not self._holds(layer):
            self._block = None  # before the next one is read, not after
            array = self._arrays[leaf]
            layer_bytes = array.size // array.shape[0] * array.dtype.numpy_dtype.itemsize
            stored = array.chunk_layout.read_chunk.shape or array.shape
            count = max(1, min(stored[0] or 1, _MAX_READ_BYTES // layer_bytes))
            first = layer - layer % count
            self._block = leaf, first, self._read(leaf, slice(first, first + count))
        assert self._block is not None
        _, first, values = self._block
        return values[layer - first]

    def _holds(self, layer: int) -> bool:
        if self._block is None:
            return False
        _, first, values = self._block
        return first <= layer < first + len(values)

    def _read(self, leaf: tuple[str, ...], part: slice) -> np.ndarray:
        array = self._arrays[leaf]
        stop = array.shape[0] if part.stop is None else min(part.stop, array.shape[0])
        directory = params_directory(self._checkpoint) / "/".join(leaf)
        try:
            with reading_checkpoint(directory, self._whole):
                return array[part.start or 0 : stop].read().result()
        except (OSError, ValueError) as error:
            raise self._watch.explain(error) from error


def _open_arrays(
    checkpoint: pathlib.Path, whole: bool
) -> tuple[pathlib.Path, bool, dict[tuple[str, ...], ts.TensorStore], StepWatch]:
    """Opens the stored arrays of a step, by leaf; a chunk that is missing is an error in them."""
    watch = StepWatch(checkpoint)
    watch.look()
    directory = params_directory(checkpoint)
    with reading_checkpoint(directory, whole):
        with ocp.StandardCheckpointer() as reader:
            tree = stored_tree(reader, directory)
        use_ocdbt = ocp.type_handlers.is_ocdbt_checkpoint(directory)
        leaves = flax.traverse_util.flatten_dict(tree)
        found = {
            leaf: ts.open(_array_spec(directory, ".".join(leaf), use_ocdbt)) for leaf in leaves
        }
        strict = {
            leaf: {**array.result().spec().to_json(), "fill_missing_data_reads": False}
            for leaf, array in found.items()
        }
        opened = {leaf: ts.open(spec) for leaf, spec in strict.items()}
        arrays = {leaf: array.result() for leaf, array in opened.items()}
    return checkpoint, whole, arrays, watch


def is_orbax_run(path: pathlib.Path) -> bool:
    """Returns whether the path is a run's workdir or a step in it."""
    try:
        find_checkpoint(path)
    except FileNotFoundError:
        return False
    return True


def write_orbax(
    checkpoint: pathlib.Path,
    config: ModelConfig,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
) -> None:
    """Writes the parameters of a step.

    Args:
      checkpoint: the step's directory.
      config: of the model.
      specs: of the tensors, by published name.
      read: gives one tensor.

    Raises:
      ValueError: the layers of a leaf are of different types.
    """
    by_leaf: dict[tuple[str, ...], list[PublishedTensor]] = {}
    for tensor in published_tensors(config):
        by_leaf.setdefault(tensor.path, []).append(tensor)
    leaves = {}
    for path, shape in parameter_shapes(config).items():
        tensors = by_leaf[path]
        dtypes = {specs[tensor.name].dtype for tensor in tensors}
        if len(dtypes) > 1:
            names = f"{tensors[0].name} … {tensors[-1].name}"
            raise ValueError(f"{names} are {', '.join(sorted(dtypes))}, expected one type of all")
        leaves[path] = _StreamedLeaf(shape, DTYPES[dtypes.pop()], tensors, read)
    tree = flax.traverse_util.unflatten_dict(leaves)
    registry = ocp.type_handlers.create_type_handler_registry(
        (_StreamedLeaf, _StreamedLeafHandler())
    )
    with quiet_orbax():  # it misses what is for arrays of JAX
        handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
        with ocp.Checkpointer(handler) as writer:
            save_args = ocp.args.PyTreeSave(tree, params_save_args(tree))
            writer.save(params_directory(checkpoint), args=save_args)
    write_step_digests(checkpoint)


@dataclasses.dataclass(frozen=True)
class _StreamedLeaf:
    """A leaf whose values are read when they are written: by layers where it stacks them."""

    shape: tuple[int, ...]
    dtype: np.dtype
    tensors: Sequence[PublishedTensor]
    read: Callable[[str], np.ndarray]

    @property
    def size(self) -> int:
        """Returns how many numbers it holds; Orbax adds up the bytes that it writes."""
        return math.prod(self.shape)


class _StreamedLeafHandler(ocp.type_handlers.NumpyHandler):
    """Writes `_StreamedLeaf`s, one tensor at a time, as the NumPy arrays that they stand for."""

    async def serialize(  # pyright: ignore[reportIncompatibleMethodOverride]  # of leaves of ours
        self,
        values: Sequence[_StreamedLeaf],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> list[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        for leaf, info, arg in zip(values, infos, args, strict=True):
            await info.await_path_creation()
            spec = ocp.type_handlers.get_json_tspec_write(
                info,
                use_ocdbt=bool(info.is_ocdbt_checkpoint),
                global_shape=leaf.shape,
                local_shape=leaf.shape,
                dtype=leaf.dtype,
                process_index=0,
                arg=arg,
            )
            array = await ts.open(ts.Spec(spec), create=True, context=info.ts_context)
            for tensor in leaf.tensors:
                target = array if tensor.layer is None else array[tensor.layer]
                values_here = tensor.from_published(leaf.read(tensor.name), target.shape)
                await target.write(values_here)
        return []


def _array_spec(directory: pathlib.Path, name: str, use_ocdbt: bool) -> dict[str, Any]:
    """Returns where a leaf of an Orbax checkpoint is, as a TensorStore spec."""
    files = {"driver": "file", "path": f"{directory}/"}
    if use_ocdbt:
        store = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
    else:
        store = {"driver": "file", "path": f"{directory}/{name}/"}
    return {"driver": "auto", "kvstore": store}
