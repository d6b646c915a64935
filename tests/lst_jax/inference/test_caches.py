"""Rings hold the same whether a pass over rows fills them or items are appended one by one."""

import jax
import numpy as np
import pytest

from lst_jax.inference.decoding.caches import append, fill

ROWS, ITEMS, CAPACITY = 2, 7, 4
# Arrays as layers make them, by the axis of their items.
MADE = {
    "of no head": ((ROWS, ITEMS, 3), 1),
    "of heads": ((ROWS, ITEMS, 2, 3), 1),
    "of heads, layers stacked": ((2, ROWS, ITEMS, 2, 3), 2),
}


@pytest.mark.parametrize("name", MADE)
def test_appended_items_lie_where_a_pass_would_have_put_them(name):
    shape, axis = MADE[name]
    made = np.random.default_rng(0).normal(size=shape).astype(np.float32)

    def counts(number):
        return np.full(ROWS, number, np.int32)

    rings = fill({"made": made.take(range(3), axis)}, CAPACITY, counts(3))
    for item in range(3, ITEMS):
        one = {"made": made.take([item], axis)}
        rings = append(rings, one, counts(item), np.ones(ROWS, bool))
        idle = append(rings, jax.tree.map(np.zeros_like, one), counts(item), np.zeros(ROWS, bool))
        jax.tree.map(np.testing.assert_array_equal, idle, rings)
    expected = fill({"made": made}, CAPACITY, counts(ITEMS))
    jax.tree.map(np.testing.assert_array_equal, rings, expected)
