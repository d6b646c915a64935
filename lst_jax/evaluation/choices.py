"""Evaluation by likelihood: of several continuations, the right one should be the likeliest.

Story completion chooses among the endings of a story, a minimal pair is a choice of two utterances.
The candidate with the highest score wins, by its summed log-probability (the headline) and by that
per token. If m candidates tie for the highest score and the right one is among them, the choice
counts as 1/m right, the expectation of a random draw.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lst_jax.evaluation.statistics import wilson_interval
from lst_jax.evaluation.tables import format_interval, format_percent, format_rows
from lst_jax.inference.scoring import Continuation, ScoringShape, score_continuations
from lst_jax.inference.trained_model import TrainedModel


@dataclasses.dataclass(frozen=True)
class ChoiceKind:
    """How the parts of one kind of choice are called in tables and JSON files.

    Attributes:
      group: what divides a set: "direction", "category".
      label: the index of the right candidate.
      whole_sets: whether a set has an entry as a whole, before those of its groups.
    """

    group: str
    label: str
    whole_sets: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Choice:
    """Continuations of which one is right.

    Attributes:
      set_name: the evaluation set that it belongs to.
      example_id: name of the example, unique within its set.
      group: the part of the set that it belongs to, if any.
      candidates: two or more.
      label: index of the right one.
    """

    set_name: str
    example_id: str
    group: str | None
    candidates: Sequence[Continuation]
    label: int


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """What the model thinks of the candidates of one choice.

    Attributes:
      set_name, example_id, group, label: what was scored, see `Choice`.
      log_probabilities: of each candidate's ending given its prompt, natural logarithm, summed.
      token_counts: number of tokens of each ending.
    """

    set_name: str
    example_id: str
    group: str | None
    label: int
    log_probabilities: tuple[float, ...]
    token_counts: tuple[int, ...]

    @property
    def normalized(self) -> tuple[float, ...]:
        """Returns the log-probability per token of each candidate."""
        pairs = zip(self.log_probabilities, self.token_counts, strict=True)
        return tuple(score / count for score, count in pairs)


@dataclasses.dataclass(frozen=True)
class ChoiceResult:
    """Accuracy on one set or on one group of it.

    Attributes:
      set_name, group: what was measured; group None is the whole set.
      n: number of choices.
      chance: accuracy of guessing, the mean of 1 / number of candidates.
      accuracy: by the summed log-probability, the headline.
      interval: 95 % Wilson interval of `accuracy`.
      normalized_accuracy: by the log-probability per token.
      normalized_interval: 95 % Wilson interval of `normalized_accuracy`.
    """

    set_name: str
    group: str | None
    n: int
    chance: float
    accuracy: float
    interval: tuple[float, float]
    normalized_accuracy: float
    normalized_interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class ChoiceResults:
    """All sets and groups of an evaluation.

    Attributes:
      kind: of the choices.
      table: one entry per set and group, both in the order of the choices.
      scores: one entry per choice.
    """

    kind: ChoiceKind
    table: tuple[ChoiceResult, ...]
    scores: tuple[ChoiceScores, ...]

    def as_dict(self, with_scores: bool) -> dict[str, Any]:
        """Returns the results as JSON values, with or without the scores of every choice."""
        values = {"results": [result_to_json(result, self.kind) for result in self.table]}
        if with_scores:
            values["scores"] = [_rename(dataclasses.asdict(x), self.kind) for x in self.scores]
        return values


def result_to_json(result: ChoiceResult, kind: ChoiceKind) -> dict[str, Any]:
    """Returns a line of a table as JSON values."""
    return _rename(dataclasses.asdict(result), kind)


def result_from_json(fields: dict[str, Any], kind: ChoiceKind) -> ChoiceResult:
    """Returns the line of a table that `result_to_json` has written."""
    pairs = {name: tuple(fields[name]) for name in ("interval", "normalized_interval")}
    others = {name: value for name, value in fields.items() if name != kind.group}
    return ChoiceResult(**{**others, **pairs, "group": fields[kind.group]})


def _rename(fields: dict[str, Any], kind: ChoiceKind) -> dict[str, Any]:
    names = {"group": kind.group, "label": kind.label}
    return {names.get(name, name): value for name, value in fields.items()}


def evaluate_choices(
    trained: TrainedModel,
    choices: Sequence[Choice],
    kind: ChoiceKind,
    *,
    shape: ScoringShape | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceResults:
    """Measures how often a model finds the right candidate the likeliest.

    The candidates of all choices are scored together, packed into rows. Candidates with the same
    tokens always tie.

    Args:
      trained: the model.
      choices: of any number of sets.
      kind: of the choices.
      shape: shape of the batches.
      progress: called after every batch with the number of batches done and in all.

    Raises:
      ValueError: a candidate is longer than a row, or scores are not finite.
    """
    continuations = [candidate for choice in choices for candidate in choice.candidates]
    found = score_continuations(trained, continuations, shape=shape, progress=progress)
    log_probabilities = iter(found.tolist())
    scores = [
        ChoiceScores(
            set_name=choice.set_name,
            example_id=choice.example_id,
            group=choice.group,
            label=choice.label,
            log_probabilities=tuple(itertools.islice(log_probabilities, len(choice.candidates))),
            token_counts=tuple(len(candidate.ending) for candidate in choice.candidates),
        )
        for choice in choices
    ]
    return summarize(scores, kind)


def summarize(scores: Sequence[ChoiceScores], kind: ChoiceKind) -> ChoiceResults:
    """Returns the accuracies of scored choices, by set and group."""
    sets: dict[str, dict[str | None, list[ChoiceScores]]] = {}
    for entry in scores:
        groups = sets.setdefault(entry.set_name, {None: []} if kind.whole_sets else {})
        # Choices without a group count in the whole set only.
        for group in dict.fromkeys([None, entry.group] if kind.whole_sets else [entry.group]):
            groups.setdefault(group, []).append(entry)
    table = tuple(
        _summarize_group(set_name, group, entries)
        for set_name, groups in sets.items()
        for group, entries in groups.items()
    )
    return ChoiceResults(kind, table, tuple(scores))


def _summarize_group(
    set_name: str, group: str | None, entries: Sequence[ChoiceScores]
) -> ChoiceResult:
    accuracy = measure_accuracy((entry.log_probabilities, entry.label) for entry in entries)
    normalized = measure_accuracy((entry.normalized, entry.label) for entry in entries)
    return ChoiceResult(
        set_name=set_name,
        group=group,
        n=len(entries),
        chance=sum(1 / len(entry.log_probabilities) for entry in entries) / len(entries),
        accuracy=accuracy.share,
        interval=accuracy.interval,
        normalized_accuracy=normalized.share,
        normalized_interval=normalized.interval,
    )


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
    """Returns 1/m if entry `label` is one of the m highest scores, else 0."""
    highest = max(scores)
    return 1 / scores.count(highest) if scores[label] == highest else 0.0


def measure_accuracy(choices: Iterable[tuple[Sequence[float], int]]) -> Accuracy:
    """Returns the accuracy of choices, given by the candidates' scores and the right one's index.

    Raises:
      ValueError: there are no choices.
    """
    credits = [credit(scores, label) for scores, label in choices]
    interval = wilson_interval(sum(credits), len(credits))
    return Accuracy(sum(credits) / len(credits), interval)


def format_table(results: ChoiceResults, show_group: Callable[[str], str] = str) -> str:
    """Returns an aligned table, numbers in percent: a line per set and group."""
    names = ("set", results.kind.group)
    header = (*names, "accuracy", "95 % interval", "chance", "n", "normalized")
    rows = [
        (
            result.set_name,
            "all" if result.group is None else show_group(result.group),
            format_percent(result.accuracy),
            format_interval(result.interval),
            format_percent(result.chance),
            str(result.n),
            format_percent(result.normalized_accuracy),
        )
        for result in results.table
    ]
    return format_rows([header, *rows], num_names=len(names))
