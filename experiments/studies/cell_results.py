"""What a study has found so far: scores of cells, means over seeds, differences of pairs."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.studies.cells import FAILURE, RESULT, Workdir
from experiments.studies.paired_statistics import holm, mean_interval, paired_difference
from experiments.studies.study_config import LOSSES, Cell, Comparison, Study
from lst_jax.checkpoints.description import read_description
from lst_jax.model.models import count_parameters
from lst_jax.settings import list_names
from lst_jax.strict_json import read_json_object
from lst_jax.training.metrics import read_evaluations, read_records

Record = Mapping[str, Any]

_TOTALS = ("total_patches", "total_tokens", "total_speech_units", "total_flops", "total_seconds")
_LOSS_NAMES = dict(zip(LOSSES, ("nats_per_second", "bits_per_byte"), strict=True))


def score_cell(cell: Cell, steps: int, run: pathlib.Path, stories: pathlib.Path) -> dict[str, Any]:
    """Returns what a finished cell's files say, as JSON values.

    Args:
      cell: which.
      steps: that it was to take.
      run: workdir of its training.
      stories: what its evaluation wrote; not read where the cell has no test sets.

    Raises:
      OSError, ValueError: a file is missing, or the run is not at its end.
    """
    records, evaluations = read_records(run), _evaluations(run)
    if records[-1]["step"] != steps:
        raise ValueError(f"{run} is at step {records[-1]['step']}, expected {steps}")
    metrics, chances = {}, {}
    if cell.data.stories:
        table = read_json_object(stories)["results"]
        for entry in table:
            name = f"{entry['set_name']}/{entry['direction']}"
            metrics[name], chances[name] = entry["accuracy"], entry["chance"]
        metrics |= _means(metrics)
        chances |= _means(chances)
    if evaluations:
        metrics |= _losses(evaluations[-1])
    for measure in cell.study.measures:
        found, chance = measure.read(run.parent)
        metrics, chances = metrics | found, chances | chance
    return {
        "cell": cell.name,
        "steps": steps,
        "parameters": count_parameters(read_description(run).model),
        "metrics": metrics,
        "chances": chances,
        "training": {name: records[-1][name] for name in _TOTALS},
        "curve": [_point(record, records) for record in evaluations],
    }


def _evaluations(run: pathlib.Path) -> list[Record]:
    """Returns evaluations, the last of each step: a restart repeats those after its checkpoint."""
    return list({record["step"]: record for record in read_evaluations(run)}.values())


def _means(metrics: Mapping[str, float]) -> dict[str, float]:
    """Returns the means over sets of each direction."""
    directions = dict.fromkeys(name.rpartition("/")[2] for name in metrics)
    return {
        f"mean/{direction}": float(
            np.mean([v for name, v in metrics.items() if name.endswith(f"/{direction}")])
        )
        for direction in directions
    }


def _losses(evaluation: Record) -> dict[str, float]:
    """Returns the held-out losses, of static patches where speech has patches."""
    found = {}
    for metric, name in _LOSS_NAMES.items():
        for strategy in ("static", "none", "aligned", "mixed"):
            value = evaluation.get(f"held_out/{strategy}/{name}")
            if value is not None and metric not in found:
                found[metric] = value
    return found


def _point(evaluation: Record, records: Sequence[Record]) -> dict[str, Any]:
    """Returns a point of a cell's curve; FLOPs between two records lie on a line."""
    steps = [0, *(record["step"] for record in records)]
    flops = [0.0, *(record["total_flops"] for record in records)]
    accuracies = {
        name.removeprefix("stories/").removesuffix("/accuracy"): value
        for name, value in evaluation.items()
        if name.startswith("stories/")
    }
    return {
        "step": evaluation["step"],
        "flops": float(np.interp(evaluation["step"], steps, flops)),
        "metrics": {**accuracies, **_means(accuracies), **_losses(evaluation)},
    }


def collect(study: Study, steps: Mapping[str, int], workdir: Workdir) -> dict[str, Any]:
    """Returns the results of a study, as JSON values.

    `cells` has an entry for each cell, its `state` "scored", "failed" or "missing"; `means` those
    over the seeds of an arm, budget and metric, with 95 % intervals where there are several seeds;
    `comparisons` the primary and the secondary ones, over the seeds for which both arms are scored.
    """
    cells = [_cell_entry(cell, steps, workdir) for cell in study.cells()]
    scored = [entry for entry in cells if entry["state"] == "scored"]
    comparisons = [
        _compare(study, comparison, kind, scored)
        for kind, comparison in (
            ("primary", study.primary),
            *(("secondary", comparison) for comparison in study.secondary),
        )
    ]
    corrected = [c for c in comparisons if c["kind"] == "secondary" and c["p_value"] is not None]
    for entry, p_value in zip(
        corrected, holm([c["p_value"] for c in corrected]) if corrected else (), strict=True
    ):
        entry["corrected_p_value"] = p_value
    return {
        "study": study.name,
        "question": study.question,
        "paper": study.paper,
        "protocol": study.protocol,
        "budget_unit": study.budget_unit,
        "seeds": list(study.seeds),
        "complete": len(scored) == len(cells),
        "cells": cells,
        "means": _mean_entries(scored),
        "comparisons": comparisons,
    }


