"""CTC alignment against exhaustive search, a float64 Viterbi, and the shared cases."""

import itertools

import numpy as np
import pytest

from lst_jax.speech import ctc
from lst_jax.speech.interfaces import Rejection


def _viterbi(log_probs: np.ndarray, targets: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns score and states of the best path, in float64, by the rule for ties; blank 0."""
    labels = np.zeros(2 * len(targets) + 1, int)
    labels[1::2] = targets
    skips = np.zeros(len(labels), bool)
    skips[3::2] = targets[1:] != targets[:-1]
    sums = np.full(len(labels), -np.inf)
    sums[0] = 0.0
    pointers = []
    for frame in log_probs.astype(np.float64):
        step = np.concatenate([[-np.inf], sums[:-1]])
        skip = np.where(skips, np.concatenate([[-np.inf] * 2, sums])[: len(sums)], -np.inf)
        choices = np.stack([sums, step, skip])
        pointers.append(choices.argmax(axis=0))
        sums = choices.max(axis=0) + frame[labels]
    state = len(labels) - 1
    if len(targets) and sums[-2] > sums[-1]:
        state -= 1
    score, states = sums[state], []
    for pointer in reversed(pointers):
        states.append(state)
        state -= pointer[state]
    return float(score), np.array(states[::-1])


def _spans(states: np.ndarray, count: int) -> np.ndarray:
    frames = [np.flatnonzero(states == 2 * i + 1) for i in range(count)]
    return np.array([(f[0], f[-1] + 1) for f in frames], np.int32).reshape(-1, 2)


def _align(rows):
    return ctc.align_ctc_rows([row for row, _ in rows], [targets for _, targets in rows])


def _random_row(rng: np.random.Generator, longest: int, *, ties: bool = False):
    classes, length = rng.integers(2, 9), rng.integers(0, longest // 2)
    targets = rng.integers(1, classes, length)
    least = max(length + int(np.sum(targets[1:] == targets[:-1])), 1)
    shape = (rng.integers(least, max(longest, least) + 1), classes)
    if ties:
        return -rng.integers(0, 3, shape).astype(np.float32), targets
    scores = rng.normal(size=shape, scale=2)
    return (scores - np.logaddexp.reduce(scores, 1, keepdims=True)).astype(np.float32), targets


def test_the_path_is_the_one_that_exhaustive_search_finds_ties_included():
    rng = np.random.default_rng(0)
    rows = [_random_row(rng, 6, ties=True) for _ in range(60)]
    for (log_probs, targets), found in zip(rows, _align(rows), strict=True):
        assert isinstance(found, ctc.CTCPath)
        labels = np.zeros(2 * len(targets) + 1, int)
        labels[1::2] = targets
        best = max(
            (
                float(log_probs[np.arange(len(path)), labels[list(path)]].sum()),
                path[::-1],
            )
            for path in itertools.product(range(len(labels)), repeat=len(log_probs))
            if _is_path(path, labels)
        )
        assert found.score == best[0]
        np.testing.assert_array_equal(found.spans, _spans(np.array(best[1][::-1]), len(targets)))


def _is_path(path: tuple[int, ...], labels: np.ndarray) -> bool:
    if path[0] > 1 or path[-1] < len(labels) - 2:
        return False
    return all(
        after - before in (0, 1)
        or (after - before == 2 and labels[after] != 0 and labels[after] != labels[before])
        for before, after in itertools.pairwise(path)
    )


def _hold_random_rows(seed: int, count: int, longest: int) -> None:
    rng = np.random.default_rng(seed)
    _hold_rows([_random_row(rng, longest, ties=i % 4 == 0) for i in range(count)])


def _hold_rows(rows) -> None:
    for (log_probs, targets), found in zip(rows, _align(rows), strict=True):
        score, states = _viterbi(log_probs, targets)
        assert isinstance(found, ctc.CTCPath)
        assert found.score == pytest.approx(score, abs=1e-9)
        np.testing.assert_array_equal(found.spans, _spans(states, len(targets)))


def test_random_paths_are_those_of_a_viterbi_in_float64():
    _hold_random_rows(1, 60, 16)


def test_paths_over_many_blocks_are_as_exact_as_over_one(monkeypatch):
    """Also where the sums are so far from 0 that float32 alone would not tell paths apart."""
    monkeypatch.setattr(ctc, "_BLOCK", 8)
    rng, rows = np.random.default_rng(4), []
    for number in range(16):
        scores = rng.normal(size=(rng.integers(49, 65), 5), scale=2) - 1e5 * (number % 2)
        rows.append((scores.astype(np.float32), rng.integers(1, 5, rng.integers(17, 25))))
    ctc.best_states.clear_cache()
    try:
        _hold_rows(rows)
    finally:
        ctc.best_states.clear_cache()


@pytest.mark.slow
def test_four_thousand_random_paths_are_those_of_a_viterbi_in_float64():
    _hold_random_rows(2, 4000, 30)


@pytest.mark.slow
def test_a_row_of_many_blocks_is_as_exact_as_a_short_one():
    rng = np.random.default_rng(2)
    targets = rng.integers(1, 5, 1500)
    scores = rng.normal(size=(5000, 5), scale=3) - 50  # the sum is far from 0
    log_probs = scores.astype(np.float32)
    score, states = _viterbi(log_probs, targets)
    found = ctc.align_ctc(log_probs, targets)
    assert found.score == pytest.approx(score, abs=1e-6)
    np.testing.assert_array_equal(found.spans, _spans(states, len(targets)))


def test_scores_of_spans_are_the_means_of_their_frames():
    log_probs = np.random.default_rng(3).normal(size=(9, 4)).astype(np.float32)
    targets = np.array([1, 1, 3])
    found = ctc.align_ctc(log_probs, targets)
    means = [log_probs[s:e, y].mean() for (s, e), y in zip(found.spans, targets, strict=True)]
    np.testing.assert_allclose(found.span_scores, means, rtol=1e-5)


def test_rows_without_a_path_say_why_and_disturb_no_other():
    good = (np.log(np.full((3, 2), 0.5)), np.array([1]))
    short = (np.log(np.full((2, 2), 0.5)), np.array([1, 1]))
    impossible = (np.array([[0.0, -np.inf]]), np.array([1]))
    rows = _align([good, short, impossible, good])
    assert isinstance(rows[0], ctc.CTCPath) and isinstance(rows[3], ctc.CTCPath)
    assert isinstance(rows[1], Rejection) and isinstance(rows[2], Rejection)
    assert rows[1].kind == "too-short" and rows[2].kind == "impossible"
    assert "2 frames, expected at least 3 for 2 labels" in rows[1].reason


@pytest.mark.parametrize(
    ("log_probs", "targets"),
    [
        (np.zeros((3, 2)), np.array([0])),
        (np.zeros((3, 2)), np.array([2])),
        (np.zeros((3, 2)), np.array([1.0])),
        (np.zeros((0, 2)), np.array([1])),
        (np.zeros(3), np.array([1])),
        (np.full((3, 2), np.nan), np.array([1])),
    ],
)
def test_what_is_no_row_is_refused(log_probs, targets):
    with pytest.raises(ValueError, match="expected"):
        ctc.align_ctc(log_probs, targets)


def test_a_star_takes_what_no_label_explains():
    log_probs = np.log(np.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.1, 0.8, 0.1]]))
    found = ctc.align_ctc(ctc.add_star(log_probs), np.array([1, 3]))
    np.testing.assert_array_equal(found.spans, [[0, 1], [1, 3]])
    assert found.score == pytest.approx(np.log(0.8))


def test_greedy_decoding_joins_repeats_and_drops_blanks():
    log_probs = np.eye(3)[[0, 1, 1, 0, 1, 2, 2, 0]]
    labels, spans = ctc.decode_greedy(log_probs)
    assert labels.tolist() == [1, 1, 2]
    assert spans.tolist() == [[1, 3], [4, 5], [5, 7]]
