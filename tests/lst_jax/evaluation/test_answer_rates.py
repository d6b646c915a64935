"""Errors and costs of answers."""

import types

import numpy as np
import pytest

from lst_jax.evaluation.answer_rates import HEADER, error_rates, judge, table_row
from lst_jax.evaluation.spoken_texts import SpokenText
from lst_jax.inference.transcription import Answer

SPOKEN = [
    SpokenText(name, "", f"file:{name}", text, np.array([1], np.int32))
    for name, text in (("a", "one two three"), ("b", "four"))
]


def answer(question_tokens, question_patches, answer_patches, made):
    generation = types.SimpleNamespace(tokens=np.zeros(made, np.int32))
    return Answer(
        "", np.zeros(0, np.int32), question_tokens, question_patches, answer_patches, generation
    )


def test_errors_are_those_of_each_utterance_and_of_all():
    rates = error_rates(SPOKEN, ["One, two.", "five four"])
    assert [(e.utterance_id, e.word_errors, e.words) for e in rates.utterances] == [
        ("a", 1, 3),
        ("b", 1, 1),
    ]
    assert rates.wer.rate == 2 / 4
    # " three" is missing, "five " is too much.
    assert rates.cer.rate == (6 + 5) / (13 + 4)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        error_rates(SPOKEN, ["one"])


def test_costs_are_sums_of_questions_and_answers():
    answers = [answer(10, 4, 7, 9), answer(200, 50, 1001, 3000)]
    result = judge(SPOKEN, ["one two three", "for"], answers)
    assert (result.context_patches, result.context_tokens) == (54, 210)
    assert (result.generation_patches, result.generation_tokens) == (1008, 3009)
    assert result.errors == error_rates(SPOKEN, ["one two three", "for"])
    found = result.as_dict()
    assert found["errors"]["wer"]["rate"] == 0.25
    assert found["errors"]["utterances"][1]["hypothesis"] == "for"
    row = table_row("lst", result)
    assert len(row) == len(HEADER)
    assert row[:2] == ["lst", "2"] and row[2].startswith("25.0 (") and row[3].startswith("5.9 (")
    assert row[4:] == ["54", f"{54 / 210:.2f}", "1,008", f"{1008 / 3009:.2f}"]
