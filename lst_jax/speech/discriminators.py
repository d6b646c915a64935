"""What a vocoder is trained against: HiFi-GAN's discriminators, and log-mel spectra.

Kong, Kim and Bae (2020): multi-period discriminators see every p-th sample, multi-scale ones the
waveform and its averages. Each gives the maps of all its layers, the last of which is its score.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.settings import Bounds, PositiveInt, Width, configuration, require
from lst_jax.shapes import Float
from lst_jax.speech.hifigan import normalize_kernel
from lst_jax.speech.wav2vec2 import parameter, patches, precision_of, product

_SLOPE = 0.1
_PERIOD_TAPS, _PERIOD_STRIDE = 5, 3
_SCALE_ENDS = (15, 5)  # taps of the first and of the last of the convolutions with many channels
_SCALE_TAPS = 41
_LAST_TAPS = 3
_POWER_ROUNDS = 8  # of the iteration by which spectral norms are estimated
_LOWEST_MEL = 1e-5
_Count = Annotated[int, Bounds(least=0, most=16)]


@configuration
class DiscriminatorConfig:
    """Sizes; the defaults are the published ones.

    Attributes:
      periods: of the multi-period discriminators.
      period_channels: of their layers, all but the last of which have a stride of 3.
      scales: multi-scale discriminators: the waveform, its average of 2, of 4, …
      scale_channels: of their layers.
      scale_groups: of each layer.
      scale_strides: of each layer.
    """

    periods: tuple[PositiveInt, ...] = (2, 3, 5, 7, 11)
    period_channels: tuple[Width, ...] = (32, 128, 512, 1024, 1024)
    scales: _Count = 3
    scale_channels: tuple[Width, ...] = (128, 128, 256, 512, 1024, 1024, 1024)
    scale_groups: tuple[Width, ...] = (1, 4, 16, 16, 16, 16, 1)
    scale_strides: tuple[PositiveInt, ...] = (1, 2, 2, 4, 4, 1, 1)

    def __post_init__(self) -> None:
        name, layers = type(self).__name__, len(self.scale_channels)
        some = bool(self.periods) or self.scales > 0
        require(some, f"{name}.periods", self.periods, "some, or scales")
        require(len(self.period_channels) > 0, f"{name}.period_channels", (), "a layer or more")
        require(layers > 1, f"{name}.scale_channels", self.scale_channels, "two layers or more")
        for field in ("scale_groups", "scale_strides"):
            value = getattr(self, field)
            require(len(value) == layers, f"{name}.{field}", value, f"{layers} of them")
        inputs = (1, *self.scale_channels[:-1])
        for before, after, groups in zip(
            inputs, self.scale_channels, self.scale_groups, strict=True
        ):
            divides = before % groups == 0 == after % groups
            expected = "divisors of the channels before and after"
            require(divides, f"{name}.scale_groups", self.scale_groups, expected)


class Discriminators(nn.Module):
    """All of them."""

    config: DiscriminatorConfig

    @nn.compact
    def __call__(self, waveforms: Float[Array, "B n"]) -> list[list[Array]]:
        """Returns each one's maps (B, …, channels); the last of each is its score, of one."""
        config = self.config
        found = [
            PeriodDiscriminator(period, config.period_channels, name=f"period_{period}")(waveforms)
            for period in config.periods
        ]
        x = waveforms
        for i in range(config.scales):
            # Spectral norm on the waveform itself, weight norm on its averages, as published.
            found.append(ScaleDiscriminator(config, i == 0, name=f"scale_{i}")(x))
            x = _halve(x)
        return found


class PeriodDiscriminator(nn.Module):
    """Sees every p-th sample: convolutions along the periods, the same for each place in one."""

    period: int
    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, waveforms: Array) -> list[Array]:
        rows, length = waveforms.shape
        x = jnp.pad(waveforms, ((0, 0), (0, -length % self.period)), mode="reflect")
        x = x.reshape(rows, -1, self.period).swapaxes(1, 2).reshape(rows * self.period, -1, 1)
        maps = []
        for i, channels in enumerate(self.channels):
            stride = 1 if i == len(self.channels) - 1 else _PERIOD_STRIDE
            layer = DiscriminatorLayer(channels, _PERIOD_TAPS, stride, name=f"layer_{i}")
            x = nn.leaky_relu(layer(x), _SLOPE)
            maps.append(x)
        maps.append(DiscriminatorLayer(1, _LAST_TAPS, name="last")(x))
        return [x.reshape(rows, self.period, *x.shape[1:]) for x in maps]


class ScaleDiscriminator(nn.Module):
    """Sees the waveform as it is."""

    config: DiscriminatorConfig
    spectral: bool

    @nn.compact
    def __call__(self, waveforms: Array) -> list[Array]:
        config, x, maps = self.config, waveforms[..., None], []
        last = len(config.scale_channels) - 1
        layers = zip(config.scale_channels, config.scale_groups, config.scale_strides, strict=True)
        for i, (channels, groups, stride) in enumerate(layers):
            taps = _SCALE_ENDS[0] if i == 0 else _SCALE_ENDS[1] if i == last else _SCALE_TAPS
            layer = DiscriminatorLayer(
                channels, taps, stride, groups, self.spectral, name=f"layer_{i}"
            )
            x = nn.leaky_relu(layer(x), _SLOPE)
            maps.append(x)
        last_layer = DiscriminatorLayer(1, _LAST_TAPS, spectral=self.spectral, name="last")
        return [*maps, last_layer(x)]


