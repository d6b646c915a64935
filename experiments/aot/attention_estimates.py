"""How much of attention a typical batch makes a step compute, which no compiler can tell.

Which blocks attention visits depends on the documents of a batch. The estimates here take rows of
the lengths that training sees, with documents like those of the paper's mixture, and count the
visits of the backends' own blocks, whole ones also where an interval covers a part.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from experiments.aot.hlo_costs import KernelCost
from lst_jax.batch import Batch, stack_rows
from lst_jax.config import LSTConfig, ModelConfig
from lst_jax.model.attention import blocked, pallas_tpu
from lst_jax.model.attention.blocks import end_to_end_ranges, key_spans
from lst_jax.model.key_ranges import KeyRange, lst_key_ranges, token_key_range
from lst_jax.patching import Document, PatchingConfig, fill_row, largest_head, patch_document
from lst_jax.vocabulary import Vocabulary

# Utterances are 35 … 50 words of 1.3 pieces or 9.6 units (silence included), as in Multilingual
# LibriSpeech, a third of their words as speech; text has a lognormal length.
_WORDS = (35, 50)
_SPAN_WORDS = 12
_PIECES_PER_WORD = 1.3
_UNITS_PER_WORD = 9.6
_TEXT_MEDIAN = 300.0
_TEXT_SIGMA = 0.8
_TEXT_TOKENS = (50, 2000)
# Speech to text in tokens of the documents.
_SPEECH_TEXT_RATIO = 0.5

# Matrix products over a pair of blocks in each Pallas kernel, its arrays along the blocks that the
# grid keeps, and its arrays along those that it reads again at every visit.
_KERNELS = {"forward_kernel": (2, 2, 2), "dq_kernel": (3, 4, 2), "dkv_kernel": (4, 4, 2)}


def typical_batch(
    vocabulary: Vocabulary,
    patching: PatchingConfig,
    num_patches: int,
    num_tokens: int,
    rows: int = 8,
    seed: int = 0,
) -> Batch:
    """Returns rows full of interleaved utterances and text, 1:2 in tokens.

    Args:
      vocabulary: the id space.
      patching: its strategy `none` makes every token a patch; all others are static here.
      num_patches: P, patch slots of a row.
      num_tokens: N, token slots of a row.
      rows: B.
      seed: of the lengths.
    """
    strategy = "none" if patching.strategy == "none" else "static"
    static = PatchingConfig(strategy, patching.patch_size)
    documents = _documents(np.random.default_rng(seed), vocabulary)
    return stack_rows(
        [_fill(documents, static, vocabulary, num_patches, num_tokens) for _ in range(rows)]
    )


def _documents(rng: np.random.Generator, vocabulary: Vocabulary) -> Iterator[np.ndarray]:
    """Yields tokens of documents without end."""
    speech = text = 0
    while True:
        if speech <= _SPEECH_TEXT_RATIO * text:
            document = _utterance(rng, vocabulary)
            speech += len(document)
        else:
            length = np.clip(rng.lognormal(np.log(_TEXT_MEDIAN), _TEXT_SIGMA), *_TEXT_TOKENS)
            document = np.zeros(int(length), np.int32)
            text += len(document)
        document[0], document[-1] = vocabulary.bos_id, vocabulary.eos_id
        yield document


def _utterance(rng: np.random.Generator, vocabulary: Vocabulary) -> np.ndarray:
    """Returns spans of text, each followed by speech half as long; ids stand for their kinds."""
    words, pieces = int(rng.integers(_WORDS[0], _WORDS[1] + 1)), [np.zeros(1, np.int32)]
    while words > 0:
        for mode, fill, rate, span in (
            (vocabulary.text_mode_id, 0, _PIECES_PER_WORD, 2 * _SPAN_WORDS // 3),
            (
                vocabulary.speech_mode_id,
                vocabulary.first_unit_id,
                _UNITS_PER_WORD,
                _SPAN_WORDS // 3,
            ),
        ):
            length = round(rate * min(span, words))
            pieces += [np.array([mode]), np.full(length, fill)]
            words -= span
            if words <= 0:
                break
    return np.concatenate([*pieces, np.zeros(1, np.int32)]).astype(np.int32)


def _fill(
    documents: Iterator[np.ndarray],
    patching: PatchingConfig,
    vocabulary: Vocabulary,
    num_patches: int,
    num_tokens: int,
) -> Batch:
    """Fills one row; what does not fit of its last document is dropped."""
    row: list[Document] = []
    patches, length = num_patches, num_tokens
    while True:
        tokens = next(documents)
        document = patch_document(tokens, patching, vocabulary)
        if document.num_patches > patches or len(tokens) > length:
            end = int(sum(document.patch_lengths[: largest_head(document, patches, length)]))
            if end > 1:
                row.append(patch_document(tokens, patching, vocabulary, end=end))
            return fill_row(row, num_patches, num_tokens)
        row.append(document)
        patches, length = patches - document.num_patches, length - len(tokens)


@dataclasses.dataclass(frozen=True)
class _Attention:
    """One of the model's attentions: its ranges over `num_keys` keys, and its width."""

    key_range: KeyRange
    num_keys: int
    width: int

    def visits(self, query_block: int, key_block: int) -> tuple[float, float]:
        """Returns the pairs of blocks that meet, of one row, and blocks of queries of a row."""
        query_block = min(query_block, self.key_range.start.shape[1])
        key_block = min(key_block, self.num_keys)
        ranges = end_to_end_ranges(self.key_range, self.num_keys, query_block, key_block)
        spans = key_spans(ranges, query_block, key_block)
        rows = self.key_range.start.shape[0]
        total = jnp.sum(jnp.maximum(spans.last - spans.first, 0))
        return float(total) / rows, len(spans.first) / rows


