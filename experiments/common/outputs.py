"""What binaries write besides their tables: JSON files, and lines that say how far they are."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any

import jax

# Seconds between two lines about the progress.
_PROGRESS_PERIOD_S = 10.0


def make_progress_printer() -> Callable[[int, int], None]:
    """A callback that says on stderr, now and then, how far it is and how long is left."""
    start = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _PROGRESS_PERIOD_S and jax.process_index() == 0:
            last = now
            left = (now - start) / done * (total - done)
            print(f"{done} of {total} batches, {left:.0f} s left", file=sys.stderr, flush=True)

    return report


def write_json(path: str | pathlib.Path, values: Any) -> None:
    """Writes a JSON file, and its directory where missing; the file appears whole."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)
