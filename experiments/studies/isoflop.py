"""isoFLOP parabolas: at each budget C the loss over log N, its minimum, laws through the minima.

D* is what C buys for N*. A budget names no optimum, in one line, that has none inside its sizes, or
fewer sizes than the parabola has parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.studies.bootstrap import (
    DRAWS,
    Estimate,
    Floats,
    Point,
    choose_cells,
    estimate_of,
    exponential,
    tabulate,
    widen,
)

SAME_BUDGET = 0.1  # budgets of one curve differ by less; steps are whole
_MOST_LOST = 0.2  # of the draws, without a minimum


class PowerLaw(NamedTuple):
    """y = coefficient · C^exponent."""

    coefficient: float
    exponent: Estimate


class Optimum(NamedTuple):
    """The minimum of one isoFLOP parabola.

    Attributes:
      flops: C, the budget.
      size: N*.
      data: D*.
      loss: at both.
      curve: coefficients of 1, log N, (log N)².
    """

    flops: float
    size: Estimate
    data: Estimate
    loss: float
    curve: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class IsoFlopFit:
    """Parabolas of several budgets.

    Attributes:
      optima: of the budgets that name one, ascending.
      refusals: a line for each of the others, and for laws through fewer than two optima.
      size_law: N* = k C^a; None where refused.
      data_law: D* = k C^b; None where refused.
    """

    optima: tuple[Optimum, ...]
    refusals: tuple[str, ...]
    size_law: PowerLaw | None
    data_law: PowerLaw | None


def fit_isoflop(
    points: Sequence[Point], draws: int = DRAWS, confidence: float = 0.95, seed: int = 0
) -> IsoFlopFit:
    """Fits a parabola to every budget, and power laws to their minima.

    Args:
      points: runs; budgets within 10 % are one.
      draws: of the bootstrap over cells.
      confidence: of the intervals.
      seed: of the draws.

    Raises:
      ValueError: a point is not of finite numbers above 0.
    """
    table = tabulate(points)
    table = table[np.argsort(table[:, 2], kind="stable")]
    breaks = np.flatnonzero(np.diff(np.log(table[:, 2])) > math.log1p(SAME_BUDGET)) + 1
    fitted, optima, slopes, refusals = [], [], [], []
    for group in np.split(table, breaks):
        try:
            fitted.append(_Parabola(group))
        except ValueError as error:
            refusals.append(str(error))
    # Noise is one for all budgets: each has too few cells to tell its own.
    residuals = np.concatenate([[], *(curve.residuals for curve in fitted)])
    parameters = 3 * len(fitted)
    for number, curve in enumerate(fitted):
        chosen = choose_cells(len(residuals), draws, seed + number)[:, : len(curve.x)]
        drawn = widen(residuals, parameters)[chosen]
        try:
            lows = curve.minima(drawn)
        except ValueError as error:
            refusals.append(str(error))
            continue
        estimates = (
            estimate_of(float(f(curve.best)), f(lows), len(residuals), parameters, confidence)
            for f in (lambda x, c=curve: x + c.center, curve.tokens)
        )
        size, data = map(exponential, estimates)
        optima.append(Optimum(curve.flops, size, data, curve.loss, curve.coefficients))
        slopes.append(np.stack([lows + curve.center, curve.tokens(lows)]))
    if len(optima) < 2:
        refusals.append(f"power laws need 2 budgets with an optimum, there are {len(optima)}")
        return IsoFlopFit(tuple(optima), tuple(refusals), None, None)
    log_flops, laws = np.log([optimum.flops for optimum in optima]), []
    for name, lows in zip(("size", "data"), np.stack(slopes, axis=1), strict=True):
        best = np.log([getattr(optimum, name).value for optimum in optima])
        slope, intercept = np.polyfit(log_flops, best, 1)
        drawn = np.polyfit(log_flops, lows, 1)[0]
        exponent = estimate_of(float(slope), drawn, len(residuals), parameters, confidence)
        laws.append(PowerLaw(float(np.exp(intercept)), exponent))
    return IsoFlopFit(tuple(optima), tuple(refusals), *laws)


class _Parabola:
    """The loss over log N of one budget, with a minimum inside the sizes."""

    def __init__(self, group: Floats) -> None:
        """Fits points (n, 4); a `ValueError` where they name no optimum."""
        self.flops = float(np.exp(np.log(group[:, 2]).mean()))
        self._place = f"the budget of {self.flops:.3g} FLOPs"
        sizes = np.unique(group[:, 0])
        if len(sizes) < 3:
            raise ValueError(f"{self._place} has {len(sizes)} sizes, expected 3 for a parabola")
        self.center = float(np.log(group[:, 0]).mean())
        self.x, self._y = np.log(group[:, 0]) - self.center, group[:, 3]
        # What C buys: tokens fall with size almost as a power law.
        self.tokens = np.poly1d(np.polyfit(self.x, np.log(group[:, 1]), 1))
        c0, c1, c2 = curve = np.polynomial.polynomial.polyfit(self.x, self._y, 2)
        self.best = float(-c1 / (2 * c2)) if c2 > 0 else math.nan
        if not self.x.min() < self.best < self.x.max():
            where = "no minimum" if math.isnan(self.best) else "a minimum at an edge of its sizes"
            inside = f"{sizes[0]:.4g} … {sizes[-1]:.4g}"
            raise ValueError(f"{self._place} has {where}, expected one inside {inside}")
        self.loss = float(c0 - c1 * c1 / (4 * c2))
        self._fitted = np.polynomial.polynomial.polyval(self.x, curve)
        self.residuals = self._y - self._fitted
        c0, c1 = c0 - c1 * self.center + c2 * self.center**2, c1 - 2 * c2 * self.center
        self.coefficients = (float(c0), float(c1), float(c2))

    def minima(self, noise: Floats) -> Floats:
        """Returns where the minima lie with other residuals (draws, n), in x."""
        curves = np.polynomial.polynomial.polyfit(self.x, (self._fitted + noise).T, 2)
        found = -curves[1] / np.where(curves[2] > 0, 2 * curves[2], np.nan)
        kept = found[np.isfinite(found)]
        lost = 1 - len(kept) / len(found) if len(found) else 0.0
        if lost > _MOST_LOST:
            raise ValueError(
                f"{self._place} has no sure minimum: {lost:.0%} of the draws over cells have none"
            )
        return np.resize(kept, len(found)) if len(kept) else kept
