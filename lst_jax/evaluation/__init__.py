"""Evaluation protocols of the paper."""
