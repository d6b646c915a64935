"""Properties of word and character error rates."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.error_rates import (
    character_error_rate,
    count_errors,
    normalize,
    word_error_rate,
)

WORDS = st.lists(st.text("abcd", min_size=1, max_size=4), min_size=1, max_size=8)


def edit_distance(left, right):
    """By the textbook's recursion over prefixes."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            best = min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
            previous, row[j] = row[j], best
    return row[-1]


@settings(max_examples=100, deadline=None)
@given(WORDS, WORDS)
def test_errors_are_the_edit_distance(reference, hypothesis):
    left, right = " ".join(reference), " ".join(hypothesis)
    errors = count_errors("u", left, right)
    assert errors.word_errors == edit_distance(reference, hypothesis)
    assert errors.words == len(reference)
    assert errors.character_errors == edit_distance(left, right)
    assert errors.characters == len(left)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=30))
def test_normalizing_twice_is_normalizing_once(text):
    once = normalize(text)
    assert normalize(once) == once
    assert once == " ".join(once.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Hello,   WORLD!\n", "hello world"),
        ("Don\u2019t 'quote' me\u2014it's 5 o'clock", "don't quote me it's 5 o'clock"),
        ("caf\u00e9 \ufb01ne snake_case", "caf\u00e9 fine snake case"),
        ("... ' '' --", ""),
    ],
)
def test_case_and_punctuation_do_not_count(text, expected):
    assert normalize(text) == expected


def test_rates_weigh_utterances_by_their_length():
    utterances = [
        count_errors("a", "one two three four", "one two three four"),
        count_errors("b", "five", "six seven"),
    ]
    rate = word_error_rate(utterances)
    assert rate.rate == 2 / 5
    assert utterances[1].wer == 2.0
    assert rate.interval[0] == 0 and rate.interval[1] == 2.0
    cer = character_error_rate(utterances)
    assert cer.rate == utterances[1].character_errors / (len("one two three four") + len("five"))


def test_nothing_heard_is_all_deletions():
    errors = count_errors("a", "one two", "...")
    assert (errors.word_errors, errors.wer, errors.cer) == (2, 1.0, 1.0)


@pytest.mark.parametrize("reference", ["", " ... "])
def test_a_reference_without_words_is_an_error(reference):
    with pytest.raises(ValueError, match="the reference of utterance 'u7' has no words"):
        count_errors("u7", reference, "hello")
