"""Reads a step while its run may go on: whole, or one before it, or an error that says what it was.

Three things keep a step from being read, and they are never taken for one another. It may be
*damaged* (missing, cut or other bytes than were written): then the step before it is read. It may
be *deleted* meanwhile by the run that it belongs to: then the newest is read. Or it *cannot be
read* now (no permission, a disk or a network that fails): that is an error, and nothing is done
about the step.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from lst_jax.checkpoints.digests import find_damage, items_of, list_files, read_digests, share_of
from lst_jax.checkpoints.layout import (
    StepDeletedError,
    UnreadableCheckpointError,
    find_checkpoint,
    list_steps,
    split_path,
)

_T = TypeVar("_T")
_Failure = TypeVar("_Failure", bound=Exception | None)

# A deletion takes files away one after another; damage stays as it is for so long.
_STABLE_SECONDS = 0.5
_MOST_TRIES = 10


def read_step(
    path: str | pathlib.Path,
    read: Callable[[pathlib.Path, bool], _T],
    items: Sequence[str] | None = ("params",),
) -> _T:
    """Reads the step that a path names or, of a workdir, the last one that is whole.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP.
      read: is given a step's directory, and whether its files are known to be as written.
      items: that are read; None: all.

    Returns:
      What `read` returned.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      OSError: a file cannot be read.
      UnreadableCheckpointError: the step is damaged, and it is the one named or the first.
      StepDeletedError: the step named was deleted while it was read.
    """
    workdir, named = split_path(path)

    def read_whole() -> _T:
        below = None
        while True:
            checkpoint = find_checkpoint(path, below)
            try:
                with reading_step(checkpoint, items) as whole:
                    return read(checkpoint, whole)
            except UnreadableCheckpointError as error:
                below = int(checkpoint.name)
                earlier = [step for step in list_steps(workdir) if step < below]
                if named is not None or not earlier:
                    raise
                logging.warning("%s, falling back to step %d", error, earlier[-1])

    return read_newest(path, read_whole)


def read_newest(path: str | pathlib.Path, read: Callable[[], _T]) -> _T:
    """Reads again where the step of a workdir is deleted meanwhile: its run keeps newer ones.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP.
      read: reads what the path names, from the beginning.

    Returns:
      What `read` returned.

    Raises:
      StepDeletedError: the step named was deleted, or steps are faster than they can be read.
    """
    for _ in range(_MOST_TRIES - 1):
        try:
            return read()
        except StepDeletedError as error:
            if split_path(path)[1] is not None:
                raise
            logging.warning("%s; reading the newest", error)
    return read()


@contextlib.contextmanager
def reading_step(checkpoint: pathlib.Path, items: Sequence[str] | None = None) -> Iterator[bool]:
    """Checks the digests of a step before it is read, and looks at it again after.

    All processes of a run enter together; each reads its share of the files, and all of them raise
    if one does.

    Args:
      checkpoint: the step's directory.
      items: that are read; None: all.

    Yields:
      Whether the step has digests, so that its files are known to be as they were written.

    Raises:
      OSError, UnreadableCheckpointError, StepDeletedError: see `read_step`.
    """
    watch = StepWatch(checkpoint, items)
    whole, failure = False, None
    try:
        whole = watch.check()
    except (OSError, ValueError) as error:
        failure = error
    _raise_together(failure, checkpoint)
    try:
        yield whole
    except Exception as error:
        failure = error
    _raise_together(watch.explain(failure), checkpoint)


class StepWatch:
    """Notices that a step is deleted while it is read."""

    def __init__(self, checkpoint: pathlib.Path, items: Sequence[str] | None = None) -> None:
        self._checkpoint = checkpoint
        self._items = items
        self._files: set[str] = set()

    def look(self) -> None:
        """Remembers the files.

        Raises:
          OSError, StepDeletedError: see `read_step`.
        """
        try:
            self._files = set(list_files(self._checkpoint))
        except FileNotFoundError as error:
            raise self._deleted() from error

    def check(self) -> bool:
        """Remembers the files and compares this process's share of them with their digests.

        Returns:
          Whether there are digests.

        Raises:
          OSError, UnreadableCheckpointError, StepDeletedError: see `read_step`.
        """
        self.look()
        try:
            digests = read_digests(self._checkpoint)
        except FileNotFoundError as error:
            raise self._deleted() from error
        except ValueError as error:
            raise self.explain(self._damaged(str(error))) from error
        if digests is None:
            logging.warning(
                "checkpoint %s is of an earlier version and has no digests: it is read unchecked",
                self._checkpoint,
            )
            return False
        share = share_of(items_of(digests, self._items), jax.process_index(), jax.process_count())
        try:
            damage = find_damage(self._checkpoint, share)
        except FileNotFoundError as error:
            raise self._deleted() from error
        if damage is not None:
            raise self.explain(self._damaged(damage))
        return True

    def explain(self, failure: _Failure) -> Exception | _Failure:
        """Returns what a failure, or none, really was: a deletion explains all of them."""
        lost = self._lost()
        if not lost and isinstance(failure, UnreadableCheckpointError):
            time.sleep(_STABLE_SECONDS)
            lost = self._lost()
        return self._deleted() if lost else failure

    def _lost(self) -> bool:
        """Returns whether files are gone that were there."""
        try:
            return bool(self._files - set(list_files(self._checkpoint)))
        except FileNotFoundError:
            return True

    def _deleted(self) -> StepDeletedError:
        return StepDeletedError(
            f"checkpoint {self._checkpoint} was deleted while it was read: its run keeps later ones"
        )

    def _damaged(self, reason: str) -> UnreadableCheckpointError:
        return UnreadableCheckpointError(f"checkpoint {self._checkpoint} is damaged ({reason})")


def _raise_together(failure: Exception | None, checkpoint: pathlib.Path) -> None:
    """Raises if any process has a failure, and what it is: all act alike."""
    kinds = (StepDeletedError, UnreadableCheckpointError, OSError)
    code = 0
    if failure is not None:
        code = next((i for i, kind in enumerate(kinds, 1) if isinstance(failure, kind)), len(kinds))
    worst = code
    if jax.process_count() > 1:
        worst = int(multihost_utils.process_allgather(np.array(code)).max())
    if failure is not None and code == worst:
        raise failure
    if worst:
        raise kinds[worst - 1](f"checkpoint {checkpoint} cannot be read by another process")
