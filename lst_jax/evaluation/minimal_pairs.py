"""Minimal pairs: of two spoken utterances, the right one should be the likelier.

The protocol of sWUGGY (a word and a non-word) and sBLIMP (a sentence and an ungrammatical one) of
the ZeroSpeech challenge 2021. The files are JSON lines, one pair a line:

    {"id": "17-en-US-A", "set": "sWUGGY", "category": "oov",
     "members": [{"units": [3, 3, 99, …]}, {"units": [3, 3, 41, …]}], "correct": 0}

`correct` is the index of the right member. `set` is any name; accuracies are reported by set and,
within a set, by `category`, which may be absent (or null). Lines of one `pair` are versions of it,
in several voices, and count as one, by their mean; where it is absent a line is a separate pair.
`file` of a member, `lexical/dev/NAME`, names it in a submission to the challenge. A line with one
member and no `correct` is for that alone: nobody knows what it is a pair with. Other fields are
ignored.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lst_jax.evaluation import jsonl
from lst_jax.evaluation.choices import Choice, ChoiceKind, ChoiceResults, evaluate_choices
from lst_jax.inference.scoring import Continuation, Logits, ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.settings import quote
from lst_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class SpeechPair(jsonl.Example):
    """Two utterances that differ in one point; or one, which has a score and no accuracy.

    Attributes:
      category: what it tests within the set, or None.
      members: raw speech units of each, (U,) int32.
      correct: index of the right member, 0 or 1. None: there is one alone.
      pair: what it is a version of, or None.
      files: what the challenge calls each member, or None.
    """

    category: str | None
    members: tuple[np.ndarray, ...]
    correct: int | None
    pair: str | None = None
    files: tuple[str | None, ...] = (None, None)


# Task, split and the name that `gold.csv` has: parts of a submission's paths.
_FILE = re.compile(r"([a-z]+)/([a-z]+)/([^\s/\\]+)")
KIND = ChoiceKind(group="category", label="correct", whole_sets=True)


def read_speech_pairs(
    paths: Sequence[str | pathlib.Path],
    unit_count: int,
    encoder_fingerprint: str | None = None,
    *,
    unpaired: bool = False,
) -> tuple[SpeechPair, ...]:
    """Reads and checks files of pairs (format: see the module).

    Args:
      paths: JSONL files.
      unit_count: number of speech units.
      encoder_fingerprint: of the encoder of the model's units, see `jsonl.read_examples`.
      unpaired: whether a line may have one member and no `correct`.

    Raises:
      OSError, ValueError: see `jsonl.read_examples`; or a line has a missing field, other than two
        members, a member without units, or a `correct` that names no member.
    """
    parse = functools.partial(_parse_pair, unpaired)
    return jsonl.read_examples(paths, unit_count, parse, encoder_fingerprint)


def _parse_pair(
    unpaired: bool, fields: Mapping[str, Any], unit_count: int, origin: str
) -> SpeechPair:
    members = jsonl.field(fields, "members", list)
    alone = unpaired and len(members) == 1 and fields.get("correct") is None
    if len(members) != 2 and not alone:
        raise ValueError(
            f"members has {len(members)} entries; expected two: one alone is for a submission"
        )
    correct = None if alone else jsonl.field(fields, "correct", int)
    if correct not in (None, 0, 1):
        raise ValueError(f"correct is {jsonl.show(correct)}; expected 0 or 1, a member's index")
    texts = {
        name: jsonl.field(fields, name, str) if fields.get(name) is not None else None
        for name in ("category", "pair")
    }
    return SpeechPair(
        example_id=jsonl.field(fields, "id", str),
        set_name=jsonl.field(fields, "set", str),
        members=tuple(_parse_member(x, i, unit_count) for i, x in enumerate(members)),
        correct=correct,
        origin=origin,
        files=tuple(_parse_file(x, i) for i, x in enumerate(members)),
        **texts,
    )


def _parse_member(value: Any, index: int, unit_count: int) -> np.ndarray:
    if not isinstance(value, dict):
        raise ValueError(f"members[{index}] is {jsonl.show(value)}; expected an object")
    if "units" not in value:
        raise ValueError(f"members[{index}].units is missing; expected a list of units")
    return jsonl.parse_units(value["units"], f"members[{index}].units", unit_count)


def _parse_file(member: Mapping[str, Any], index: int) -> str | None:
    value = member.get("file")
    if value is not None and not (isinstance(value, str) and _FILE.fullmatch(value)):
        raise ValueError(
            f"members[{index}].file is {jsonl.show(value)}; expected TASK/SPLIT/NAME, such as "
            "lexical/dev/aAAfmkmQpVz"
        )
    return value


def check_submission(pairs: Sequence[SpeechPair]) -> None:
    """Checks that every member has the name by which a submission scores it, and once.

    Raises:
      ValueError: naming the first line of which a member has none, or another's.
    """
    origins: dict[str, str] = {}
    for pair in pairs:
        for file in pair.files:
            if file is None:
                raise ValueError(
                    f"{pair.origin}: a member has no file, expected its name in the challenge"
                )
            if file in origins:
                raise ValueError(
                    f"{pair.origin}: file {quote(file)} is already that of {origins[file]}"
                )
            origins[file] = pair.origin


def format_submission(
    pairs: Sequence[SpeechPair], results: ChoiceResults, by: str
) -> dict[str, str]:
    """Returns the files of a submission to ZeroSpeech 2021, by their paths in it.

    Each, `lexical/dev.txt` for instance, has a line for every file that was scored: its name as
    `gold.csv` has it, a space, and its score.

    Args:
      pairs: that were scored, see `check_submission`.
      results: their scores, in the same order.
      by: which score of a member: its log-probability, "sum", or that per token, "mean".
    """
    lines: dict[str, list[str]] = {}
    for pair, scored in zip(pairs, results.scores, strict=True):
        scores = scored.log_probabilities if by == "sum" else scored.normalized
        for file, score in zip(pair.files, scores, strict=True):
            task, split, name = (file or "").split("/")
            lines.setdefault(f"{task}/{split}.txt", []).append(f"{name} {score!r}\n")
    return {path: "".join(texts) for path, texts in lines.items()}


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
    logits: Logits = "all",
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceResults:
    """Measures the accuracy of a model on minimal pairs (rules: see `choices`).

    Args:
      trained: the model.
      pairs: what to evaluate, of any number of sets.
      shape: shape of the batches.
      logits: see `score_continuations`.
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
            item=pair.pair,
        )
        for pair in pairs
    ]
    return evaluate_choices(trained, choices, KIND, shape=shape, logits=logits, progress=progress)
