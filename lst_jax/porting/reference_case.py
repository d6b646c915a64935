"""Cases of the published implementation: does this model compute the same numbers?

A case is a folder with

    model.safetensors   parameters under their published names
    io.npz              tokens, targets, loss_mask (B, N); patch_lengths (B, P), summing to N + 1;
                        logits (B, N, vocabulary) and nll (B, N) float32
    case.json           the configuration, the loss (mean over loss_mask), and the Euclidean norm
                        of its gradient for every parameter

Patches cover the N inputs and the last target; the prediction at token t uses the patches before
that of token t + 1.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.config import LSTConfig
from lst_jax.files import read_arrays
from lst_jax.model.losses import token_nll
from lst_jax.model.models import build_model, hidden_states, logits, output_kernel
from lst_jax.porting.parameter_names import (
    published_from_tree,
    published_tensors,
    tree_from_published,
)
from lst_jax.porting.published_config import POOLINGS, PUBLISHED_CONVENTIONS
from lst_jax.porting.safetensors_folder import SafetensorsFolder
from lst_jax.porting.tensors import check_tensors
from lst_jax.settings import quote
from lst_jax.strict_json import read_json_object

# Gradients that cancel to rounding error (scores over a single key, say) have no meaningful ratio:
# a norm counts as at least this share of the whole gradient's.
_SMALLEST_SHARE = 1e-4


@dataclasses.dataclass(frozen=True)
class ReferenceCase:
    """A case, read and checked.

    Attributes:
      config: the model as the published implementation computes it, in float32.
      params: its parameter tree, float32.
      batch: its rows.
      logits: (B, N, vocabulary) float32, the reference's.
      loss: the reference's, nats.
      grad_norms: the reference's, by published name.
    """

    config: LSTConfig
    params: Any
    batch: Batch
    logits: np.ndarray
    loss: float
    grad_norms: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Differences:
    """How far a model is from a case.

    Attributes:
      max_abs_logit_diff: over all positions and ids.
      loss_diff: absolute, nats.
      max_rel_grad_norm_diff: over all parameters, relative to the reference's norm (or, where that
        is smaller, to 1e-4 of the norm of the whole gradient).
    """

    max_abs_logit_diff: float
    loss_diff: float
    max_rel_grad_norm_diff: float

    def within(self, bounds: Differences) -> bool:
        """Returns whether none is above its bound; a number that is not finite is above any."""
        ours, theirs = dataclasses.astuple(self), dataclasses.astuple(bounds)
        return all(value <= bound for value, bound in zip(ours, theirs, strict=True))


# What float32 arithmetic in another order may differ by.
TOLERANCE = Differences(max_abs_logit_diff=2e-4, loss_diff=1e-5, max_rel_grad_norm_diff=1e-3)


def read_case(folder: str | pathlib.Path) -> ReferenceCase:
    """Reads a case.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file lacks something or does not fit the others.
    """
    folder = pathlib.Path(folder)
    case = read_json_object(folder / "case.json")
    try:
        config = _read_config(case)
        loss, grad_norms = float(case["loss"]), dict(case["grad_norms"])
        eos_id = int(case["eos_id"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'case.json'} does not describe a case: {quote(error)}"
        ) from error
    tensors = SafetensorsFolder(folder)
    check_tensors(folder, tensors.specs, published_tensors(config))
    differing = sorted(tensors.specs.keys() ^ grad_norms.keys())
    if differing:
        raise ValueError(f"{folder / 'case.json'}: grad_norms and parameters differ in {differing}")
    params = tree_from_published(
        config, {name: tensors.read(name).astype(np.float32) for name in tensors.specs}
    )
    arrays = _read_arrays(folder / "io.npz", config.vocab_size)
    return ReferenceCase(
        config=config,
        params=params,
        batch=_make_batch(arrays, eos_id),
        logits=arrays["logits"],
        loss=loss,
        grad_norms=grad_norms,
    )


def compare(case: ReferenceCase, attention: str = "auto") -> Differences:
    """Runs the model forward and backward in float32.

    Args:
      case: what to compute, and what the reference computed.
      attention: backend by name.
    """
    config = dataclasses.replace(case.config, attention=attention)
    # Accelerators otherwise multiply float32 matrices in fewer bits.
    with jax.default_matmul_precision("highest"):
        loss, ours, gradients = jax.jit(_run, static_argnums=0)(config, case.params, case.batch)
    norms = {
        name: float(np.linalg.norm(gradient.astype(np.float64)))
        for name, gradient in published_from_tree(config, gradients).items()
    }
    smallest = _SMALLEST_SHARE * np.linalg.norm(list(case.grad_norms.values()))
    relative = [
        abs(norms[name] - norm) / max(norm, smallest) for name, norm in case.grad_norms.items()
    ]
    return Differences(
        max_abs_logit_diff=float(np.max(np.abs(np.asarray(ours) - case.logits))),
        loss_diff=abs(float(loss) - case.loss),
        max_rel_grad_norm_diff=float(np.max(np.asarray(relative, np.float64))),
    )


def _run(config: LSTConfig, params: Any, batch: Batch) -> tuple[Array, Array, Any]:
    """Returns mean loss, logits (B, N, vocabulary), and the gradient of the loss."""
    model = build_model(config)
    weights = batch.loss_weights / jnp.sum(batch.loss_weights)

    def loss(params: Any) -> tuple[Array, Array]:
        hidden = hidden_states(model, params, batch)
        kernel = output_kernel(params)
        nll = token_nll(hidden, kernel, batch.targets, config.vocab_size)
        return jnp.sum(nll * weights), logits(hidden, kernel, config.vocab_size)

    (value, ours), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    return value, ours, gradients


def _read_config(case: Mapping[str, Any]) -> LSTConfig:
    model = case["model"]
    if not model["cross_attn_all_layers_decoder"]:
        raise ValueError(
            "cross_attn_all_layers_decoder is false, expected true: the published decoder has a"
            " cross-attention before every block"
        )
    if model["pooling"] not in POOLINGS:
        raise ValueError(
            f"pooling is {quote(model['pooling'])}, expected one of {sorted(POOLINGS)}"
        )
    return LSTConfig(
        vocab_size=case["vocab_size"],
        dim_local=model["dim_local"],
        dim_global=model["dim_global"],
        num_layers_encoder=model["n_layers_local_encoder"],
        num_layers_global=model["n_layers_global"],
        num_layers_decoder=model["n_layers_local_decoder"],
        num_heads_local=case["n_heads"],
        num_heads_global=case["n_heads"],
        latent_vectors_per_patch=model["cross_attn_k"],
        local_window=model["local_attention_window"],
        encoder_cross_window=model["cross_attn_window_encoder"],
        decoder_cross_window=model["cross_attn_window_decoder"],
        pooling=POOLINGS[model["pooling"]],
        encoder_cross_layers="all" if model["cross_attn_all_layers_encoder"] else "last",
        multiple_of=case["multiple_of"],
        rope_theta=case["rope_theta"],
        norm_eps=case["norm_eps"],
        dtype="float32",
        **PUBLISHED_CONVENTIONS,
    )


def _read_arrays(path: pathlib.Path, vocab_size: int) -> dict[str, np.ndarray]:
    """Returns the arrays of io.npz, integers as int32."""
    names = ("tokens", "targets", "loss_mask", "patch_lengths", "logits")
    arrays = read_arrays(path, names)
    rows, length = arrays["tokens"].shape
    for name, shape in (
        ("targets", (rows, length)),
        ("loss_mask", (rows, length)),
        ("patch_lengths", (rows, arrays["patch_lengths"].shape[-1])),
        ("logits", (rows, length, vocab_size)),
    ):
        if arrays[name].shape != shape:
            raise ValueError(f"{path}: {name} has shape {arrays[name].shape}, expected {shape}")
    for name in ("tokens", "targets"):
        low, high = arrays[name].min(), arrays[name].max()
        if low < 0 or high >= vocab_size:
            raise ValueError(f"{path}: {name} are {low} … {high}, expected 0 … {vocab_size - 1}")
        arrays[name] = arrays[name].astype(np.int32)
    lengths = arrays["patch_lengths"]
    zeros_last = (np.sort(lengths > 0, axis=1)[:, ::-1] == (lengths > 0)).all()
    if lengths.min() < 0 or (lengths.sum(1) != length + 1).any() or not zeros_last:
        raise ValueError(
            f"{path}: expected patch_lengths that sum to {length + 1} in every row, zeros last"
        )
    return arrays


def _make_batch(arrays: Mapping[str, np.ndarray], eos_id: int) -> Batch:
    """Makes the batch as the reference sees it: an eos ends a document, nothing is padding."""
    tokens = arrays["tokens"]
    after_eos = np.cumsum(tokens == eos_id, axis=1, dtype=np.int32) - (tokens == eos_id)
    patch_of = np.stack(
        [np.repeat(np.arange(len(row), dtype=np.int32), row) for row in arrays["patch_lengths"]]
    )
    rows, num_patches = arrays["patch_lengths"].shape
    nothing = np.zeros(rows, np.int32)
    return Batch(
        tokens=tokens,
        targets=arrays["targets"],
        loss_weights=arrays["loss_mask"].astype(np.float32),
        document_ids=(1 + after_eos).astype(np.int32),
        patch_ids=patch_of[:, :-1],
        visible_patch=patch_of[:, 1:] - 1,
        speech_examples=nothing,  # counts for the metrics of training
        aligned_examples=nothing,
        num_patches=num_patches,
    )
