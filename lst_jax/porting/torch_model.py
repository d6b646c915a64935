"""The Latent Speech-Text Transformer in PyTorch: one file that needs nothing else of this project.

It loads an exported folder (`config.json` with `model.safetensors`, its shards or
`consolidated.pth`) and gives the logits that the Flax model gives:

    config = read_config(folder)
    model = load_model(folder)
    batch = make_batch([[tokens]], config)      # one row that holds one document
    logits = model(*batch)                      # (1, N, vocab_size) float32

or, from a shell,

    python torch_model.py FOLDER --tokenizer=tokenizer.model --text="the dog" --units=3,17,17,9

It is written to be read: masks are Boolean arrays built from positions, documents and patches.
Sizes are named B rows, N tokens of a row, P patches of a row, k latent vectors of a patch, d local
width, D global width, H heads.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pathlib
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn, cast

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ----------------------------------------------------------------------------- configuration


def _require(condition: bool, argument: str, value: object, expected: str) -> None:
    if not condition:
        shown = repr(value[:99] if isinstance(value, str) else value)[:80]
        raise ValueError(f"{argument}={shown}: expected {expected}")


@dataclasses.dataclass(frozen=True)
class LSTConfig:
    """Shape of a `LatentSpeechTextTransformer`.

    Attributes:
      vocab_size: entries of the id space.
      dim_local, dim_global: widths d and D.
      num_layers_encoder, num_layers_global, num_layers_decoder: layers of the three modules.
      num_heads_local, num_heads_global: heads of self-attention over tokens and over patches.
      num_heads_cross: heads of every cross-attention; None: as many as `num_heads_local`.
      latent_vectors_per_patch: k.
      local_window: tokens that a token's self-attention may read, itself included.
      encoder_cross_window: patches whose tokens a patch may read, itself included.
      decoder_cross_window: patches whose latent vectors a token may read.
      pooling: "max" or "mean" of a patch's token states begins its queries.
      encoder_cross_layers: patches read the tokens after "all" encoder layers or only the "last".
      cross_residual: "single", or "double" where a cross-attention adds its residual twice.
      document_cross_masking: whether cross-attention stays inside its document.
      multiple_of: rounding of the SwiGLU hidden widths.
      rope_theta: base of the rotary embedding.
      norm_eps: epsilon of every RMSNorm.
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
    pooling: str = "max"
    encoder_cross_layers: str = "all"
    cross_residual: str = "single"
    document_cross_masking: bool = True
    multiple_of: int = 256
    rope_theta: float = 5e5
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_fields(self)
        _require_choice("pooling", self.pooling, "max", "mean")
        _require_choice("encoder_cross_layers", self.encoder_cross_layers, "all", "last")
        _require_choice("cross_residual", self.cross_residual, "single", "double")
        _require_heads("num_heads_local", self.num_heads_local, self.dim_local)
        _require_heads("num_heads_global", self.num_heads_global, self.dim_global)
        _require(
            self.dim_local % self.cross_heads == 0,
            "num_heads_cross",
            self.num_heads_cross,
            f"a divisor of {self.dim_local}",
        )
        _require(
            self.dim_local != self.dim_global or self.latent_vectors_per_patch == 1,
            "latent_vectors_per_patch",
            self.latent_vectors_per_patch,
            "1 where dim_local equals dim_global",
        )

    @property
    def cross_heads(self) -> int:
        """Returns the heads of every cross-attention."""
        return self.num_heads_local if self.num_heads_cross is None else self.num_heads_cross


@dataclasses.dataclass(frozen=True)
class TokenTransformerConfig:
    """Shape of a `TokenTransformer`; attributes as in `LSTConfig`."""

    vocab_size: int
    dim_global: int
    num_layers_global: int
    num_heads_global: int
    multiple_of: int = 256
    rope_theta: float = 5e5
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        _check_fields(self)
        _require_heads("num_heads_global", self.num_heads_global, self.dim_global)


ModelConfig = LSTConfig | TokenTransformerConfig


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Which id means what: V text pieces, four reserved ids, `<t>`, `<s>`, the speech units.

    Attributes:
      text_size: number of text pieces V.
      bos_id, eos_id: ids that open and end a document, below V.
      unit_count: number of speech units.
    """

    text_size: int
    bos_id: int = 1
    eos_id: int = 2
    unit_count: int = 502

    def __post_init__(self) -> None:
        _check_fields(self)

    @property
    def text_mode_id(self) -> int:
        """Returns the id of `<t>`, which opens a text segment."""
        return self.text_size + 4

    @property
    def speech_mode_id(self) -> int:
        """Returns the id of `<s>`, which opens a speech segment."""
        return self.text_size + 5

    @property
    def first_unit_id(self) -> int:
        """Returns the id of speech unit 0."""
        return self.text_size + 6

    @property
    def size(self) -> int:
        """Returns the number of ids."""
        return self.first_unit_id + self.unit_count

    def is_unit(self, tokens: np.ndarray) -> np.ndarray:
        """Returns bool (T,): which tokens are speech units."""
        return (tokens >= self.first_unit_id) & (tokens < self.size)


@dataclasses.dataclass(frozen=True)
class Patching:
    """How speech that nobody has aligned is cut into patches.

    Attributes:
      patch_size: units of a full patch; 1 makes every token a patch.
      join_speech_mode: whether `<s>` belongs to the first patch of the run that it opens.
      visibility: when a token's prediction may use a patch. "causal": once the tokens so far prove
        that it is complete. "reference": at its last token, as in published checkpoints.
    """

    patch_size: int = 4
    join_speech_mode: bool = False
    visibility: str = "causal"

    def __post_init__(self) -> None:
        _check_fields(self)
        _require_choice("visibility", self.visibility, "causal", "reference")


@dataclasses.dataclass(frozen=True)
class Config:
    """What an exported folder's `config.json` says.

    Attributes:
      model: shape of the model.
      vocabulary: the id space.
      patching: of the rows that it was trained on; None where the file does not say, and then
        batches have to be made elsewhere.
      tokenizer_fingerprint: SHA-256 of the text tokenizer's file; None where not known.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    patching: Patching | None = None
    tokenizer_fingerprint: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.model.vocab_size == self.vocabulary.size,
            "vocab_size",
            self.model.vocab_size,
            f"{self.vocabulary.size}, the size of {self.vocabulary}",
        )


