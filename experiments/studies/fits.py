"""Fits of loss and accuracy against size, data and FLOPs, and what they predict.

* Loss: L(N, D) = E + A/N^α + B/D^β, by Huber loss on log L and L-BFGS from many starts (Hoffmann et
  al., 2022). What a token costs is fitted beside it, C = κ N^p D: our FLOPs are exact, not 6 N D.
* Accuracy: a sigmoid between chance and at most 1, in the loss or in log FLOPs.

Intervals are of a bootstrap over cells, that is, over training runs (`bootstrap`).

A fit names no optimum, in one line, where the points do not say how the loss falls, or are fewer
than its parameters.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from experiments.studies.bootstrap import (
    DRAWS,
    Estimate,
    Floats,
    Point,
    choose_cells,
    estimate_of,
    exponential,
    minimize,
    refit,
    residual_spread,
    tabulate,
    widen,
)
from lst_jax.settings import require

_HUBER = 1e-3  # of log L, as Hoffmann et al. have it
_ACCURACY_HUBER = 0.1


@dataclasses.dataclass(frozen=True)
class LossFit:
    """L = E + A/N^α + B/D^β and C = κ N^p D.

    Attributes:
      irreducible, size_coefficient, size_exponent, data_coefficient, data_exponent: E, A, α, B, β.
      flops_coefficient, flops_exponent: κ and p.
      size_growth, data_growth: exponents of C in N* and D*; None where `refusal` says why.
      residual: spread of log L of a run around the fit, None without degrees of freedom.
      num_points: cells.
      smallest, largest: N, D and C that the fit has seen.
      refusal: a line where the fit names no optimum, else None.
      draws: E, A, α, B, β of each draw.
    """

    irreducible: Estimate
    size_coefficient: Estimate
    size_exponent: Estimate
    data_coefficient: Estimate
    data_exponent: Estimate
    flops_coefficient: float
    flops_exponent: float
    size_growth: Estimate | None
    data_growth: Estimate | None
    residual: float | None
    num_points: int
    smallest: tuple[float, ...]
    largest: tuple[float, ...]
    refusal: str | None
    draws: tuple[tuple[float, ...], ...]

    @property
    def values(self) -> tuple[float, ...]:
        """Returns E, A, α, B, β."""
        return tuple(
            estimate.value
            for estimate in (
                self.irreducible,
                self.size_coefficient,
                self.size_exponent,
                self.data_coefficient,
                self.data_exponent,
            )
        )

    def optimum(self, flops: float) -> tuple[float, float]:
        """Returns N* and D* of a budget.

        Raises:
          ValueError: the fit names no optimum.
        """
        if self.refusal is not None:
            raise ValueError(self.refusal)
        require(0 < flops < 1e100, "flops", flops, "a number above 0, below 1e100")
        _, a, alpha, b, beta = self.values
        p = self.flops_exponent
        gain = math.log(alpha * a / (p * beta * b))
        log_tokens = math.log(flops / self.flops_coefficient)  # log D at N = 1
        log_size = (gain + beta * log_tokens) / (alpha + p * beta)
        return math.exp(log_size), math.exp(log_tokens - p * log_size)


@dataclasses.dataclass(frozen=True)
class AccuracyFit:
    """accuracy = chance + (top − chance) / (1 + exp(−slope (x − middle))).

    Attributes:
      chance: of guessing, given.
      top, slope, middle: fitted; x is the loss (slope below 0) or log10 of FLOPs.
      residual: spread of a run's accuracy around the fit, None without degrees of freedom.
      num_points: cells.
      draws: top, slope, middle of each draw.
    """

    chance: float
    top: Estimate
    slope: Estimate
    middle: Estimate
    residual: float | None
    num_points: int
    draws: tuple[tuple[float, ...], ...]

    def __call__(self, x: Any) -> Any:
        """Returns the accuracy at x, of any shape."""
        return _sigmoid((self.top.value, self.slope.value, self.middle.value), x, self.chance)


class Prediction(NamedTuple):
    """What one more run of a size and budget is expected to reach.

    Attributes:
      loss: with the interval of a run, not of the mean.
      accuracies: by name, likewise.
      data: D, tokens that the budget buys.
      extrapolation: N, D and C over the largest fitted ones, or the smallest where they are below
        these, by `size`, `data`, `flops`; 1 inside.
    """

    loss: Estimate
    accuracies: dict[str, Estimate]
    data: float
    extrapolation: dict[str, float]


def fit_loss(
    points: Sequence[Point],
    draws: int = DRAWS,
    confidence: float = 0.95,
    seed: int = 0,
    huber: float = _HUBER,
) -> LossFit:
    """Fits L = E + A/N^α + B/D^β and C = κ N^p D.

    Args:
      points: runs, of at least 5 combinations of size and data, and 3 of each.
      draws: of the bootstrap over cells.
      confidence: of the intervals.
      seed: of the draws.
      huber: residual of log L from which on it counts linearly.

    Raises:
      ValueError: there are fewer points than parameters, or a point is not of finite numbers.
    """
    table = tabulate(points)
    log_size, log_data, log_flops, log_loss = np.log(table).T
    combinations = len(np.unique(table[:, :2], axis=0))
    fewest = min(len(np.unique(table[:, 0])), len(np.unique(table[:, 1])))
    if combinations < 5 or fewest < 3:
        raise ValueError(
            f"points are {combinations} combinations of {len(np.unique(table[:, 0]))} sizes and "
            f"{len(np.unique(table[:, 1]))} amounts of data, expected at least 5 of 3 and 3 for "
            "the five parameters of L = E + A/N^α + B/D^β"
        )
    flops_exponent, flops_log = np.polyfit(log_size, log_flops - log_data, 1)
    # Centered, a coefficient no longer moves with its exponent.
    centers = log_size.mean(), log_data.mean()
    x, y = log_size - centers[0], log_data - centers[1]

    def model(parameters: Floats) -> tuple[Floats, Floats]:
        return _log_loss(parameters, x, y)

    least, spread = float(log_loss.min()), max(float(np.ptp(log_loss)), 1e-3)
    bounds = [(least - 12, least + 2)] + 2 * [(least - 14, least + 6), (_FLATTEST, _STEEPEST)]
    term = least + math.log(spread)
    starts = [
        np.array([least + e, term + a, alpha, term + b, beta])
        for e in (-2.0, -0.1)
        for a in (-2.0, 0.0)
        for b in (-2.0, 0.0)
        for alpha in (0.15, 0.5)
        for beta in (0.15, 0.5)
    ]
    best = minimize(model, log_loss, starts, bounds, huber)
    residual = log_loss - model(best)[0]
    noise = widen(residual, 5)[choose_cells(len(x), draws, seed)]
    found = refit(model, model(best)[0] + noise, best, bounds, huber)
    p = float(flops_exponent)
    refusal = _why_no_optimum(best, bounds)
    if p <= 0:
        refusal = f"C = κ N^p D has p = {p:.3g}, expected above 0: larger models cost no more here"

    def plain(parameters: Floats) -> Floats:
        """Returns E, log A, α, log B, β of sizes and data as they are."""
        e, a, alpha, b, beta = np.moveaxis(parameters, -1, 0)
        return np.stack([np.exp(e), a + alpha * centers[0], alpha, b + beta * centers[1], beta], -1)

    def estimate(value: float, values: Floats) -> Estimate:
        return estimate_of(float(value), values, len(x), 5, confidence)

    values, samples = plain(best), plain(found)
    e, a, alpha, b, beta = map(estimate, values, samples.T)
    growth = None
    if refusal is None:
        size = found[:, 4] / (found[:, 2] + p * found[:, 4])
        share = best[4] / (best[2] + p * best[4])
        growth = estimate(share, size), estimate(1 - p * share, 1 - p * size)
    samples[:, [1, 3]] = np.exp(samples[:, [1, 3]])
    return LossFit(
        irreducible=e,
        size_coefficient=exponential(a),
        size_exponent=alpha,
        data_coefficient=exponential(b),
        data_exponent=beta,
        flops_coefficient=float(np.exp(flops_log)),
        flops_exponent=p,
        size_growth=growth[0] if growth else None,
        data_growth=growth[1] if growth else None,
        residual=residual_spread(residual, 5),
        num_points=len(x),
        smallest=tuple(table[:, :3].min(0).tolist()),
        largest=tuple(table[:, :3].max(0).tolist()),
        refusal=refusal,
        draws=tuple(map(tuple, samples.tolist())),
    )


# Exponents outside are a term that is constant, or a step.
_FLATTEST, _STEEPEST = 0.005, 4.0


def _log_loss(parameters: Floats, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Returns log L by log-sum-exp, (…, n), and its gradient, (…, 5, n)."""
    e, a, alpha, b, beta = np.moveaxis(parameters, -1, 0)[..., None]
    terms = np.stack(np.broadcast_arrays(e, a - alpha * x, b - beta * y))
    most = terms.max(0)
    shares = np.exp(terms - most)
    total = shares.sum(0)
    of_e, of_a, of_b = shares / total
    return most + np.log(total), np.stack([of_e, of_a, -of_a * x, of_b, -of_b * y], -2)


