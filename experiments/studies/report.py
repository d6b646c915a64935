"""The page of a study: tables and figures of `results.collect`."""

from __future__ import annotations

import io
import itertools
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from experiments.reports.templating import render
from experiments.studies.cell_results import metric_scale, metric_text
from experiments.studies.fit_figures import draw_fits
from experiments.studies.fitting import ArmFit
from experiments.studies.measures import KINDS
from experiments.studies.study_config import LOSSES
from lst_jax.files import write_file
from lst_jax.training.metrics import format_duration

matplotlib.use("Agg")

# Colors that color-blind readers tell apart (Okabe and Ito), one for each model and arm.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_LABELS = {"speech": "nats a second of speech", "text": "bits a byte of text"}
_MEASURES = dict(zip(KINDS, ("pairs", "recognition", "synthesis", "word patches"), strict=True))

Results = Mapping[str, Any]


def write_report(
    results: Results, directory: pathlib.Path, fits: Sequence[ArmFit] = ()
) -> pathlib.Path:
    """Writes `report.html`, whose path is returned, and `figures/`, a PDF for each of its figures.

    Args:
      results: of `results.collect`.
      directory: of the report.
      fits: whose figures the report has, too.
    """
    shown = _shown_metrics(results)
    drawn = {name: (metric_label(name), metric_figure(results, name)) for name in shown}
    drawn |= {title: (title, figure) for title, figure in draw_fits(fits, _LABELS).items()}
    figures = {}
    for name, (title, figure) in drawn.items():
        pdf, svg = io.BytesIO(), io.StringIO()
        figure.savefig(pdf, format="pdf")
        figure.savefig(svg, format="svg")
        plt.close(figure)
        stem = re.sub(r"[^\w.-]+", "_", name)
        write_file(directory / "figures" / f"{stem}.pdf", pdf.getvalue())
        text = svg.getvalue()
        figures[title] = Markup(text[text.index("<svg") :])
    metrics = list(dict.fromkeys([*shown, *(entry["metric"] for entry in results["means"])]))
    page = render(
        "study_report.html",
        results=results,
        states={
            state: [entry for entry in results["cells"] if entry["state"] == state]
            for state in ("scored", "failed", "missing")
        },
        comparisons=[_comparison_row(entry) for entry in results["comparisons"]],
        metrics=[metric_label(metric) for metric in metrics],
        means=_mean_rows(results, metrics),
        bill=_bill_rows(results),
        figures=figures,
    )
    return write_file(directory / "report.html", page)


def metric_label(metric: str) -> str:
    """Returns a metric as people read it: "mean S→S", "nats a second of speech"."""
    name, _, direction = metric.partition("/")
    if name in _MEASURES:
        return f"{_MEASURES[name]} {direction}"
    return f"{name} {direction.replace('-', '→')}" if direction else _LABELS[metric]


def _shown_metrics(results: Results) -> list[str]:
    found = dict.fromkeys(entry["metric"] for entry in results["means"])
    return [x for x in found if x in LOSSES or x.partition("/")[0] in ("mean", *KINDS)]


def _series(entry: Mapping[str, Any]) -> str:
    return f"{entry['model']} {entry['arm']}" if entry["model"] else entry["arm"]


