"""Input files of the data binaries: patterns and formats."""

from __future__ import annotations

import glob
import pathlib
from collections.abc import Sequence

from lst_jax.local_paths import local_path

FORMATS = ("reference_jsonl", "text_jsonl", "text")


def find_inputs(patterns: Sequence[str]) -> list[pathlib.Path]:
    """Finds the files that paths and patterns name, in the order given, a pattern's by name.

    Raises:
      FileNotFoundError: a path or pattern names no file.
      ValueError: a file is named twice, or has a name that is not UTF-8.
    """
    paths: list[pathlib.Path] = []
    for pattern in patterns:
        path = local_path(pattern, "input")
        anchor = pathlib.Path(path.anchor)
        literal = path.exists() or not glob.has_magic(str(path))
        found = [path] if literal else sorted(anchor.glob(str(path.relative_to(anchor))))
        found = [local_path(match, "input") for match in found if match.is_file()]
        if not found:
            raise FileNotFoundError(f"input {pattern}: no such file")
        paths += found
    repeated = [path for path in paths if paths.count(path) > 1]
    if repeated:
        raise ValueError(f"input {repeated[0]} is named twice")
    return paths