def _why_no_optimum(best: Floats, bounds: Sequence[tuple[float, float]]) -> str | None:
    for index, name in ((1, "A"), (2, "α"), (3, "B"), (4, "β")):
        low, high = bounds[index]
        if not low + 1e-3 * abs(low) < best[index] < high - 1e-3 * abs(high):
            term = "size" if index < 3 else "data"
            return (
                f"L = E + A/N^α + B/D^β has no interior minimum in N: {name} is at its bound, the "
                f"points do not say how the loss falls with {term}"
            )
    return None


def fit_accuracy(
    x: Sequence[float],
    accuracies: Sequence[float],
    chance: float,
    draws: int = DRAWS,
    confidence: float = 0.95,
    seed: int = 0,
) -> AccuracyFit:
    """Fits a sigmoid between chance and at most 1.

    Args:
      x: loss of each run (accuracy falls with it), or log10 of its FLOPs.
      accuracies: of each run, 0 … 1.
      chance: of guessing, 0 … 1, below 1.
      draws: of the bootstrap over cells; with as many cells and the same seed as in `fit_loss`
        they are of the same cells.
      confidence: of the intervals.
      seed: of the draws.

    Raises:
      ValueError: there are fewer different x than the three parameters, or values out of range.
    """
    places, values = np.asarray(x, np.float64), np.asarray(accuracies, np.float64)
    good = places.ndim == 1 and places.shape == values.shape and bool(np.isfinite(places).all())
    require(good, "x", x, "finite numbers, one for each accuracy")
    good = bool(((values >= 0) & (values <= 1)).all())
    require(good, "accuracies", accuracies, "values in 0 … 1")
    require(0 <= chance < 1, "chance", chance, "at least 0, below 1")
    different = len(np.unique(places))
    if different < 3:
        raise ValueError(f"x has {different} different values, expected at least 3 for a sigmoid")
    center, scale = float(places.mean()), float(places.std())
    z = (places - center) / scale

    def model(parameters: Floats) -> tuple[Floats, Floats]:
        top, slope, middle = np.moveaxis(parameters, -1, 0)[..., None]
        rise = special.expit(slope * (z - middle))
        steep = (top - chance) * rise * (1 - rise)
        gradient = np.stack([rise, steep * (z - middle), -steep * slope], -2)
        return chance + (top - chance) * rise, gradient

    bounds = [(chance, 1.0), (-30.0, 30.0), (-10.0, 10.0)]
    most = min(1.0, max(chance, float(values.max())) + 0.02)
    starts = [
        np.array([top, slope, middle])
        for top in (most, (most + 1) / 2)
        for slope in (-3.0, -1.0, 1.0, 3.0)
        for middle in (-1.0, 0.0, 1.0)
    ]
    best = minimize(model, values, starts, bounds, _ACCURACY_HUBER)
    residual = values - model(best)[0]
    noise = widen(residual, 3)[choose_cells(len(z), draws, seed)]
    found = refit(model, model(best)[0] + noise, best, bounds, _ACCURACY_HUBER)

    def plain(parameters: Floats) -> Floats:
        top, slope, middle = np.moveaxis(parameters, -1, 0)
        return np.stack([top, slope / scale, middle * scale + center], -1)

    samples = plain(found)
    estimates = (
        estimate_of(float(value), column, len(z), 3, confidence)
        for value, column in zip(plain(best), samples.T, strict=True)
    )
    return AccuracyFit(
        chance,
        *estimates,
        residual=residual_spread(residual, 3),
        num_points=len(z),
        draws=tuple(map(tuple, samples.tolist())),
    )


