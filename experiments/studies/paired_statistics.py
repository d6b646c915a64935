"""Intervals, tests and power of figures that several seeds gave.

The seeds are the sample: a figure (an accuracy on a fixed set, a loss) is one number a seed, and
models are compared seed by seed, since both members of a pair saw the same data in the same order.
The interval is Student's t over these numbers. It covers seeds, with the noise of a run's items in
them, and speaks of the evaluation set as it is. A percentile bootstrap over 3 or 5 seeds covers 75
or 84 % where it says 95 (it ignores that the spread itself is estimated) and is not used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, special, stats

from lst_jax.settings import quote, require

# Spreads below this share of the largest value are rounding.
_ROUNDING = 1e-12
# What is larger overflows when it is squared.
_LARGEST = 1e150
_MOST_POWER = 0.9999
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


class Interval(NamedTuple):
    """Mean of n seeds, and the bounds of its interval."""

    mean: float
    lower: float
    upper: float
    n: int


class PairedDifference(NamedTuple):
    """Mean difference of n pairs, the bounds of its interval, and p of the two-sided t-test."""

    mean: float
    lower: float
    upper: float
    p_value: float
    n: int


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Returns the mean and its Student's t interval, mean ± t · s/√n with n − 1 degrees of freedom.

    Args:
      values: one figure a seed, at least two, not all equal.
      confidence: probability that the interval covers the mean over all seeds, inside (0, 1).

    Raises:
      ValueError: fewer than two values, values that are no finite numbers or all equal, or a
        confidence outside its range.
    """
    mean, error, n = _mean_and_error(_finite(values, "values"), "values")
    half = _critical_value(n, confidence) * error
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95
) -> PairedDifference:
    """Returns the mean of a − b over seeds, with Student's t interval and test.

    Args:
      a, b: one figure a seed of each model, in the same order of seeds, at least two.
      confidence: see `mean_interval`.

    Raises:
      ValueError: of unequal lengths, and as `mean_interval` for the differences.
    """
    mean, error, n = _mean_and_error(_paired(a, b), "a − b")
    half = _critical_value(n, confidence) * error
    p_value = 2 * float(stats.t.sf(abs(mean) / error, n - 1))
    return PairedDifference(mean, mean - half, mean + half, p_value, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns Holm's corrected p-values: below α, any of them is significant at α for the family.

    The smallest of m is multiplied by m, the next by m − 1, and so on; none is below one before it,
    none above 1. The primary comparison, named in advance, is not part of the family.

    Args:
      p_values: of the tests of a family, in any order, each 0 … 1.

    Raises:
      ValueError: a value is not in 0 … 1.
    """
    p = _finite(p_values, "p_values")
    require(bool(((p >= 0) & (p <= 1)).all()), "p_values", list(p_values), "values in 0 … 1")
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(stepped, 1.0)
    return corrected.tolist()


def power(difference: float, spread: float, num_seeds: int, confidence: float = 0.95) -> float:
    """Returns the probability that the two-sided paired t-test finds a true difference.

    It is P(|Z + δ| > t · S) with δ = difference · √n / spread, Z normal and S² = χ²/(n − 1), the
    tails of the noncentral t distribution, integrated over S: SciPy's own is nan in places.

    Args:
      difference: true mean of the paired differences.
      spread: their standard deviation over seeds, above 0.
      num_seeds: n, at least 2.
      confidence: 1 − the level of the test, inside (0, 1).

    Raises:
      ValueError: an argument is outside its range.
    """
    require(math.isfinite(difference), "difference", difference, "a finite number")
    _check_design(spread, num_seeds)
    shift = abs(difference) * math.sqrt(num_seeds) / spread
    return _power(shift, num_seeds - 1, _critical_value(num_seeds, confidence))


def smallest_difference(
    spread: float, num_seeds: int, power: float = 0.8, confidence: float = 0.95
) -> float:
    """Returns the true difference that the paired t-test finds with probability `power`.

    Args:
      spread: standard deviation of the paired differences over seeds, from a pilot, above 0.
      num_seeds: n, at least 2.
      power: probability of finding it, above 1 − confidence, which chance gives, at most 0.9999.
      confidence: see `power`.

    Raises:
      ValueError: an argument is outside its range.
    """
    _check_design(spread, num_seeds)
    critical = _critical_value(num_seeds, confidence)
    least = 1 - confidence
    require(
        least < power <= _MOST_POWER, "power", power, f"above {least:.3g}, at most {_MOST_POWER}"
    )

    def excess(shift: float) -> float:
        return _power(shift, num_seeds - 1, critical) - power

    most = 1.0
    while excess(most) < 0:
        most *= 2
    shift = optimize.root_scalar(excess, bracket=(0.0, most), xtol=1e-12).root
    return shift * spread / math.sqrt(num_seeds)


def _power(shift: float, freedom: int, critical: float) -> float:
    """Integrates the chance of |Z + shift| > critical · S over the density of S."""
    scale = math.sqrt(freedom)
    least, most = (x(1e-17, freedom) / scale for x in (stats.chi.ppf, stats.chi.isf))
    # Where Z decides: the chance falls from 1 to 0 within a few 1/critical around shift/critical.
    turns = [(shift + z) / critical for z in (-8, -3, 0, 3, 8)]
    edges = np.sort(np.array([least, *(x for x in (*turns, 1.0) if least < x < most), most]))
    half = np.diff(edges)[:, None] / 2
    s = edges[:-1, None] + half * (_NODES + 1)
    found = special.ndtr(shift - critical * s) + special.ndtr(-shift - critical * s)
    density = stats.chi.pdf(s * scale, freedom) * scale
    value = float(np.sum(found * density * half * _WEIGHTS))
    return min(1.0, max(0.0, value))


def _check_design(spread: float, num_seeds: int) -> None:
    require(math.isfinite(spread) and spread > 0, "spread", spread, "a finite number above 0")
    whole = isinstance(num_seeds, int) and not isinstance(num_seeds, bool)
    require(whole and num_seeds >= 2, "num_seeds", num_seeds, "an integer, at least 2")


def _critical_value(n: int, confidence: float) -> float:
    require(0 < confidence < 1, "confidence", confidence, "a value inside (0, 1)")
    return float(stats.t.isf((1 - confidence) / 2, n - 1))


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    try:
        array = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        array = np.array(np.nan)
    good = array.ndim == 1 and bool((np.abs(array) < _LARGEST).all())  # nan is not below, either
    require(good, name, values, "finite numbers")
    return array


def _paired(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    first, second = _finite(a, "a"), _finite(b, "b")
    if len(first) != len(second):
        raise ValueError(
            f"a has {len(first)} and b {len(second)} seeds, expected pairs of the same seeds"
        )
    differences = first - second
    # 0.3 − 0.1 and 0.4 − 0.2 are equal, but for rounding.
    scale = max(np.abs(first).max(initial=0), np.abs(second).max(initial=0))
    if len(first) and np.ptp(differences) <= _ROUNDING * scale:
        differences = np.full(len(first), differences[0])
    return differences


def _mean_and_error(values: np.ndarray, name: str) -> tuple[float, float, int]:
    """Returns the mean, its standard error and n."""
    n = len(values)
    require(n >= 2, f"number of seeds of {name}", n, "at least 2: one seed has no spread")
    error = float(values.std(ddof=1)) / math.sqrt(n)
    # The squares of differences below 1e-160 are zero.
    if error == 0 or np.ptp(values) <= _ROUNDING * np.abs(values).max():
        raise ValueError(
            f"{name} is {quote(float(values[0]))} for all {n} seeds, expected a spread between them"
        )
    return float(values.mean()), error, n
