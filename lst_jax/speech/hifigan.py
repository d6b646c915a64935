"""The generator of a HiFi-GAN unit vocoder (CodeHiFiGAN): units to waveforms.

    model = HiFiGAN(config)
    params = model.init(key, units)       # or `data_pipelines.speech.hifigan_checkpoints`
    waveforms = model.apply(params, units, lengths).waveforms   # (B, U · code_hop_size)

Upsampling is done by phases: of a transposed convolution of stride u, output u · n + p reads a few
inputs about n, so that it is one small convolution with u times the channels, and no zeros are
multiplied. Rows are what they would be alone, whatever lies behind their lengths: every convolution
reads zeros there, as it does beyond the ends.

With `weight_norm`, for training, kernels are `scale · kernel / ‖kernel‖` as published
(`fold_weight_norm` makes plain ones of them).
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.model.layers import constrain
from lst_jax.settings import require
from lst_jax.shapes import Float, Int32, check_shapes
from lst_jax.speech.hifigan_config import END_TAPS, DurationPredictorConfig, HiFiGANConfig
from lst_jax.speech.wav2vec2 import (
    CONVOLUTION_EPSILON,
    Dense,
    LayerNorm,
    parameter,
    precision_of,
)

_SLOPE = 0.1  # of leaky ReLUs
_LAST_SLOPE = 0.01  # of the one before the last convolution

Params = Any


class Speech(NamedTuple):
    """What the generator gives for a batch.

    Attributes:
      waveforms: float32, within ±1; zeros behind a row's length.
      log_durations: of each unit, of which `frames_of` makes frames. None: there is no predictor.
    """

    waveforms: Float[Array, "B n"]
    log_durations: Float[Array, "B U"] | None


class HiFiGAN(nn.Module):
    """The generator.

    Attributes:
      config: its shape.
      weight_norm: whether kernels are normalized.
    """

    config: HiFiGANConfig
    weight_norm: bool = False

    @nn.compact
    @check_shapes
    def __call__(
        self,
        units: Int32[Array, "B U"],
        lengths: Int32[Array, " B"] | None = None,
        speakers: Int32[Array, " B"] | None = None,
        styles: Int32[Array, " B"] | None = None,
        *,
        dropout: bool = False,
    ) -> Speech:
        """Maps U units to n = U · `code_hop_size` samples.

        Args:
          units: one a frame.
          lengths: real units of each row, at its beginning. None: all of them.
          speakers: of each row, where the model has speakers.
          styles: of each row, where the model has styles.
          dropout: whether the duration predictor drops channels, by the key "dropout".

        Raises:
          ValueError: a model with speakers or styles is given none, or one without is given some.
        """
        config = self.config
        x = _embedding(self, "unit_embedding", config.num_embeddings, config.embedding_dim)[units]
        mask = None
        if lengths is not None:
            mask = jnp.arange(units.shape[1]) < lengths[:, None]
        log_durations = None
        if config.dur_predictor_params is not None:
            predictor = DurationPredictor(config.dur_predictor_params, name="duration_predictor")
            log_durations = predictor(x, mask, dropout)
        has = {
            "speakers": (config.multispkr, speakers, config.num_speakers),
            "styles": (config.multistyle, styles, config.num_styles),
        }
        for name, (wanted, ids, count) in has.items():
            expected = "one for each row" if wanted else "None: the model has none"
            require(wanted == (ids is not None), name, None if ids is None else "given", expected)
            if ids is not None:
                table = _embedding(self, f"{name[:-1]}_embedding", count, config.embedding_dim)
                own = jnp.broadcast_to(table[ids][:, None], (*x.shape[:2], config.embedding_dim))
                x = jnp.concatenate([x, own], axis=-1)

        normed = self.weight_norm
        channels = config.upsample_initial_channel
        x = Convolution(channels, END_TAPS, 1, normed, name="first")(_masked(x, mask))
        kernels, dilations = config.resblock_kernel_sizes, config.resblock_dilation_sizes
        stages = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        for i, (rate, taps) in enumerate(stages):
            channels //= 2
            x = _masked(nn.leaky_relu(x, _SLOPE), mask)
            x = Upsampling(channels, rate, taps, normed, name=f"upsampling_{i}")(x)
            mask = None if mask is None else jnp.repeat(mask, rate, axis=1)
            x = constrain(x, "batch", "length", None)
            blocks = [
                ResidualBlock(taps, spacing, config.resblock, normed, name=f"block_{i}_{j}")(
                    x, mask
                )
                for j, (taps, spacing) in enumerate(zip(kernels, dilations, strict=True))
            ]
            x = sum(blocks[1:], blocks[0]) / len(blocks)
        x = _masked(nn.leaky_relu(x, _LAST_SLOPE), mask)
        x = Convolution(1, END_TAPS, 1, normed, name="last")(x)
        waveforms = _masked(jnp.tanh(x), mask)[..., 0]
        return Speech(waveforms, log_durations)


def frames_of(log_durations: Array) -> Array:
    """Returns how many frames units last, int32, at least 1 each."""
    return jnp.maximum(jnp.round(jnp.exp(log_durations) - 1), 1).astype(jnp.int32)


class ResidualBlock(nn.Module):
    """Dilated convolutions, each of which adds to what it reads."""

    taps: int
    dilations: tuple[int, ...]
    kind: str
    weight_norm: bool

    @nn.compact
    def __call__(self, x: Array, mask: Array | None) -> Array:
        """Maps (B, T, C) to (B, T, C); where `mask` (B, T) is false zeros are read."""
        channels = x.shape[-1]

        def convolve(y: Array, dilation: int, name: str) -> Array:
            y = _masked(nn.leaky_relu(y, _SLOPE), mask)
            return Convolution(channels, self.taps, dilation, self.weight_norm, name=name)(y)

        for i, dilation in enumerate(self.dilations):
            y = convolve(x, dilation, f"dilated_{i}")
            if self.kind == "1":
                y = convolve(y, 1, f"plain_{i}")
            x = x + y
        return x


class DurationPredictor(nn.Module):
    """How long units last: log(1 + frames) of each."""

    config: DurationPredictorConfig

    @nn.compact
    def __call__(self, x: Array, mask: Array | None, dropout: bool) -> Array:
        """Maps embeddings (B, U, C) to (B, U)."""
        config = self.config
        for i in range(2):
            x = _masked(x, mask)
            name, taps = f"convolution_{i}", config.var_pred_kernel_size
            x = Convolution(config.var_pred_hidden_dim, taps, name=name)(x)
            x = LayerNorm(CONVOLUTION_EPSILON, name=f"norm_{i}")(nn.relu(x))
            x = nn.Dropout(config.var_pred_dropout, deterministic=not dropout)(x)
        return Dense(1, (None, None), name="projection")(x)[..., 0]


class Convolution(nn.Module):
    """A convolution of odd taps that keeps the number of frames."""

    features: int
    taps: int
    dilation: int = 1
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (self.taps, x.shape[-1], self.features)
        kernel = _kernel(self, shape, axis=2)
        bias = parameter(self, "bias", nn.initializers.zeros, shape[-1:], (None,))
        return convolve(x, kernel, self.dilation) + bias


class Upsampling(nn.Module):
    """A transposed convolution that gives `rate` frames for each."""

    features: int
    rate: int
    taps: int
    weight_norm: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps (B, T, C) to (B, T · rate, features)."""
        kernel = _kernel(self, (self.taps, x.shape[-1], self.features), axis=1)
        bias = parameter(self, "bias", nn.initializers.zeros, (self.features,), (None,))
        return upsample(x, kernel, self.rate) + bias


