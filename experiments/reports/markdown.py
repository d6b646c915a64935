"""Pieces of Markdown that the pages of results are made of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.reports.templating import render
from lst_jax.evaluation.tables import format_rate

DIRECTORY = "experiments/benchmarks/results"

_GIB = 2.0**30

Record = Mapping[str, Any]
Columns = Mapping[str, Callable[[Any], Any]]


def table(columns: Columns, rows: Iterable[Any]) -> str:
    """Returns a Markdown table and an empty line; nothing where there are no rows.

    Args:
      columns: headings, and what each shows of a row.
      rows: of any type.
    """
    body = [[str(show(row)).replace("|", "\\|") for show in columns.values()] for row in rows]
    if not body:
        return ""
    cells = [list(columns), ["---"] * len(columns), *body]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells) + "\n"


def source(*names: str) -> str:
    """Returns which files a table comes from."""
    return ", ".join(f"`{DIRECTORY}/{name}`" for name in names)


def page(name: str, **values: Any) -> str:
    """Returns the page of a template in `templates/results`, with single empty lines."""
    text = render(f"results/{name}.md", source=source, **values)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def gib(size: float) -> str:
    """Returns a number of bytes as "1.50 GiB"."""
    return f"{size / _GIB:.2f} GiB"


def percent_with_interval(share: float, interval: Sequence[float]) -> str:
    """Returns `format_rate`, with an interval that a browser does not break."""
    return format_rate(share, interval).replace(" … ", "\u00a0…\u00a0")
