"""Experiment binaries: absl mains configured by gin."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"]:
    # A binary that still imports has nothing to put in order; then it is `common.cli` that answers.
    def _end(number: int, _: object) -> None:
        os.write(2, f"stopped by {signal.Signals(number).name}\n".encode())
        os._exit(143)

    for _signal in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        if signal.getsignal(_signal) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(_signal, _end)

from data_pipelines.processes import end_with_parent, is_worker

if is_worker():  # a process that imports this as its first thing takes seconds for all the rest
    end_with_parent()
