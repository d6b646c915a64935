"""Tables of results as text: rates in percent with their intervals, columns aligned."""

from __future__ import annotations

from collections.abc import Sequence


def format_rows(rows: Sequence[Sequence[str]], num_names: int) -> str:
    """Returns an aligned table: the first `num_names` columns to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < num_names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def format_percent(share: float) -> str:
    """Returns 0.4567 as "45.7"."""
    return f"{100 * share:.1f}"


def format_interval(interval: Sequence[float]) -> str:
    """Returns (0.4, 0.5) as "40.0 … 50.0"."""
    return " … ".join(map(format_percent, interval))


def format_rate(share: float, interval: Sequence[float]) -> str:
    """Returns 0.45 and (0.4, 0.5) as "45.0 (40.0 … 50.0)"."""
    return f"{format_percent(share)} ({format_interval(interval)})"