class AttentionEstimates:
    """Turns of the blocked backend's loops and work of the TPU kernels, by name.

    Both are what `hlo_costs` asks for. A name is JAX's name stack, which holds the modules'
    names; names that are not of an attention get None.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: Batch,
        rows_per_device: int,
        tensor: int,
    ) -> None:
        """Counts the blocks of a batch.

        Args:
          config: of the model.
          batch: typical rows, any number.
          rows_per_device: rows that one call of a kernel works on.
          tensor: devices that share the heads.
        """
        self._rows, self._tensor = rows_per_device, tensor
        with jax.set_mesh(None):
            self._attentions = _attentions(config, jax.tree.map(jnp.asarray, batch))
            sizes = (blocked.QUERY_BLOCK, blocked.KEY_BLOCK)
            pairs = {name: x.visits(*sizes) for name, x in self._attentions.items()}
            sizes = (pallas_tpu.QUERY_BLOCK, pallas_tpu.KEY_BLOCK)
            self._kernel_visits = {
                name: x.visits(*sizes)[0] for name, x in self._attentions.items()
            }
        self._loop_turns = {name: total / queries for name, (total, queries) in pairs.items()}

    def trip_count(self, name: str) -> float | None:
        """Returns the mean turns of the blocked backend's loop over key blocks."""
        attention = _attention_of(name)
        return None if attention is None else self._loop_turns.get(attention)

    def kernel_cost(self, name: str) -> KernelCost | None:
        """Returns the work of one call of a TPU kernel on a device's rows and heads."""
        attention_name = _attention_of(name)
        kernel = next((kernel for kernel in _KERNELS if kernel in name), None)
        if attention_name not in self._attentions or kernel is None:
            return None
        attention = self._attentions[attention_name]
        products, kept, read = _KERNELS[kernel]
        width = attention.width / self._tensor
        visits = self._rows * self._kernel_visits[attention_name]
        query_block, key_block = pallas_tpu.QUERY_BLOCK, pallas_tpu.KEY_BLOCK
        outer, inner = attention.key_range.start.shape[1], key_block
        if kernel == "dkv_kernel":
            outer, inner = attention.num_keys, query_block
        positions = kept * self._rows * outer + read * visits * inner
        return KernelCost(
            2.0 * products * visits * query_block * key_block * width, 2.0 * width * positions
        )


def _attentions(config: ModelConfig, batch: Batch) -> dict[str, _Attention]:
    num_patches = batch.num_patches
    if not isinstance(config, LSTConfig):
        ranges = token_key_range(batch.document_ids, None)
        return {"global": _Attention(ranges, num_patches, config.dim_global)}
    ranges = lst_key_ranges(batch, config)
    tokens, width = batch.tokens.shape[1], config.dim_local
    latents = num_patches * config.latent_vectors_per_patch
    return {
        "token_self": _Attention(ranges.token_self, tokens, width),
        "encoder_cross": _Attention(ranges.encoder_cross, tokens, width),
        "global": _Attention(ranges.global_self, num_patches, config.dim_global),
        "decoder_cross": _Attention(ranges.decoder_cross, latents, width),
    }


def _attention_of(name: str) -> str | None:
    """Returns which attention a loop or kernel belongs to."""
    if "attention" not in name:
        return None
    if re.search(r"/cross_attention_\d", name):
        return "encoder_cross"
    if "/decoder/" in name:
        return "decoder_cross" if "/cross_attention/" in name else "token_self"
    if re.search(r"/layer_\d", name):
        return "token_self"
    return "global"
