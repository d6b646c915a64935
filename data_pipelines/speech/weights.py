"""Arrays from files of other programs (PyTorch, joblib, pickle, NumPy), none of which is run.

`pickles` walks through the steps of a pickle and never calls what these name. Neither PyTorch nor
joblib nor scikit-learn is needed.
"""

from __future__ import annotations

import bz2
import errno
import io
import lzma
import mmap
import pathlib
import struct
import zipfile
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipelines.speech.pickles import Pickle, describe, exactly, storage_type
from lst_jax.files import check_regular, read_array, read_arrays
from lst_jax.settings import list_names, one_line

_LARGEST_EXPANSION = 2**30  # bytes that a compressed file may unfold to
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # what torch.save wrote first before version 1.6


def read_weights(path: str | pathlib.Path) -> Any:
    """Reads a file of arrays, whatever wrote it; its first bytes say what it is.

    Args:
      path: `.npy`, `.npz`, what `torch.save` or `joblib.dump` wrote (as it is, or compressed by
        zlib, gzip, bz2, xz or lzma), or a pickle.

    Returns:
      What the file holds: an array, or mappings, lists and `Record`s of such. Tensors are arrays,
      bfloat16 ones of `ml_dtypes`. Arrays may be read-only, and lie over the mapped file.

    Raises:
      OSError: the file cannot be read.
      ValueError: naming the file, that it is damaged, something else, or would run code.
    """
    return _naming(pathlib.Path(path), _read)


def read_torch(path: str | pathlib.Path) -> dict[str, Any]:
    """Reads the mapping that `torch.save` wrote; see `read_weights`.

    Raises:
      ValueError: also where the file is no such file, or holds something else.
    """

    def read(path: pathlib.Path, data: Any) -> dict[str, Any]:
        found = _read(path, data) if data[:2] == b"PK" else _read_old_torch(data)
        if not isinstance(found, dict):
            raise ValueError(f"it holds {describe(found)}, expected a mapping of tensors")
        other = [key for key in found if not isinstance(key, str)]
        if other:
            raise ValueError(f"it has the keys {list_names(other)}, expected names of tensors")
        return found

    return _naming(pathlib.Path(path), read)


