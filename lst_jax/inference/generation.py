"""Generation: prompts in, continuations out, with cached decoding.

    generations = generate(load_trained_model(workdir), prompts,
                           sampling=SamplingConfig(temperature=0.8), seeds=[1, 2, 3])

`generate` reads a batch of prompts in one pass (`prefill`) and decodes it in one compiled loop
(`decode_loop`).

A patch that ends is seen one token later than the published implementation shows it in training
(`visibility="reference"`): what comes next is not known yet.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.batch import Batch, stack_rows
from lst_jax.inference.decoding.decode_loop import DecodedRows, decode_batch
from lst_jax.inference.decoding.decoder import Decoder, State
from lst_jax.inference.decoding.lst_decoder import LSTDecoder
from lst_jax.inference.decoding.token_decoder import TokenDecoder
from lst_jax.inference.sampling import (
    Modality,
    SamplingArrays,
    SamplingConfig,
    allowed_ids,
    sample,
    sampling_arrays,
)
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.model.models import LatentSpeechTextTransformer, TokenTransformer
from lst_jax.patching import Document, PatchingConfig, fill_row
from lst_jax.settings import Bounds, configuration, quote, require
from lst_jax.shapes import Bool, Float32, Int, Int32
from lst_jax.sharding import (
    LogicalRules,
    batch_sharding,
    check_heads,
    check_rows,
    mesh_context,
    replicated,
)
from lst_jax.vocabulary import Vocabulary

# Why a row has stopped, by the number in `DecodedRows.stop`; 0 is not yet.
STOP_REASONS = ("", "eos", "mode", "units", "tokens", "context")

# Lengths that are compiled for are at least this, and few above.
_SMALLEST_SIZE = 64
_UNLIMITED = 2**31 - 1
# Memory follows what is made, up to the context, and not what is asked for.
Limit = Annotated[int, Bounds(least=1, most=_UNLIMITED - 1)]


@configuration
class GenerationLimits:
    """When a row stops, besides at eos.

    Attributes:
      max_tokens: tokens of a continuation, the one that stops it included.
      max_units: speech ids of a continuation (25 units are a second); None: no separate limit.
      max_patches: the model's context in patches (tokens for the baseline), prompt included; a
        token that would begin one more stops the row. None: no limit.
      min_tokens: tokens that are made before eos may be.
      stop_at_mode: whether a mode token stops it too.
    """

    max_tokens: Limit = 256
    max_units: Limit | None = None
    max_patches: Limit | None = None
    min_tokens: Annotated[int, Bounds(least=0, most=_UNLIMITED - 1)] = 0
    stop_at_mode: bool = False


class Steps(NamedTuple):
    """How often the parts of a model have run after the prompt.

    Attributes:
      token_steps: encoder and decoder of the LST.
      global_steps: the global transformer; the baseline, which is nothing else, takes both at once.
    """

    token_steps: int
    global_steps: int


@dataclasses.dataclass(frozen=True, eq=False)
class Generation:
    """A continuation.

    Attributes:
      tokens: (T,) int32, T ≥ 1, without the prompt and with the token that stopped it.
      log_probs: (T,) float32, natural logarithms: of each token under the model, given all before
        it; temperature, truncation and forbidden ids do not count.
      stop_reason: one of `STOP_REASONS`.
      steps: of this row.
      batch_steps: of the batch that it was made in; rows share steps.
    """

    tokens: Int32[np.ndarray, " T"]
    log_probs: Float32[np.ndarray, " T"]
    stop_reason: str
    steps: Steps
    batch_steps: Steps


def make_decoder(model: nn.Module, vocabulary: Vocabulary, patching: PatchingConfig) -> Decoder:
    """Returns the cached decoder of a model.

    Args:
      model: `LatentSpeechTextTransformer` or `TokenTransformer`.
      vocabulary: its id space.
      patching: how it was trained. With strategy "none" every token is a patch; with any other,
        patches are static with its `patch_size`, as no alignment exists at test time.

    Raises:
      ValueError: they do not go together.
    """
    require(
        model.config.vocab_size == vocabulary.size,
        "vocabulary",
        vocabulary,
        f"the {model.config.vocab_size} ids of the model",
    )
    if isinstance(model, LatentSpeechTextTransformer):
        return LSTDecoder(model, vocabulary, patching)
    if not isinstance(model, TokenTransformer):
        raise ValueError(f"model is {quote(model)}, expected an LST or its baseline")
    strategy = patching.strategy
    require(strategy == "none", "patching.strategy", strategy, '"none" for the unpatched baseline')
    return TokenDecoder(model, vocabulary, patching)


# Without `check_shapes`, as what follows: prompts are checked always, by `prompt_documents`.
def generate(
    trained: TrainedModel,
    prompts: Sequence[Int[np.ndarray, " T"]],
    *,
    sampling: SamplingConfig | None = None,
    limits: GenerationLimits | None = None,
    modality: Modality | None = None,
    seeds: Sequence[int] | None = None,
    batch_rows: int = 8,
) -> list[Generation]:
    """Continues prompts.

    A continuation depends on its prompt, its seed and the settings, not on the other rows, but for
    rounding: another `batch_rows`, or prompts that need larger buffers, may round differently, and
    in bfloat16 that can tip a token.

    Args:
      trained: the model.
      prompts: token ids, (T,) each with T ≥ 1, of any lengths: bos, mode token, … . Prompts of
        about one length are best given next to each other.
      sampling: how tokens are drawn; None takes the most probable one.
      limits: when rows stop; None is `GenerationLimits()`.
      modality: makes only "speech" or only "text", and eos; None lets the model choose.
      seeds: one for each prompt, in 0 … 2³² − 1; None counts from 0.
      batch_rows: rows B of a batch.

    Returns:
      As many as prompts.

    Raises:
      ValueError: a prompt is empty, too long or holds an id out of range, there are not as many
        seeds as prompts, the rows do not divide over the mesh, or a probability is not finite.
    """
    sampling, limits = sampling or SamplingConfig(), limits or GenerationLimits()
    mesh, rules = trained.mesh, tuple(trained.rules)
    decoder = make_decoder(trained.model, trained.vocabulary, trained.patching)
    check_rows(batch_rows, mesh, rules=rules)
    check_heads(trained.model.config, mesh, rules)
    allowed = allowed_ids(trained.vocabulary, modality)
    all_seeds = _check_seeds(range(len(prompts)) if seeds is None else seeds, len(prompts))
    documents = prompt_documents(decoder, prompts, limits.max_patches)
    max_tokens = limits.max_tokens
    if limits.max_patches:  # no room for tokens that the context cannot hold; the last one stops
        max_tokens = min(max_tokens, decoder.most_tokens(limits.max_patches) + 1)
    growth = decoder.most_patches(max_tokens, modality == "speech")
    arrays = _limit_arrays(limits)
    max_tokens = static_size(max_tokens)
    run = _generate_function(decoder, max_tokens, mesh, rules)
    generations: list[Generation] = []
    for first in range(0, len(documents), batch_rows):
        batch = documents[first : first + batch_rows]
        capacity = max(document.num_patches for document in batch) + growth
        capacity = min(capacity, limits.max_patches or capacity)
        state = _prefill(decoder, trained, batch, batch_rows, capacity)
        row_seeds = np.zeros(batch_rows, np.uint32)
        row_seeds[: len(batch)] = all_seeds[first : first + batch_rows]
        stop = (np.arange(batch_rows) >= len(batch)).astype(np.int32)
        drawing = sampling_arrays(sampling, allowed, row_seeds)
        with mesh_context(mesh, rules):
            _, made = run(trained.params, state, stop, drawing, arrays)
        generations += _generations(made, len(batch))
    return generations


def prefill(
    trained: TrainedModel,
    prompts: Sequence[Int[np.ndarray, " T"]],
    *,
    max_patches: int,
    batch_rows: int | None = None,
) -> State:
    """Reads prompts in one pass.

    Args:
      trained: the model.
      prompts: token ids, (T,) each with T ≥ 1.
      max_patches: patches (tokens for the baseline) that a row will have at most, prompt and
        continuation together.
      batch_rows: rows of the state; the last ones stay empty. None: as many as prompts.

    Returns:
      The state of rows that have read their prompts.

    Raises:
      ValueError: a prompt is empty, too long or holds an id out of range, or the rows do not
        divide over the mesh.
    """
    batch_rows = len(prompts) if batch_rows is None else batch_rows
    require(len(prompts) <= batch_rows, "batch_rows", batch_rows, f"at least {len(prompts)}")
    check_rows(batch_rows, trained.mesh, rules=trained.rules)
    decoder = make_decoder(trained.model, trained.vocabulary, trained.patching)
    documents = prompt_documents(decoder, prompts, max_patches)
    return _prefill(decoder, trained, documents, batch_rows, max_patches)


def prompt_documents(
    decoder: Decoder,
    prompts: Sequence[Int[np.ndarray, " T"]],
    max_patches: int | None,
    names: Sequence[str] | None = None,
) -> list[Document]:
    """Returns prompts in the patches that a decoder would make of them.

    Args:
      decoder: of `make_decoder`.
      prompts: token ids, (T,) each with T ≥ 1.
      max_patches: that one may have; None is any number.
      names: what errors call them; None is `prompts[0]` and so on.

    Raises:
      ValueError: a prompt is empty, too long or holds an id out of range.
    """
    documents = []
    names = names or [f"prompts[{index}]" for index in range(len(prompts))]
    for name, tokens in zip(names, prompts, strict=True):
        _check_tokens(name, tokens, decoder.vocabulary)
        require(len(tokens) > 0, name, [], "at least one token, such as bos")
        document = decoder.document(tokens)
        if max_patches is not None and document.num_patches > max_patches:
            raise ValueError(
                f"{name} has {document.num_patches} patches in {len(tokens)} tokens: "
                f"expected at most {max_patches}, the context"
            )
        documents.append(document)
    return documents


def static_size(size: int) -> int:
    """Returns the smallest of 64, 96, 128, 192, 256, … that is at least `size`."""
    rounded = _SMALLEST_SIZE
    while rounded < size:
        rounded = rounded * 3 // 2 if rounded & (rounded - 1) == 0 else rounded * 4 // 3
    return rounded


def _prefill(
    decoder: Decoder,
    trained: TrainedModel,
    documents: Sequence[Document],
    batch_rows: int,
    capacity: int,
) -> State:
    num_patches = static_size(max(document.num_patches for document in documents))
    num_tokens = static_size(max(document.num_tokens for document in documents))
    rows = [[document] for document in documents] + [[]] * (batch_rows - len(documents))
    batch = stack_rows([fill_row(row, num_patches, num_tokens) for row in rows])
    mesh, rules = trained.mesh, tuple(trained.rules)
    run = _prefill_function(decoder, static_size(capacity), mesh, rules)
    with mesh_context(mesh, rules):
        return run(trained.params, jax.device_put(batch, batch_sharding(mesh, rules)))


@functools.lru_cache(maxsize=32)
def _prefill_function(
    decoder: Decoder, capacity: int, mesh: jax.sharding.Mesh, rules: LogicalRules
) -> Callable[[Any, Batch], State]:
    """Returns the compiled (params, batch) -> state."""
    return jax.jit(lambda params, batch: decoder.prefill(params, batch, capacity))


@functools.lru_cache(maxsize=32)
def _generate_function(
    decoder: Decoder, max_tokens: int, mesh: jax.sharding.Mesh, rules: LogicalRules
) -> Callable[..., tuple[State, dict[str, Array]]]:
    """Returns the compiled (params, state, stop, sampling, limits) -> (state, what was made)."""

    def run(
        params: Any, state: State, stop: Array, sampling: SamplingArrays, limits: _Limits
    ) -> tuple[State, dict[str, Array]]:
        def choose(logits: Array, now: DecodedRows) -> Array:
            is_early = now.made < limits.min_tokens
            eos = jnp.arange(logits.shape[1]) == decoder.vocabulary.eos_id
            logits = jnp.where(is_early[:, None] & eos, -jnp.inf, logits)
            return sample(logits, now.state.length, sampling)

        def stop_rule(tokens: Array, now: DecodedRows) -> Array:
            return _stop(decoder, limits, tokens, now)

        made = decode_batch(decoder, params, state, stop, max_tokens, choose, stop_rule)
        fields = made._asdict()
        return fields.pop("state"), fields

    # The state is given back so that the one donated can be worked on in place.
    return jax.jit(run, donate_argnums=1, out_shardings=(None, replicated(mesh)))


class _Limits(NamedTuple):
    """`GenerationLimits` as arrays."""

    max_tokens: Int32[Array | np.ndarray, ""]
    max_units: Int32[Array | np.ndarray, ""]
    max_patches: Int32[Array | np.ndarray, ""]
    min_tokens: Int32[Array | np.ndarray, ""]
    stop_at_mode: Bool[Array | np.ndarray, ""]


def _limit_arrays(limits: GenerationLimits) -> _Limits:
    return _Limits(
        np.asarray(limits.max_tokens, np.int32),
        np.asarray(limits.max_units or _UNLIMITED, np.int32),
        np.asarray(limits.max_patches or _UNLIMITED, np.int32),
        np.asarray(limits.min_tokens, np.int32),
        np.asarray(limits.stop_at_mode, np.bool_),
    )


def _stop(decoder: Decoder, limits: _Limits, tokens: Array, now: DecodedRows) -> Array:
    """Returns (B,) int32 into `STOP_REASONS`, the first that holds."""
    vocabulary = decoder.vocabulary
    is_mode = (tokens == vocabulary.text_mode_id) | (tokens == vocabulary.speech_mode_id)
    is_made = jnp.arange(now.tokens.shape[1]) < now.made[:, None]
    is_unit = (now.tokens >= vocabulary.first_unit_id) & (now.tokens < vocabulary.size)
    units = jnp.sum(is_unit & is_made, axis=1)
    holds = [
        tokens == vocabulary.eos_id,
        is_mode & limits.stop_at_mode,
        units >= limits.max_units,
        now.made >= limits.max_tokens,
        decoder.patches_begun(now.state) > limits.max_patches,
    ]
    return jnp.select(holds, list(range(1, len(STOP_REASONS))), 0).astype(jnp.int32)


def _generations(made: Mapping[str, Array], count: int) -> list[Generation]:
    arrays = {name: np.asarray(array) for name, array in made.items()}
    batch_steps = Steps(int(arrays["batch_token_steps"]), int(arrays["batch_global_steps"]))
    generations = []
    for row in range(count):
        size = arrays["made"][row]
        log_probs = arrays["log_probs"][row, :size]
        if not np.isfinite(log_probs).all():
            raise ValueError("params give log-probabilities that are not finite; expected finite")
        generations.append(
            Generation(
                arrays["tokens"][row, :size],
                log_probs,
                STOP_REASONS[arrays["stop"][row]],
                Steps(int(arrays["token_steps"][row]), int(arrays["global_steps"][row])),
                batch_steps,
            )
        )
    return generations


def _check_tokens(name: str, tokens: np.ndarray, vocabulary: Vocabulary) -> None:
    tokens = np.asarray(tokens)
    is_ids = tokens.ndim == 1 and (np.issubdtype(tokens.dtype, np.integer) or not tokens.size)
    shape = f"shape {tokens.shape} and type {tokens.dtype}"
    require(is_ids, name, shape, "a sequence of token ids")
    outside = tokens[(tokens < 0) | (tokens >= vocabulary.size)]
    if outside.size:
        raise ValueError(f"{name} holds {outside[0]}, expected ids in 0 … {vocabulary.size - 1}")


def _check_seeds(seeds: Sequence[int], count: int) -> np.ndarray:
    require(len(seeds) == count, "seeds", f"{len(seeds)} of them", f"{count}, one for each prompt")
    for seed in seeds:
        whole = isinstance(seed, int | np.integer) and 0 <= seed < 2**32
        require(whole, "seeds", seed, "integers in 0 … 2³² − 1")
    return np.array(seeds, np.uint32)
