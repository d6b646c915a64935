"""Least squares over training runs, many at a time, and intervals by a bootstrap over them.

A draw gives every cell the residual of a cell drawn with replacement, and fits again. The design
stays: to draw whole cells would lose sizes, and with them the fit. Few cells and as many parameters
make any bootstrap too narrow, so residuals are widened by √(n/(n − parameters)), and the interval
is Student's t over the draws' spread.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from lst_jax.settings import require

Floats = np.ndarray  # float64

DRAWS = 200  # of a bootstrap
_ITERATIONS = 100


class Point(NamedTuple):
    """One training run.

    Attributes:
      size: N, parameters.
      data: D, tokens seen.
      flops: C, of training.
      loss: at its end, above 0, in a unit that all points share.
    """

    size: float
    data: float
    flops: float
    loss: float


class Estimate(NamedTuple):
    """A value and its bounds, None where there are as many points as parameters."""

    value: float
    lower: float | None
    upper: float | None


def tabulate(points: Sequence[Point]) -> Floats:
    """Returns the points as (n, 4)."""
    for number, point in enumerate(points):
        for name, value in zip(Point._fields, point, strict=True):
            good = isinstance(value, int | float) and math.isfinite(value) and value > 0
            require(good, f"points[{number}].{name}", value, "a finite number above 0")
    require(len(points) > 0, "number of points", 0, "at least 1")
    return np.array(points, np.float64)


# Of parameters (…, k) to predictions (…, n) and their gradient (…, k, n).
Model = Callable[[Floats], tuple[Floats, Floats]]
Bounds = Sequence[tuple[float, float]]


def minimize(
    model: Model, targets: Floats, starts: Sequence[Floats], bounds: Bounds, huber: float
) -> Floats:
    """Returns the best end of L-BFGS from several starts, by the Huber loss of the residuals."""

    def objective(parameters: Floats) -> tuple[float, Floats]:
        predicted, gradient = model(parameters)
        residual = (predicted - targets) / huber
        outer = np.clip(residual, -1, 1)
        # r²/2 up to 1, |r| − 1/2 beyond.
        return float(np.sum(outer * (residual - outer / 2))), gradient @ outer / huber

    options = {"maxiter": 500, "ftol": 1e-10, "gtol": 1e-6, "maxcor": 20}
    low, high = np.array(bounds).T
    with _one_thread():
        ends = [
            optimize.minimize(
                objective,
                np.clip(start, low, high),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options=options,
            )
            for start in starts
        ]
    best = min(ends, key=lambda end: end.fun).x
    return refit(model, targets[None], best, bounds, huber)[0]


def _one_thread() -> contextlib.AbstractContextManager[Any]:
    """Keeps BLAS to one thread: products of five numbers wait for the others on a busy machine."""
    if importlib.util.find_spec("threadpoolctl") is None:
        return contextlib.nullcontext()
    from threadpoolctl import threadpool_limits  # of the extra `demo`

    return threadpool_limits(1)


def refit(model: Model, targets: Floats, start: Floats, bounds: Bounds, huber: float) -> Floats:
    """Returns the parameters (m, k) nearest to `start` that fit each row of targets (m, n).

    Levenberg's and Marquardt's method on the Huber loss (a residual beyond counts as much less as
    makes its square linear), for all rows at a time.
    """
    low, high = np.array(bounds).T
    parameters = np.tile(start, (len(targets), 1))
    damping = np.full(len(targets), 1e-3)

    def loss(residual: Floats) -> Floats:
        outer = np.clip(residual, -huber, huber)
        return np.sum(outer * (residual - outer / 2), axis=-1)

    predicted, gradient = model(parameters)
    residual = targets - predicted
    value = loss(residual)
    for _ in range(_ITERATIONS):
        weighted = gradient * np.minimum(1, huber / np.maximum(np.abs(residual), 1e-300))[:, None]
        square = weighted @ np.swapaxes(gradient, 1, 2)
        diagonal = np.einsum("mkk->mk", square)
        square = square + (damping[:, None] * diagonal + 1e-14)[:, :, None] * np.eye(len(low))
        step = np.linalg.solve(square, weighted @ residual[:, :, None])[:, :, 0]
        tried = np.clip(parameters + step, low, high)
        predicted, slope = model(tried)
        changed = loss(targets - predicted)
        better = changed < value
        parameters = np.where(better[:, None], tried, parameters)
        gradient = np.where(better[:, None, None], slope, gradient)
        residual = np.where(better[:, None], targets - predicted, residual)
        value = np.where(better, changed, value)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-12, 1e8)
        if (damping >= 1e8).all():
            break
    return parameters


def choose_cells(num_cells: int, draws: int, seed: int) -> np.ndarray:
    """Returns the cells (draws, n) whose residuals each draw takes."""
    return np.random.default_rng(seed).integers(0, max(1, num_cells), (draws, num_cells))


def widen(residuals: Floats, num_parameters: int) -> Floats:
    """Returns residuals about their mean, as wide as the noise that fitting has narrowed."""
    freedom = max(1, len(residuals) - num_parameters)
    return (residuals - residuals.mean()) * math.sqrt(len(residuals) / freedom)


def estimate_of(
    value: float,
    draws: Floats,
    num_points: int,
    num_parameters: int,
    confidence: float,
    residual: float | None = 0.0,
) -> Estimate:
    """Returns a value with Student's t interval over the draws' spread."""
    freedom = num_points - num_parameters
    if freedom < 1 or len(draws) < 2 or residual is None:
        return Estimate(value, None, None)
    low, high = np.quantile(draws, [0.1587, 0.8413])  # two spreads apart, and no outlier counts
    variance = ((high - low) / 2) ** 2 + residual**2
    half = float(stats.t.isf((1 - confidence) / 2, freedom)) * math.sqrt(variance)
    return Estimate(value, value - half, value + half)


def residual_spread(residual: Floats, num_parameters: int) -> float | None:
    """Returns the spread of the noise, None without degrees of freedom."""
    freedom = len(residual) - num_parameters
    return math.sqrt(float(np.sum(residual**2)) / freedom) if freedom > 0 else None


def exponential(estimate: Estimate) -> Estimate:
    """Returns e to an estimate of a logarithm; bounds that overflow are None."""
    value, *bounds = (None if x is None or x > 700 else math.exp(x) for x in estimate)
    return Estimate(value if value is not None else math.inf, *bounds)