def _naming(path: pathlib.Path, read: Callable[[pathlib.Path, Any], Any]) -> Any:
    check_regular(path)
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise ValueError("it is empty")
            return read(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise whatever they happen to mean
        # A file that cannot be read is no damaged one; bad contents give no number, or EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise
        reason = str(error) or type(error).__name__
        if reason.startswith(str(path)):
            message = reason
        elif reason.startswith("it "):
            message = f"{path} cannot be read as arrays: {reason}"
        else:
            message = f"{path} is damaged, or no file of arrays: {reason}"
    raise ValueError(one_line(message))


def _read(path: pathlib.Path, data: Any) -> Any:
    first = bytes(data[:6])
    if first == b"\x93NUMPY":
        return read_array(data, len(data), "it")
    if first[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("data.pkl") for name in names):
            return _ZippedTorch(path, data).read()
        return read_arrays(path, [name.removesuffix(".npy") for name in names])
    if first[:2] == b"ZF" or first[:4] == b"\x04\x22\x4d\x18":
        how = "lz4" if first[:1] == b"\x04" else "joblib before 0.10"
        raise ValueError(f"it is compressed by {how}, expected none, zlib, gzip, bz2, xz or lzma")
    if bytes(data[257:262]) == b"ustar":
        raise ValueError("it is a tar archive, of PyTorch before 0.2 perhaps, expected a later one")
    data = _unfold(data)
    if bytes(data[4:14]) == _TORCH_MAGIC.to_bytes(10, "little"):
        return _read_old_torch(data)
    return Pickle(data if hasattr(data, "read") else io.BytesIO(data)).run()


def _unfold(data: Any) -> Any:
    """Returns the bytes of a compressed file, of at most `_LARGEST_EXPANSION`, or those given."""
    first, rest = bytes(data[:5]), b""
    if first[:2] == b"\x1f\x8b" or (first[:1] == b"\x78" and int.from_bytes(first[:2]) % 31 == 0):
        reader: Any = zlib.decompressobj(wbits=47)  # either header
    elif first[:3] == b"BZh":
        reader = bz2.BZ2Decompressor()
    elif first == b"\xfd7zXZ" or first[:2] == b"\x5d\x00":
        reader = lzma.LZMADecompressor()
    else:
        return data
    rest = reader.decompress(bytes(data), _LARGEST_EXPANSION)
    if not reader.eof:
        raise ValueError(f"it unfolds to over {_LARGEST_EXPANSION} bytes, or is cut")
    return rest


# PyTorch ------------------------------------------------------------------------------------------


class _ZippedTorch:
    """What `torch.save` writes: a zip archive of a pickle and the bytes of every storage."""

    def __init__(self, path: pathlib.Path, data: Any) -> None:
        """Reads the archive's index."""
        with zipfile.ZipFile(path) as archive:
            self._members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in self._members if name.endswith("data.pkl")]
        self._root = pickles[0].removesuffix("data.pkl")
        if len(pickles) > 1 or f"{self._root}constants.pkl" in self._members:
            raise ValueError("it is a program (TorchScript), expected tensors")
        self._data = memoryview(data)
        self._storages: dict[str, np.ndarray] = {}

    def read(self) -> Any:
        """Returns what was saved."""
        order = "little"
        if f"{self._root}byteorder" in self._members:
            order = bytes(self._member("byteorder")).decode()
        self._order = {"little": "<", "big": ">"}[order]
        stream = io.BytesIO(self._member("data.pkl"))
        return Pickle(stream, self._storage, len(self._data)).run()

    def _member(self, name: str) -> memoryview:
        info = self._members[f"{self._root}{name}"]
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise ValueError(f"it has {name} compressed or encrypted, expected it as it is")
        header = self._data[info.header_offset : info.header_offset + 30]
        signature, name_size, extra_size = struct.unpack("<4s22xHH", header)
        start = info.header_offset + 30 + name_size + extra_size
        found = self._data[start : start + info.file_size]
        if signature != b"PK\x03\x04" or len(found) != info.file_size:
            raise ValueError(f"it is cut within {name}")
        if zlib.crc32(found) != info.CRC:
            raise ValueError(f"it is damaged: the checksum of {name} is wrong")
        return found

    def _storage(self, kind: Any, key: str, size: int) -> np.ndarray:
        if key not in self._storages:
            self._storages[key] = np.frombuffer(self._member(f"data/{key}"), np.uint8)
        return _typed(self._storages[key], kind, size, key, self._order)


def _read_old_torch(data: Any) -> Any:
    """Reads what `torch.save` wrote before 1.6: pickles, then the bytes of every storage."""
    stream = data if hasattr(data, "read") else io.BytesIO(data)
    head = [Pickle(stream).run() for _ in range(3)]
    if head[0] != _TORCH_MAGIC or head[1] != 1001 or not isinstance(head[2], dict):
        raise ValueError("it is no file of torch.save")
    order = "<" if head[2].get("little_endian", True) else ">"
    place, kinds, limit = stream.tell(), {}, len(data)

    def note(kind: Any, key: str, size: int) -> np.ndarray:
        kinds[key] = kind
        return np.empty(0, np.uint8)

    Pickle(stream, note, limit, lay_out=False).run()  # storages come after what they are used in
    storages = {}
    for key in Pickle(stream).run():
        size = int.from_bytes(stream.read(8), "little")
        count = size * np.dtype(storage_type(kinds[key])).itemsize
        storages[key] = np.frombuffer(exactly(stream, count), np.uint8)
    stream.seek(place)

    def storage(kind: Any, key: str, size: int) -> np.ndarray:
        return _typed(storages[key], kind, size, key, order)

    return Pickle(stream, storage, limit).run()


def _typed(data: np.ndarray, kind: Any, size: int, key: str, order: str) -> np.ndarray:
    """Returns the numbers of a storage; `size` is what the pickle says that it holds."""
    dtype = np.dtype(storage_type(kind))
    if data.nbytes != size * dtype.itemsize:
        raise ValueError(
            f"it has {data.nbytes} bytes for storage {key}, expected {size * dtype.itemsize}"
        )
    return data.view(dtype.newbyteorder(order) if order == ">" else dtype)
