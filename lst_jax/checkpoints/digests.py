"""Digests of a step's files, so that what is read is what was written.

Orbax and TensorStore check the tables that say where values are, not the values. So every process
hashes what it wrote, after it is written and before the step gets its name, into

    checkpoints/<step>/<item>/digests.process_<i>.json    values, by the process that wrote them
    checkpoints/<step>/digests.json                       every other file, by process 0

At a restore the files are dealt out over the processes; each reads its share once. Steps of
earlier versions have no digests and are read without.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import google_crc32c
import jax
import orbax.checkpoint as ocp

from lst_jax.settings import quote
from lst_jax.strict_json import read_json_object

DIGESTS = "digests.json"
_PROCESS_DIGESTS = "digests.process_{}.json"
_DIGEST_FILE = re.compile(r"digests\.process_\d+\.json")
_FORMAT_VERSION = 1
# Orbax writes these last of all, and nothing is read from them.
_UNTOLD = ("_CHECKPOINT_METADATA", "commit_success.txt")
_READ_BYTES = 2**22
_THREADS = 8


class FileDigest(NamedTuple):
    """What a file holds.

    Attributes:
      size: in bytes.
      crc32c: CRC-32C of the bytes.
    """

    size: int
    crc32c: int


Digests = Mapping[str, FileDigest]


def hash_file(path: str | pathlib.Path) -> FileDigest:
    """Returns the digest of a file, which is read once.

    Raises:
      OSError: the file cannot be read.
    """
    size, crc = 0, 0
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  it may be a path of Orbax's
        while chunk := file.read(_READ_BYTES):
            size += len(chunk)
            crc = google_crc32c.extend(crc, chunk)
    return FileDigest(size, crc)


def list_files(directory: pathlib.Path) -> dict[str, int]:
    """Returns the size of every file under a directory, by its path from there.

    Raises:
      OSError: the directory or what is in it cannot be read.
    """
    sizes = {}

    def fail(error: OSError) -> None:
        raise error

    for folder, _, names in os.walk(directory, onerror=fail):
        for name in names:
            path = pathlib.Path(folder) / name
            sizes[path.relative_to(directory).as_posix()] = path.stat().st_size
    return sizes


def write_step_digests(step: pathlib.Path) -> None:
    """Writes the digests of all files of a step that no process has told of."""
    told = read_process_digests(step)
    names = [name for name in list_files(step) if name not in told and not _is_untold(name)]
    _write(step / DIGESTS, step, names)


def read_digests(step: pathlib.Path) -> dict[str, FileDigest] | None:
    """Returns the digests of a step's files, by their paths from there; None where it has none.

    Raises:
      OSError: a file of them cannot be read.
      ValueError: one is damaged.
    """
    try:
        own = _read(step / DIGESTS)
    except FileNotFoundError:
        return None
    return own | read_process_digests(step)


def read_process_digests(step: pathlib.Path) -> dict[str, FileDigest]:
    """Returns the digests that processes wrote of what they wrote."""
    digests = {}
    for name in list_files(step):
        item, _, file = name.rpartition("/")
        if _DIGEST_FILE.fullmatch(file):
            digests |= {f"{item}/{path}": digest for path, digest in _read(step / name).items()}
    return digests


def find_damage(directory: pathlib.Path, digests: Digests) -> str | None:
    """Compares files with their digests.

    Returns:
      What is wrong with one of them, None where all are as they were written.

    Raises:
      OSError: a file cannot be read, which is no damage.
    """
    sizes = list_files(directory)
    for name, (size, _) in sorted(digests.items()):
        if name not in sizes:
            return f"{quote(name)} is missing"
        if sizes[name] != size:
            return f"{name} has {sizes[name]} bytes, expected {size}"
    names = sorted(digests)  # all of them are files that were found there
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(hash_file, (directory / name for name in names))
        for name, digest in zip(names, found, strict=True):
            if digest != digests[name]:
                pool.shutdown(cancel_futures=True)
                return f"{name} holds other bytes than were written"
    return None


def share_of(digests: Digests, index: int, count: int) -> dict[str, FileDigest]:
    """Returns the files that process `index` of `count` checks: about as many bytes as the others.

    The largest files are dealt out first, each to whoever has least.
    """
    loads = [0] * count
    shares: list[dict[str, FileDigest]] = [{} for _ in range(count)]
    for name in sorted(digests, key=lambda name: (-digests[name].size, name)):
        least = min(range(count), key=lambda i: (loads[i], i))
        loads[least] += digests[name].size
        shares[least][name] = digests[name]
    return shares[index]


def items_of(digests: Digests, items: Sequence[str] | None) -> dict[str, FileDigest]:
    """Returns the digests of the files of these items of a step; of all where None."""
    return {
        name: digest
        for name, digest in digests.items()
        if items is None or name.partition("/")[0] in items
    }


class DigestedHandler(ocp.StandardCheckpointHandler):
    """Orbax's handler of trees of arrays; each process also tells digests of what it wrote."""

    async def async_save(self, directory: Any, *args: Any, **kwargs: Any) -> list[Any]:
        """Returns the futures of the save; digests come after the last of them."""
        futures = await super().async_save(directory, *args, **kwargs) or []

        def tell() -> None:
            _write_process_digests(pathlib.Path(getattr(directory, "path", directory)))

        # Orbax gives the module to those who ask, and does not declare it.
        return [ocp.future.ChainedFuture(futures, tell)]  # pyright: ignore[reportAttributeAccessIssue]


