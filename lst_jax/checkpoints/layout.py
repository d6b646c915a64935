"""Where things are in a workdir, and what reading a damaged step raises.

A workdir holds

    model.json                 what the model is: configuration, vocabulary, tokenizer, row shape
    checkpoints/<step>/params     parameters, in chunks of a layer
    checkpoints/<step>/optimizer  optimizer moments and the step
    checkpoints/<step>/data       states of the Grain iterators, one file for each process
    checkpoints/<step>/progress   totals of the run so far, JSON

A step's directory gets its name only when it is complete, so one that a crash left half written
is never read.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterator

from absl import logging

CHECKPOINTS = "checkpoints"


_PARAMS = "params"


UNREADABLE = "unreadable_checkpoints"


DESCRIPTION = "model.json"


STATE_FILE = re.compile(r"process_\d+-of-(\d+)\.json")  # as Grain names them


# What reading a damaged step raises: missing or unreadable files, metadata and arrays cut short.
# Others, such as too little memory, say nothing of the step.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class UnreadableCheckpointError(ValueError):
    """What is stored of a checkpoint is missing or damaged."""


def _is_damage(error: Exception) -> bool:
    """Whether the error is one that reading a damaged step raises."""
    return isinstance(_unwrapped(error), _READ_ERRORS)


def _unwrapped(error: Exception) -> BaseException:
    """The error itself; Orbax puts one of reading a part of an array into a bare Exception."""
    return error.__cause__ if type(error) is Exception and error.__cause__ else error


@contextlib.contextmanager
def reading_checkpoint(directory: pathlib.Path) -> Iterator[None]:
    """Turns what a damaged checkpoint raises into an `UnreadableCheckpointError` that names it.

    Orbax warns that the part of a step lacks what only the whole of it has; it is not heard.
    """
    try:
        with quiet_orbax():
            yield
    except Exception as error:
        if not _is_damage(error):
            raise
        reason = " ".join(str(_unwrapped(error)).split())[:300]
        raise UnreadableCheckpointError(f"{directory} cannot be read: {reason}") from error


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps from the console what Orbax warns of though nothing is wrong."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """The directory of a step: the one named, or the last of a workdir.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP.

    Raises:
      FileNotFoundError: there is no such run or step.
    """
    workdir, step = pathlib.Path(path).absolute(), None
    if workdir.name.isdigit() and not (workdir / DESCRIPTION).exists():
        workdir, step = workdir.parent, int(workdir.name)
        workdir = workdir.parent if workdir.name == CHECKPOINTS else workdir
    if not (workdir / DESCRIPTION).is_file():
        raise FileNotFoundError(f"{path}: no run there; expected a workdir with a model.json")
    found = (entry.name for entry in (workdir / CHECKPOINTS).glob("*") if entry.is_dir())
    steps = sorted(int(name) for name in found if name.isdigit())
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, steps)) or "none yet"
        raise FileNotFoundError(f"{path}: no such checkpoint; steps of the run: {there}")
    return workdir / CHECKPOINTS / str(steps[-1] if step is None else step)


def step_directory(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` is."""
    return workdir / CHECKPOINTS / str(step)


def params_directory(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where the parameters of a step's directory are."""
    return checkpoint / _PARAMS
