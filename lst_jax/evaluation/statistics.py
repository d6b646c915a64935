"""Intervals of measured proportions and ratios."""

from __future__ import annotations

import math
import statistics

import numpy as np

from lst_jax.shapes import Shaped, check_shapes


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion.

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
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At p = 0 and p = 1 rounding could move a bound past p by one ulp.
    return max(0.0, min(p, center - half_width)), min(1.0, max(p, center + half_width))


@check_shapes
def bootstrap_ratio_interval(
    numerators: Shaped[np.ndarray, " n"],
    denominators: Shaped[np.ndarray, " m"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns the percentile bootstrap interval of Σ numerators / Σ denominators over items.

    Items (utterances, for an error rate) are drawn with replacement, as many as there are.

    Args:
      numerators: (n,) at least 0, such as the errors of each utterance.
      denominators: (n,) above 0, such as its words.
      confidence: share of the resamples inside, in (0, 1).
      resamples: number of draws.
      seed: of the draws.

    Returns:
      (lower, upper).

    Raises:
      ValueError: no items, or an argument outside its range.
    """
    if not len(numerators) or len(numerators) != len(denominators):
        raise ValueError(
            f"numerators has {len(numerators)} and denominators {len(denominators)} items; "
            "expected as many of each, at least one"
        )
    if np.min(numerators) < 0 or np.min(denominators) <= 0:
        raise ValueError("numerators or denominators too small; expected at least 0 and above 0")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence is {confidence} and resamples {resamples}; expected inside (0, 1) and at "
            "least 1"
        )
    # How often each item is in each resample: drawing them is a multinomial.
    n = len(numerators)
    draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), resamples)
    ratios = (draws @ np.asarray(numerators)) / (draws @ np.asarray(denominators))
    tail = (1 - confidence) / 2
    lower, upper = np.quantile(ratios, [tail, 1 - tail])
    return float(lower), float(upper)
