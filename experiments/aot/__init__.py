"""Compilation for accelerators that are not there, and what it costs."""
