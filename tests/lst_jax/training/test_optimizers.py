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


def test_the_cosine_schedule_keeps_its_values_to_the_bit():
    """Of the formula with which runs began before schedules had names."""
    config = OptimizerConfig(peak_learning_rate=3e-4, warmup_steps=20, final_ratio=0.01)
    peak, final = 3e-4, 3e-4 * 0.01

    def before(count):
        step = jnp.asarray(count, jnp.float32) + 1
        cosine = 0.5 * (1 + jnp.cos(np.pi * jnp.clip((step - 20) / 180, 0, 1)))
        decayed = final + (peak - final) * cosine
        return jnp.where(step < 20, peak * step / 20, decayed)

    counts = np.arange(210)
    np.testing.assert_array_equal(learning_rate_schedule(config, 200)(counts), before(counts))


def test_a_constant_schedule_stays_at_the_peak():
    config = OptimizerConfig(schedule="constant", peak_learning_rate=0.5, warmup_steps=4)
    rates = learning_rate_schedule(config, 100)(np.arange(100))
    np.testing.assert_allclose(rates[:4], [0.125, 0.25, 0.375, 0.5])
    np.testing.assert_array_equal(rates[3:], np.float32(0.5))


def test_a_stable_schedule_decays_over_its_last_steps():
    config = OptimizerConfig(
        schedule="wsd", peak_learning_rate=1.0, warmup_steps=4, decay_steps=5, final_ratio=0.5
    )
    rates = np.asarray(learning_rate_schedule(config, 20)(np.arange(20)))
    np.testing.assert_array_equal(rates[3:15], 1.0)
    np.testing.assert_allclose(rates[15:], [0.9, 0.8, 0.7, 0.6, 0.5], rtol=1e-6)


@pytest.mark.parametrize("decay", [1, 7, 20])
def test_the_decay_may_begin_at_any_step_of_the_stable_part(decay):
    """Until there all schedules of the same peak agree to the bit."""
    settings = {"peak_learning_rate": 0.3, "warmup_steps": 3}
    wsd = OptimizerConfig(schedule="wsd", decay_steps=decay, final_ratio=0.0, **settings)
    constant = OptimizerConfig(schedule="constant", **settings)
    num_steps = 10 + decay
    rates = np.asarray(learning_rate_schedule(wsd, num_steps)(np.arange(num_steps)))
    expected = learning_rate_schedule(constant, 1000)(np.arange(10))
    np.testing.assert_array_equal(rates[:10], expected)
    assert np.all(np.diff(rates[9:]) < 0) and rates[-1] == 0


def test_a_decay_that_does_not_fit_behind_the_warm_up_is_an_error():
    config = OptimizerConfig(schedule="wsd", warmup_steps=6, decay_steps=5)
    learning_rate_schedule(config, 11)
    with pytest.raises(ValueError, match="decay_steps is 5, expected at most 10 - 6"):
        learning_rate_schedule(config, 10)


@pytest.mark.parametrize("steps", [None, 0, -1])
def test_a_stable_schedule_without_a_decay_is_an_error(steps):
    with pytest.raises(ValueError, match=f"decay_steps is {steps}, expected"):
        OptimizerConfig(schedule="wsd", decay_steps=steps)


def test_another_name_of_a_schedule_is_an_error():
    with pytest.raises(ValueError, match="schedule is 'linear', expected 'cosine'"):
        OptimizerConfig(schedule="linear")
