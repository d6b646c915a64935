"""Minimal pairs: of two spoken utterances, the right one should be the likelier.

The protocol of sWUGGY (a word and a non-word) and sBLIMP (a sentence and an ungrammatical one) of
the ZeroSpeech challenge 2021. The files are JSON lines, one pair a line:

    {"id": "17-en-US-A", "set": "sWUGGY", "category": "oov",
     "members": [{"units": [3, 3, 99, …]}, {"units": [3, 3, 41, …]}], "correct": 0}

`correct` is the index of the right member. `set` is any name; accuracies are reported by set and,
within a set, by `category`, which may be absent (or null). Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from lst_jax.evaluation import jsonl
from lst_jax.evaluation.choices import (
    format_interval,
    format_percent,
    format_rows,
    measure_accuracy,
    per_token,
)
from lst_jax.inference.scoring import Continuation, ScoringShape, score_continuations
from lst_jax.patching import PatchingConfig, Visibility
from lst_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechPair:
    """Two utterances that differ in one point.

    Attributes:
      example_id: name of the pair, unique within its set.
      set_name: the evaluation set that it belongs to.
      category: what it tests within the set, or None.
      members: raw speech units of each, (U,) int32.
      correct: index of the right member, 0 or 1.
      origin: where it was read, for error messages.
    """

    example_id: str
    set_name: str
    category: str | None
    members: tuple[np.ndarray, np.ndarray]
    correct: int
    origin: str


@dataclasses.dataclass(frozen=True)
class PairScores:
    """What the model thinks of the members of one pair.

    Attributes:
      set_name, example_id, category, correct: what was scored.
      log_probabilities: of each member's units, natural logarithm, summed.
      token_counts: number of units of each member.
    """

    set_name: str
    example_id: str
    category: str | None
    correct: int
    log_probabilities: tuple[float, float]
    token_counts: tuple[int, int]

    @property
    def normalized(self) -> tuple[float, ...]:
        """Log-probability per unit of each member."""
        return per_token(self.log_probabilities, self.token_counts)


@dataclasses.dataclass(frozen=True)
class MinimalPairsResult:
    """Accuracy on one set or on one category of it; chance is one half.

    Attributes:
      set_name, category: what was measured; category None is the whole set.
      n: number of pairs.
      accuracy: by the summed log-probability, the headline.
      interval: 95 % Wilson interval of `accuracy`.
      normalized_accuracy: by the log-probability per unit.
      normalized_interval: 95 % Wilson interval of `normalized_accuracy`.
    """

    set_name: str
    category: str | None
    n: int
    accuracy: float
    interval: tuple[float, float]
    normalized_accuracy: float
    normalized_interval: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class MinimalPairsResults:
    """All sets and categories of an evaluation.

    Attributes:
      table: a set's entry, then those of its categories; both in the order of the pairs.
      scores: one entry per pair.
    """

    table: tuple[MinimalPairsResult, ...]
    scores: tuple[PairScores, ...]

    def as_dict(self, with_scores: bool) -> dict[str, Any]:
        """The results as JSON values, with or without the scores of every pair."""
        values = {"results": [dataclasses.asdict(result) for result in self.table]}
        if with_scores:
            values["scores"] = [dataclasses.asdict(scores) for scores in self.scores]
        return values


def read_speech_pairs(
    paths: Sequence[str | pathlib.Path], unit_count: int
) -> tuple[SpeechPair, ...]:
    """Reads and checks files of pairs (format: see the module).

    Args:
      paths: JSONL files.
      unit_count: number of speech units; a unit is 0 … unit_count − 1.

    Returns:
      The pairs in file order.

    Raises:
      ValueError: naming file and line, for anything that is not a pair: not UTF-8 or JSON, a
        missing field, other than two members, a member without units, a unit out of range, a
        `correct` that names no member, an id that its set already has; or a file without pairs.
      OSError: a file cannot be read.
    """
    jsonl.check_unit_count(unit_count)
    return jsonl.read_examples(
        paths, lambda fields, origin: _parse_pair(fields, unit_count, origin)
    )


def _parse_pair(fields: Mapping[str, Any], unit_count: int, origin: str) -> SpeechPair:
    members = jsonl.field(fields, "members", list)
    if len(members) != 2:
        raise ValueError(f"members has {len(members)} entries; expected two")
    first, second = (_parse_member(value, i, unit_count) for i, value in enumerate(members))
    correct = jsonl.field(fields, "correct", int)
    if correct not in (0, 1):
        raise ValueError(f"correct is {jsonl.show(correct)}; expected 0 or 1, a member's index")
    has_category = fields.get("category") is not None
    return SpeechPair(
        example_id=jsonl.field(fields, "id", str),
        set_name=jsonl.field(fields, "set", str),
        category=jsonl.field(fields, "category", str) if has_category else None,
        members=(first, second),
        correct=correct,
        origin=origin,
    )


def _parse_member(value: Any, index: int, unit_count: int) -> np.ndarray:
    if not isinstance(value, dict):
        raise ValueError(f"members[{index}] is {jsonl.show(value)}; expected an object")
    if "units" not in value:
        raise ValueError(f"members[{index}].units is missing; expected a list of units")
    return jsonl.parse_units(value["units"], f"members[{index}].units", unit_count)


def build_continuations(pair: SpeechPair, vocabulary: Vocabulary) -> list[Continuation]:
    """The documents whose units compete: given bos and `<s>`, scored every unit, without eos.

    Raises:
      ValueError: a unit is not in the vocabulary; names where the pair was read.
    """
    prompt = np.array([vocabulary.bos_id, vocabulary.speech_mode_id], np.int32)
    try:
        return [Continuation(prompt, vocabulary.units_to_ids(units)) for units in pair.members]
    except ValueError as error:
        raise ValueError(f"{pair.origin}: pair {pair.example_id!r}: {error}") from error


def evaluate_minimal_pairs(
    model: nn.Module,
    params: Any,
    pairs: Sequence[SpeechPair],
    *,
    vocabulary: Vocabulary,
    patching: PatchingConfig,
    mesh: jax.sharding.Mesh,
    shape: ScoringShape | None = None,
    visibility: Visibility = "causal",
    progress: Callable[[int, int], None] | None = None,
) -> MinimalPairsResults:
    """Accuracy of a model on minimal pairs.

    A pair counts as right if its right member has the higher log-probability, and as half right
    if both have the same.

    Args:
      model: `LatentSpeechTextTransformer` or `TokenTransformer`.
      params: its parameters.
      pairs: what to evaluate, of any number of sets.
      vocabulary: the id space of the model.
      patching: how the model was trained; test-time patches are static, see
        `score_continuations`.
      mesh: the mesh that the parameters live on.
      shape: shape of the batches.
      visibility: the model's visibility rule.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      An entry per set and category, and the scores of every pair.

    Raises:
      ValueError: no pairs, a unit that the vocabulary lacks, a member longer than a row, or
        scores that are not finite.
    """
    if not pairs:
        raise ValueError("pairs is empty; expected at least one")
    log_probabilities = score_continuations(
        model,
        params,
        [member for pair in pairs for member in build_continuations(pair, vocabulary)],
        vocabulary=vocabulary,
        patching=patching,
        mesh=mesh,
        shape=shape or ScoringShape(),
        visibility=visibility,
        progress=progress,
    )
    scores = [
        PairScores(
            set_name=pair.set_name,
            example_id=pair.example_id,
            category=pair.category,
            correct=pair.correct,
            log_probabilities=(first, second),
            token_counts=(len(pair.members[0]), len(pair.members[1])),
        )
        for pair, (first, second) in zip(
            pairs, log_probabilities.reshape(-1, 2).tolist(), strict=True
        )
    ]
    return summarize(scores)


def summarize(scores: Sequence[PairScores]) -> MinimalPairsResults:
    """Accuracies of scored pairs, by set and category."""
    groups: dict[str, dict[str | None, list[PairScores]]] = {}
    for entry in scores:
        # The whole set comes first; pairs without a category count in it only.
        categories = groups.setdefault(entry.set_name, {None: []})
        categories[None].append(entry)
        if entry.category is not None:
            categories.setdefault(entry.category, []).append(entry)
    table = itertools.chain.from_iterable(
        (_summarize_group(set_name, category, group) for category, group in categories.items())
        for set_name, categories in groups.items()
    )
    return MinimalPairsResults(tuple(table), tuple(scores))


def _summarize_group(
    set_name: str, category: str | None, group: Sequence[PairScores]
) -> MinimalPairsResult:
    accuracy = measure_accuracy((entry.log_probabilities, entry.correct) for entry in group)
    normalized = measure_accuracy((entry.normalized, entry.correct) for entry in group)
    return MinimalPairsResult(
        set_name=set_name,
        category=category,
        n=len(group),
        accuracy=accuracy.share,
        interval=accuracy.interval,
        normalized_accuracy=normalized.share,
        normalized_interval=normalized.interval,
    )


def format_table(results: MinimalPairsResults) -> str:
    """The results as an aligned table, numbers in percent: a line per set and category."""
    header = ("set", "category", "accuracy", "95 % interval", "n", "normalized")
    rows = [
        (
            result.set_name,
            "all" if result.category is None else result.category,
            format_percent(result.accuracy),
            format_interval(result.interval),
            str(result.n),
            format_percent(result.normalized_accuracy),
        )
        for result in results.table
    ]
    return format_rows([header, *rows], num_names=2)
