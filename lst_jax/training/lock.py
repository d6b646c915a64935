"""A lock on a workdir, so that two runs never write into one.

The lock is the operating system's on `run.lock`: it ends with the process that has it, however that
ends, and is seen from other hosts where the file system shares locks (NFS does). The file says who
has it. Child processes do not keep it, so data workers that outlive their run are in nobody's way.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import socket
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from lst_jax.files import naming_file
from lst_jax.settings import quote
from lst_jax.strict_json import read_json_object
from lst_jax.training.log import LOGGER

LOCK = "run.lock"
_HELD = (errno.EACCES, errno.EAGAIN)
# The system's lock keeps out other processes, not other threads of this one.
_held_here: set[pathlib.Path] = set()


class WorkdirLockedError(RuntimeError):
    """Another run is in the workdir; names its host, process and start."""


@contextlib.contextmanager
def locked(workdir: str | pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a workdir while the context is open.

    All processes of a run enter together; process 0 has the lock for all of them.

    Raises:
      WorkdirLockedError: another run has it.
      OSError: the workdir cannot be written.
    """
    with contextlib.ExitStack() as held:
        failure = None
        if jax.process_index() == 0:
            try:
                held.enter_context(_locked_here(pathlib.Path(workdir).absolute()))
            except (WorkdirLockedError, OSError) as error:
                failure = error
        failed = failure is not None
        if jax.process_count() > 1:
            failed = bool(multihost_utils.process_allgather(np.array(failed)).any())
        if failed:
            raise failure or WorkdirLockedError(f"{workdir}: process 0 has not got its lock")
        yield


@contextlib.contextmanager
def _locked_here(workdir: pathlib.Path) -> Iterator[None]:
    file, key = workdir / LOCK, workdir.resolve()
    if key in _held_here:
        raise WorkdirLockedError(_describe(file))
    existed = workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _lock(descriptor, file)
        _held_here.add(key)
        try:
            owner = {"host": socket.gethostname(), "process": os.getpid(), "start": time.time()}
            with naming_file(file):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, (json.dumps(owner) + "\n").encode())
            yield
        finally:
            _held_here.discard(key)
            os.ftruncate(descriptor, 0)
            _tidy(workdir, existed)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, file: pathlib.Path) -> None:
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise WorkdirLockedError(_describe(file)) from error
        # Some network file systems have no locks.
        LOGGER.warning("%s cannot be locked (%s): see that no second run uses it", file, error)


def _describe(file: pathlib.Path) -> str:
    """Returns whose lock it is, in words."""
    workdir = quote(str(file.parent))
    try:
        owner = read_json_object(file)
        start = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner["start"]))
        who = f"process {owner['process']} on host {owner['host']} since {start}"
    except (OSError, ValueError, KeyError, TypeError, OverflowError):  # it is being written
        who = "another process"
    return f"workdir {workdir} is in use by {who}; expected no other run there"


def _tidy(workdir: pathlib.Path, existed: bool) -> None:
    """Removes what a start that was refused would leave of a workdir that it made."""
    if existed:
        return
    with contextlib.suppress(OSError):
        names = {path.name for path in workdir.iterdir()}
        checkpoints = workdir / "checkpoints"
        if names <= {LOCK, checkpoints.name}:
            if checkpoints.exists():
                checkpoints.rmdir()  # fails where a step is in it
            (workdir / LOCK).unlink()
            workdir.rmdir()
