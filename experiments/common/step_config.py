"""A training step at its real shapes, and presets of it that need no Gin.

The presets are those of the Gin files of the same names (`experiments/configs/models`) under
`experiments/configs/runs/pretrain.gin`, or `runs/tiny.gin` for `tiny`; a test holds the two
together. They are for machines that have JAX and Flax, and none of the libraries that read data.
"""

from __future__ import annotations

import dataclasses

from lst_jax.config import ComputeType, LSTConfig, ModelConfig, Remat, baseline_of
from lst_jax.patching import PatchingConfig
from lst_jax.settings import BatchRows, RowSlots, configuration, quote
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from lst_jax.vocabulary import Vocabulary


@configuration
class StepConfig:
    """A training step at its real shapes.

    Attributes:
      model: configuration of the model.
      vocabulary: whose size the model has.
      optimizer: AdamW and its schedule.
      training: steps and accumulation.
      patching: strategy and patch size.
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      num_rows: rows of the run's batch; rounded up to what the mesh divides.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    optimizer: OptimizerConfig
    training: TrainingConfig
    patching: PatchingConfig
    num_patches: RowSlots
    num_tokens: RowSlots
    num_rows: BatchRows


@dataclasses.dataclass(frozen=True)
class _Shape:
    """What the model files differ in, and the rows that a model is trained on."""

    dim_local: int
    dim_global: int
    layers: tuple[int, int, int]  # encoder, global transformer, decoder
    heads: tuple[int, int]  # over tokens, over patches
    remat: Remat
    multiple_of: int = 256
    dtype: ComputeType = "bfloat16"
    row: tuple[int, int] = (4096, 5632)  # patches and tokens
    num_rows: int = 128
    text_size: int = 32_000  # of Llama 2


_SHAPES = {
    "tiny": _Shape(96, 192, (1, 3, 2), (4, 4), "none", 64, "float32", (256, 352), 8, 1000),
    "420m": _Shape(640, 1280, (1, 16, 6), (10, 10), "dots"),
    "1b": _Shape(1024, 2048, (1, 25, 9), (16, 16), "full"),
    "7b": _Shape(2048, 4096, (1, 30, 10), (32, 32), "full"),
}

PRESETS = tuple(_SHAPES)


def preset(name: str, text_size: int | None = None) -> StepConfig:
    """Returns the step of a model file at the shapes of its run file.

    Args:
      name: one of `PRESETS`.
      text_size: pieces of the text tokenizer; None: Llama 2's 32,000, or 1,000 for `tiny`.

    Raises:
      ValueError: the name is unknown.
    """
    if name not in _SHAPES:
        raise ValueError(f"preset is {quote(name)}, expected one of {', '.join(PRESETS)}")
    shape = _SHAPES[name]
    vocabulary = Vocabulary(text_size or shape.text_size)
    encoder, global_, decoder = shape.layers
    model = LSTConfig(
        vocab_size=vocabulary.size,
        dim_local=shape.dim_local,
        dim_global=shape.dim_global,
        num_layers_encoder=encoder,
        num_layers_global=global_,
        num_layers_decoder=decoder,
        num_heads_local=shape.heads[0],
        num_heads_global=shape.heads[1],
        multiple_of=shape.multiple_of,
        dtype=shape.dtype,
        remat=shape.remat,
    )
    return StepConfig(
        model=model,
        vocabulary=vocabulary,
        optimizer=OptimizerConfig(),
        training=TrainingConfig(num_steps=200_000),
        patching=PatchingConfig("static"),
        num_patches=shape.row[0],
        num_tokens=shape.row[1],
        num_rows=shape.num_rows,
    )


def baseline(config: StepConfig) -> StepConfig:
    """Returns the unpatched baseline's step with as many patches (tokens) a row."""
    if not isinstance(config.model, LSTConfig):
        raise ValueError(f"config.model is {quote(config.model)}, expected an LSTConfig")
    return dataclasses.replace(
        config,
        model=baseline_of(config.model),
        patching=PatchingConfig("none"),
        num_tokens=config.num_patches,
    )
