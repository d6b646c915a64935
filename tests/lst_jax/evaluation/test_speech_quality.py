"""Quality of speech made: auto-BLEU by hand, perplexities, errors, and the files."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst_jax.evaluation.answer_rates import error_rates
from lst_jax.evaluation.speech_quality import (
    MadeSpeech,
    auto_bleu,
    measure_quality,
    read_made_speech,
)
from lst_jax.evaluation.spoken_texts import SpokenText
from lst_jax.speech.interfaces import TextScore


class Letters:
    """Every letter is one of eight, all as likely; a text of one letter has no score."""

    def score(self, texts):
        counts = [len(text.replace(" ", "")) for text in texts]
        return [TextScore(-math.log(8) * n, n) if n > 1 else TextScore(0.0, 0) for n in counts]


def made(*meant):
    return [MadeSpeech(str(i), "", f"a:{i}", np.zeros(1, np.int32), m) for i, m in enumerate(meant)]


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("The cat, the dog, the cat.", 1, 5 / 6),  # the 3, cat 2, dog 1
        ("The cat, the dog, the cat.", 2, math.sqrt(5 / 6 * 2 / 5)),  # "the cat" 2 of 5
        ("a a a a", 3, 1.0),
        ("one two three", 2, 0.0),
        ("one two one", 2, 0.0),  # no pair is there twice
        ("a b a b", 2, math.sqrt(1 * 2 / 3)),
        ("alone", 2, None),
        ("…", 1, None),
    ],
)
def test_auto_bleu_is_its_formula_counted_by_hand(text, n, expected):
    assert auto_bleu(text, n) == (expected if expected is None else pytest.approx(expected))


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=12), st.permutations("xyz"))
def test_auto_bleu_is_a_share_that_names_do_not_change(words, names):
    found = auto_bleu(" ".join(words))
    renamed = " ".join(names["abc".index(word)] for word in words)
    assert found is not None and 0 <= found <= 1 and auto_bleu(renamed) == found
    assert auto_bleu(" ".join(words * 3)) == pytest.approx(1)


def test_perplexity_is_per_token_and_per_word():
    found = measure_quality(made(None, None, None), ["ab cd", "abcd", ""], Letters())
    assert found.perplexity is not None and found.word_perplexity is not None
    assert found.perplexity.value == pytest.approx(8)
    assert found.perplexity.interval == pytest.approx((8, 8))
    assert found.word_perplexity.value == pytest.approx(8 ** (8 / 3))
    assert (found.perplexity.n, found.n, found.without_words) == (2, 3, 1)
    assert found.auto_bleu is not None and (found.auto_bleu.value, found.auto_bleu.n) == (0, 1)
    assert found.errors is None and found.transcripts == {"0": "ab cd", "1": "abcd", "2": ""}


def test_errors_are_those_against_what_was_meant():
    meant, heard = ["Ann sat.", None, "it rained"], ["ann sits", "x", ""]
    found = measure_quality(made(*meant), heard, None)
    known = [(m, h) for m, h in zip(meant, heard, strict=True) if m]
    spoken = [SpokenText(f"{2 * i}", "", "", m, np.zeros(1)) for i, (m, _) in enumerate(known)]
    assert found.errors == error_rates(spoken, [h for _, h in known])
    assert found.perplexity is None and found.word_perplexity is None


def test_what_nothing_can_be_measured_of_is_none():
    found = measure_quality(made(None), ["a"], Letters())
    assert found.perplexity is found.word_perplexity is found.auto_bleu is None
    assert measure_quality(made("ann"), [""], Letters()).without_words == 1


LINE = {
    "id": 3,
    "sample": 1,
    "prompt": {"text": "Ann sat."},
    "segments": [{"units": [1, 2]}, {"text": "and"}, {"units": [3]}],
}


def test_continuations_and_plain_lines_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    plain = {"id": "p", "units": [4], "text": "it rained"}
    path.write_text("".join(json.dumps(x) + "\n" for x in (LINE, plain, {**plain, "id": "q"})))
    first, second, _ = read_made_speech(path, 9)
    assert (first.example_id, first.units.tolist(), first.meant) == ("3-1", [1, 2, 3], None)
    assert (second.example_id, second.units.tolist(), second.meant) == ("p", [4], "it rained")
    assert read_made_speech(path, 9, meant_is_prompt=True)[0].meant == "Ann sat."


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": None}, "id is null"),
        ({"segments": [{}]}, r"segments\[0\] is {}; expected text or units"),
        ({"segments": [3]}, r"segments\[0\] is 3"),
        ({"segments": [{"units": [9]}]}, r"segments\[0\].units\[0\] is 9"),
        ({"sample": "1"}, 'sample is "1"; expected an integer'),
        ({"prompt": {"text": "…"}}, "text is .*; expected a string with words"),
    ],
)
def test_bad_lines_are_named(tmp_path, changes, message):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(LINE | changes) + "\n")
    with pytest.raises(ValueError, match=f"a.jsonl:1: {message}"):
        read_made_speech(path, 9, meant_is_prompt=True)
