"""What backends are compared with before they are used: float32, whatever they compute in."""

import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.model.attention import numerics
from lst_jax.model.attention.dense import dense_attention
from lst_jax.model.key_ranges import KeyRange


@pytest.fixture(autouse=True)
def small_case(monkeypatch):
    """Four queries, the last of which reads nothing."""
    ranges = KeyRange(*np.array([[[0, 0, 1, 4]], [[1, 2, 4, 4]]], np.int32))
    case = {"small": numerics.IntervalCase(ranges, 6)}
    monkeypatch.setattr(numerics, "interval_cases", lambda: case)


def test_narrow_types_are_compared_with_float32():
    errors = numerics.relative_errors(dense_attention, "bfloat16", 4)["small"]
    assert errors.pop("empty") == 0
    assert all(1e-4 < error < 0.02 for error in errors.values()), errors
    assert numerics.check_numerics(dense_attention, "bfloat16", 4) is None
    exact = numerics.relative_errors(dense_attention, "float32", 4)["small"]
    assert all(error < 1e-6 for error in exact.values()), exact


def test_a_backend_that_is_off_is_named_with_its_error():
    def off(q, k, v, key_range):
        return 1.1 * dense_attention(q, k, v, key_range).astype(jnp.float32)

    said = numerics.check_numerics(off, "float32", 4)
    assert said.startswith("dk of small attention is off by 0.1, over ")
