"""Runs a binary that ends with the process that started it, however that one ends.

    python -m experiments.studies.child MODULE FLAGS

A worker of a study that is killed so leaves no run behind that nobody waits for.
"""

from __future__ import annotations

import runpy
import sys

from data_pipelines.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
