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
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lst_jax.evaluation import jsonl
from lst_jax.evaluation.choices import Choice, ChoiceKind, ChoiceResults, evaluate_choices
from lst_jax.inference.scoring import Continuation, ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.settings import quote
from lst_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechPair(jsonl.Example):
    """Two utterances that differ in one point.

    Attributes:
      category: what it tests within the set, or None.
      members: raw speech units of each, (U,) int32.
      correct: index of the right member, 0 or 1.
    """

    category: str | None
    members: tuple[np.ndarray, np.ndarray]
    correct: int


KIND = ChoiceKind(group="category", label="correct", whole_sets=True)


def read_speech_pairs(
    paths: Sequence[str | pathlib.Path], unit_count: int, encoder_fingerprint: str | None = None
) -> tuple[SpeechPair, ...]:
    """Reads and checks files of pairs (format: see the module).

    Args:
      paths: JSONL files.
      unit_count: number of speech units.
      encoder_fingerprint: of the encoder of the model's units, see `jsonl.read_examples`.

    Raises:
      OSError, ValueError: see `jsonl.read_examples`; or a line has a missing field, other than two
        members, a member without units, or a `correct` that names no member.
    """
    return jsonl.read_examples(paths, unit_count, _parse_pair, encoder_fingerprint)


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
    """Returns the documents whose units compete: bos and `<s>` given, every unit scored, no eos.

    Raises:
      ValueError: a unit is not in the vocabulary; names where the pair was read.
    """
    prompt = np.array([vocabulary.bos_id, vocabulary.speech_mode_id], np.int32)
    try:
        return [Continuation(prompt, vocabulary.units_to_ids(units)) for units in pair.members]
    except ValueError as error:
        raise ValueError(f"{pair.origin}: pair {quote(pair.example_id)}: {error}") from error


def evaluate_minimal_pairs(
    trained: TrainedModel,
    pairs: Sequence[SpeechPair],
    *,
    shape: ScoringShape | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceResults:
    """Measures the accuracy of a model on minimal pairs (rules: see `choices`).

    Args:
      trained: the model.
      pairs: what to evaluate, of any number of sets.
      shape: shape of the batches.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      An entry per set and category, and the scores of every pair.

    Raises:
      ValueError: no pairs, a unit that the vocabulary lacks, a member longer than a row, or
        scores that are not finite.
    """
    if not pairs:
        raise ValueError("pairs is empty; expected at least one")
    choices = [
        Choice(
            set_name=pair.set_name,
            example_id=pair.example_id,
            group=pair.category,
            candidates=build_continuations(pair, trained.vocabulary),
            label=pair.correct,
        )
        for pair in pairs
    ]
    return evaluate_choices(trained, choices, KIND, shape=shape, progress=progress)
