"""Whether an attention backend is right on the device at hand: errors against the dense one.

The intervals are the four of the model (`attention`'s table) over rows of several documents, with
patches of one to four tokens, windows shorter than a document, ranges that are empty because no
patch is complete yet, and padding. What is computed in bfloat16 or with TF32 products is compared
to the dense backend in float32 at full precision, on the same rounded inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch, padding_rows, stack_rows
from lst_jax.config import LSTConfig
from lst_jax.model.attention.dense import dense_attention
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges

Attention = Callable[[Array, Array, Array, KeyRange], Array]

# Largest norm of the error over the norm of the result. bfloat16 rounds weights and gradients of
# scores to 8 bits, TF32 (a GPU's products of float32) to 11.
BOUNDS = {"bfloat16": 1e-2, "float16": 5e-3, "float32": 5e-3}

_WINDOW = 96
_ROWS, _NUM_TOKENS, _HEADS = 2, 333, 2
_LONGEST_DOCUMENT = 150
_LONGEST_PATCH = 4


class IntervalCase(NamedTuple):
    """One of the model's attentions over a batch.

    Attributes:
      key_range: start and end, each (B, Q) int32 NumPy arrays.
      num_keys: K.
    """

    key_range: KeyRange
    num_keys: int


def interval_cases() -> dict[str, IntervalCase]:
    """Makes the four attentions of rows of random documents, a tenth of them padding.

    Returns:
      `token self`, `encoder cross`, `global` and `decoder cross`.
    """
    rng = np.random.default_rng(0)
    num_tokens, num_patches = _NUM_TOKENS, _NUM_TOKENS // 2
    batch = stack_rows([_random_row(rng, num_tokens, num_patches) for _ in range(_ROWS)])
    config = LSTConfig(
        vocab_size=2,
        dim_local=2,
        dim_global=4,
        num_layers_encoder=1,
        num_layers_global=1,
        num_layers_decoder=1,
        num_heads_local=1,
        num_heads_global=1,
        local_window=_WINDOW,
        encoder_cross_window=_WINDOW // 8,
        decoder_cross_window=_WINDOW // 8,
    )
    ranges = jax.device_get(lst_key_ranges(batch, config))
    return {
        "token self": IntervalCase(ranges.token_self, num_tokens),
        "encoder cross": IntervalCase(ranges.encoder_cross, num_tokens),
        "global": IntervalCase(ranges.global_self, num_patches),
        "decoder cross": IntervalCase(
            ranges.decoder_cross, config.latent_vectors_per_patch * num_patches
        ),
    }


def _random_row(rng: np.random.Generator, num_tokens: int, num_patches: int) -> Batch:
    """Returns documents of random lengths in random patches, then padding; tokens are all 0."""
    row = padding_rows(num_patches, num_tokens)
    token = patch = document = 0
    while token < num_tokens - num_tokens // 10:
        document += 1
        end = min(token + int(rng.integers(2, _LONGEST_DOCUMENT)), num_tokens - num_tokens // 10)
        visible_patch = patch - 1
        while token < end and patch < num_patches:
            stop = min(token + int(rng.integers(1, _LONGEST_PATCH + 1)), end)
            row.document_ids[token:stop], row.patch_ids[token:stop] = document, patch
            row.visible_patch[token : stop - 1] = visible_patch
            visible_patch = row.visible_patch[stop - 1] = patch
            token, patch = stop, patch + 1
        if patch == num_patches:
            break
    return row


def relative_errors(attention: Attention, dtype: str, width: int) -> dict[str, dict[str, float]]:
    """Computes the errors of a backend on every case, forward and backward.

    Args:
      attention: the backend's function.
      dtype: of the arrays.
      width: features D of a head.

    Returns:
      For each case ‖a - b‖ / ‖b‖ of `out`, `dq`, `dk` and `dv`, NaN where one is not finite; and
      `empty`, the largest magnitude among outputs and query gradients of empty ranges, which must
      be zero.
    """
    cases = interval_cases()
    rng = np.random.default_rng(0)
    inputs = {}
    for name, (key_range, num_keys) in cases.items():
        rows, num_queries = key_range.start.shape
        lengths = num_queries, num_keys, num_keys, num_queries
        shapes = [(rows, length, _HEADS, width) for length in lengths]
        inputs[name] = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes], key_range
    ours = jax.jit(_all_cases, static_argnums=0)(attention, inputs)
    wide = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == dtype else x, inputs)
    with jax.default_matmul_precision("highest"):
        oracle = jax.jit(_all_cases, static_argnums=0)(dense_attention, wide)
    ours, oracle = jax.device_get((ours, oracle))
    errors: dict[str, dict[str, float]] = {}
    for name, case in cases.items():
        errors[name] = {
            part: _relative_error(ours[name][part], oracle[name][part]) for part in ours[name]
        }
        empty = case.key_range.end <= case.key_range.start
        strays = [np.abs(np.float32(ours[name][part][empty])) for part in ("out", "dq")]
        errors[name]["empty"] = float(max(x.max(initial=0.0) for x in strays))
    return errors


def check_numerics(attention: Attention, dtype: str, width: int) -> str | None:
    """Says how a backend differs from the dense one on the default device; None: it does not."""
    for name, errors in relative_errors(attention, dtype, width).items():
        for part, error in errors.items():
            bound = 0.0 if part == "empty" else BOUNDS[dtype]
            if not error <= bound:  # NaN fails, too
                return f"{part} of {name} attention is off by {error:.2g}, over {bound:g}"
    return None


def _all_cases(
    attention: Attention, inputs: dict[str, tuple[list[Array], KeyRange]]
) -> dict[str, dict[str, Array]]:
    results = {}
    for name, ((q, k, v, cotangent), key_range) in inputs.items():
        out, pull = jax.vjp(lambda q, k, v, r=key_range: attention(q, k, v, r), q, k, v)
        dq, dk, dv = pull(cotangent)
        results[name] = {"out": out, "dq": dq, "dk": dk, "dv": dv}
    return results


def _relative_error(ours: np.ndarray, oracle: np.ndarray) -> float:
    a, b = np.float64(np.asarray(ours, np.float32)), np.float64(oracle)
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))
