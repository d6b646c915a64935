"""Evaluation by likelihood: of several continuations, the right one should be the likeliest.

Story completion chooses among the endings of a story, a minimal pair is a choice of two utterances.
The candidate with the highest score wins, by its summed log-probability (the headline) and by that
per token. If m candidates tie for the highest score and the right one is among them, the choice
counts as 1/m right, the expectation of a random draw. Choices of one item, such as a pair in
several voices, count as one, by their mean.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from lst_jax.evaluation.statistics import wilson_interval
from lst_jax.evaluation.tables import format_interval, format_percent, format_rows
from lst_jax.inference.scoring import Continuation, Logits, ScoringShape, score_continuations
from lst_jax.inference.trained_model import TrainedModel

# What decides, by the name of a result.
SCORED_BY = {"accuracy": "sum", "normalized_accuracy": "mean per token"}


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
      candidates: two or more; one, which only has a score, where there is no label.
      label: index of the right one.
      item: what the choice is a version of; None: it is an item.
    """

    set_name: str
    example_id: str
    group: str | None
    candidates: Sequence[Continuation]
    label: int | None
    item: str | None = None


@dataclasses.dataclass(frozen=True)
class ChoiceScores:
    """What the model thinks of the candidates of one choice.

    Attributes:
      set_name, example_id, group, label, item: what was scored, see `Choice`.
      log_probabilities: of each candidate's ending given its prompt, natural logarithm, summed.
      token_counts: number of tokens of each ending.
    """

    set_name: str
    example_id: str
    group: str | None
    label: int | None
    log_probabilities: tuple[float, ...]
    token_counts: tuple[int, ...]
    item: str | None = None

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
      n: number of items.
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
      logits: what the probabilities of speech are normalized over.
    """

    kind: ChoiceKind
    table: tuple[ChoiceResult, ...]
    scores: tuple[ChoiceScores, ...]
    logits: Logits = "all"

    def as_dict(self, with_scores: bool) -> dict[str, Any]:
        """Returns the results as JSON values, with or without the scores of every choice."""
        values: dict[str, Any] = {
            "logits": self.logits,
            "scored_by": SCORED_BY,
            "results": [result_to_json(result, self.kind) for result in self.table],
        }
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
    logits: Logits = "all",
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
      logits: see `score_continuations`.
      progress: called after every batch with the number of batches done and in all.

    Raises:
      ValueError: a candidate is longer than a row, or scores are not finite.
    """
    continuations = [candidate for choice in choices for candidate in choice.candidates]
    found = score_continuations(
        trained, continuations, shape=shape, logits=logits, progress=progress
    )
    log_probabilities = iter(found.tolist())
    scores = [
        ChoiceScores(
            set_name=choice.set_name,
            example_id=choice.example_id,
            group=choice.group,
            label=choice.label,
            log_probabilities=tuple(itertools.islice(log_probabilities, len(choice.candidates))),
            token_counts=tuple(len(candidate.ending) for candidate in choice.candidates),
            item=choice.item,
        )
        for choice in choices
    ]
    return summarize(scores, kind, logits)


def summarize(
    scores: Sequence[ChoiceScores], kind: ChoiceKind, logits: Logits = "all"
) -> ChoiceResults:
    """Returns the accuracies of scored choices, by set and group; those without label have none."""
    sets: dict[str, dict[str | None, list[ChoiceScores]]] = {}
    for entry in scores:
        if entry.label is None:
            continue
        groups = sets.setdefault(entry.set_name, {None: []} if kind.whole_sets else {})
        # Choices without a group count in the whole set only.
        for group in dict.fromkeys([None, entry.group] if kind.whole_sets else [entry.group]):
            groups.setdefault(group, []).append(entry)
    table = tuple(
        _summarize_group(set_name, group, entries)
        for set_name, groups in sets.items()
        for group, entries in groups.items()
    )
    return ChoiceResults(kind, table, tuple(scores), logits)


def _summarize_group(
    set_name: str, group: str | None, entries: Sequence[ChoiceScores]
) -> ChoiceResult:
    items = [i if entry.item is None else entry.item for i, entry in enumerate(entries)]
    scored = [(x.log_probabilities, x.normalized, x.label) for x in entries if x.label is not None]
    accuracy = measure_accuracy([(sums, label) for sums, _, label in scored], items)
    normalized = measure_accuracy([(means, label) for _, means, label in scored], items)
    return ChoiceResult(
        set_name=set_name,
        group=group,
        n=len(set(items)),
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


def measure_accuracy(
    choices: Sequence[tuple[Sequence[float], int]], items: Sequence[Hashable] | None = None
) -> Accuracy:
    """Returns the accuracy of choices.

    Args:
      choices: the candidates' scores and the right one's index.
      items: what each is a version of; None: each is an item.

    Raises:
      ValueError: there are no choices.
    """
    by_item: dict[Hashable, list[float]] = {}
    named = range(len(choices)) if items is None else items
    for item, (scores, label) in zip(named, choices, strict=True):
        by_item.setdefault(item, []).append(credit(scores, label))
    credits = [sum(versions) / len(versions) for versions in by_item.values()]
    interval = wilson_interval(sum(credits), len(credits))
    return Accuracy(sum(credits) / len(credits), interval)


def format_table(results: ChoiceResults, show_group: Callable[[str], str] = str) -> str:
    """Returns an aligned table, numbers in percent: a line per set and group."""
    names = ("set", results.kind.group)
    header = (*names, "accuracy", "95 % interval", "chance", "n", "per token")
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
