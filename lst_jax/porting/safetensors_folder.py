"""Folders of safetensors: `model.safetensors`, or shards with `model.safetensors.index.json`."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save_file

from lst_jax.files import write_json
from lst_jax.porting.file_sums import check_sums, write_sums
from lst_jax.porting.tensors import TensorSpec
from lst_jax.settings import quote
from lst_jax.strict_json import read_json_object

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_TYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


class SafetensorsFolder:
    """Reads a folder of safetensors, one tensor at a time.

    Attributes:
      specs: shape and dtype of every tensor.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        """Reads the headers.

        Raises:
          FileNotFoundError: there is no such folder, or a file of the index is missing.
          ValueError: a file is damaged, or the index does not fit the files, or there is a single
            file and an index.
        """
        self._folder = pathlib.Path(folder)
        self._files = _read_index(self._folder)
        check_sums(self._folder, sorted(set(self._files.values())))
        self.specs: dict[str, TensorSpec] = {}
        for file in sorted(set(self._files.values())):
            with _open(file) as shard:
                for name in sorted(shard.keys()):
                    if self._files.get(name) == file:
                        header = shard.get_slice(name)
                        dtype = str(header.get_dtype())
                        dtype = _TYPES.get(dtype, dtype)
                        self.specs[name] = TensorSpec(tuple(header.get_shape()), dtype)
        absent = sorted(self._files.keys() - self.specs.keys())
        if absent:
            raise ValueError(
                f"{self._folder / _INDEX} lists tensors that their files lack: {', '.join(absent)}"
            )

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor; its file's pages are let go again.

        Raises:
          ValueError: the file is damaged.
        """
        with _open(self._files[name]) as shard:
            return shard.get_tensor(name)


def is_safetensors_folder(folder: pathlib.Path) -> bool:
    """Returns whether the folder has the files of one."""
    return (folder / _SINGLE).is_file() or (folder / _INDEX).is_file()


def write_safetensors(
    folder: pathlib.Path,
    specs: Mapping[str, TensorSpec],
    read: Callable[[str], np.ndarray],
    max_shard_bytes: int,
) -> None:
    """Writes one file, or shards with an index where one would be larger than `max_shard_bytes`.

    One shard at a time is in memory.

    Args:
      folder: that exists.
      specs: of the tensors to write, in order.
      read: gives one tensor.
      max_shard_bytes: of a shard's tensors; a larger tensor gets its own shard.
    """
    shards = _plan_shards(specs, max_shard_bytes)
    weight_map = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else _SINGLE
        tensors = {name: np.ascontiguousarray(read(name)) for name in names}
        # Readers for PyTorch look for this mark of the tensors' layout.
        save_file(tensors, folder / file, metadata={"format": "pt"})
        # The library lets nobody else read it; whoever may read the folder should.
        (folder / file).chmod(folder.stat().st_mode & 0o666)
        weight_map |= dict.fromkeys(names, file)
    if len(shards) > 1:
        total = sum(spec.num_bytes for spec in specs.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / _INDEX, index)
    write_sums(folder, set(weight_map.values()))


def _plan_shards(specs: Mapping[str, TensorSpec], max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    size = max_shard_bytes
    for name, spec in specs.items():
        if not shards or size + spec.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.num_bytes
    return shards


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_index(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Returns the file of every tensor."""
    if (folder / _INDEX).is_file() and (folder / _SINGLE).is_file():
        raise ValueError(f"{folder} holds {_SINGLE} and {_INDEX}, two models; expected one of them")
    if not (folder / _INDEX).is_file():
        with _open(folder / _SINGLE) as file:
            return dict.fromkeys(file.keys(), folder / _SINGLE)
    index = read_json_object(folder / _INDEX)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError(
            f"{folder / _INDEX}: weight_map is {quote(weight_map)}, expected an object"
        )
    names = {}
    for name, file in weight_map.items():
        if not isinstance(file, str) or pathlib.PurePath(file).name != file or not file:
            raise ValueError(f"{folder / _INDEX} names {quote(file)}, expected files of its folder")
        names[name] = file
    missing = sorted({file for file in names.values() if not (folder / file).is_file()})
    if missing:
        raise FileNotFoundError(f"{folder}: the index's files {', '.join(missing)} are missing")
    return {name: folder / file for name, file in names.items()}
