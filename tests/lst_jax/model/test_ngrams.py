"""Properties of hashed n-grams."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.config import LSTConfig
from lst_jax.model.ngrams import hash_ngram, push_token, recent_tokens

TOKENS = np.array([[7, 8, 9, 7, 8, 9, 4, 0]], np.int32)
DOCUMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0]], np.int32)


def test_recent_tokens_are_those_of_the_document():
    recent = recent_tokens(TOKENS, DOCUMENTS, 3)[0]
    expected = [[7, -1, -1], [8, 7, -1], [9, 8, 7], [7, -1, -1], [8, 7, -1], [9, 8, 7], [4, 9, 8]]
    np.testing.assert_array_equal(recent[:7], expected)


def test_reading_token_by_token_gives_the_same_recent_tokens():
    recent = jnp.full((1, 4), -1, jnp.int32)
    for place in range(3, 7):
        recent = push_token(recent, TOKENS[:, place])
        whole = recent_tokens(TOKENS, DOCUMENTS, 4)[:, place]
        np.testing.assert_array_equal(recent, whole)


@pytest.mark.parametrize("size", [2, 3])
def test_a_row_follows_from_the_last_tokens_alone(size):
    rng = np.random.default_rng(size)
    recent = rng.integers(0, 3000, (20_000, 5)).astype(np.int32)
    other = recent.copy()
    other[:, size:] = -1
    rows = np.asarray(hash_ngram(recent, size, 256))
    np.testing.assert_array_equal(rows, hash_ngram(other, size, 256))
    assert (hash_ngram(_cut(recent, size), size, 256) == -1).all()
    # Every row is as likely: the chi-square statistic of 255 degrees of freedom has mean 255.
    counts = np.bincount(rows, minlength=256)
    assert len(counts) == 256
    expected = len(rows) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


def _cut(recent, size):
    cut = recent.copy()
    cut[:, size - 1] = -1
    return cut


def test_orders_and_sizes_give_rows_apart():
    recent = np.array([[1, 2, 3], [2, 1, 3], [3, 2, 1]], np.int32)
    rows = {int(row) for size in (2, 3) for row in hash_ngram(recent, size, 2**20)}
    assert len(rows) == 6


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"hash_ngram_sizes": (1,)}, "hash_ngram_sizes"),
        ({"hash_ngram_sizes": (3, 3)}, "hash_ngram_sizes"),
        ({"hash_ngram_sizes": (3.0,)}, "hash_ngram_sizes"),
        ({"hash_table_size": 100}, "hash_table_size"),
        ({"hash_table_size": 0}, "hash_table_size"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(settings, name):
    with pytest.raises(ValueError, match=f"LSTConfig.{name}"):
        LSTConfig(512, 16, 32, 1, 1, 1, 2, 2, **settings)


def test_hashing_is_the_same_compiled():
    recent = np.array([[5, 6, 7]], np.int32)
    compiled = jax.jit(hash_ngram, static_argnums=(1, 2))(recent, 3, 1000)
    np.testing.assert_array_equal(compiled, hash_ngram(recent, 3, 1000))
