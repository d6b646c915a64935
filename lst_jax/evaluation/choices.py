"""Choices by likelihood: the candidate with the highest score wins."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lst_jax.evaluation.statistics import wilson_interval


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """Share of right choices.

    Attributes:
      share: credits per choice, 0 … 1.
      interval: its 95 % Wilson interval.
    """

    share: float
    interval: tuple[float, float]


def credit(scores: Sequence[float], label: int) -> float:
    """1/m if entry `label` is one of the m highest scores, else 0."""
    highest = max(scores)
    return 1 / scores.count(highest) if scores[label] == highest else 0.0


def measure_accuracy(choices: Iterable[tuple[Sequence[float], int]]) -> Accuracy:
    """Accuracy of choices, each given by the candidates' scores and the right one's index.

    Raises:
      ValueError: there are no choices.
    """
    credits = [credit(scores, label) for scores, label in choices]
    interval = wilson_interval(sum(credits), len(credits))
    return Accuracy(sum(credits) / len(credits), interval)


def per_token(log_probabilities: Sequence[float], token_counts: Sequence[int]) -> tuple[float, ...]:
    """Log-probability per token of each candidate."""
    pairs = zip(log_probabilities, token_counts, strict=True)
    return tuple(score / count for score, count in pairs)


def format_rows(rows: Sequence[Sequence[str]], num_names: int) -> str:
    """Rows as an aligned table: the first `num_names` columns to the left, others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < num_names else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def format_percent(share: float) -> str:
    """0.4567 as "45.7"."""
    return f"{100 * share:.1f}"


def format_interval(interval: tuple[float, float]) -> str:
    """(0.4, 0.5) as "40.0 … 50.0"."""
    return " … ".join(map(format_percent, interval))