def _sigmoid(parameters: Any, x: Any, chance: float) -> Any:
    top, slope, middle = np.moveaxis(np.asarray(parameters), -1, 0)
    return chance + (top - chance) * special.expit(slope * (x - middle))


def predict(
    fit: LossFit,
    size: float,
    budget: float,
    accuracies: Mapping[str, AccuracyFit] | None = None,
    confidence: float = 0.95,
) -> Prediction:
    """Returns what a run of a size and budget is expected to reach.

    Args:
      fit: of the loss.
      size: N, parameters.
      budget: C, training FLOPs.
      accuracies: fits in that loss, by name.
      confidence: of the intervals, which are of one run: they have its residual spread, too.

    Raises:
      ValueError: a size or budget that is not finite and above 0.
    """
    for name, value in (("size", size), ("budget", budget)):
        require(math.isfinite(value) and value > 0, name, value, "a finite number above 0")
    log_data = math.log(budget / fit.flops_coefficient) - fit.flops_exponent * math.log(size)
    expected = f"FLOPs of the order of those fitted, at most {fit.largest[2]:.3g}"
    require(abs(log_data) < 200, f"budget of {size:.4g} parameters", budget, expected)
    data = math.exp(log_data)

    def losses(parameters: Any) -> Any:
        e, a, alpha, b, beta = np.moveaxis(np.asarray(parameters), -1, 0)
        return e + a * float(size) ** -alpha + b * data**-beta

    value, drawn = float(losses(fit.values)), losses(np.array(fit.draws).reshape(-1, 5))
    spread = None if fit.residual is None else fit.residual * value
    loss = estimate_of(value, drawn, fit.num_points, 5, confidence, spread)
    reached = {}
    for name, sigmoid in (accuracies or {}).items():
        # The loss of each draw through the sigmoid of the same draw.
        parameters = np.array(sigmoid.draws).reshape(-1, 3)
        pairs = min(len(parameters), len(drawn))
        samples = _sigmoid(parameters[:pairs], drawn[:pairs], sigmoid.chance)
        mean = float(sigmoid(value))
        found = estimate_of(mean, samples, sigmoid.num_points, 5, confidence, sigmoid.residual)
        reached[name] = Estimate(found.value, *(_clip(x) for x in found[1:]))
    places = zip(
        ("size", "data", "flops"), (size, data, budget), fit.smallest, fit.largest, strict=True
    )
    extrapolation = {name: x / min(max(x, low), high) for name, x, low, high in places}
    return Prediction(loss, reached, data, extrapolation)


def _clip(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value))
