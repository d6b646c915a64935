"""Pieces of Markdown that the pages of results are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from lst_jax.evaluation.tables import format_rate

NOTE = "<!-- Written by python -m experiments.reports.results; do not edit. -->"
DIRECTORY = "experiments/benchmarks/results"

_GIB = 2.0**30

Record = Mapping[str, Any]
Columns = Mapping[str, Callable[[Any], Any]]


def table(columns: Columns, rows: Iterable[Any]) -> list[str]:
    """Returns a Markdown table and an empty line; nothing where there are no rows.

    Args:
      columns: headings, and what each shows of a row.
      rows: of any type.
    """
    body = [[str(show(row)).replace("|", "\\|") for show in columns.values()] for row in rows]
    if not body:
        return []
    cells = [list(columns), ["---"] * len(columns), *body]
    return [*(f"| {' | '.join(line)} |" for line in cells), ""]


def made_by(report: Record) -> list[str]:
    """Returns the command and the versions that a result file names."""
    versions = ", ".join(f"{package} {v}" for package, v in report["versions"].items())
    return ["", f"`{report['command']}`, {versions}.", ""]


def source(*names: str) -> str:
    """Returns which files a table comes from."""
    return ", ".join(f"`{DIRECTORY}/{name}`" for name in names)


def page(title: str, *sections: Sequence[str]) -> str:
    """Returns a page of a title and sections of lines."""
    lines = [NOTE, "", f"# {title}", ""]
    for section in sections:
        lines += section
    return "\n".join(lines).rstrip() + "\n"


def gib(size: float) -> str:
    """Returns a number of bytes as "1.50 GiB"."""
    return f"{size / _GIB:.2f} GiB"


def percent_with_interval(share: float, interval: Sequence[float]) -> str:
    """Returns `format_rate`, with an interval that a browser does not break."""
    return format_rate(share, interval).replace(" … ", "\u00a0…\u00a0")


def interval_text(low: object, high: object) -> str:
    """Returns an interval that a browser does not break."""
    return f"({low}\u00a0…\u00a0{high})"
