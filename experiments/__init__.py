"""Experiment binaries: absl mains configured by gin."""
