"""Intervals of measured proportions."""

from __future__ import annotations

import math
import statistics


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    The interval holds the proportions p₀ that a two-sided score test would not reject, that is
    |p − p₀| ≤ z·√(p₀(1 − p₀)/n) with p = successes/n. Unlike p ± z·√(p(1 − p)/n) it stays inside
    [0, 1] and has a positive width at p = 0 and p = 1.

    Args:
      successes: number of successes, 0 … n; fractions of a success (ties) are allowed.
      n: number of trials, at least 1.
      confidence: probability that the interval covers the proportion, inside (0, 1).

    Returns:
      (lower, upper) with 0 ≤ lower ≤ successes/n ≤ upper ≤ 1.

    Raises:
      ValueError: for an argument outside its range.
    """
    if n < 1:
        raise ValueError(f"n is {n}; expected at least one trial")
    if not 0 <= successes <= n:
        raise ValueError(f"successes is {successes}; expected 0 … n = {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; expected a value inside (0, 1)")
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At p = 0 and p = 1 rounding could move a bound past p by one ulp.
    return max(0.0, min(p, centre - half_width)), min(1.0, max(p, centre + half_width))
