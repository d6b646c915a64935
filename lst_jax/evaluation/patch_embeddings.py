"""How well vectors tell words apart: cosine similarity, silhouette, a linear probe.

M vectors, each with the word that it stands for; W words. All is by cosine, and all means are over
words, each of which counts alike. Intervals are percentile bootstraps over words, which the
vectors of one word are not independent of.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from lst_jax.evaluation.statistics import bootstrap_ratio_interval
from lst_jax.settings import require
from lst_jax.shapes import Bool, Float, Int, check_shapes

RESAMPLES = 1000
_RIDGE = 0.1  # of the mean squared length of a vector


@dataclasses.dataclass(frozen=True)
class WordMean:
    """A number with its 95 % interval.

    Attributes:
      value: of the sample.
      draws: (RESAMPLES,) of resamples of the words.
    """

    value: float
    draws: np.ndarray

    @property
    def interval(self) -> tuple[float, float]:
        """Returns (lower, upper)."""
        lower, upper = np.quantile(self.draws, (0.025, 0.975))
        return float(lower), float(upper)

    def __sub__(self, other: WordMean) -> WordMean:
        """Returns the difference, paired by the words; both have the same words and seed."""
        return WordMean(self.value - other.value, self.draws - other.draws)


@dataclasses.dataclass(frozen=True)
class WordSimilarity:
    """Similarity of the vectors of words.

    Attributes:
      within: mean cosine of two vectors of one word.
      between: mean cosine of vectors of two words.
      silhouette: mean over vectors of (b - a) / max(a, b), with a the mean cosine distance to the
        other vectors of the word, b that to those of the nearest other word.
    """

    within: WordMean
    between: WordMean
    silhouette: WordMean

    def __sub__(self, other: WordSimilarity) -> WordSimilarity:
        return WordSimilarity(
            self.within - other.within,
            self.between - other.between,
            self.silhouette - other.silhouette,
        )


@check_shapes
def measure_similarity(
    vectors: Float[np.ndarray, "m D"], words: Int[np.ndarray, " m"], seed: int = 0
) -> WordSimilarity:
    """Measures the similarity of vectors within and between words.

    Args:
      vectors: (M, D), none of them 0.
      words: (M,) the word of each, 0 … W − 1; at least two words, each with at least two vectors.
      seed: of the resampling.

    Raises:
      ValueError: there are too few words or vectors, or a vector has no direction.
    """
    counts = np.bincount(words)
    enough = len(counts) >= 2 and counts.min() >= 2
    require(enough, "words", counts.tolist(), "at least two words, each with two vectors")
    directions = _unit_length(vectors)
    sums = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(sums, words, directions)
    # Everything follows from the sums, since a mean of cosines is the cosine to a mean.
    n = counts[:, None]
    within = (np.sum(sums**2, axis=1) - counts) / (counts * (counts - 1))
    between = (sums / n) @ (sums / n).T
    to_words = 1 - directions @ (sums / n).T  # mean cosine distance of each vector to each word
    own = np.arange(len(words)), words
    near = to_words[own] * counts[words] / (counts[words] - 1)
    to_words[own] = np.inf
    other = to_words.min(axis=1)
    largest = np.maximum(near, other)
    silhouettes = np.divide(other - near, largest, out=np.zeros_like(near), where=largest > 0)
    by_word = np.bincount(words, silhouettes) / counts

    draws = _word_draws(len(counts), seed)
    return WordSimilarity(
        within=WordMean(float(within.mean()), draws @ within / len(counts)),
        between=WordMean(
            _mean_of_pairs(np.ones((1, len(counts))), between).item(),
            _mean_of_pairs(draws, between),
        ),
        silhouette=WordMean(float(by_word.mean()), draws @ by_word / len(counts)),
    )


def _mean_of_pairs(draws: np.ndarray, between: np.ndarray) -> np.ndarray:
    """Returns the mean of an entry (W, W) off the diagonal for each of the draws (R, W)."""
    squares = draws**2
    sums = np.einsum("rv,vw,rw->r", draws, between, draws, optimize=True)
    pairs = draws.sum(axis=1) ** 2 - squares.sum(axis=1)
    # A draw of one word alone has no pair; it is as likely as it is absurd.
    return (sums - squares @ np.diag(between)) / np.maximum(pairs, 1)


def _word_draws(num_words: int, seed: int) -> np.ndarray:
    """Returns how often each word is in each resample, (RESAMPLES, W)."""
    shares = np.full(num_words, 1 / num_words)
    return np.random.default_rng(seed).multinomial(num_words, shares, RESAMPLES).astype(float)


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    vectors = vectors.astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    zeros = int(np.count_nonzero(~(lengths > 0) | ~np.isfinite(lengths)))
    require(not zeros, "vectors", f"{zeros} without a direction", "finite ones, none of them 0")
    return vectors / lengths


@dataclasses.dataclass(frozen=True)
class WordRate:
    """The share of vectors of which something is right.

    Attributes:
      value: the share.
      interval: 95 %, a bootstrap over words.
    """

    value: float
    interval: tuple[float, float]


@check_shapes
def word_rate(
    right: Bool[np.ndarray, " m"], words: Int[np.ndarray, " m"], seed: int = 0
) -> WordRate:
    """Returns the share that is right, with an interval by words (M,) of 0 … W − 1."""
    counts = np.bincount(words)
    hits = np.bincount(words, right)
    there = counts > 0
    interval = bootstrap_ratio_interval(hits[there], counts[there], seed=seed, resamples=RESAMPLES)
    return WordRate(float(right.mean()), interval)


@check_shapes
def probe_words(
    vectors: Float[np.ndarray, "m D"],
    words: Int[np.ndarray, " m"],
    held_out: Bool[np.ndarray, " m"],
) -> Bool[np.ndarray, " n"]:
    """Fits a linear map from vectors to words, and returns which held-out ones it names.

    Ridge regression of the words' indicators on vectors standardized over those that are fitted;
    the highest of the W numbers names the word.

    Args:
      vectors: (M, D).
      words: (M,) the word of each, 0 … W − 1.
      held_out: (M,) which vectors are not fitted; some are, some are not.

    Returns:
      Which of the held-out vectors are named, in their order.
    """
    require(0 < held_out.sum() < len(held_out), "held_out", int(held_out.sum()), "some, not all")
    known = vectors[~held_out].astype(np.float64)
    center, scale = known.mean(axis=0), known.std(axis=0)
    scale[scale == 0] = 1
    known = (known - center) / scale
    asked = (vectors[held_out] - center) / scale
    indicators = np.eye(words.max() + 1)[words[~held_out]]
    means = indicators.mean(axis=0)
    # By the vectors' products, not the features': there are fewer of them at the paper's widths.
    products = known @ known.T
    ridge = _RIDGE * np.trace(products) / len(products)
    weights = np.linalg.solve(products + ridge * np.eye(len(products)), indicators - means)
    return (asked @ known.T @ weights + means).argmax(axis=1) == words[held_out]