def metric_figure(results: Results, metric: str) -> Figure:
    """Draws a metric against training FLOPs and against steps, a point a cell, a line an arm."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    means = [entry for entry in results["means"] if entry["metric"] == metric]
    scale = metric_scale(metric)
    cells = {}
    for entry in results["cells"]:
        if entry["state"] == "scored":
            cells.setdefault(_series(entry), []).append(entry)
    for axis, name in zip(axes, ("flops", "steps"), strict=True):
        for (series, entries), color in zip(cells.items(), itertools.cycle(_COLORS)):
            _draw_cells(axis, entries, metric, name, scale, color)
            points = [entry for entry in means if _series(entry) == series]
            values = [scale * entry["mean"] for entry in points]
            axis.errorbar(
                [entry[name] for entry in points],
                values,
                _error_bars(points, scale),
                color=color,
                marker="o",
                markersize=5,
                capsize=3,
                label=series,
            )
        chance = next((entry["chance"] for entry in means if entry["chance"] is not None), None)
        if chance is not None:
            axis.axhline(100 * chance, color="#888888", linestyle=":", linewidth=1)
        axis.set_xlabel("training FLOPs" if name == "flops" else "optimizer steps")
        spent = [entry[name] for entry in means]
        if name == "flops" and max(spent) > 10 * min(spent):  # else labels would overlap
            axis.set_xscale("log")
            axis.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    label = metric_label(metric)
    axes[0].set_ylabel(label if scale == 1 else f"{label} [%]")
    axes[0].legend(frameon=False)
    return figure


def _draw_cells(
    axis: Axes,
    entries: Sequence[Mapping[str, Any]],
    metric: str,
    name: str,
    scale: float,
    color: str,
) -> None:
    """Draws each cell as a small point, with what was measured on its way as a thin line."""
    point_name = "step" if name == "steps" else name
    for entry in entries:
        way = [point for point in entry["curve"] if metric in point["metrics"]]
        x = [point[point_name] for point in way]
        axis.plot(x, [scale * point["metrics"][metric] for point in way], color=color, alpha=0.25)
        if metric in entry["metrics"]:
            end = entry["steps"] if name == "steps" else entry["training"]["total_flops"]
            axis.plot(end, scale * entry["metrics"][metric], ".", color=color, alpha=0.5)


def _error_bars(points: Sequence[Mapping[str, Any]], scale: float) -> np.ndarray | None:
    """Returns (2, n) distances of the intervals' bounds; None where a point has none."""
    if not points or any(point["lower"] is None for point in points):
        return None
    below = [point["mean"] - point["lower"] for point in points]
    above = [point["upper"] - point["mean"] for point in points]
    return scale * np.array([below, above])


def _with_interval(entry: Mapping[str, Any], metric: str) -> str:
    if entry["mean"] is None:
        return "–"
    text = metric_text(metric, entry["mean"])
    if entry["lower"] is None:
        return text
    return f"{text} ({metric_text(metric, entry['lower'])} … {metric_text(metric, entry['upper'])})"


def _comparison_row(entry: Mapping[str, Any]) -> dict[str, Any]:
    at = f"{entry['budget']:g}" + (f", {entry['model']}" if entry["model"] else "")
    p_values = [entry["p_value"], entry["corrected_p_value"]]
    return {
        "kind": entry["kind"],
        "what": f"{entry['arm']} − {entry['against']}",
        "metric": metric_label(entry["metric"]),
        "at": at,
        "difference": _with_interval(entry, entry["metric"]),
        "p": ["–" if p is None else f"{p:.3g}" for p in p_values],
        "pairs": len(entry["seeds"]),
        "excludes_zero": entry["lower"] is not None and (entry["lower"] > 0 or entry["upper"] < 0),
    }


def _mean_rows(results: Results, metrics: Sequence[str]) -> list[list[str]]:
    rows: dict[tuple[str, float], dict[str, str]] = {}
    seeds: dict[tuple[str, float], int] = {}
    for entry in results["means"]:
        key = _series(entry), entry["budget"]
        rows.setdefault(key, {})[entry["metric"]] = _with_interval(entry, entry["metric"])
        seeds[key] = entry["n"]
    return [
        [series, f"{budget:g}", str(seeds[series, budget]), *(row.get(m, "–") for m in metrics)]
        for (series, budget), row in rows.items()
    ]


def _bill_rows(results: Results) -> list[list[str]]:
    rows = []
    for entry in results["cells"]:
        if entry["state"] == "scored":
            totals = entry["training"]
            rows.append(
                [
                    entry["cell"],
                    f"{entry['steps']:,}",
                    *(f"{totals[f'total_{name}']:,}" for name in ("patches", "tokens")),
                    f"{totals['total_flops']:.4g}",
                    format_duration(totals["total_seconds"]),
                ]
            )
    return rows