def convolve(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """Returns the convolution (B, T, O) of x (B, T, C) and a kernel (taps, C, O), zeros about x."""
    return _convolve(x, kernel, dilation, dilation * (len(kernel) // 2))


def upsample(x: Array, kernel: Array, rate: int) -> Array:
    """Returns the transposed convolution (B, T · rate, O) of x (B, T, C) by a stride.

    Input t adds kernel[j] · x[t] to sample t · rate + j, from which (taps − rate) / 2 are cut off
    at both ends. So phase p of the samples between two inputs reads the taps p, p + rate, …, and a
    convolution of as many taps with `rate` times the channels gives all phases.
    """
    taps, inputs, outputs = kernel.shape
    rows, length, _ = x.shape
    steps = -(-taps // rate)
    kernel = jnp.pad(kernel, ((0, steps * rate - taps), (0, 0), (0, 0)))
    phases = kernel.reshape(steps, rate, inputs, outputs).transpose(0, 2, 1, 3)
    y: Any = _convolve(x, phases.reshape(steps, inputs, rate * outputs)[::-1], 1, steps - 1)
    first = (taps - rate) // 2
    return y.reshape(rows, -1, outputs)[:, first : first + length * rate]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x: Array, kernel: Array, dilation: int, margin: int) -> Array:
    """Returns the convolution of x with zeros, `margin` of them, at either end."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1,),
        [(margin, margin)],
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        precision=precision_of(x),
    )


def _convolve_forward(x: Array, kernel: Array, dilation: int, margin: int) -> Any:
    return _convolve(x, kernel, dilation, margin), (x, kernel)


def _convolve_backward(dilation: int, margin: int, kept: Any, gradient: Array) -> Any:
    """Returns the gradients of x and the kernel, the latter a product for each tap.

    As convolutions they would have kernels as long as x, with which XLA is slow on CPUs.
    """
    x, kernel = kept
    span, length = dilation * (len(kernel) - 1), gradient.shape[1]
    flipped = kernel[::-1].swapaxes(1, 2)
    of_x = _convolve(gradient, flipped, dilation, span - margin)
    padded = jnp.pad(x, ((0, 0), (margin, margin), (0, 0)))
    of_kernel = [
        jax.lax.dot_general(
            padded[:, start : start + length],
            gradient,
            (((0, 1), (0, 1)), ((), ())),
            precision=precision_of(x),
        )
        for start in range(0, span + 1, dilation)
    ]
    return of_x, jnp.stack(of_kernel)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def fold_weight_norm(params: Params) -> Params:
    """Returns the parameters of a model without weight norm that computes the same."""
    if not isinstance(params, dict):
        return params
    if not {"kernel", "scale"} <= params.keys():
        return {name: fold_weight_norm(x) for name, x in params.items()}
    kernel, scale = params["kernel"], params["scale"]
    axis = 1 if scale.shape[1] > 1 else 2
    rest = {name: x for name, x in params.items() if name != "scale"}
    return rest | {"kernel": normalize_kernel(kernel, scale, axis)}


def normalize_kernel(kernel: Array, scale: Array, axis: int) -> Array:
    """Returns a kernel of three axes whose slices along one have the norms `scale`."""
    others = tuple(i for i in range(3) if i != axis)
    squares = jnp.sum(jnp.square(kernel), others, keepdims=True)
    return kernel * (scale * jax.lax.rsqrt(jnp.maximum(squares, 1e-30)))


def _kernel(module: Any, shape: tuple[int, int, int], axis: int) -> Array:
    init = nn.initializers.variance_scaling(1.0, "fan_in", "normal", (0, 1), 2)
    kernel = parameter(module, "kernel", init, shape, (None, None, None))
    if not module.weight_norm:
        return kernel

    def norms(*_: Any) -> Array:
        others = tuple(i for i in range(3) if i != axis)
        return jnp.sqrt(jnp.sum(jnp.square(kernel), others, keepdims=True))

    size = tuple(n if i == axis else 1 for i, n in enumerate(shape))
    return normalize_kernel(
        kernel, parameter(module, "scale", norms, size, (None, None, None)), axis
    )


def _embedding(module: nn.Module, name: str, count: int, width: int) -> Array:
    return parameter(module, name, nn.initializers.normal(1.0), (count, width), (None, None))


def _masked(x: Array, mask: Array | None) -> Array:
    return x if mask is None else jnp.where(mask[..., None], x, 0)
