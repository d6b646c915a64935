"""Model configurations: frozen dataclasses that validate themselves and nothing else."""

from __future__ import annotations

import dataclasses
from typing import Literal

Pooling = Literal["max", "mean"]
CrossResidual = Literal["single", "double"]
Layers = Literal["all", "last"]

# A width that compilers tile well; inside the model the vocabulary is padded to a multiple of it.
LANE = 128


def require(condition: bool, argument: str, value: object, expected: str) -> None:
    """Raises a `ValueError` that names the argument, its value and what was expected."""
    if not condition:
        raise ValueError(f"{argument}={value!r}: expected {expected}")


def hidden_width(width: int, multiple_of: int) -> int:
    """SwiGLU hidden width: `multiple_of * ceil(floor(8 * width / 3) / multiple_of)`."""
    return multiple_of * -(-(8 * width // 3) // multiple_of)


def padded_size(size: int) -> int:
    """The vocabulary size rounded up to a multiple of `LANE`."""
    return LANE * -(-size // LANE)


def _require_positive(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        require(isinstance(value, int) and value > 0, name, value, "a positive integer")


def _require_heads(width_name: str, width: int, heads_name: str, heads: int) -> None:
    require(
        width % heads == 0 and (width // heads) % 2 == 0,
        heads_name,
        heads,
        f"a divisor of {width_name}={width} that leaves an even head width (RoPE rotates pairs)",
    )


@dataclasses.dataclass(frozen=True)
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

    vocab_size: int
    dim_local: int
    dim_global: int
    num_layers_encoder: int
    num_layers_global: int
    num_layers_decoder: int
    num_heads_local: int
    num_heads_global: int
    num_heads_cross: int | None = None
    latent_vectors_per_patch: int = 2
    local_window: int = 512
    encoder_cross_window: int = 512
    decoder_cross_window: int = 512
    pooling: Pooling = "max"
    encoder_cross_layers: Layers = "all"
    cross_residual: CrossResidual = "single"
    document_cross_masking: bool = True
    multiple_of: int = 256
    rope_theta: float = 5e5
    norm_eps: float = 1e-5
    dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        _require_positive(
            self,
            *("vocab_size", "dim_local", "dim_global", "num_layers_encoder", "num_layers_global"),
            *("num_layers_decoder", "num_heads_local", "num_heads_global"),
            *("latent_vectors_per_patch", "local_window", "encoder_cross_window"),
            *("decoder_cross_window", "multiple_of"),
        )
        _require_heads("dim_local", self.dim_local, "num_heads_local", self.num_heads_local)
        _require_heads("dim_global", self.dim_global, "num_heads_global", self.num_heads_global)
        require(
            self.num_heads_cross is None
            or (self.num_heads_cross > 0 and self.dim_local % self.num_heads_cross == 0),
            "num_heads_cross",
            self.num_heads_cross,
            f"None or a divisor of dim_local={self.dim_local}",
        )
        require(self.pooling in ("max", "mean"), "pooling", self.pooling, "'max' or 'mean'")
        require(
            self.encoder_cross_layers in ("all", "last"),
            "encoder_cross_layers",
            self.encoder_cross_layers,
            "'all' or 'last'",
        )
        require(
            self.cross_residual in ("single", "double"),
            "cross_residual",
            self.cross_residual,
            "'single' or 'double'",
        )
        require(
            self.dim_local != self.dim_global or self.latent_vectors_per_patch == 1,
            "latent_vectors_per_patch",
            self.latent_vectors_per_patch,
            "1 where dim_local equals dim_global (the patch is then one vector, not projected)",
        )
        require(
            self.dtype in ("bfloat16", "float32"), "dtype", self.dtype, "'bfloat16' or 'float32'"
        )

    @property
    def cross_attention_heads(self) -> int:
        """Heads of every cross-attention."""
        return self.num_heads_cross or self.num_heads_local


@dataclasses.dataclass(frozen=True)
class TokenTransformerConfig:
    """Shape and numerics of the unpatched baseline (the paper's Base SpeechLLM).

    Text tokens and speech units enter one decoder-only transformer directly; its width, layers and
    heads are those of the LST's global transformer. Attributes are as in `LSTConfig`.
    """

    vocab_size: int
    dim_global: int
    num_layers_global: int
    num_heads_global: int
    multiple_of: int = 256
    rope_theta: float = 5e5
    norm_eps: float = 1e-5
    dtype: str = "bfloat16"
    remat: str = "none"
    attention: str = "auto"

    def __post_init__(self) -> None:
        _require_positive(
            self, "vocab_size", "dim_global", "num_layers_global", "num_heads_global", "multiple_of"
        )
        _require_heads("dim_global", self.dim_global, "num_heads_global", self.num_heads_global)
        require(
            self.dtype in ("bfloat16", "float32"), "dtype", self.dtype, "'bfloat16' or 'float32'"
        )


ModelConfig = LSTConfig | TokenTransformerConfig


def baseline_of(config: LSTConfig) -> TokenTransformerConfig:
    """The unpatched baseline: the global transformer of `config` on its own."""
    shared = {f.name for f in dataclasses.fields(TokenTransformerConfig)}
    return TokenTransformerConfig(
        **{name: value for name, value in dataclasses.asdict(config).items() if name in shared}
    )
