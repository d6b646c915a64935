"""What vocoders are trained against: spectra, norms, and the maps of the discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.speech.discriminators import (
    DiscriminatorConfig,
    DiscriminatorLayer,
    Discriminators,
    PeriodDiscriminator,
    _halve,
    feature_distance,
    least_squares,
    log_mels,
    mel_bank,
    spectral_norm,
)

SMALL = DiscriminatorConfig(
    periods=(2, 3),
    period_channels=(4, 4),
    scales=2,
    scale_channels=(4, 8, 4),
    scale_groups=(1, 2, 1),
    scale_strides=(1, 2, 1),
)


def test_a_tone_is_in_the_band_of_its_frequency():
    time_s = np.arange(4096) / 16_000
    found = log_mels(jnp.asarray(np.sin(2 * np.pi * 1000 * time_s)[None]), 16_000, 1024, 80)
    assert found.shape == (1, 16, 80)
    bank = mel_bank(16_000, 1024, 80)
    assert int(np.argmax(found[0, 8])) == int(np.argmax(bank[64]))  # of the bin of 1 kHz
    width = 16_000 / 1024
    np.testing.assert_allclose(bank[:, 40:].sum(0) * width, 1, rtol=0.1)  # areas


def test_silence_is_as_quiet_as_the_floor_and_louder_by_its_factor():
    noise = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2048)), jnp.float32)
    quiet, loud = (log_mels(x, 16_000, 512, 20) for x in (noise, 10 * noise))
    np.testing.assert_allclose(loud - quiet, np.log(10), atol=1e-3)
    np.testing.assert_allclose(log_mels(0 * noise, 16_000, 512, 20), np.log(1e-5), rtol=0.3)


def test_the_spectral_norm_is_about_the_largest_singular_value():
    kernel = np.random.default_rng(0).normal(size=(5, 3, 4))
    kernel[0, 0, 0] += 12
    expected = np.linalg.svd(kernel.reshape(15, 4), compute_uv=False)[0]
    assert float(spectral_norm(jnp.asarray(kernel))) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("groups, spectral", [(1, False), (2, True)])
def test_a_layer_is_the_strided_convolution_of_its_norm(groups, spectral):
    x = np.random.default_rng(0).normal(size=(2, 11, 4)).astype(np.float32)
    layer = DiscriminatorLayer(6, 5, 2, groups, spectral)
    params = jax.tree.map(lambda leaf: leaf, layer.init(jax.random.key(0), x))
    kernel = np.asarray(jax.tree.leaves(params["params"]["kernel"])[0])
    if spectral:
        kernel = kernel / spectral_norm(kernel)
    padded, width = np.pad(x, ((0, 0), (2, 2), (0, 0))), 4 // groups
    for o in range(6):
        first = o // (6 // groups) * width
        own = padded[..., first : first + width]
        expected = [np.sum(own[:, t : t + 5] * kernel[..., o], (1, 2)) for t in range(0, 11, 2)]
        found = np.asarray(layer.apply(params, x))[..., o]
        np.testing.assert_allclose(found, np.transpose(expected), atol=1e-5)


def test_a_period_discriminator_sees_each_place_of_a_period_by_itself():
    x = np.random.default_rng(0).normal(size=(1, 20)).astype(np.float32)
    module = PeriodDiscriminator(3, (2, 2))
    params = module.init(jax.random.key(0), x)
    changed = x.copy()
    changed[0, 8] += 1
    maps = zip(module.apply(params, x), module.apply(params, changed), strict=True)
    for (one, other), frames in zip(maps, (3, 3, 3), strict=True):
        assert one.shape[:3] == (1, 3, frames)
        differ = np.asarray(one != other).any((0, 2, 3))
        assert differ.tolist() == [False, False, True]


def test_the_next_scale_is_the_mean_of_four_samples_at_every_second():
    x = np.arange(1.0, 8)
    padded = np.pad(x, 2)
    expected = [padded[i : i + 4].mean() for i in range(0, 8, 2)]
    np.testing.assert_allclose(_halve(jnp.asarray(x[None]))[0], expected, rtol=1e-6)


@pytest.mark.slow
def test_each_discriminator_gives_the_maps_of_its_rows_alone():
    waveforms = jnp.asarray(np.random.default_rng(0).normal(size=(3, 200)), jnp.float32)
    module = Discriminators(SMALL)
    params = module.init(jax.random.key(0), waveforms)
    found = module.apply(params, waveforms)
    alone = module.apply(params, waveforms[1:2])
    assert [len(maps) for maps in found] == [3, 3, 4, 4]
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(one[1:2], other, atol=1e-5)
    assert all(maps[-1].shape[-1] == 1 for maps in found)
    assert found[2][-1].shape[1] == 100 and found[3][-1].shape[1] == 51  # of 200 and of 101 samples


def test_losses_are_those_of_least_squares_and_of_all_maps():
    scores = [jnp.array([0.0, 2.0]), jnp.array([1.0])]
    assert float(least_squares(scores, 1)) == 1
    assert float(feature_distance([scores, scores], [scores[::-1], scores])) == 4
    with pytest.raises(ValueError, match=r"scale_groups is .*, expected divisors of the channels"):
        DiscriminatorConfig(scale_groups=(1, 3, 16, 16, 16, 16, 1))
    with pytest.raises(ValueError, match=r"scale_strides is .*, expected 7 of them"):
        DiscriminatorConfig(scale_strides=(1,))
