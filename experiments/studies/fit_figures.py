"""Figures of a study's fits: the loss over size at each budget, and accuracy over the loss."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.studies.fitting import ArmFit
from experiments.studies.isoflop import SAME_BUDGET

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def draw_fits(fits: Sequence[ArmFit], labels: Mapping[str, str]) -> dict[str, Figure]:
    """Returns figures by title, of the losses that have a fit.

    Args:
      fits: of arms and losses.
      labels: of losses.
    """
    figures = {}
    for loss, label in labels.items():
        arms = [fit for fit in fits if fit.loss == loss]
        curved = [fit for fit in arms if fit.parabolas.optima]
        if curved:
            figures[f"isoFLOP: {label}"] = _draw_parabolas(curved, label)
        metrics = dict.fromkeys(metric for fit in arms for metric in fit.accuracies)
        if metrics:
            figures[f"accuracy over {label}"] = _draw_sigmoids(arms, [*metrics], label)
    return figures


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    size = (5 * count, 3.8)
    figure, axes = plt.subplots(1, count, figsize=size, sharey=True, squeeze=False)
    figure.set_layout_engine("constrained")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _draw_parabolas(arms: Sequence[ArmFit], label: str) -> Figure:
    figure, axes = _panels(len(arms))
    for axis, fit in zip(axes, arms, strict=True):
        for best, color in zip(fit.parabolas.optima, itertools.cycle(_COLORS)):
            points = [p for p in fit.points if abs(np.log(p.flops / best.flops)) < SAME_BUDGET]
            sizes = [point.size for point in points]
            axis.plot(sizes, [point.loss for point in points], "o", color=color, markersize=4)
            x = np.geomspace(min(sizes), max(sizes), 100)
            curve = np.polynomial.polynomial.polyval(np.log(x), best.curve)
            axis.plot(x, curve, color=color, label=f"{best.flops:.2g} FLOPs")
            axis.plot(best.size.value, best.loss, "*", color=color, markersize=11)
        axis.set_xscale("log")
        axis.set_xlabel(f"parameters of {fit.arm}")
        axis.legend(frameon=False)
    axes[0].set_ylabel(label)
    return figure


def _draw_sigmoids(arms: Sequence[ArmFit], metrics: Sequence[str], label: str) -> Figure:
    figure, axes = _panels(len(metrics))
    for axis, metric in zip(axes, metrics, strict=True):
        for fit, color in zip(arms, itertools.cycle(_COLORS)):
            if metric not in fit.accuracies:
                continue
            losses, accuracies = [p.loss for p in fit.points], np.array(fit.measured[metric])
            axis.plot(losses, 100 * accuracies, "o", color=color, markersize=4)
            x = np.linspace(min(losses), max(losses), 100)
            axis.plot(x, 100 * fit.accuracies[metric](x), color=color, label=fit.arm)
        axis.set_xlabel(label)
        axis.set_title(metric.replace("-", "→"))
        axis.legend(frameon=False)
    axes[0].set_ylabel("accuracy [%]")
    return figure
