"""Shape of a HiFi-GAN unit vocoder (CodeHiFiGAN), by the names of its `config.json`.

    config = config_from_json(json_values, "vocoder/config.json")

Nothing here loads JAX.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from lst_jax.settings import (
    Bounds,
    Fraction,
    UnitCount,
    Width,
    configuration,
    list_names,
    quote,
    require,
    validate_fields,
)

_Taps = Annotated[int, Bounds(least=1, most=2**10)]
_Rate = Annotated[int, Bounds(least=1, most=2**10)]
_SampleRate = Annotated[int, Bounds(least=1000, most=10**6)]

END_TAPS = 7  # of the first and the last convolution
PREDICTOR_TAPS = 3  # the only ones with which the published predictor keeps the number of frames


@configuration
class DurationPredictorConfig:
    """Of the predictor of how many frames a unit lasts.

    Attributes:
      encoder_embed_dim: what it reads, the units' embedding.
      var_pred_hidden_dim: channels of its two convolutions.
      var_pred_kernel_size: their taps.
      var_pred_dropout: of training.
    """

    encoder_embed_dim: Width = 128
    var_pred_hidden_dim: Width = 128
    var_pred_kernel_size: _Taps = PREDICTOR_TAPS
    var_pred_dropout: Fraction = 0.5

    def __post_init__(self) -> None:
        taps = self.var_pred_kernel_size
        name = "DurationPredictorConfig.var_pred_kernel_size"
        require(taps == PREDICTOR_TAPS, name, taps, f"{PREDICTOR_TAPS}, to keep all frames")


@configuration
class HiFiGANConfig:
    """What decides the computation; the defaults are the published ones at 25 Hz units.

    Attributes:
      resblock: kind of the residual blocks: "1" has a second convolution after each dilated one.
      resblock_kernel_sizes: taps of the blocks whose mean follows each upsampling.
      resblock_dilation_sizes: of each block, the dilations of its convolutions.
      upsample_rates: factors by which frames become more; their product is `code_hop_size`.
      upsample_kernel_sizes: taps of each.
      upsample_initial_channel: halved by each upsampling.
      num_embeddings: units.
      embedding_dim: width of each embedding.
      model_in_dim: of all that are concatenated: unit, speaker, style.
      sampling_rate: of the waveform.
      code_hop_size: samples of a unit.
      multispkr, num_speakers: whether there is an embedding of speakers, and of how many.
      multistyle, num_styles: of styles.
      dur_predictor_params: of the duration predictor. None: there is none.
    """

    resblock: Literal["1", "2"] = "1"
    resblock_kernel_sizes: tuple[_Taps, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[_Taps, ...], ...] = ((1, 3, 5),) * 3
    upsample_rates: tuple[_Rate, ...] = (5, 4, 4, 4, 2)
    upsample_kernel_sizes: tuple[_Taps, ...] = (11, 8, 8, 8, 4)
    upsample_initial_channel: Width = 512
    num_embeddings: UnitCount = 500
    embedding_dim: Width = 128
    model_in_dim: Width = 128
    sampling_rate: _SampleRate = 16_000
    code_hop_size: Annotated[int, Bounds(least=1, most=2**16)] = 640
    multispkr: bool = False
    num_speakers: UnitCount = 200
    multistyle: bool = False
    num_styles: UnitCount = 100
    dur_predictor_params: DurationPredictorConfig | None = None

    def __post_init__(self) -> None:
        name, stages = type(self).__name__, len(self.upsample_rates)
        require(0 < stages <= 16, f"{name}.upsample_rates", self.upsample_rates, "1 … 16 of them")
        taps = self.upsample_kernel_sizes
        expected = f"{stages}, as there are upsample_rates"
        require(len(taps) == stages, f"{name}.upsample_kernel_sizes", taps, expected)
        for rate, count in zip(self.upsample_rates, taps, strict=True):
            fits = count >= rate and (count - rate) % 2 == 0
            require(
                fits, f"{name}.upsample_kernel_sizes", taps, f"{rate} + an even number for each"
            )
        hop = math.prod(self.upsample_rates)
        expected = f"{hop}, the product of upsample_rates"
        require(self.code_hop_size == hop, f"{name}.code_hop_size", self.code_hop_size, expected)
        channels = self.upsample_initial_channel
        expected = f"a multiple of {2**stages}: each of {stages} upsamplings halves it"
        require(channels % 2**stages == 0, f"{name}.upsample_initial_channel", channels, expected)
        kernels, dilations = self.resblock_kernel_sizes, self.resblock_dilation_sizes
        odd = 0 < len(kernels) <= 16 and all(count % 2 for count in kernels)
        require(odd, f"{name}.resblock_kernel_sizes", kernels, "1 … 16 odd numbers")
        same = len(dilations) == len(kernels) and all(0 < len(x) <= 16 for x in dilations)
        expected = f"1 … 16 for each of {len(kernels)} resblock_kernel_sizes"
        require(same, f"{name}.resblock_dilation_sizes", dilations, expected)
        parts = 1 + self.multispkr + self.multistyle
        expected = f"{parts * self.embedding_dim}, {parts} embeddings of {self.embedding_dim}"
        fits = self.model_in_dim == parts * self.embedding_dim
        require(fits, f"{name}.model_in_dim", self.model_in_dim, expected)
        predictor = self.dur_predictor_params
        width = self.embedding_dim if predictor is None else predictor.encoder_embed_dim
        expected = f"embedding_dim = {self.embedding_dim}"
        name = f"{name}.dur_predictor_params.encoder_embed_dim"
        require(width == self.embedding_dim, name, width, expected)

    @property
    def frame_rate(self) -> float:
        """Returns the units a second."""
        return self.sampling_rate / self.code_hop_size


def context_units(config: HiFiGANConfig) -> int:
    """Returns how many units on either side a sample of a unit depends on, at most."""
    reach = END_TAPS // 2
    blocks = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
    block = max(
        taps // 2 * (sum(dilations) + len(dilations) * (config.resblock == "1"))
        for taps, dilations in blocks
    )
    stages = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
    for rate, taps in reversed(list(stages)):
        reach = -(-(reach + block + taps) // rate)
    return reach + END_TAPS // 2


def config_from_json(values: Mapping[str, Any], source: object) -> HiFiGANConfig:
    """Returns the configuration that a `config.json` of textless-lib's or fairseq's holds.

    Settings of training are passed over.

    Args:
      values: the object in the file.
      source: its path, for messages.

    Raises:
      ValueError: a value is missing or not as `HiFiGANConfig` has it, or the vocoder takes more
        than units, a speaker and a style.
    """
    on = [name for name in _OTHER_INPUTS if values.get(name)]
    if on:
        raise ValueError(
            f"{source}: {list_names(on)} = {quote(values[on[0]])} is an input that this vocoder "
            "does not have, expected units, a speaker and a style alone"
        )
    fields = {name: values[name] for name in _FIELDS if values.get(name) is not None}
    missing = [name for name in _REQUIRED if name not in fields]
    if missing:
        raise ValueError(
            f"{source} is without {list_names(missing)}, expected a vocoder's settings"
        )
    for name in ("multispkr", "multistyle"):  # some have the name of a file there
        fields[name] = bool(fields.get(name))
    fields["resblock"] = str(fields.get("resblock", "1"))
    if not fields.get("dur_predictor_params"):
        fields["dur_predictor_params"] = None
    rates = fields["upsample_rates"]
    whole = isinstance(rates, list) and all(type(x) is int and 0 < x < 2**20 for x in rates[:16])
    if "code_hop_size" not in fields and whole:
        fields["code_hop_size"] = math.prod(rates[:16])
    if "model_in_dim" not in fields:
        fields["model_in_dim"] = fields["embedding_dim"]
    return validate_fields(HiFiGANConfig, fields, source, ignore_unknown=True)


_FIELDS = tuple(HiFiGANConfig.__dataclass_fields__)
_REQUIRED = (
    "resblock_kernel_sizes",
    "resblock_dilation_sizes",
    "upsample_rates",
    "upsample_kernel_sizes",
    "upsample_initial_channel",
    "num_embeddings",
    "embedding_dim",
    "sampling_rate",
)
# Further inputs of vocoders of this family, by the settings that turn them on.
_OTHER_INPUTS = (
    *("f0", "f0_quant_num_bin", "num_f0_tokens", "num_style_tokens", "embedder_params"),
    *("f0_vq_params", "code_vq_params", "f0_quantizer", "code_encoder_params"),
)
