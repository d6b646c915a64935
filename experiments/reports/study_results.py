"""The page of docs/results that lists the paper's questions and the studies that ask them."""

from __future__ import annotations

from collections.abc import Mapping

from experiments.reports.markdown import Record, page, table
from experiments.studies.cell_results import metric_text
from experiments.studies.study_config import Study


def studies_page(
    studies: Mapping[str, Study], bills: Mapping[str, Record], found: Mapping[str, Record]
) -> str:
    """Returns the page.

    Args:
      studies: by the name of their file.
      bills: of `experiments.benchmarks.study_bills`, by the same names.
      found: `results.json` of studies that were run, by the same names.
    """
    columns = {
        "question": lambda x: studies[x].question,
        "study": lambda x: f"`{x}`",
        "arms": lambda x: ", ".join(arm.name for arm in studies[x].arms),
        "the paper": lambda x: studies[x].paper,
        "ours": lambda x: _difference(found[x]) if x in found else "",
        "cells": lambda x: len(studies[x].cells()),
        "steps": lambda x: _bill(bills, x, "steps"),
        "patches": lambda x: _bill(bills, x, "patches"),
        "FLOPs": lambda x: _bill(bills, x, "flops"),
    }
    return page("studies", table=table(columns, studies), found=sorted(found))


def _bill(bills: Mapping[str, Record], name: str, what: str) -> str:
    return f"{bills[name][what]:.3g}" if name in bills else ""


def _difference(results: Record) -> str:
    """Returns a study's primary comparison, with its interval over seeds where there is one."""
    found = next(entry for entry in results["comparisons"] if entry["kind"] == "primary")
    metric, mean = found["metric"], found["mean"]
    if mean is None:
        return ""
    text = f"{found['metric']}, {found['arm']} − {found['against']}: {metric_text(metric, mean)}"
    seeds = f"{len(found['seeds'])} seed{'s' * (len(found['seeds']) > 1)}"
    if found["lower"] is None:
        return f"{text} ({seeds})"
    low, high = (metric_text(metric, found[name]) for name in ("lower", "upper"))
    return f"{text} ({low} … {high}, {seeds})"
