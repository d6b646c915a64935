"""Consolidated PyTorch checkpoints: `consolidated.pth`, `{"model": state_dict}`; needs PyTorch."""

from __future__ import annotations

import errno
import pathlib
import pickle
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from lst_jax.extras import import_extra
from lst_jax.porting.tensors import TensorSpec

_FILE = "consolidated.pth"


class PyTorchFolder:
    """Reads a consolidated checkpoint; tensors stay in the file until they are read.

    Attributes:
      specs: shape and dtype of every tensor.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        """Reads the names, shapes and dtypes.

        Raises:
          OSError: there is no such file, or it cannot be read.
          ValueError: it is damaged, would run code, or holds something else.
          ImportError: PyTorch is not installed.
        """
        path = pathlib.Path(folder) / _FILE
        self._tensors = _load(path)
        self.specs = {name: _spec(tensor) for name, tensor in self._tensors.items()}

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor."""
        tensor = self._tensors[name].detach().contiguous()
        torch = import_extra("torch", "torch")
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def is_pytorch_folder(folder: pathlib.Path) -> bool:
    """Returns whether the folder has the file of one."""
    return (folder / _FILE).is_file()


def write_pytorch(
    folder: pathlib.Path, specs: Mapping[str, TensorSpec], read: Callable[[str], np.ndarray]
) -> None:
    """Writes `consolidated.pth`.

    `torch.save` takes all tensors at once; they are laid into files that memory maps, so the
    checkpoint may be larger than memory. Beside the output, that takes its size on disk again.

    Args:
      folder: that exists.
      specs: of the tensors to write, in order.
      read: gives one tensor.

    Raises:
      ValueError: PyTorch is not installed.
    """
    torch = import_extra("torch", "torch")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        state = {}
        for i, name in enumerate(specs):
            values = np.ascontiguousarray(read(name)).reshape(-1).view(np.uint8)
            file = pathlib.Path(scratch) / str(i)
            # Not through the map: where the disk is full, that ends the process.
            file.write_bytes(values.data)
            mapped = torch.from_file(str(file), shared=True, size=values.size, dtype=torch.uint8)
            state[name] = mapped.view(getattr(torch, specs[name].dtype)).view(specs[name].shape)
        with (folder / _FILE).open("wb") as file:
            try:
                torch.save({"model": state}, file)
            except RuntimeError as error:  # it closes what it could not write, and fails once more
                raise error.__context__ or error from None


def _load(path: pathlib.Path) -> dict[str, Any]:
    torch = import_extra("torch", "torch")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    mapped = zipfile.is_zipfile(path)  # files older than PyTorch 1.6 are not, and are read whole
    try:
        if mapped:
            _check_sums(path)
        with warnings.catch_warnings(action="ignore"):  # what is wrong is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        reason = str(error).split("\n")[0]
        raise ValueError(
            f"{path} is refused: its pickle holds more than tensors, and reading it could run code,"
            f" or it is damaged ({reason}); ask for a safetensors file"
        ) from error
    except Exception as error:  # bytes that are no pickle raise whatever they happen to mean
        # A file that cannot be read is no damaged one; bad contents give no number, or EINVAL.
        failed = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if failed or isinstance(error, MemoryError):
            raise
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or no PyTorch file: {reason}") from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        keys = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} holds {keys}, expected {{'model': tensors}}")
    wrong = sorted(str(name) for name, x in state.items() if not torch.is_tensor(x))
    if wrong:
        raise ValueError(f"{path} has entries that are not tensors: {', '.join(wrong)}")
    return state


def _check_sums(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is wrong")


def _spec(tensor: Any) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    is_plain = str(tensor.layout) == "torch.strided" and not tensor.is_quantized
    return TensorSpec(tuple(tensor.shape), dtype if is_plain else f"a {tensor.layout} tensor")
