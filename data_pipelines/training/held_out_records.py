"""Which records are held out of training, to measure the loss on.

A record is held out or not by its source and its number in it, and by nothing else: not by seed,
epoch, hosts, mixture or the other sources. A larger share holds out what a smaller one does, and
more.
"""

from __future__ import annotations

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def held_out_mask(source: int, size: int, share: float) -> np.ndarray:
    """Returns which records of a source are held out.

    Args:
      source: number of the source.
      size: number of its records.
      share: of the records, 0 ≤ share < 1, on average.

    Returns:
      (size,) bool.
    """
    if not share:
        return np.zeros(size, bool)
    with np.errstate(over="ignore"):  # the arithmetic is modulo 2⁶⁴
        start = _mix(np.full(1, source, np.uint64) + _GOLDEN)
        hashes = _mix(start + np.arange(size, dtype=np.uint64) * _GOLDEN)
    # 53 bits are a float's, so that the comparison is exact.
    return (hashes >> np.uint64(11)).astype(np.float64) < share * 2.0**53


def _mix(value: np.ndarray) -> np.ndarray:
    """Returns SplitMix64's finalizer of 64-bit integers: every bit depends on every other."""
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
