"""Model configurations: settings that are checked when they are made, and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

from lst_jax.settings import (
    Bounds,
    Depth,
    PositiveFloat,
    PositiveInt,
    UnrolledDepth,
    VocabularySize,
    Width,
    configuration,
    require,
)

Pooling = Literal["max", "mean"]
CrossResidual = Literal["single", "double"]
Layers = Literal["all", "last"]
ComputeType = Literal["bfloat16", "float32"]
# By name, so that a configuration loads none of what they name: `layers.REMAT_POLICIES` and
# `attention.BACKENDS` have the same names.
Remat = Literal["none", "dots", "full"]
AttentionBackend = Literal[
    "auto", "dense", "blocked", "lockstep", "pallas_tpu", "mosaic_gpu", "triton", "gpu"
]
Epsilon = Annotated[float, Bounds(above=0, most=1)]
NgramSize = Annotated[int, Bounds(least=2, most=64)]

# A width that compilers tile well; inside the model the vocabulary is padded to a multiple of it.
LANE = 128


def hidden_width(width: int, multiple_of: int) -> int:
    """Returns SwiGLU hidden width: `multiple_of * ceil(floor(8 * width / 3) / multiple_of)`."""
    return multiple_of * -(-(8 * width // 3) // multiple_of)


def padded_size(size: int) -> int:
    """Returns the vocabulary size rounded up to a multiple of `LANE`."""
    return LANE * -(-size // LANE)


def _require_heads(config: ModelConfig, width_name: str, heads_name: str) -> None:
    width, heads = getattr(config, width_name), getattr(config, heads_name)
    require(
        width % heads == 0 and (width // heads) % 2 == 0,
        f"{type(config).__name__}.{heads_name}",
        heads,
        f"a divisor of {width_name} = {width} that leaves an even head width (RoPE rotates pairs)",
    )


@configuration
class LSTConfig:
    """Shape and numerics of a `LatentSpeechTextTransformer` (paper section 3, Table 7).

    Attributes:
      vocab_size: entries of the id space (`Vocabulary.size`).
      dim_local: width d of the patch encoder and decoder.
      dim_global: width D of the global transformer.
      num_layers_encoder, num_layers_global, num_layers_decoder: layers of the three modules.
      num_heads_local: heads of every self-attention over tokens.
      num_heads_global: heads of the global transformer.
      num_heads_cross: heads of every cross-attention; None: as many as `num_heads_local`.
      latent_vectors_per_patch: k, vectors of width d that stand for one patch.
      local_window: W, tokens that a token's self-attention may read, itself included.
      encoder_cross_window: W_enc, patches whose tokens a patch query may read.
      decoder_cross_window: W_dec, patches whose latent vectors a token may read.
      pooling: how a patch's queries start from the hidden states of its tokens.
      encoder_cross_layers: patch queries read the tokens after "all" encoder layers or the "last".
      hash_ngram_sizes: n of the n-grams whose hashed embeddings the patch encoder adds to those of
        tokens; none as in the paper, where they did not help.
      hash_table_size: rows of the table of each n, a multiple of `LANE`.
      cross_residual: "single" adds the residual of a cross-attention once; "double" adds it twice,
        as the published checkpoints were trained.
      document_cross_masking: cross-attention stays inside its document; False is what the
        published checkpoints were trained with.
      multiple_of: rounding of the SwiGLU hidden widths.
      rope_theta: base of the rotary embedding.
      norm_eps: epsilon of every RMSNorm.
      dtype: compute type of activations and matrix products ("bfloat16" or "float32").
      remat: rematerialization policy by name (`layers.REMAT_POLICIES`).
      attention: attention backend by name (`attention.BACKENDS`).
    """

    vocab_size: VocabularySize
    dim_local: Width
    dim_global: Width
    num_layers_encoder: UnrolledDepth
    num_layers_global: Depth
    num_layers_decoder: Depth
    num_heads_local: Width
    num_heads_global: Width
    num_heads_cross: Width | None = None
    latent_vectors_per_patch: Width = 2
    local_window: PositiveInt = 512
    encoder_cross_window: PositiveInt = 512
    decoder_cross_window: PositiveInt = 512
    pooling: Pooling = "max"
    encoder_cross_layers: Layers = "all"
    hash_ngram_sizes: tuple[NgramSize, ...] = ()
    hash_table_size: VocabularySize = 2**14
    cross_residual: CrossResidual = "single"
    document_cross_masking: bool = True
    multiple_of: Width = 256
    rope_theta: PositiveFloat = 5e5
    norm_eps: Epsilon = 1e-5
    dtype: ComputeType = "bfloat16"
    remat: Remat = "none"
    attention: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        _require_heads(self, "dim_local", "num_heads_local")
        _require_heads(self, "dim_global", "num_heads_global")
        require(
            self.dim_local % self.cross_attention_heads == 0,
            "LSTConfig.num_heads_cross",
            self.num_heads_cross,
            f"None or a divisor of dim_local = {self.dim_local}",
        )
        require(
            self.dim_local != self.dim_global or self.latent_vectors_per_patch == 1,
            "LSTConfig.latent_vectors_per_patch",
            self.latent_vectors_per_patch,
            "1 where dim_local equals dim_global (the patch is then one vector, not projected)",
        )

        sizes = self.hash_ngram_sizes
        require(
            len(set(sizes)) == len(sizes),
            "LSTConfig.hash_ngram_sizes",
            sizes,
            "sizes that differ",
        )
        require(
            self.hash_table_size % LANE == 0,
            "LSTConfig.hash_table_size",
            self.hash_table_size,
            f"a multiple of {LANE}",
        )

    @property
    def recent_tokens(self) -> int:
        """Returns the tokens of the longest n-gram; 0 without n-grams."""
        return max(self.hash_ngram_sizes, default=0)

    @property
    def cross_attention_heads(self) -> int:
        """Returns the heads of every cross-attention."""
        return self.num_heads_cross or self.num_heads_local


@configuration
class TokenTransformerConfig:
    """Shape and numerics of the unpatched baseline (the paper's Base SpeechLLM).

    Text tokens and speech units enter one decoder-only transformer directly; its width, layers and
    heads are those of the LST's global transformer. Attributes are as in `LSTConfig`.
    """

    vocab_size: VocabularySize
    dim_global: Width
    num_layers_global: Depth
    num_heads_global: Width
    multiple_of: Width = 256
    rope_theta: PositiveFloat = 5e5
    norm_eps: Epsilon = 1e-5
    dtype: ComputeType = "bfloat16"
    remat: Remat = "none"
    attention: AttentionBackend = "auto"

    def __post_init__(self) -> None:
        _require_heads(self, "dim_global", "num_heads_global")


ModelConfig = LSTConfig | TokenTransformerConfig


def baseline_of(config: LSTConfig) -> TokenTransformerConfig:
    """Returns the unpatched baseline: the global transformer of `config` on its own."""
    shared = {f.name for f in dataclasses.fields(TokenTransformerConfig)}
    return TokenTransformerConfig(
        **{name: value for name, value in dataclasses.asdict(config).items() if name in shared}
    )
