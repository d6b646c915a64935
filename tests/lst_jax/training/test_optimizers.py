import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.training.optimizers import (
    OptimizerConfig,
    is_matrix,
    learning_rate_schedule,
    make_optimizer,
)

PARAMS = {
    "layers": {"kernel": jnp.full((2, 3, 4), 2.0), "norm": {"scale": jnp.full((2, 3), 2.0)}},
    "output_kernel": jnp.full((3, 5), 2.0),
}


def test_warm_up_is_linear_and_loses_no_step():
    config = OptimizerConfig(peak_learning_rate=1.0, warmup_steps=10)
    schedule = learning_rate_schedule(config, 100)
    np.testing.assert_allclose([schedule(i) for i in range(10)], np.arange(1, 11) / 10, rtol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), st.integers(1, 200), st.floats(0, 1))
def test_the_rate_rises_to_the_peak_and_falls_to_the_final_ratio(warmup, more, ratio):
    config = OptimizerConfig(peak_learning_rate=3e-4, warmup_steps=warmup, final_ratio=ratio)
    num_steps = warmup + more
    # One shape for all examples, so that nothing is compiled twice.
    rates = np.asarray(learning_rate_schedule(config, num_steps)(np.arange(256)))[:num_steps]
    top = max(warmup - 1, 0)
    assert np.all(np.diff(rates[: top + 1]) > 0)
    assert np.all(np.diff(rates[top:]) <= 1e-9)
    np.testing.assert_allclose(rates[top], 3e-4, rtol=1e-5)
    if more > 1:
        np.testing.assert_allclose(rates[-1], 3e-4 * ratio, rtol=1e-4, atol=1e-10)


def test_a_warm_up_as_long_as_the_run_is_an_error():
    with pytest.raises(ValueError, match="warmup_steps is 2000, expected fewer than num_steps"):
        learning_rate_schedule(OptimizerConfig(), 2000)


@pytest.mark.parametrize(
    "field, value",
    [
        ("beta2", 1.0),
        ("clip_norm", 0.0),
        ("peak_learning_rate", -1.0),
        ("final_ratio", 2.0),
        ("warmup_steps", -1),
        ("weight_decay", -0.1),
    ],
)
def test_settings_out_of_range_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        OptimizerConfig(**{field: value})


def test_weight_decay_acts_on_matrices_only():
    assert is_matrix(PARAMS) == {
        "layers": {"kernel": True, "norm": {"scale": False}},
        "output_kernel": True,
    }
    config = OptimizerConfig(peak_learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = make_optimizer(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    updates, _ = optimizer.update(zeros, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(updates["layers"]["kernel"], -0.1 * 0.5 * 2.0, rtol=1e-2)
    np.testing.assert_allclose(updates["output_kernel"], -0.1 * 0.5 * 2.0, rtol=1e-2)
    np.testing.assert_array_equal(updates["layers"]["norm"]["scale"], 0.0)


def test_gradients_above_the_clip_norm_count_as_gradients_of_that_norm():
    config = OptimizerConfig(warmup_steps=0, weight_decay=0.0, epsilon=1.0, clip_norm=1.0)
    optimizer = make_optimizer(config, 10)
    params = {"kernel": jnp.zeros(4)}
    large = {"kernel": jnp.array([3.0, 0.0, 4.0, 0.0]) * 100}
    unit = {"kernel": jnp.array([0.6, 0.0, 0.8, 0.0])}

    def update_of(gradient):
        return optimizer.update(gradient, optimizer.init(params), params)[0]["kernel"]

    np.testing.assert_allclose(update_of(large), update_of(unit), rtol=1e-5)
