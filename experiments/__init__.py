"""Experiment binaries: absl mains configured by gin."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # A binary that still imports has nothing to put in order; then it is `common.cli` that answers.
    signal.signal(signal.SIGINT, lambda *_: os._exit(143))

from data_pipelines.processes import end_with_parent, is_worker

if is_worker():  # a process that imports this as its first thing takes seconds for all the rest
    end_with_parent()
