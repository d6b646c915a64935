"""Benchmarks; results are kept under results/ with the command that made them."""