def _cell_entry(cell: Cell, steps: Mapping[str, int], workdir: Workdir) -> dict[str, Any]:
    folder = workdir.cell(cell)
    entry: dict[str, Any] = {
        "cell": cell.name,
        "model": cell.model.name if cell.model else None,
        "arm": cell.arm.name,
        "budget": cell.budget,
        "seed": cell.seed,
        "steps": steps[cell.name],
    }
    if (folder / RESULT).exists():
        scored = read_json_object(folder / RESULT)
        absent = [x for x in ("metrics", "chances", "training", "curve") if x not in scored]
        if absent:
            name = folder / RESULT
            raise ValueError(f"{name} is without {list_names(absent)}, expected what `run` wrote")
        for metric in _compared_means(cell.study):
            names, _, direction = metric.rpartition("/")
            for values in (scored["metrics"], scored["chances"]):
                parts = [values.get(f"{name}/{direction}") for name in names.split("+")]
                if None not in parts:
                    values[metric] = float(np.mean(parts))
        return entry | {"state": "scored"} | scored
    if (folder / FAILURE).exists():
        return entry | {"state": "failed", "error": read_json_object(folder / FAILURE)["error"]}
    return entry | {"state": "missing"}


def _compared_means(study: Study) -> list[str]:
    """Returns the metrics of comparisons that are means of sets, named each."""
    comparisons = (study.primary, *study.secondary)
    return [found.metric for found in comparisons if "+" in found.metric.rpartition("/")[0]]


def _group_key(entry: Mapping[str, Any]) -> tuple[str, str, float]:
    return entry["model"] or "", entry["arm"], entry["budget"]


def _mean_entries(scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    means = []
    for _, group in itertools.groupby(sorted(scored, key=_group_key), _group_key):
        entries = list(group)
        first = entries[0]
        shared = {name: first[name] for name in ("model", "arm", "budget", "steps")}
        flops = float(np.mean([entry["training"]["total_flops"] for entry in entries]))
        for metric in first["metrics"]:
            values = {e["seed"]: e["metrics"][metric] for e in entries if metric in e["metrics"]}
            means.append(
                shared
                | {"flops": flops, "metric": metric, "chance": first["chances"].get(metric)}
                | {"values": [*values.values()], "seeds": [*values]}
                | _interval([*values.values()])
            )
    return means


def _interval(values: Sequence[float]) -> dict[str, Any]:
    """Returns the mean, with its interval where values of several seeds give one."""
    found = {"mean": float(np.mean(values)), "lower": None, "upper": None, "n": len(values)}
    with contextlib.suppress(ValueError):  # one seed, or seeds without a spread
        found |= mean_interval(values)._asdict()
    return found


def _compare(
    study: Study, comparison: Comparison, kind: str, scored: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    model = comparison.model or (study.models[-1].name if study.models else None)
    budget = comparison.budget or study.budgets[-1]
    values: dict[str, dict[int, float]] = {comparison.arm: {}, comparison.against: {}}
    for entry in scored:
        here = (entry["model"], entry["budget"]) == (model, budget)
        if here and entry["arm"] in values and comparison.metric in entry["metrics"]:
            values[entry["arm"]][entry["seed"]] = entry["metrics"][comparison.metric]
    first, second = values[comparison.arm], values[comparison.against]
    seeds = [seed for seed in study.seeds if seed in first and seed in second]
    pairs = [[side[seed] for seed in seeds] for side in (first, second)]
    differences = [a - b for a, b in zip(*pairs, strict=True)]
    found: dict[str, Any] = {
        "kind": kind,
        "arm": comparison.arm,
        "against": comparison.against,
        "metric": comparison.metric,
        "model": model,
        "budget": budget,
        "seeds": seeds,
        "differences": differences,
        "mean": float(np.mean(differences)) if seeds else None,
        **dict.fromkeys(("lower", "upper", "p_value", "corrected_p_value")),
    }
    with contextlib.suppress(ValueError):  # one pair, or pairs without a spread
        found |= paired_difference(pairs[0], pairs[1])._asdict()
    return found


def pilot_spread(path: pathlib.Path, metric: str) -> float:
    """Returns the standard deviation over seeds of a pilot's differences.

    Args:
      path: `results.json` of a pilot study.
      metric: that was compared in it.

    Raises:
      OSError, ValueError: it cannot be read, or has not two pairs of that metric.
    """
    found = read_json_object(path).get("comparisons", ())
    for comparison in found:
        if comparison["metric"] == metric and len(comparison["differences"]) > 1:
            return float(np.std(comparison["differences"], ddof=1))
    raise ValueError(
        f"{path} has no comparison of {metric} over two seeds, expected a pilot study's results"
    )


def metric_scale(metric: str) -> int:
    """Returns 100 for shares, which people read in percent, and 1 for losses and similarities."""
    return 1 if metric in LOSSES or metric.startswith("patches/") else 100


def metric_text(metric: str, value: float) -> str:
    """Returns a value of a metric: shares in percent, others as they are."""
    scale = metric_scale(metric)
    return f"{scale * value:.{3 if scale == 1 else 1}f}"


def format_csv(results: Mapping[str, Any]) -> str:
    """Returns a line for each scored cell and metric."""
    names = ("cell", "model", "arm", "budget", "seed", "steps")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, *_TOTALS, "metric", "value"])
    for entry in results["cells"]:
        for metric, value in entry.get("metrics", {}).items():
            totals = [entry["training"][name] for name in _TOTALS]
            writer.writerow([*(entry[name] for name in names), *totals, metric, value])
    return file.getvalue()


def format_status(results: Mapping[str, Any], owners: Mapping[str, str | None]) -> str:
    """Returns a line for each cell, and how many there are of each state.

    Args:
      results: see `collect`.
      owners: who is at a cell, by its name; None: nobody.
    """
    lines = []
    for entry in results["cells"]:
        state, who = entry["state"], owners[entry["cell"]]
        detail = f": {entry['error']}" if state == "failed" else ""
        lines.append(f"{entry['cell']}  " + (f"running, {who}" if who else f"{state}{detail}"))
    states = [entry["state"] for entry in results["cells"]]
    counts = ", ".join(f"{states.count(x)} {x}" for x in ("scored", "failed", "missing"))
    return "\n".join([*lines, counts])