def read_config(folder: str | pathlib.Path) -> Config:
    """Reads `config.json` of an exported folder.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it does not describe a model.
    """
    file = pathlib.Path(folder) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the folder of an exported model")
    try:
        return config_from_json(_read_json(file))
    except (ValueError, TypeError) as error:  # fields that are missing or unknown: TypeError
        raise ValueError(f"{file}: {error}") from error
    except RecursionError:
        raise ValueError(
            f"{file}: nested too deeply, expected the configuration of a model"
        ) from None


def _read_json(file: pathlib.Path) -> Any:
    """Returns what a JSON file holds; refuses what is not JSON's, or says a thing twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in values if names.count(name) > 1)
            raise ValueError(f"key twice: {twice[:80]!r}, expected every key once")
        return values

    def refuse(name: str) -> NoReturn:
        raise ValueError(f"{name} is no number")

    text = file.read_text(encoding="utf-8-sig")
    return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)


def config_from_json(values: Mapping[str, Any]) -> Config:
    """Returns the configuration that `config.json` holds, from its parsed values.

    Raises:
      TypeError: a field is missing or unknown.
      ValueError: a value is not one of those that are possible.
    """
    _require(isinstance(values, Mapping), "config", values, "an object")
    version = values.get("format_version", 1)  # version 1 did not say
    _require(type(version) is int and version in (1, 2), "format_version", version, "1 or 2")
    # Version 2 has room for what no model has yet; one that has it is none of these.
    _require_absent("global_transformer", values.get("global_transformer"))
    _require_plain(values.get("units"))
    model = _section(values, "model")
    kinds = {kind.__name__: kind for kind in (LSTConfig, TokenTransformerConfig)}
    kind = model.pop("kind", None)
    _require_choice("kind", kind, *kinds)
    # How the Flax model is computed says nothing of what it computes.
    for name in ("dtype", "remat", "attention"):
        model.pop(name, None)
    _require_absent("hash_ngram_sizes", model.pop("hash_ngram_sizes", None) or None)
    model.pop("hash_table_size", None)  # of tables that the model then has not
    return Config(
        model=kinds[kind](**model),
        vocabulary=Vocabulary(**_section(values, "vocabulary")),
        patching=_patching_from_json(_section(values, "data")),
        tokenizer_fingerprint=values.get("tokenizer_fingerprint"),
    )


def _patching_from_json(data: Mapping[str, Any]) -> Patching | None:
    """Returns static patching with the settings of `data`, aligned ones included."""
    if data.get("patching") is None:
        return None
    settings = _section(data, "patching")
    if settings.get("strategy") == "none":
        return Patching(patch_size=1)
    kept = {name: settings[name] for name in ("patch_size", "join_speech_mode") if name in settings}
    return Patching(visibility=data.get("visibility") or "causal", **kept)


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    _require(isinstance(section, Mapping), name, section, "an object")
    assert isinstance(section, Mapping)
    return dict(section)


def _require_absent(name: str, options: object) -> None:
    """Raises unless options are not there, or none is set."""
    unset = options is None or (isinstance(options, Mapping) and not any(options.values()))
    _require(unset, name, options, "none set")


def _require_plain(units: object) -> None:
    """Raises unless every unit is an id: `lst_jax` alone joins units and drops repeats."""
    if isinstance(units, Mapping):
        means = ("run_length", "units_per_id")
        units = {name: value for name, value in units.items() if name not in means and value}
    _require(not units, "units", repr(units)[:80], "every unit an id, none joined or dropped")


def _check_fields(config: Any) -> None:
    """Checks that integers are positive (ids: not negative), and truth values Boolean."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name.endswith("_id"):
            _require(type(value) is int and value >= 0, field.name, value, "an id")
        elif field.type == "int" or (field.type == "int | None" and value is not None):
            # What sizes memory, or a loop, before anything else can refuse it.
            bounds = {"num_layers": 2**10, "num_heads": 2**16, "dim_": 2**16, "multiple_of": 2**16}
            most = min([2**31 - 1, *(n for x, n in bounds.items() if field.name.startswith(x))])
            good = type(value) is int and 0 < value <= most
            _require(good, field.name, value, f"a positive integer, at most {most}")
        elif field.type == "float":
            number = type(value) in (int, float)
            good = number and 0 < cast(float, value) < 1e300
            _require(good, field.name, value, "a positive number")
        elif field.type == "bool":
            _require(type(value) is bool, field.name, value, "true or false")