class DiscriminatorLayer(nn.Module):
    """A strided convolution of odd taps, with weight norm or spectral norm."""

    features: int
    taps: int
    stride: int = 1
    groups: int = 1
    spectral: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, T, C) to (B, ⌈T / stride⌉, features)."""
        shape = (self.taps, x.shape[-1] // self.groups, self.features)
        init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", (0, 1), 2)
        kernel = parameter(self, "kernel", init, shape, (None, None, None))
        if self.spectral:
            kernel = kernel / spectral_norm(kernel)
        else:

            def norms(*_: Any) -> Array:
                return jnp.sqrt(jnp.sum(jnp.square(kernel), (0, 1), keepdims=True))

            scale = parameter(self, "scale", norms, (1, 1, self.features), (None, None, None))
            kernel = normalize_kernel(kernel, scale, axis=2)
        bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:], (None,))
        margin = self.taps // 2
        if self.groups == 1:  # a product, with which every platform is fast in both directions
            padded = jnp.pad(x, ((0, 0), (margin, margin), (0, 0)))
            found = patches(padded, self.taps, self.stride)
            return product(found, kernel.reshape(-1, self.features)) + bias
        y = jax.lax.conv_general_dilated(
            x,
            kernel,
            (self.stride,),
            [(margin, margin)],
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=self.groups,
            precision=precision_of(x),
        )
        return y + bias


def spectral_norm(kernel: Array) -> Array:
    """Returns about the largest singular value of a kernel (taps, C, O) as a matrix (O, taps · C).

    The power iteration begins anew each time, so that a state is its parameters alone; its vectors
    have no gradient, as published.
    """
    matrix = kernel.reshape(-1, kernel.shape[-1])
    fixed = jax.lax.stop_gradient(matrix)
    v = jnp.ones(matrix.shape[1]) / math.sqrt(matrix.shape[1])
    u = v
    for _ in range(_POWER_ROUNDS):
        u = fixed @ v
        u = u / (jnp.linalg.norm(u) + 1e-12)
        v = fixed.T @ u
        v = v / (jnp.linalg.norm(v) + 1e-12)
    return u @ matrix @ v


def log_mels(waveforms: Float[Array, "B n"], sample_rate: int, size: int, bands: int) -> Array:
    """Returns log amplitudes (B, n // (size / 4), bands) in mel bands, as HiFi-GAN's loss has them.

    Args:
      waveforms: at least `size` samples, a multiple of size / 4.
      sample_rate: theirs.
      size: of the windows, whose distance is a quarter of it.
      bands: from 0 Hz to 8 kHz, or to half the sample rate.
    """
    step = size // 4
    margin = (size - step) // 2
    x = jnp.pad(waveforms, ((0, 0), (margin, margin)), mode="reflect")
    frames = patches(x[..., None], size, step)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    spectrum = jnp.fft.rfft(frames * window.astype(np.float32))
    amplitudes = jnp.sqrt(jnp.square(spectrum.real) + jnp.square(spectrum.imag) + 1e-9)
    bank = jnp.asarray(mel_bank(sample_rate, size, bands))
    return jnp.log(jnp.maximum(product(amplitudes, bank), _LOWEST_MEL))


@functools.lru_cache(maxsize=16)
def mel_bank(sample_rate: int, size: int, bands: int) -> np.ndarray:
    """Returns triangles of area 1 on Slaney's mel scale, float32 (size / 2 + 1, bands).

    The scale is linear up to 1 kHz (15 mels), above it 27 mels are a factor of 6.4.
    """
    highest_hz = min(8000.0, sample_rate / 2)

    def mel(hz: float) -> float:
        return hz * 3 / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mels = np.linspace(0, mel(highest_hz), bands + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    hz = np.arange(size // 2 + 1)[:, None] * sample_rate / size
    rising = (hz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hz) / (edges[2:] - edges[1:-1])
    triangles = np.maximum(0, np.minimum(rising, falling))
    return (triangles * 2 / (edges[2:] - edges[:-2])).astype(np.float32)


def least_squares(scores: Sequence[Array], target: float) -> Array:
    """Returns the sum over discriminators of the mean squared distance of scores from a target."""
    return jnp.sum(jnp.stack([jnp.mean(jnp.square(x - target)) for x in scores]))


def feature_distance(real: Sequence[Sequence[Array]], made: Sequence[Sequence[Array]]) -> Array:
    """Returns the sum over all maps of the mean absolute difference, doubled as published."""
    pairs = [
        jnp.mean(jnp.abs(a - b))
        for one, other in zip(real, made, strict=True)
        for a, b in zip(one, other, strict=True)
    ]
    return 2 * jnp.sum(jnp.stack(pairs))


def _halve(x: Array) -> Array:
    """Returns averages (B, ⌊T / 2⌋ + 1) of four samples, zeros about them among the four."""
    return jnp.mean(patches(jnp.pad(x, ((0, 0), (2, 2)))[..., None], 4, 2), axis=-1)