@ocp.args.register_with_handler(DigestedHandler, for_save=True)
@dataclasses.dataclass
class DigestedSave(ocp.args.StandardSave):
    """Saves a tree of arrays with digests."""


@ocp.args.register_with_handler(DigestedHandler, for_restore=True)
@dataclasses.dataclass
class DigestedRestore(ocp.args.StandardRestore):
    """Restores a tree of arrays that `DigestedSave` saved, or `StandardSave`."""


class DigestedPath(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """Where Orbax writes a step, or an item of one; the step gets digests before its name."""

    async def finalize(self) -> None:
        """Gives it its name."""
        if self.get_final().name.isdigit():
            write_step_digests(pathlib.Path(self.get()))
        await super().finalize()


def _write_process_digests(item: pathlib.Path) -> None:
    """Writes the digests of the values that this process wrote of an item."""
    index = jax.process_index()
    own = f"ocdbt.process_{index}"
    names = [f"{own}/{name}" for name in list_files(item / own)] if (item / own).is_dir() else []
    _write(item / _PROCESS_DIGESTS.format(index), item, names)


def _write(file: pathlib.Path, directory: pathlib.Path, names: Iterable[str]) -> None:
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        found = dict(zip(names, pool.map(hash_file, (directory / n for n in names)), strict=True))
    files = {name: [digest.size, digest.crc32c] for name, digest in sorted(found.items())}
    content = {"format_version": _FORMAT_VERSION, "files": files, "crc32c": _crc_of(files)}
    # The step that it is in has no name yet.
    file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _read(file: pathlib.Path) -> dict[str, FileDigest]:
    content = read_json_object(file)
    files = content.get("files")
    if content.get("format_version") != _FORMAT_VERSION or not isinstance(files, dict):
        raise ValueError(f"{file} is damaged, or of a later version")
    if content.get("crc32c") != _crc_of(files):
        raise ValueError(f"{file} is damaged: its checksum is wrong")
    return {name: FileDigest(*values) for name, values in files.items()}


def _crc_of(files: Mapping[str, Any]) -> int:
    return google_crc32c.value(json.dumps(files, sort_keys=True).encode())


def _is_untold(name: str) -> bool:
    return name == DIGESTS or name.rpartition("/")[2] in _UNTOLD
