"""The words that are found are those of the best of all paths."""

import itertools
import math

import numpy as np
import pytest

from lst_jax.speech.word_search import WordSearch

BLANK, BAR = 0, 1
WORDS = [(2,), (2, 3), (3, 3), (2, 3, 2)]


def _best(log_probs):
    """Returns the score of every sequence of words, by all labelings of the frames."""
    scores = {}
    for labels in itertools.product(range(4), repeat=len(log_probs)):
        spelled = [label for label, _ in itertools.groupby(labels) if label != BLANK]
        parts = [tuple(x) for is_bar, x in itertools.groupby(spelled, BAR.__eq__) if not is_bar]
        if all(part in WORDS for part in parts):
            words = tuple(map(WORDS.index, parts))
            score = log_probs[range(len(labels)), labels].sum() - len(words) * math.log(len(WORDS))
            scores[words] = max(score, scores.get(words, -math.inf))
    return scores


def test_they_are_those_of_exhaustive_search():
    rng = np.random.default_rng(0)
    search, lengths = WordSearch(WORDS, BAR, BLANK), []
    for said in ([3, 3], [3, 0, 3], [2, 1, 2], [2, 1, 2, 3], [3, 3, 1, 2]) * 3:
        log_probs = rng.normal(size=(len(said), 4)) + 2 * np.eye(4)[said]
        log_probs -= np.log(np.exp(log_probs).sum(1, keepdims=True))
        scores = _best(log_probs)
        found = tuple(search.search(log_probs))
        assert scores[found] == pytest.approx(max(scores.values()))
        lengths.append(len(found))
    assert max(lengths) > 1


def test_words_without_labels_or_with_the_blank_are_refused():
    for word in ((), (2, BLANK)):
        with pytest.raises(ValueError, match=r"words\[1\] is .*, expected labels without"):
            WordSearch([(2,), word], BAR, BLANK)
