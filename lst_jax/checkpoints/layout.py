"""Where things are in a workdir, and what reading a damaged step raises.

A workdir holds

    model.json                 what the model is: configuration, vocabulary, tokenizer, row shape
    checkpoints/<step>/params     parameters, in chunks of a layer
    checkpoints/<step>/optimizer  optimizer moments and the step
    checkpoints/<step>/data       states of the Grain iterators, one file for each process
    checkpoints/<step>/progress   totals of the run so far, JSON
    checkpoints/<step>/digests.json   what the files hold (`digests`)

A step's directory gets its name only when it is complete, so one that a crash left half written
is never read.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
import re
from collections.abc import Iterator

from absl import logging

from lst_jax.files import system_error
from lst_jax.local_paths import local_path

CHECKPOINTS = "checkpoints"
_PARAMS = "params"
UNREADABLE = "unreadable_checkpoints"
ABANDONED = "abandoned_checkpoints"  # whole, but they led to a loss that is not finite
DESCRIPTION = "model.json"
STATE_FILE = re.compile(r"process_\d+-of-(\d+)\.json")  # as Grain names them


# What reading a damaged step raises: missing files, metadata and arrays cut short. Others, such as
# too little memory, say nothing of the step.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)
# Errors of the system that are damage: what should be there is not. All others (no permission, a
# disk or a network that fails, too many open files) say nothing of what is stored.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_UNAVAILABLE = re.compile(
    r"\b(PERMISSION_DENIED|UNAUTHENTICATED|UNAVAILABLE|RESOURCE_EXHAUSTED|DEADLINE_EXCEEDED)\b"
)
_STEP_NAME = re.compile(r"[0-9]{1,18}")


class UnreadableCheckpointError(ValueError):
    """What is stored of a checkpoint is missing or damaged."""


class StepDeletedError(ValueError):
    """A step was deleted while it was read, as a run deletes what it need not keep."""


def is_unavailable(raised: Exception) -> bool:
    """Returns whether the error is of reading and says nothing of what is stored."""
    error = _unwrapped(raised)
    number = system_error(error)
    if number is not None:
        return number not in _ABSENT
    return bool(_UNAVAILABLE.search(str(error)))


def _unwrapped(error: Exception) -> BaseException:
    """Returns the error itself; Orbax wraps one of a part of an array in a bare Exception."""
    return error.__cause__ if type(error) is Exception and error.__cause__ else error


@contextlib.contextmanager
def reading_checkpoint(directory: pathlib.Path, whole: bool = False) -> Iterator[None]:
    """Gives what goes wrong with a read its name.

    Orbax warns that the part of a step lacks what only the whole of it has; it is not heard.

    Args:
      directory: that is read.
      whole: whether its files are known to be as they were written, so that nothing is damage.

    Raises:
      OSError: the files cannot be read now; there may be nothing wrong with them.
      UnreadableCheckpointError: they are missing or damaged.
      ValueError: they are whole and hold something else than what is asked for.
    """
    try:
        with quiet_orbax():
            yield
    except Exception as error:
        cause = _unwrapped(error)
        if not isinstance(cause, _READ_ERRORS):
            raise
        message = f"{directory} cannot be read: {' '.join(str(cause).split())[:300]}"
        if is_unavailable(error):
            raise OSError(message) from error
        raise (ValueError if whole else UnreadableCheckpointError)(message) from error


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps from the console what Orbax warns of though nothing is wrong."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def split_path(path: str | pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Returns the workdir and the step that a path names; None where it names a workdir.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP. A workdir may be named like a step:
        it is one if it has a model.json.
    """
    path = local_path(path, "checkpoint").absolute()
    if not _STEP_NAME.fullmatch(path.name) or exists(path / DESCRIPTION):
        return path, None
    parent = path.parent
    return parent.parent if parent.name == CHECKPOINTS else parent, int(path.name)


def find_checkpoint(path: str | pathlib.Path, below: int | None = None) -> pathlib.Path:
    """Returns the directory of a step: the one named, or the last of a workdir.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP.
      below: of a workdir, the last step below this one.

    Raises:
      FileNotFoundError: there is no such run or step.
      OSError: the workdir cannot be read.
    """
    workdir, step = split_path(path)
    if not exists(workdir / DESCRIPTION):
        raise FileNotFoundError(f"{path}: no run there; expected a workdir with a model.json")
    steps = list_steps(workdir)
    found = [s for s in steps if (s == step if step is not None else below is None or s < below)]
    if not found:
        there = ", ".join(map(str, steps)) or "none yet"
        raise FileNotFoundError(f"{path}: no such checkpoint; steps of the run: {there}")
    return step_directory(workdir, found[-1])


def list_steps(workdir: pathlib.Path) -> list[int]:
    """Returns the steps that a workdir has checkpoints of.

    Raises:
      OSError: the workdir cannot be read.
    """
    try:
        with os.scandir(workdir / CHECKPOINTS) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if _STEP_NAME.fullmatch(name))


def exists(path: pathlib.Path) -> bool:
    """Returns whether a path exists.

    Raises:
      OSError: nobody can tell; without permission, say.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def step_directory(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Returns where the checkpoint of `step` is."""
    return workdir / CHECKPOINTS / str(step)


def params_directory(checkpoint: pathlib.Path) -> pathlib.Path:
    """Returns where the parameters of a step's directory are."""
    return checkpoint / _PARAMS
