"""What a run of the demo showed, in sentences made of its results and of nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from lst_jax.evaluation.choices import ChoiceResult

LST, EQUAL_STEPS, EQUAL_FLOPS = "lst", "equal_steps", "equal_flops"
_BUDGETS = {
    EQUAL_STEPS: "At equal steps and equal patches a step",
    EQUAL_FLOPS: "At equal training FLOPs",
}
# Standard deviations over seeds of the demo's accuracies, where a study has measured them:
# {"seeds": 5, "deviations": {"lst": {"StoryCloze/S-S": 0.02, …}, "baseline": {…}}}.
SEED_SPREAD = pathlib.Path(__file__).parents[1] / "benchmarks" / "results" / "seed_spread.json"


@dataclasses.dataclass(frozen=True)
class SeedSpread:
    """How much accuracies differ between seeds.

    Attributes:
      seeds: that it was measured with, at least 2.
      deviations: standard deviation by model ("lst", "baseline") and "set/direction".
    """

    seeds: int
    deviations: Mapping[str, Mapping[str, float]]

    def covers(self, results: Sequence[ChoiceResult]) -> bool:
        """Returns whether it knows all of these, of both models."""
        names = {f"{result.set_name}/{result.group}" for result in results}
        return all(names <= set(self.deviations.get(kind, {})) for kind in (LST, "baseline"))


def read_seed_spread(path: pathlib.Path = SEED_SPREAD) -> SeedSpread | None:
    """Reads what a study has measured; None where none has."""
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    return SeedSpread(fields["seeds"], fields["deviations"])


def cover_seeds(
    results: Sequence[ChoiceResult], role: str, spread: SeedSpread | None
) -> list[ChoiceResult]:
    """Returns results whose intervals cover seeds as well as items, where the spread is known.

    Half widths are added in squares: Wilson's, and Student's t times the deviation.
    """
    if spread is None or not spread.covers(results):
        return list(results)
    quantile = stats.t.ppf(0.975, spread.seeds - 1)
    deviations = spread.deviations[LST if role == LST else "baseline"]

    def widen(result: ChoiceResult) -> ChoiceResult:
        seeds = quantile * deviations[f"{result.set_name}/{result.group}"]
        lower, upper = result.interval
        lower = max(0.0, result.accuracy - math.hypot(result.accuracy - lower, seeds))
        upper = min(1.0, result.accuracy + math.hypot(upper - result.accuracy, seeds))
        return dataclasses.replace(result, interval=(lower, upper))

    return [widen(result) for result in results]


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float, float]:
    """Returns the difference of two accuracies and its interval, by the method of Newcombe.

    Args:
      first, second: with `accuracy` and its `interval`.
    """
    p, (p_low, p_high) = first["accuracy"], first["interval"]
    q, (q_low, q_high) = second["accuracy"], second["interval"]
    gap = p - q
    return gap, gap - math.hypot(p - p_low, q_high - q), gap + math.hypot(p_high - p, q - q_low)


def describe_results(models: Sequence[Mapping[str, Any]], covers_seeds: bool) -> list[str]:
    """Returns what the models' results say, a sentence or two for each baseline.

    Args:
      models: of `results.json`: the LST first, then baselines; each with `results` and, where
        there are several baselines, `role`.
      covers_seeds: whether the intervals cover seeds.
    """
    lst, *baselines = models
    sentences = []
    for baseline in baselines:
        budget = _BUDGETS[baseline.get("role", EQUAL_STEPS)]
        gaps = {
            f"{a['set_name']} {a['direction'].replace('-', '→')}": difference(a, b)
            for a, b in zip(lst["results"], baseline["results"], strict=True)
        }
        ahead = _list(name for name, gap in gaps.items() if gap[1] > 0)
        behind = _list(name for name, gap in gaps.items() if gap[2] < 0)
        found = []
        if ahead:
            found.append(f"the LST is ahead in {ahead}")
        if behind:
            found.append(f"the baseline is ahead in {behind}")
        rest = "; elsewhere the intervals of the differences hold 0" if found else ""
        none = "no difference of the two models has an interval without 0"
        sentences.append(f"{budget} {' and '.join(found) or none}{rest}.")
    count = len(lst["results"]) * len(baselines)
    sentences.append(
        f"These are {count} comparisons at 95 % each, of which about {max(1, round(count / 20))} "
        "would be apart by chance."
    )
    if covers_seeds:
        sentences.append("Intervals are over items and seeds.")
    else:
        sentences.append(
            "Intervals are over items alone. Another seed gives other accuracies, so one run "
            "cannot settle which model is better."
        )
    return sentences


def _list(names: Any) -> str:
    return ", ".join(names)
