"""What a run remembers of an end by a loss that is not finite.

Training is deterministic, so a restart from the same checkpoint ends there again. The first restart
goes on from the last checkpoint, since a fault of the machine may have been the cause; once the run
has ended twice at one step, each further start goes back one more of the checkpoints that are kept.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from lst_jax.files import write_json
from lst_jax.strict_json import read_json_object

_FILE = "not_finite.json"


class NotFiniteEnd(NamedTuple):
    """Where a run ended, and how often in a row.

    Attributes:
      step: whose loss, or whose update's, was not finite.
      times: ends at this step.
    """

    step: int
    times: int


def read_end(workdir: pathlib.Path) -> NotFiniteEnd | None:
    """Returns the last end of the run, None where it has gone past it or never had one."""
    try:
        fields = read_json_object(workdir / _FILE)
        end = NotFiniteEnd(fields["step"], fields["times"])
    except (FileNotFoundError, KeyError, ValueError):  # it is advice; without it all goes on
        return None
    return end if all(type(value) is int for value in end) else None


def add_end(workdir: pathlib.Path, step: int) -> NotFiniteEnd:
    """Remembers an end, and returns it."""
    last = read_end(workdir)
    times = last.times + 1 if last is not None and last.step == step else 1
    write_json(workdir / _FILE, {"step": step, "times": times})
    return NotFiniteEnd(step, times)


def forget_end(workdir: pathlib.Path, step: int) -> None:
    """Forgets an end that the run has gone past."""
    end = read_end(workdir)
    if end is not None and step >= end.step:
        with contextlib.suppress(FileNotFoundError):
            (workdir / _FILE).unlink()


def steps_to_leave(end: NotFiniteEnd | None, steps: Sequence[int]) -> list[int]:
    """Returns the last checkpoints that a start leaves out, the last first; never the first one.

    Args:
      end: of the run.
      steps: of the checkpoints that are kept.
    """
    if end is None or end.times < 2:
        return []
    return sorted(steps, reverse=True)[: min(end.times - 1, len(steps) - 1)]
