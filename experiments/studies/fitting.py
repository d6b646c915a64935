"""Fits of a study's cells, an arm and a loss each, and what they predict; see `fits`, `isoflop`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.bootstrap import DRAWS, Estimate, Point
from experiments.studies.fits import AccuracyFit, LossFit, fit_accuracy, fit_loss, predict
from experiments.studies.isoflop import IsoFlopFit, PowerLaw, fit_isoflop
from experiments.studies.study_config import LOSSES
from lst_jax.settings import require


@dataclasses.dataclass(frozen=True)
class ArmFit:
    """What the cells of one arm say of one loss.

    Attributes:
      arm, loss: which.
      points: the cells.
      measured: accuracies of the cells, by metric.
      law: L = E + A/N^α + B/D^β; None where `refusals` say why.
      parabolas: of the budgets in FLOPs.
      accuracies: sigmoids in that loss, by metric.
      refusals: a line for each fit that the cells do not give.
    """

    arm: str
    loss: str
    points: Sequence[Point]
    measured: Mapping[str, Sequence[float]]
    law: LossFit | None
    parabolas: IsoFlopFit
    accuracies: Mapping[str, AccuracyFit]
    refusals: Sequence[str]


def fit_study(results: Mapping[str, Any], draws: int = DRAWS) -> list[ArmFit]:
    """Fits what `results.collect` has found, with so many draws of the bootstrap.

    Raises:
      ValueError: no cell with a loss is scored.
    """
    scored = [entry for entry in results["cells"] if entry["state"] == "scored"]
    fits = []
    for arm in dict.fromkeys(entry["arm"] for entry in scored):
        cells = [entry for entry in scored if entry["arm"] == arm]
        for loss in LOSSES:
            # Cells of earlier versions have no `parameters`.
            measured = [c for c in cells if loss in c["metrics"] and "parameters" in c]
            if measured:
                fits.append(_fit_arm(arm, loss, measured, draws))
    require(bool(fits), "cells with a loss", 0, "one or more that are scored")
    return fits


def _fit_arm(arm: str, loss: str, cells: Sequence[Mapping[str, Any]], draws: int) -> ArmFit:
    points = [
        Point(
            size=entry["parameters"],
            data=entry["training"]["total_tokens"],
            flops=entry["training"]["total_flops"],
            loss=entry["metrics"][loss],
        )
        for entry in cells
    ]
    law, accuracies, measured, refusals = None, {}, {}, []
    try:
        law = fit_loss(points, draws)
        refusals += [law.refusal] if law.refusal else []
    except ValueError as error:
        refusals.append(str(error))
    for metric, chance in cells[0]["chances"].items():
        if metric.startswith("mean/"):
            measured[metric] = [entry["metrics"][metric] for entry in cells]
            try:
                accuracies[metric] = fit_accuracy(
                    [point.loss for point in points], measured[metric], chance, draws
                )
            except ValueError as error:
                refusals.append(f"{metric}: {error}")
    parabolas = fit_isoflop(points, draws)
    return ArmFit(arm, loss, points, measured, law, parabolas, accuracies, refusals)


def fits_to_json(fits: Sequence[ArmFit]) -> list[dict[str, Any]]:
    """Returns fits as JSON values, without the bootstrap's draws."""
    return [_without_draws(dataclasses.asdict(fit)) for fit in fits]


def _without_draws(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_draws(v) for k, v in value.items() if k != "draws"}
    if hasattr(value, "_asdict"):
        return _without_draws(value._asdict())
    return [_without_draws(v) for v in value] if isinstance(value, list | tuple) else value


def format_fits(fits: Sequence[ArmFit]) -> str:
    """Returns what is fitted, some lines an arm and loss, and what is refused."""
    lines = []
    for fit in fits:
        lines.append(f"{fit.arm}, {fit.loss}")
        if fit.law is not None:
            law = fit.law
            names = zip("EAαBβ", _law_estimates(law), strict=True)
            shown = ", ".join(f"{name} {show(estimate)}" for name, estimate in names)
            lines.append(f"  L = E + A/N^α + B/D^β of {law.num_points} cells: {shown}")
            if law.size_growth is not None and law.data_growth is not None:
                lines.append(f"  N* ∝ C^{show(law.size_growth)}, D* ∝ C^{show(law.data_growth)}")
        for optimum in fit.parabolas.optima:
            lines.append(
                f"  isoFLOP {optimum.flops:.3g}: N* {show(optimum.size)}, D* {show(optimum.data)}, "
                f"loss {show(optimum.loss)}"
            )
        lines += _power_lines(fit.parabolas.size_law, fit.parabolas.data_law)
        lines += [f"  no: {refusal}" for refusal in (*fit.refusals, *fit.parabolas.refusals)]
    return "\n".join(lines)


def _law_estimates(law: LossFit) -> list[Estimate]:
    return [
        law.irreducible,
        law.size_coefficient,
        law.size_exponent,
        law.data_coefficient,
        law.data_exponent,
    ]


def _power_lines(size_law: PowerLaw | None, data_law: PowerLaw | None) -> list[str]:
    laws = (("N*", size_law), ("D*", data_law))
    return [f"  isoFLOP: {name} ∝ C^{show(law.exponent)}" for name, law in laws if law]


def show(value: Estimate | float) -> str:
    """Returns a value, with its interval where it has one."""
    if not isinstance(value, Estimate):
        return f"{value:.4g}"
    if value.lower is None or value.upper is None:
        return f"{value.value:.4g}"
    return f"{value.value:.4g} ({value.lower:.4g} … {value.upper:.4g})"


def format_predictions(fits: Sequence[ArmFit], size: float, budget: float) -> str:
    """Returns what a run of `size` parameters and `budget` FLOPs would reach, by every fit.

    Raises:
      ValueError: no cells give a law of the loss; the first line that says why.
    """
    lines = [f"{fit.arm}, {fit.loss}: no, {fit.refusals[0]}" for fit in fits if fit.law is None]
    if len(lines) == len(fits):
        raise ValueError(lines[0])
    for fit in fits:
        if fit.law is None:
            continue
        found = predict(fit.law, size, budget, fit.accuracies)
        lines.append(f"{fit.arm}, {fit.loss}: {show(found.loss)} after {found.data:.4g} tokens")
        lines += [f"  {name} {show(estimate)}" for name, estimate in found.accuracies.items()]
        lines += [f"  no optimum: {fit.law.refusal}"] if fit.law.refusal else []
        outside = [f"{name} × {x:.3g}" for name, x in found.extrapolation.items() if x != 1]
        lines.append(f"  outside of the cells: {', '.join(outside) or 'nothing'}")
    return "\n".join(lines)
