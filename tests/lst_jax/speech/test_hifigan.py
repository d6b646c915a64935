"""The HiFi-GAN generator: its parts against plain sums, rows alone and in a batch."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.speech import hifigan
from lst_jax.speech.hifigan import HiFiGAN, fold_weight_norm, frames_of, upsample
from lst_jax.speech.hifigan_config import (
    DurationPredictorConfig,
    HiFiGANConfig,
    config_from_json,
    context_units,
)

TINY = HiFiGANConfig(
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    upsample_rates=(3, 2),
    upsample_kernel_sizes=(7, 4),
    upsample_initial_channel=8,
    num_embeddings=9,
    embedding_dim=4,
    model_in_dim=12,
    code_hop_size=6,
    multispkr=True,
    num_speakers=3,
    multistyle=True,
    num_styles=2,
    dur_predictor_params=DurationPredictorConfig(4, 5),
)


@pytest.mark.parametrize("taps, rate", [(11, 5), (8, 4), (4, 4), (3, 1)])
def test_upsampling_by_phases_is_the_transposed_convolution(taps, rate):
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 6, 3)), rng.normal(size=(taps, 3, 2))
    whole = np.zeros((2, 5 * rate + taps, 2))
    for t in range(6):
        for j in range(taps):
            whole[:, t * rate + j] += x[:, t] @ kernel[j]
    first = (taps - rate) // 2
    found = upsample(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.float32), rate)
    np.testing.assert_allclose(found, whole[:, first : first + 6 * rate], atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 3])
def test_gradients_of_a_convolution_are_those_of_its_sums(dilation):
    rng, sizes = np.random.default_rng(0), ((2, 9, 3), (5, 3, 2), (2, 9, 2))
    x, kernel, of_sum = (jnp.asarray(rng.normal(size=size), jnp.float32) for size in sizes)

    def sums(x, kernel):
        padded = jnp.pad(x, ((0, 0), (2 * dilation, 2 * dilation), (0, 0)))
        return sum(padded[:, j * dilation :][:, :9] @ kernel[j] for j in range(5))

    values = []
    for function in (functools.partial(hifigan.convolve, dilation=dilation), sums):
        y, pull = jax.vjp(function, x, kernel)
        values.append((y, *pull(of_sum)))
    for found, expected in zip(*values, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_gradients_of_upsampling_are_those_of_its_sums():
    rng = np.random.default_rng(0)
    x, kernel, of_y = (jnp.asarray(rng.normal(size=(n, 2, 2)), jnp.float32) for n in (2, 4, 2))

    def sums(x, kernel):
        whole = jnp.zeros((2, 6, 2))  # two frames, four taps at every second sample
        for t in range(2):
            part = jnp.stack([x[:, t] @ tap for tap in kernel], axis=1)
            whole = whole.at[:, 2 * t : 2 * t + 4].add(part)
        return whole[:, 1:5]

    of_y = jnp.concatenate([of_y, -of_y], axis=1)
    _, pull = jax.vjp(lambda *given: upsample(*given, 2), x, kernel)
    _, expected = jax.vjp(sums, x, kernel)
    for one, other in zip(pull(of_y), expected(of_y), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("kind", ["1", "2"])
def test_a_residual_block_reads_zeros_behind_a_row(kind):
    block = hifigan.ResidualBlock(3, (1, 2), kind, False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 9, 2)), jnp.float32)
    params = block.init(jax.random.key(0), x, None)
    found = block.apply(params, x, jnp.arange(9)[None] < 5)
    np.testing.assert_allclose(found[:, :5], block.apply(params, x[:, :5], None), atol=1e-6)


@pytest.fixture(scope="module")
def model():
    module = HiFiGAN(TINY)
    ids = jnp.zeros(1, jnp.int32)
    params = module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), None, ids, ids)
    return module, params


@pytest.mark.slow
def test_a_row_is_what_it_is_alone_and_no_sample_depends_on_more_than_its_context(model):
    module, params = model
    config, reach = module.config, context_units(module.config)
    units = jnp.asarray(np.random.default_rng(1).integers(0, 9, (2, 2 * reach + 9)), jnp.int32)
    speakers, styles = jnp.array([2, 1]), jnp.array([0, 1])
    run = jax.jit(module.apply)
    both = run(params, units, jnp.array([5, units.shape[1]]), speakers, styles)
    alone = run(params, units[:1, :5], None, speakers[:1], styles[:1])
    n = 5 * config.code_hop_size
    np.testing.assert_allclose(both.waveforms[0, :n], alone.waveforms[0], atol=1e-6)
    np.testing.assert_allclose(both.log_durations[0, :5], alone.log_durations[0], atol=1e-5)
    assert not both.waveforms[0, n:].any() and np.abs(alone.waveforms).max() > 1e-2

    whole = run(params, units, None, speakers, styles).waveforms
    middle = units.shape[1] // 2
    other = units.at[:, middle].add(1) % 9
    changed = run(params, other, None, speakers, styles)
    far = np.abs(np.arange(whole.shape[1]) // config.code_hop_size - middle) > reach
    np.testing.assert_array_equal(changed.waveforms[:, far], whole[:, far])
    assert (changed.waveforms != whole).any()


@pytest.mark.slow
def test_weight_norm_starts_as_the_plain_kernels_and_folds_to_what_it_computes(model):
    module, _ = model
    normed = dataclasses.replace(module, weight_norm=True)
    arguments = jnp.arange(7)[None], None, jnp.array([1]), jnp.array([1])
    key = jax.random.key(3)
    params, plain = (nn.unbox(m.init(key, *arguments)) for m in (normed, module))
    for found, expected in zip(
        *map(jax.tree.leaves, (fold_weight_norm(params), plain)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    changed = jax.tree.map(lambda x: x + 0.1, params)
    found = module.apply(fold_weight_norm(changed), *arguments)
    expected = normed.apply(changed, *arguments)
    np.testing.assert_allclose(found.waveforms, expected.waveforms, atol=1e-6)
    assert not np.allclose(found.waveforms, module.apply(plain, *arguments).waveforms)


def test_units_last_a_frame_or_more():
    found = frames_of(jnp.log(jnp.array([0.2, 1, 2.4, 2.6, 3.6])))
    assert found.tolist() == [1, 1, 1, 2, 3]


def test_a_model_is_given_speakers_where_it_has_some():
    units, ids = jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32)
    with pytest.raises(ValueError, match="speakers is None, expected one for each row"):
        hifigan.HiFiGAN(TINY).init(jax.random.key(0), units)
    alone = dataclasses.replace(TINY, multispkr=False, multistyle=False, model_in_dim=4)
    with pytest.raises(ValueError, match="styles is 'given', expected None"):
        hifigan.HiFiGAN(alone).init(jax.random.key(0), units, None, None, ids)


def json_values(**changes):
    return {**dataclasses.asdict(TINY), "segment_size": 8960, "f0": None, **changes}


def test_a_configuration_is_read_and_what_only_trains_passed_over():
    assert config_from_json(json_values(), "f") == TINY
    assert not config_from_json(json_values(dur_predictor_params={}), "f").dur_predictor_params


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"f0": True}, "f: f0 = True is an input that this vocoder does not have"),
        ({"embedding_dim": None}, "f is without embedding_dim"),
        ({"code_hop_size": 320}, "code_hop_size is 320, expected 6, the product"),
        ({"upsample_kernel_sizes": [6, 4]}, "expected 3 \\+ an even number"),
        ({"upsample_kernel_sizes": [7]}, r"upsample_kernel_sizes is \(7,\), expected 2"),
        ({"upsample_initial_channel": 6}, "expected a multiple of 4"),
        ({"model_in_dim": 8}, "model_in_dim is 8, expected 12, 3 embeddings of 4"),
        ({"resblock_kernel_sizes": [3, 4]}, "expected 1 … 16 odd numbers"),
        ({"resblock_dilation_sizes": [[1]]}, "expected 1 … 16 for each of 2"),
        ({"resblock": "3"}, "resblock is '3', expected"),
        ({"upsample_rates": "3, 2"}, "upsample_rates is '3, 2'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_json(json_values(**changes), "f")
    predictor = {"encoder_embed_dim": 4, "var_pred_kernel_size": 5}
    with pytest.raises(ValueError, match="var_pred_kernel_size is 5, expected 3"):
        config_from_json(json_values(dur_predictor_params=predictor), "f")
