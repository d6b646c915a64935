"""Worker processes that never outlive the process that started them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from multiprocessing import resource_tracker

_SECONDS_BETWEEN_LOOKS = 0.2
_OF_TERMINALS = (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def end_with_parent() -> None:
    """Makes a worker process end soon after the one that started it, however that one ended.

    A worker waits for work on pipes whose other ends it holds itself, so it would wait forever for
    a process that was killed. What a terminal sends to all is the main process's to answer.
    """
    if is_worker():
        for number in _OF_TERMINALS:
            signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()  # of a process from a fork server that is the server

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


@contextlib.contextmanager
def starting_workers(*others: signal.Signals) -> Iterator[None]:
    """Keeps what a terminal sends to all from processes that are started in the context.

    A process that still imports would die of it with a traceback.

    Args:
      others: signals that these processes never answer, either.
    """
    # The first worker would start it, which unblocks SIGINT and SIGTERM for those that follow.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (*_OF_TERMINALS, *others))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_worker() -> bool:
    """Returns whether another process started this one to work for it."""
    return multiprocessing.current_process().name != "MainProcess"
