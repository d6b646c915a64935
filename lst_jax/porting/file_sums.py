"""`SHA256SUMS` beside exported tensors, as `sha256sum` writes and checks it."""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Iterable

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


def write_sums(folder: pathlib.Path, names: Iterable[str]) -> None:
    """Writes the sums of these files of a folder."""
    lines = [f"{_sum_of(folder / name)}  {name}\n" for name in sorted(names)]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def check_sums(folder: pathlib.Path, files: Iterable[pathlib.Path]) -> None:
    """Checks files of a folder that its `SHA256SUMS` names; without one, nothing is checked.

    Raises:
      OSError: a file cannot be read.
      ValueError: one does not hold what was written.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return
    sums = {match[2]: match[1] for line in lines if (match := _LINE.fullmatch(line))}
    for file in files:
        if file.name in sums and _sum_of(file) != sums[file.name]:
            raise ValueError(f"{file} is damaged: it is not what {SUMS} says was written")


def _sum_of(file: pathlib.Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
