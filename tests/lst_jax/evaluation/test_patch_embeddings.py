"""Similarity of words' vectors: known answers, scikit-learn's, intervals, the probe."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import silhouette_score

from lst_jax.evaluation.patch_embeddings import (
    WordRate,
    measure_similarity,
    probe_words,
    word_rate,
)


def on_circle(*degrees):
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_orthogonal_words_have_nothing_in_common():
    vectors = np.eye(3).repeat([2, 3, 2], axis=0) * np.arange(1, 8)[:, None]  # lengths play no part
    found = measure_similarity(vectors, np.array([0, 0, 1, 1, 1, 2, 2]))
    assert found.within.value == pytest.approx(1)
    assert found.between.value == pytest.approx(0, abs=1e-12)
    assert found.silhouette.value == pytest.approx(1)
    assert found.within.interval == pytest.approx((1, 1))


def test_angles_give_the_numbers_of_a_hand():
    found = measure_similarity(on_circle(0, 60, 90, 90), np.array([0, 0, 1, 1]))
    assert found.within.value == pytest.approx((0.5 + 1) / 2)
    assert found.between.value == pytest.approx((0 + 3**0.5 / 2) / 2)
    # Vector 0: a = 1/2, b = 1. Vector 1: a = 1/2, b = 1 - √3/2, below a. The others: a = 0.
    near = 1 - 3**0.5 / 2
    assert found.silhouette.value == pytest.approx((0.5 + (near - 0.5) / 0.5 + 1 + 1) / 4)


def test_numbers_are_those_of_every_pair_and_of_scikit_learn():
    rng = np.random.default_rng(0)
    words = np.arange(6).repeat(7)
    vectors = rng.standard_normal((6, 5))[words] + rng.standard_normal((42, 5))
    found = measure_similarity(vectors, words)
    assert found.silhouette.value == pytest.approx(
        silhouette_score(vectors, words, metric="cosine")
    )
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = {True: [], False: []}
    for i, j in itertools.combinations(range(42), 2):
        cosines[words[i] == words[j]].append(directions[i] @ directions[j])
    assert found.within.value == pytest.approx(np.mean(cosines[True]))
    assert found.between.value == pytest.approx(np.mean(cosines[False]))


def test_intervals_hold_the_number_and_narrow_with_words():
    rng = np.random.default_rng(1)

    def widths(count):
        words = np.arange(count).repeat(4)
        vectors = rng.standard_normal((count, 8))[words] + rng.standard_normal((4 * count, 8)) / 2
        found = measure_similarity(vectors, words)
        for estimate in (found.within, found.between, found.silhouette):
            lower, upper = estimate.interval
            assert lower <= estimate.value <= upper
        return np.array([np.ptp(x.interval) for x in (found.within, found.between)])

    assert (widths(200) < 0.5 * widths(10)).all()


def test_a_difference_is_paired_by_words():
    rng = np.random.default_rng(2)
    words = np.arange(5).repeat(3)
    vectors = rng.standard_normal((15, 4))
    same = measure_similarity(vectors, words) - measure_similarity(3 * vectors, words)
    assert np.abs(same.silhouette.draws).max() < 1e-12
    assert same.between.interval == pytest.approx((0, 0), abs=1e-12)


@pytest.mark.parametrize(
    ("vectors", "words", "named"),
    [
        (np.ones((3, 2)), [0, 0, 1], "words is [2, 1], expected at least two words"),
        (np.ones((2, 2)), [0, 0], "words is [2], expected at least two words"),
        (np.zeros((4, 2)), [0, 0, 1, 1], "vectors is '4 without a direction'"),
    ],
)
def test_what_has_no_similarity_is_refused(vectors, words, named):
    with pytest.raises(ValueError, match=r"^[^\n]*$") as error:
        measure_similarity(vectors, np.array(words))
    assert named in str(error.value)


def test_the_probe_names_words_that_a_plane_parts_and_no_others():
    rng = np.random.default_rng(3)
    words = np.arange(4).repeat(50)
    held_out = rng.random(200) < 0.5
    vectors = 5 * np.eye(4)[words] + rng.standard_normal((200, 4))
    vectors = np.concatenate([vectors, np.ones((200, 1))], axis=1)  # a feature that never changes
    assert probe_words(vectors, words, held_out).mean() > 0.97
    assert len(probe_words(vectors, words, held_out)) == held_out.sum()
    assert probe_words(vectors, rng.permutation(words), held_out).mean() < 0.45


def test_the_rate_counts_vectors_and_its_interval_words():
    right = np.array([True, True, False, False, False, False])
    assert word_rate(right, np.array([0, 0, 1, 1, 2, 2])).value == pytest.approx(1 / 3)
    assert word_rate(right, np.array([0, 0, 1, 1, 2, 2])).interval[1] > 0.9
    assert word_rate(~right & right, np.array([3, 3, 1, 1, 2, 2])) == WordRate(0.0, (0.0, 0.0))
