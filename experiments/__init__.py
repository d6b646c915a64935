"""Experiment binaries: absl mains configured by gin."""

from data_pipelines.processes import end_with_parent, is_worker

if is_worker():  # a process that imports this as its first thing takes seconds for all the rest
    end_with_parent()