def _require_choice(name: str, value: object, *choices: str) -> None:
    _require(value in choices, name, value, " or ".join(map(repr, choices)))


def _require_heads(name: str, heads: int, width: int) -> None:
    good = width % heads == 0 and (width // heads) % 2 == 0
    _require(good, name, heads, f"a divisor of {width} that leaves an even head width")


# ----------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    """Arguments of a model's `forward`, each (B, N) int64; padding is at the end of a row.

    Attributes:
      tokens: ids; 0 where padded.
      document_ids: 1, 2, … along a row; 0 where padded.
      patch_ids: patch of the row that holds the token; P, one past the last, where padded.
      visible_patch: last patch of the row that the token's prediction may use; where it is before
        the token's document the prediction may use none. −1 where padded.
    """

    tokens: Tensor
    document_ids: Tensor
    patch_ids: Tensor
    visible_patch: Tensor


def make_batch(
    rows: Sequence[Sequence[np.ndarray]],
    config: Config,
    aligned_lengths: Sequence[Sequence[np.ndarray | None]] | None = None,
    num_tokens: int | None = None,
    num_patches: int | None = None,
) -> Batch:
    """Patches documents and puts them in rows.

    A document may be a prompt, without its eos. Under the "causal" visibility the row's last token
    then uses what is proven complete, as it would with any token after it. The "reference"
    visibility depends on the token after; a prompt's end is taken for the end of a patch.

    Args:
      rows: the documents of every row, each int (T,), bos … eos.
      config: the vocabulary and the patching.
      aligned_lengths: beside every document the token counts of its patches, int (Q,), where its
        speech is patched by words, else None. All other tokens are patches of length 1.
      num_tokens: N; by default that of the longest row.
      num_patches: P; by default that of the row with most patches.

    Raises:
      ValueError: documents, patch lengths or sizes do not fit.
    """
    vocabulary, patching = config.vocabulary, config.patching
    if patching is None:
        raise ValueError("patching=None: expected a configuration that says how speech is patched")
    sizes = [len(row) for row in rows]
    lengths = [[None] * n for n in sizes] if aligned_lengths is None else aligned_lengths
    given = [len(row) for row in lengths]
    _require(sizes != [], "rows", rows, "at least one row")
    _require(given == sizes, "aligned_lengths", given, f"as many as documents, {sizes}")
    filled = [
        _fill_row([_patch(*pair, vocabulary, patching) for pair in zip(*row, strict=True)])
        for row in zip(rows, lengths, strict=True)
    ]
    longest = max(1, *(row.shape[1] for row in filled))
    most = max(1, *(int(row[2].max(initial=0)) + 1 for row in filled))
    num_tokens = longest if num_tokens is None else num_tokens
    num_patches = most if num_patches is None else num_patches
    _require(num_tokens >= longest, "num_tokens", num_tokens, f"at least {longest}")
    _require(num_patches >= most, "num_patches", num_patches, f"at least {most}")

    arrays = np.empty((len(Batch._fields), len(filled), num_tokens), np.int64)
    arrays[:] = np.array([0, 0, num_patches, -1])[:, None, None]
    for index, row in enumerate(filled):
        arrays[:, index, : row.shape[1]] = row
    return Batch(*torch.from_numpy(arrays))


def _fill_row(documents: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> np.ndarray:
    """Lays patched documents end to end: the four arrays of a row without padding, (4, N)."""
    empty = np.zeros(0, np.int64)
    tokens = np.concatenate([empty, *(document[0] for document in documents)])
    begins = np.concatenate([empty, *(document[1] for document in documents)])
    complete = np.concatenate([empty, *(document[2] for document in documents)])
    counts = [len(document[0]) for document in documents]
    document_ids = np.repeat(np.arange(1, len(documents) + 1), counts)
    patch_ids = np.cumsum(begins) - 1
    # The patch itself where it is complete; else the one before it, which has ended.
    return np.stack([tokens, document_ids, patch_ids, patch_ids - 1 + complete])


def _patch(
    tokens: np.ndarray,
    aligned_lengths: np.ndarray | None,
    vocabulary: Vocabulary,
    patching: Patching,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a document, and for each of its tokens two Booleans (T,).

    `begins` says that the token begins a patch, `complete` that it completes its patch and that
    its own prediction may know that.
    """
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or not tokens.size or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(f"document has {tokens.dtype} {tokens.shape}: expected integers (T,)")
    size = vocabulary.size
    if tokens.min() < 0 or tokens.max() >= size:
        raise ValueError(f"document has ids {tokens.min()} … {tokens.max()}: expected 0 … {size}−1")
    if aligned_lengths is None:
        begins, proven = _static_patches(tokens, vocabulary, patching)
    else:
        begins, proven = _aligned_patches(tokens, vocabulary, aligned_lengths)
    ends = np.append(begins[1:], True)
    return tokens, begins, ends if patching.visibility == "reference" else proven


def _static_patches(
    tokens: np.ndarray, vocabulary: Vocabulary, patching: Patching
) -> tuple[np.ndarray, np.ndarray]:
    """Groups of `patch_size` from the start of each run of units; a run's last may be shorter."""
    positions, patch_size = np.arange(len(tokens)), patching.patch_size
    in_run = vocabulary.is_unit(tokens)
    opens = in_run & ~np.append(False, in_run[:-1])
    if patching.join_speech_mode:
        mode = tokens == vocabulary.speech_mode_id
        opens = (opens & ~np.append(False, mode[:-1])) | mode
        in_run = in_run | mode
    in_patch = (positions - np.maximum.accumulate(np.where(opens, positions, 0))) % patch_size
    # Only a full patch proves by its own tokens that it ends: a shorter one could go on.
    return ~in_run | (in_patch == 0), ~in_run | (in_patch == patch_size - 1)


def _aligned_patches(
    tokens: np.ndarray, vocabulary: Vocabulary, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Makes patches of the given lengths. No word proves by its own units that it ends."""
    lengths, is_unit = np.asarray(lengths), vocabulary.is_unit(tokens)
    whole = lengths.ndim == 1 and np.issubdtype(lengths.dtype, np.integer)
    if not whole or lengths.min(initial=1) < 1 or lengths.sum() != len(tokens):
        raise ValueError(
            f"aligned_lengths={lengths.tolist()}: expected integers of at least 1 that sum to "
            f"{len(tokens)}"
        )
    begins = np.zeros(len(tokens), bool)
    begins[np.cumsum(lengths) - lengths] = True
    if (~is_unit & np.repeat(lengths > 1, lengths)).any():
        raise ValueError(
            f"aligned_lengths={lengths.tolist()}: expected only speech units in patches of several"
        )
    return begins, ~is_unit


# ----------------------------------------------------------------------------- layers


def attend(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Computes attention: query i reads the keys j with mask[i, j], scaled by 1/√head width.

    Args:
      queries: (B, H, Q, head width).
      keys, values: (B, H, K, head width).
      mask: bool (B, Q, K).

    Returns:
      (B, H, Q, head width); zeros, and zero gradients, where a query may read nothing.
    """
    # A softmax over nothing is not defined; such a query reads everything and is set to zero.
    reads_nothing = ~mask.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=(mask | reads_nothing)[:, None]
    )
    return out.masked_fill(reads_nothing[:, None], 0)


def rotate(x: Tensor, theta: float) -> Tensor:
    """Applies the rotary embedding to pairs (2i, 2i + 1); positions count along the row.

    Args:
      x: (B, H, L, head width).
      theta: base of the geometric series of wave lengths.

    Returns:
      As x; computed in float32.
    """
    length, width = x.shape[-2:]
    pair = torch.arange(0, width, 2, dtype=torch.float32, device=x.device)
    position = torch.arange(length, dtype=torch.float32, device=x.device)
    angle = position[:, None] * theta ** (-pair / width)
    cos, sin = angle.cos(), angle.sin()
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return rotated.flatten(-2).to(x.dtype)


def linear(width_in: int, width_out: int) -> nn.Linear:
    """Returns a projection without bias."""
    return nn.Linear(width_in, width_out, bias=False)


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned scale; statistics in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Maps (…, width) to the same shape and dtype."""
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.epsilon)
        return (wide * scale * self.weight.float()).to(x.dtype)


class Projections(nn.Module):
    """The four projections of a multi-head attention."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.wq = linear(width, width)
        self.wk = linear(width, width)
        self.wv = linear(width, width)
        self.wo = linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """Maps (B, L, width) to (B, H, L, head width)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """Maps (B, H, L, head width) to (B, L, width)."""
        return x.transpose(1, 2).flatten(-2)


class SelfAttention(Projections):
    """Attention of positions to each other, with the rotary embedding."""

    def __init__(self, width: int, num_heads: int, theta: float) -> None:
        super().__init__(width, num_heads)
        self.theta = theta

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Maps x (B, L, width), mask (B, L, L) to (B, L, width)."""
        queries = rotate(self.split(self.wq(x)), self.theta)
        keys = rotate(self.split(self.wk(x)), self.theta)
        return self.wo(self.merge(attend(queries, keys, self.split(self.wv(x)), mask)))


class CrossAttention(Projections):
    """`h + Attention(norm h, norm memory)`, or `2h + …` where the residual is double."""

    def __init__(self, config: LSTConfig) -> None:
        super().__init__(config.dim_local, config.cross_heads)
        self.cross_attn_norm_q = RMSNorm(config.dim_local, config.norm_eps)
        self.cross_attn_norm_kv = RMSNorm(config.dim_local, config.norm_eps)
        self.residuals = 2 if config.cross_residual == "double" else 1

    def forward(self, h: Tensor, memory: Tensor, mask: Tensor) -> Tensor:
        """Maps h (B, Q, d), memory (B, K, d), mask (B, Q, K) to (B, Q, d)."""
        normed, memory = self.cross_attn_norm_q(h), self.cross_attn_norm_kv(memory)
        queries, keys = self.split(self.wq(normed)), self.split(self.wk(memory))
        out = attend(queries, keys, self.split(self.wv(memory)), mask)
        return self.residuals * h + self.wo(self.merge(out))


class FeedForward(nn.Module):
    """SwiGLU: `W2 (silu(W1 x) * W3 x)`."""

    def __init__(self, width: int, multiple_of: int) -> None:
        """Sets the hidden width to ⌊8 width / 3⌋, rounded up to a multiple of `multiple_of`."""
        super().__init__()
        hidden = multiple_of * -(-(8 * width // 3) // multiple_of)
        self.w1 = linear(width, hidden)
        self.w2 = linear(hidden, width)
        self.w3 = linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, L, width) to the same."""
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, num_heads: int, config: ModelConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(width, num_heads, config.rope_theta)
        self.feed_forward = FeedForward(width, config.multiple_of)
        self.attention_norm = RMSNorm(width, config.norm_eps)
        self.ffn_norm = RMSNorm(width, config.norm_eps)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        """Maps h (B, L, width), mask (B, L, L) to (B, L, width)."""
        h = h + self.attention(self.attention_norm(h), mask)
        return h + self.feed_forward(self.ffn_norm(h))


def project_logits(hidden: Tensor, output: nn.Linear) -> Tensor:
    """Maps (B, N, width) to logits (B, N, vocab_size), computed in float32 for every dtype."""
    return F.linear(hidden.float(), output.weight.float())


# ----------------------------------------------------------------------------- the model


class Masks(NamedTuple):
    """Who may read whom in the model's four attentions; Boolean (B, queries, keys).

    Attributes:
      token_self: (B, N, N) tokens read tokens, in the encoder and the decoder.
      encoder_cross: (B, P k, N) patch queries read tokens.
      global_self: (B, P, P) patches read patches.
      decoder_cross: (B, N, P k) tokens read latent vectors.
    """

    token_self: Tensor
    encoder_cross: Tensor
    global_self: Tensor
    decoder_cross: Tensor


def causal_mask(documents: Tensor, window: int | None = None) -> Tensor:
    """Lets a position read itself and those before it in its document, `window` in all.

    Args:
      documents: (B, L), the document of each position; 0 is padding, which reads nothing.
      window: positions that may be read; None is unbounded.

    Returns:
      bool (B, L, L).
    """
    position = torch.arange(documents.shape[1], device=documents.device)
    distance = position[:, None] - position
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    same_document = documents[:, :, None] == documents[:, None, :]
    return near & same_document & (documents > 0)[:, :, None]


def make_masks(
    document_ids: Tensor,
    patch_ids: Tensor,
    visible_patch: Tensor,
    num_patches: int,
    config: LSTConfig,
) -> Masks:
    """Returns the masks of the model's four attentions.

    Args:
      document_ids, patch_ids, visible_patch: (B, N), see `Batch`.
      num_patches: P.
      config: windows, k and whether cross-attention stays inside its document.
    """
    patch = torch.arange(num_patches, device=patch_ids.device)

    # A patch is of its first token's document. Only in published batches can it hold the end of one
    # and the beginning of the next. Slots that a row leaves unused come last; nothing reads them.
    belongs = patch_ids[:, None, :] == patch[:, None]  # (B, P, N)
    patch_documents = document_ids.gather(1, belongs.byte().argmax(-1))

    # Patch p reads the tokens of the patches p − W_enc + 1 … p.
    distance = patch[:, None] - patch_ids[:, None, :]  # (B, P, N)
    encoder_cross = (distance >= 0) & (distance < config.encoder_cross_window)

    # Token t reads the latent vectors of the patches visible − W_dec + 1 … visible.
    distance = visible_patch[:, :, None] - patch  # (B, N, P)
    decoder_cross = (distance >= 0) & (distance < config.decoder_cross_window)

    if config.document_cross_masking:
        # A token is read as a part of its patch, and reads from its document's first patch on.
        read_as = patch_documents.gather(1, patch_ids)
        encoder_cross &= patch_documents[:, :, None] == read_as[:, None, :]
        same_document = document_ids[:, :, None] == document_ids[:, None, :]
        first_patch = patch_ids.gather(1, same_document.byte().argmax(-1))
        decoder_cross &= patch >= first_patch[:, :, None]

    k = config.latent_vectors_per_patch
    return Masks(
        token_self=causal_mask(document_ids, config.local_window),
        encoder_cross=encoder_cross.repeat_interleave(k, dim=1),
        global_self=causal_mask(patch_documents),
        decoder_cross=decoder_cross.repeat_interleave(k, dim=2),
    )


def pool_patches(h: Tensor, patch_ids: Tensor, num_patches: int, pooling: str) -> Tensor:
    """Pools the token states of each patch by maximum or mean, in float32.

    Args:
      h: (B, N, d).
      patch_ids: (B, N).
      num_patches: P.
      pooling: "max" or "mean".

    Returns:
      (B, P, d) in h's dtype; zeros where a patch has no token.
    """
    slots = h.new_zeros(h.shape[0], num_patches, h.shape[2], dtype=torch.float32)
    index = patch_ids[:, :, None].expand_as(h)
    reduce = {"max": "amax", "mean": "mean"}[pooling]
    return slots.scatter_reduce(1, index, h.float(), reduce, include_self=False).to(h.dtype)


class PatchEncoder(nn.Module):
    """Windowed self-attention over tokens; patch queries then read the token states."""

    def __init__(self, config: LSTConfig) -> None:
        """Makes the layers; with `encoder_cross_layers` "last" its cross-attention is number 0."""
        super().__init__()
        self.config = config
        width, layers = config.dim_local, config.num_layers_encoder
        every = config.encoder_cross_layers == "all"
        self.tok_embeddings = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            Block(width, config.num_heads_local, config) for _ in range(layers)
        )
        self.patch_embedding_projection = linear(width, config.latent_vectors_per_patch * width)
        self.cross_attn_layers = nn.ModuleList(
            CrossAttention(config) for _ in range(layers if every else 1)
        )

    def forward(
        self, tokens: Tensor, patch_ids: Tensor, num_patches: int, masks: Masks
    ) -> tuple[Tensor, Tensor]:
        """Maps tokens and patch_ids (B, N) to states (B, N, d) and latent vectors (B, P k, d)."""
        h, latents = self.tok_embeddings(tokens), None
        first_read = len(self.layers) - len(self.cross_attn_layers)
        for index, layer in enumerate(self.layers):
            h = layer(h, masks.token_self)
            if index < first_read:
                continue
            if latents is None:
                pooled = pool_patches(h, patch_ids, num_patches, self.config.pooling)
                latents = self.patch_embedding_projection(pooled)
                latents = latents.reshape(h.shape[0], -1, h.shape[2])
            read = self.cross_attn_layers[index - first_read]
            latents = read(latents, h, masks.encoder_cross)
        assert latents is not None  # there is a layer
        return h, latents


class GlobalTransformer(nn.Module):
    """Causal transformer over the patches of each document."""

    def __init__(self, config: LSTConfig) -> None:
        """Adds a projection where the k latent vectors are not D wide together."""
        super().__init__()
        width = config.dim_global
        self.patch_width = config.latent_vectors_per_patch * config.dim_local
        self.token_embedding_projection = (
            linear(self.patch_width, width) if self.patch_width != width else None
        )
        self.layers = nn.ModuleList(
            Block(width, config.num_heads_global, config) for _ in range(config.num_layers_global)
        )

    def forward(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Maps latents (B, P k, d), mask (B, P, P) to (B, P, D); no final norm."""
        g = latents.reshape(latents.shape[0], -1, self.patch_width)
        if self.token_embedding_projection is not None:
            g = self.token_embedding_projection(g)
        for layer in self.layers:
            g = layer(g, mask)
        return g


class PatchDecoder(nn.Module):
    """Token states read the visible patches before every block, then predict the next token."""

    def __init__(self, config: LSTConfig) -> None:
        """Adds a projection unless D = d, where a patch is its latent vector."""
        super().__init__()
        width, layers = config.dim_local, config.num_layers_decoder
        self.patch_embedding_projection = (
            linear(config.dim_global, config.latent_vectors_per_patch * width)
            if config.dim_global != width
            else None
        )
        self.layers = nn.ModuleList(
            Block(width, config.num_heads_local, config) for _ in range(layers)
        )
        self.cross_attn_layers = nn.ModuleList(CrossAttention(config) for _ in range(layers))
        self.norm = RMSNorm(width, config.norm_eps)
        self.output = linear(width, config.vocab_size)

    def forward(self, h: Tensor, patches: Tensor, masks: Masks) -> Tensor:
        """Maps h (B, N, d), patches (B, P, D) to logits (B, N, vocab_size) float32."""
        if self.patch_embedding_projection is not None:
            patches = self.patch_embedding_projection(patches)
        memory = patches.reshape(h.shape[0], -1, h.shape[2])
        for cross, layer in zip(self.cross_attn_layers, self.layers, strict=True):
            h = layer(cross(h, memory, masks.decoder_cross), masks.token_self)
        return project_logits(self.norm(h), self.output)


class LatentSpeechTextTransformer(nn.Module):
    """LST: patch encoder, global transformer over patches, patch decoder.

    Activations have the parameters' dtype; norm statistics, rotations, pooling and logits are in
    float32. A new module has PyTorch's default initialization; it is there to be loaded into.
    """

    def __init__(self, config: LSTConfig) -> None:
        super().__init__()
        self.config = config
        self.local_encoder = PatchEncoder(config)
        self.global_transformer = GlobalTransformer(config)
        self.local_decoder = PatchDecoder(config)

    def forward(
        self, tokens: Tensor, document_ids: Tensor, patch_ids: Tensor, visible_patch: Tensor
    ) -> Tensor:
        """Returns logits (B, N, vocab_size) float32 of the next token, from a `Batch`."""
        # Padding counts as one more patch, the last, which nothing but padding reads.
        num_patches = int(patch_ids.max()) + 1
        masks = make_masks(document_ids, patch_ids, visible_patch, num_patches, self.config)
        h, latents = self.local_encoder(tokens, patch_ids, num_patches, masks)
        patches = self.global_transformer(latents, masks.global_self)
        return self.local_decoder(h, patches, masks)


class TokenTransformer(nn.Module):
    """The unpatched baseline: tokens straight into one decoder-only transformer."""

    def __init__(self, config: TokenTransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.dim_global
        self.tok_embeddings = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            Block(width, config.num_heads_global, config) for _ in range(config.num_layers_global)
        )
        self.norm = RMSNorm(width, config.norm_eps)
        self.output = linear(width, config.vocab_size)

    def forward(
        self,
        tokens: Tensor,
        document_ids: Tensor,
        patch_ids: Tensor | None = None,
        visible_patch: Tensor | None = None,
    ) -> Tensor:
        """Returns logits (B, N, vocab_size) float32 from a `Batch`; its patches play no part."""
        del patch_ids, visible_patch
        h, mask = self.tok_embeddings(tokens), causal_mask(document_ids)
        for layer in self.layers:
            h = layer(h, mask)
        return project_logits(self.norm(h), self.output)


def build_model(config: ModelConfig) -> LatentSpeechTextTransformer | TokenTransformer:
    """Returns the module of a configuration."""
    if isinstance(config, LSTConfig):
        return LatentSpeechTextTransformer(config)
    return TokenTransformer(config)


# ----------------------------------------------------------------------------- loading


def load_model(
    folder: str | pathlib.Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> LatentSpeechTextTransformer | TokenTransformer:
    """Returns the model of an exported folder; memory holds its parameters once.

    Args:
      folder: `config.json` beside `model.safetensors`, or `model.safetensors.index.json` and its
        shards, or `consolidated.pth`: one of these three.
      dtype: of the parameters, and so of the computation.
      device: of the parameters.

    Raises:
      FileNotFoundError: the folder or a file is missing.
      ValueError: a file is damaged, or there are several models, or tensors are missing, surplus or
        wrongly shaped (all are listed).
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected that of an exported model")
    config = read_config(folder)
    with torch.device("meta"):
        model = build_model(config.model)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    files = _weight_files(folder)
    shapes = {file: _tensor_shapes(file) for file in files}
    _check_shapes(folder, shapes, expected)
    _check_sums(folder, files)
    for file, names in shapes.items():
        for name in names:
            tensor = _read_tensor(file, name)
            _require(tensor.is_floating_point(), name, tensor.dtype, "a floating-point tensor")
            tensor = tensor.to(device, dtype, copy=True)
            model.load_state_dict({name: tensor}, strict=False, assign=True)
    return model


def _tensor_shapes(file: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Returns shapes of the tensors in a file, by name; none is read."""
    with _naming(file):
        if file.suffix == ".pth":
            return {name: tuple(tensor.shape) for name, tensor in _consolidated(file).items()}
        with safetensors.safe_open(file, framework="pt") as reader:
            names = reader.keys()
            return {name: tuple(reader.get_slice(name).get_shape()) for name in names}


def _read_tensor(file: pathlib.Path, name: str) -> Tensor:
    """Returns one tensor of a file, mapped from it until it is copied."""
    # The file is opened for each: as long as it is open, what was read of it counts as memory.
    with _naming(file):
        if file.suffix == ".pth":
            return _consolidated(file)[name]
        with safetensors.safe_open(file, framework="pt") as reader:
            return reader.get_tensor(name)


def _consolidated(file: pathlib.Path) -> dict[str, Tensor]:
    """Returns the tensors of a `consolidated.pth`, mapped; refuses a pickle that runs code."""
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    tensors = content.get("model") if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise ValueError(f'{file}: expected {{"model": tensors by name}} in it')
    return tensors


@contextlib.contextmanager
def _naming(file: pathlib.Path) -> Iterator[None]:
    """Turns what damaged files raise into errors that name the file."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"{file}: refused, it is damaged or holds more than tensors") from error
    except (safetensors.SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: truncated or damaged: {error}") from error


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that hold a folder's parameters."""
    index = folder / "model.safetensors.index.json"
    files = [index, folder / "model.safetensors", folder / "consolidated.pth"]
    names = [file.name for file in files if file.is_file()]
    expected = f"one of {', '.join(file.name for file in files)}"
    if not names:
        raise FileNotFoundError(f"{folder}: expected {expected} in it")
    _require(len(names) == 1, str(folder), names, f"{expected}: these are several models")
    return _shards(index) if names == [index.name] else [folder / names[0]]


def _check_sums(folder: pathlib.Path, files: Sequence[pathlib.Path]) -> None:
    """Compares files with what `SHA256SUMS`, if there is one, says was written."""
    sums = folder / "SHA256SUMS"
    if not sums.is_file():
        return
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines()
    known = {line[66:]: line[:64] for line in lines}
    for file in files:
        if file.is_file() and file.name in known:
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if digest != known[file.name]:
                raise ValueError(f"{file} is damaged: it is not what SHA256SUMS says was written")


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files that an index names."""
    try:
        names = sorted(set(_read_json(index)["weight_map"].values()))
        good = all(pathlib.PurePath(name).name == name for name in names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index}: not an index of shards: {error!r}") from error
    _require(good, str(index), names, "names of files beside it")
    return [index.parent / name for name in names]


def _check_shapes(
    folder: pathlib.Path,
    shapes: Mapping[pathlib.Path, Mapping[str, tuple[int, ...]]],
    expected: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises one error that lists every tensor that does not fit."""
    found = {name: shape for tensors in shapes.values() for name, shape in tensors.items()}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in found]
    problems += [f"surplus {name} {shape}" for name, shape in found.items() if name not in expected]
    problems += [
        f"{name} is {found[name]}, expected {shape}"
        for name, shape in expected.items()
        if found.get(name, shape) != shape
    ]
    if problems:
        raise ValueError(f"{folder}: tensors do not fit config.json: {'; '.join(problems)}")


# ----------------------------------------------------------------------------- command line


class Tokenizer:
    """A SentencePiece model, checked against the one that the model was trained with."""

    def __init__(self, path: str, config: Config) -> None:
        import sentencepiece

        model = pathlib.Path(path).read_bytes()
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError(f"{path}: not a SentencePiece model: {error}") from error
        size, text_size = self._model.get_piece_size(), config.vocabulary.text_size
        _require(size == text_size, "tokenizer", path, f"{text_size} pieces, not {size}")
        fingerprint = hashlib.sha256(model).hexdigest()
        same = config.tokenizer_fingerprint in (None, fingerprint)
        _require(same, "tokenizer", path, f"the file of SHA-256 {config.tokenizer_fingerprint}")

    def encode(self, text: str) -> list[int]:
        """Returns ids of a text whose first word reads as after a space."""
        adds_space = self._model.encode("a", out_type=str)[0].startswith("\u2581")
        return self._model.encode(text if adds_space else " " + text)

    def piece(self, index: int) -> str:
        """Returns a piece as it reads."""
        return repr(self._model.id_to_piece(index).replace("\u2581", " "))


def make_prompt(
    segments: Sequence[tuple[str, Any]], vocabulary: Vocabulary, tokenizer: Tokenizer | None
) -> np.ndarray:
    """Returns bos and the segments, each led by its mode token.

    Args:
      segments: `("text", str)` and `("units", list[int])`.
      vocabulary: the id space.
      tokenizer: encodes text.

    Returns:
      int64 (T,).

    Raises:
      ValueError: text without a tokenizer, or units out of range.
    """
    tokens = [vocabulary.bos_id]
    for kind, content in segments:
        if kind == "text":
            if tokenizer is None:
                raise ValueError(f"text={content!r}: expected a --tokenizer to encode it")
            tokens += [vocabulary.text_mode_id, *tokenizer.encode(content)]
        else:
            last = vocabulary.unit_count - 1
            _require(all(0 <= u <= last for u in content), "units", content, f"0 … {last}")
            tokens += [vocabulary.speech_mode_id, *(vocabulary.first_unit_id + u for u in content)]
    return np.array(tokens, np.int64)


def describe_token(index: int, vocabulary: Vocabulary, tokenizer: Tokenizer | None) -> str:
    """Returns a token for a reader: `unit 17`, `<s>`, a text piece, …"""
    names = {
        vocabulary.bos_id: "<bos>",
        vocabulary.eos_id: "<eos>",
        vocabulary.text_mode_id: "<t>",
        vocabulary.speech_mode_id: "<s>",
    }
    if index in names:
        return names[index]
    if index >= vocabulary.first_unit_id:
        return f"unit {index - vocabulary.first_unit_id}"
    if index >= vocabulary.text_size:
        return f"reserved {index}"
    return tokenizer.piece(index) if tokenizer else f"text {index}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def _units(value: str) -> tuple[str, list[int]]:
    try:
        return "units", [int(unit) for unit in value.split(",")]
    except ValueError:
        message = f"units={value!r}: expected numbers with commas between them"
        raise argparse.ArgumentTypeError(message) from None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        description="Prints the most likely next tokens after a prompt of text and speech units.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="exported model")
    parser.add_argument("--tokenizer", help="SentencePiece model of the text")
    segment = {"dest": "segments", "action": "append", "default": []}
    parser.add_argument(
        "--text", type=lambda text: ("text", text), help="a text segment of the prompt", **segment
    )
    parser.add_argument(
        "--units", type=_units, help="a speech segment of the prompt, as in 3,17,17,9", **segment
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the five most likely next tokens after a prompt; returns the exit status."""
    try:
        args = _parse(argv)
        config = read_config(args.folder)
        tokenizer = Tokenizer(args.tokenizer, config) if args.tokenizer else None
        prompt = make_prompt(args.segments, config.vocabulary, tokenizer)
        model = load_model(args.folder)
        with torch.inference_mode():
            logits = model(*make_batch([[prompt]], config))[0, -1]
        if not torch.isfinite(logits).all():
            raise ValueError(f"{args.folder}: the model's logits are not finite; is it broken?")
    except (ValueError, OSError, ImportError, MemoryError) as error:
        line = " ".join(str(error).split())
        line = line if len(line) <= 450 else f"{line[:300]} … {line[-140:]}"
        print("error:", line, file=sys.stderr)
        return 2
    probabilities, tokens = logits.softmax(-1).topk(5)
    for probability, token in zip(probabilities.tolist(), tokens.tolist(), strict=True):
        print(f"{probability:.4f}  {describe_token(token, config.vocabulary, tokenizer)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
