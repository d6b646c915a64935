"""Signals that end a run with a checkpoint."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

# What ends a run with a checkpoint: a cluster's request, Ctrl-C, a warning before the time is up, a
# terminal that is closed (under nohup this one is ignored, and stays so).
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class StopSignal:
    """Remembers which of `STOP_SIGNALS` came while the context was open, instead of dying of it.

    In a run of several processes JAX has a handler of SIGTERM, which tells all of them
    (`Checkpointer.reached_preemption`); the other signals are passed on to it.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        # Only the main thread may set handlers; elsewhere the process keeps those it has.
        if threading.current_thread() is threading.main_thread():
            import jax  # what only needs the signals' names need not wait for it

            alone = jax.process_count() == 1
            for number in STOP_SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                    continue
                if alone or number != signal.SIGTERM:
                    self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _request(self, number: int, _frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:  # the user insists
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name
        import jax

        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
