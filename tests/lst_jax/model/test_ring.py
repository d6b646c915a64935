"""Ring buffers: what is written is what is read, and attention over them is interval attention."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.model.attention import ring
from lst_jax.model.attention.dense import dense_attention
from lst_jax.model.key_ranges import KeyRange

ITEMS = 23  # of a sequence
ROWS, HEADS, WIDTH = 3, 2, 4
write = jax.jit(ring.write, static_argnames="axis")
ring_attention, dense = jax.jit(ring.ring_attention), jax.jit(dense_attention)
latest = jax.jit(ring.latest, static_argnums=2)
take = jax.jit(ring.take)


def draw(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), capacity=st.sampled_from([4, 7, 30]), own=st.booleans())
def test_attention_over_a_ring_is_attention_over_the_sequence(seed, capacity, own):
    rng = np.random.default_rng(seed)
    keys, values = draw(rng, 2, ROWS, ITEMS, HEADS, WIDTH)
    queries = draw(rng, ROWS, 1, HEADS, WIDTH)
    end = rng.integers(1 if own else 0, ITEMS + 1, ROWS).astype(np.int32)
    length = np.minimum(rng.integers(own, capacity + 1, ROWS), end).astype(np.int32)
    key_range = KeyRange((end - length)[:, None], end[:, None])
    expected = dense(queries, keys, values, key_range)
    past = [latest(x, end - own, capacity).swapaxes(1, 2) for x in (keys, values)]
    last = (end - 1)[:, None, None, None]
    new = tuple(np.take_along_axis(x, last, axis=1) for x in (keys, values)) if own else None
    out = ring_attention(queries, tuple(past), new, key_range)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    assert not np.asarray(out)[length == 0].any()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), capacity=st.sampled_from([4, 9]), count=st.sampled_from([1, 2]))
def test_writing_items_one_by_one_gives_the_ring_of_the_sequence(seed, capacity, count):
    """Rows stop at different lengths; those that are not active stay as they are."""
    rng = np.random.default_rng(seed)
    sequence = draw(rng, ROWS, ITEMS * count, WIDTH)
    lengths = rng.integers(1, ITEMS + 1, ROWS).astype(np.int32)
    buffer = np.zeros((ROWS, capacity, WIDTH), np.float32)
    for index in range(ITEMS):
        items = sequence[:, index * count : (index + 1) * count]
        buffer = write(buffer, items, np.full(ROWS, index, np.int32), index < lengths)
    expected = latest(sequence, count * lengths, capacity)
    newest = count * lengths[:, None] - 1 - np.arange(capacity, dtype=np.int32)
    taken = [np.asarray(take(x, newest)) for x in (buffer, expected)]
    for row in range(ROWS):
        index = newest[row][newest[row] >= 0]
        for items in taken:
            np.testing.assert_array_equal(items[row, : len(index)], sequence[row, index])


def test_items_may_lie_along_any_axis():
    rng = np.random.default_rng(0)
    items = draw(rng, ROWS, 2, WIDTH)
    index, active = jnp.arange(ROWS), jnp.array([True, False, True])
    plain = write(np.zeros((ROWS, 5, WIDTH), np.float32), items, index, active)
    turned = write(
        np.zeros((ROWS, WIDTH, 5), np.float32), items.swapaxes(1, 2), index, active, axis=2
    )
    np.testing.assert_array_equal(turned.swapaxes(1, 2), plain)
    assert plain.any()
