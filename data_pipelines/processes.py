"""Worker processes that never outlive the process that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

_SECONDS_BETWEEN_LOOKS = 0.2


def end_with_parent() -> None:
    """Makes a worker process end soon after the one that started it, however that one ended.

    A worker waits for work on pipes whose other ends it holds itself, so it would wait forever for
    a process that was killed. What a terminal sends to all is the main process's to answer.
    """
    if is_worker():
        for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()  # of a process from a fork server that is the server

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def is_worker() -> bool:
    """Returns whether another process started this one to work for it."""
    return multiprocessing.current_process().name != "MainProcess"
