"""Patches: which tokens share one position of the global transformer, and who may see them when.

A document is a sequence of tokens `bos <t> text… <s> units… eos`. Only speech is grouped: bos, eos,
mode tokens and text tokens are patches of length 1. A run of speech units is grouped

* static(p): in groups of p from the start of the run, the last one shorter where it must be;
* aligned: one patch per word, silence in separate patches or merged into a word;
* mixed, curriculum: one of the two per document, aligned with probability P(u) at step u.

This module computes with NumPy alone. Data pipelines, scoring and generation segment with the same
functions, so what a model is trained on is what it is evaluated on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

from lst_jax.batch import Batch, padding_rows
from lst_jax.settings import (
    Fraction,
    NaturalFloat,
    NaturalInt,
    PositiveInt,
    configuration,
    require,
    validate_value,
)
from lst_jax.shapes import Bool, Float32, Int, Int32, check_shapes
from lst_jax.vocabulary import Vocabulary

Strategy = Literal["none", "static", "aligned", "mixed", "curriculum"]
Silence = Literal["separate", "merged"]
AlignedBy = Literal["words", "pieces"]
Visibility = Literal["causal", "reference"]


@configuration
class PatchingConfig:
    """How speech is segmented.

    Attributes:
      strategy: `none` makes every token a patch (the unpatched baseline); the others are those of
        the module's docstring.
      patch_size: units of a full static patch, p.
      silence: what aligned patching does with silence: a separate patch, or a part of the word
        before it (silence that opens a run joins the word after it).
      aligned_by: what an aligned patch is, a word or a text piece of one.
      boundary_noise: how far, in units, the boundaries between aligned patches are off: each is
        moved by up to this much either way, differently in every epoch. 0.5 and 1 are 20 and
        40 ms at 25 units a second. 0: they are where the records have them.
      mixed_aligned_probability: P of the mixed strategy, the same at every step.
      curriculum_start: τ₁ in optimizer steps; before it every example is aligned.
      curriculum_end: τ₂ in optimizer steps; from it on every example is static.
      join_speech_mode: whether `<s>` belongs to the first static patch of the run that it opens,
        as in the published checkpoints, instead of being a separate patch.
    """

    strategy: Strategy = "static"
    patch_size: PositiveInt = 4
    silence: Silence = "separate"
    aligned_by: AlignedBy = "words"
    boundary_noise: NaturalFloat = 0.0
    mixed_aligned_probability: Fraction = 0.5
    curriculum_start: NaturalInt = 0
    curriculum_end: NaturalInt = 0
    join_speech_mode: bool = False

    def __post_init__(self) -> None:
        require(
            self.curriculum_start <= self.curriculum_end,
            "PatchingConfig.curriculum_start",
            self.curriculum_start,
            f"at most curriculum_end = {self.curriculum_end}",
        )

    @property
    def may_align(self) -> bool:
        """Returns whether there can be aligned examples."""
        return self.strategy in ("aligned", "mixed", "curriculum")


def aligned_probability(config: PatchingConfig, step: int) -> float:
    """Returns P(u), the probability that an example of step u is aligned; it never grows with u.

    For the curriculum 1 for u < τ₁, then linear down to 0 at τ₂, then 0. A pipeline that gives
    every example one uniform draw in [0, 1) and aligns it where the draw is below P(u) follows
    this exactly.

    Args:
      config: the patching.
      step: optimizer step u, from 0.
    """
    if config.strategy == "aligned":
        return 1.0
    if config.strategy == "mixed":
        return config.mixed_aligned_probability
    if config.strategy != "curriculum" or step >= config.curriculum_end:
        return 0.0
    if step < config.curriculum_start:
        return 1.0
    span = config.curriculum_end - config.curriculum_start
    return (config.curriculum_end - step) / span


@dataclasses.dataclass(frozen=True)
class Document:
    """A segmented document (or a piece of one), ready to be put in a row.

    Attributes:
      tokens: int32 (T,), from bos; to eos unless it was split.
      patch_lengths: int32 (Q,), tokens of each patch, at least 1 each; they sum to T.
      provable: bool (Q,), whether the tokens up to a patch's last one prove that it ends there:
        a single token that is no speech unit, or a static patch of full size.
      loss_weights: float32 (T,), weight of predicting the token after position t.
      final_target: the token after the last one where the document was split, else None (and then
        the last weight is 0).
      speech: whether it holds speech units.
      aligned: whether its speech is segmented by words.
    """

    tokens: Int32[np.ndarray, " T"]
    patch_lengths: Int32[np.ndarray, " Q"]
    provable: Bool[np.ndarray, " Q"]
    loss_weights: Float32[np.ndarray, " T"]
    final_target: int | None = None
    speech: bool = False
    aligned: bool = False

    @property
    def num_tokens(self) -> int:
        """Returns T, the tokens."""
        return len(self.tokens)

    @property
    def num_patches(self) -> int:
        """Returns Q, the patches."""
        return len(self.patch_lengths)


@check_shapes
def static_patches(
    tokens: Int[np.ndarray, " T"],
    vocabulary: Vocabulary,
    patch_size: int,
    join_speech_mode: bool = False,
) -> tuple[Int32[np.ndarray, " Q"], Bool[np.ndarray, " Q"]]:
    """Segments tokens with speech in groups of `patch_size`; a run's last group may be shorter.

    Args:
      tokens: int (T,) any sequence of ids.
      vocabulary: the id space.
      patch_size: p, at least 1.
      join_speech_mode: whether a `<s>` right before a run counts as the run's first token.

    Returns:
      `patch_lengths` int32 (Q,) and `provable` bool (Q,), see `Document`.
    """
    require(patch_size >= 1, "patch_size", patch_size, "at least 1")
    tokens = np.asarray(tokens)
    starts, ends = vocabulary.split_runs(tokens)
    if join_speech_mode and len(starts):
        # A `<s>` that no unit follows opens no run and stays a single-token patch.
        starts = starts - ((tokens[starts - 1] == vocabulary.speech_mode_id) & (starts > 0))
    lengths, provable, repeats = [], [], []
    position = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        num_full, rest = divmod(end - start, patch_size)
        lengths += [1, patch_size, rest]
        provable += [True, True, False]
        repeats += [start - position, num_full, int(rest > 0)]
        position = end
    lengths.append(1)
    provable.append(True)
    repeats.append(len(tokens) - position)
    lengths, provable = (
        np.repeat(np.array(lengths, np.int32), repeats),
        np.repeat(provable, repeats),
    )
    if join_speech_mode:
        # A unit that comes next would join a `<s>`, so alone it proves nothing.
        first_tokens = tokens[np.cumsum(lengths) - lengths]
        provable &= (first_tokens != vocabulary.speech_mode_id) | (lengths == patch_size)
    return lengths, provable


@check_shapes
def aligned_run_lengths(
    unit_counts: Int[np.ndarray, " W"], is_silence: Bool[np.ndarray, " W"], silence: Silence
) -> Int32[np.ndarray, " Q"]:
    """Returns the patch lengths of one speech run by its words.

    Args:
      unit_counts: int (W,), units of each word or silence of the run, in order.
      is_silence: bool (W,), which entries are silence.
      silence: `separate`: a patch per entry. `merged`: silence joins the word before it; silence
        that opens the run joins the first word; a run of silence alone is one patch.

    Returns:
      int32 (Q,): at least 1 each (entries without units have no patch), summing to that of
      `unit_counts`.
    """
    if silence == "merged" and len(unit_counts):
        begins = ~is_silence
        begins[begins.argmax()] = False
        begins[0] = True
        unit_counts = np.add.reduceat(unit_counts, np.flatnonzero(begins))
    return unit_counts[unit_counts > 0].astype(np.int32)


@check_shapes
def move_boundaries(
    lengths: Int32[np.ndarray, " Q"], noise: float, rng: np.random.Generator
) -> Int32[np.ndarray, " Q"]:
    """Returns the lengths of patches whose boundaries are off.

    A boundary lies anywhere in the unit around its place, since records round it. It is moved by a
    uniform amount of at most `noise`, and rounded again. The order stays, and so does each patch:
    it keeps a unit at least.

    Args:
      lengths: int32 (Q,) of a run, at least 1 each.
      noise: units.
      rng: takes 2 · (Q − 1) draws.

    Returns:
      int32 (Q,), at least 1 each, with the same sum.
    """
    if len(lengths) < 2:
        return lengths
    place, shift = rng.random((2, len(lengths) - 1))
    moved = np.cumsum(lengths[:-1]) + np.rint(place - 0.5 + noise * (2 * shift - 1))
    # Boundary i has i units before it at least; without these, boundaries may be equal.
    slack = np.clip(moved - np.arange(1, len(lengths)), 0, lengths.sum() - len(lengths))
    ends = np.maximum.accumulate(slack) + np.arange(1, len(lengths))
    return np.diff(ends, prepend=0, append=lengths.sum()).astype(np.int32)


@check_shapes
def patch_document(
    tokens: Int[np.ndarray, " n"],
    config: PatchingConfig,
    vocabulary: Vocabulary,
    aligned_lengths: Int[np.ndarray, " m"] | None = None,
    begin: int = 0,
    end: int | None = None,
    answer_begin: int = 0,
) -> Document:
    """Segments a document, or the piece of it from token `begin` to `end`.

    A piece with `begin` > 0 continues a document: it opens with a bos and the mode token of the
    segment that it continues (just the bos where it opens with a segment). Both are given, not
    predicted, and so is the token after them, which the piece before predicts as its
    `final_target`: pieces that follow each other predict every token exactly once. Its runs are
    grouped again from `begin`, which for cuts at patch boundaries gives the same groups (unless
    `<s>` joins them).

    Args:
      tokens: int (n,), bos … eos.
      config: the patching.
      vocabulary: the id space.
      aligned_lengths: int (m,) patch lengths of the whole document by words, if this example is
        aligned. Without them speech is static, or unpatched under the strategy `none`.
      begin: first token of the piece; where given with `aligned_lengths`, a patch boundary.
      end: first token after the piece; None for the document's end.
      answer_begin: first token of the document whose prediction counts; those before it are given.
        Where it is, a piece that continues the document predicts nothing: the question is not
        before it.
    """
    tokens = np.asarray(tokens, np.int32)
    size = len(tokens)
    end = size if end is None else end
    if not 0 <= begin < end <= size:
        raise ValueError(f"begin is {begin} and end is {end}, expected 0 <= begin < end <= {size}")
    piece = tokens[begin:end]
    prefix_size = 0
    if begin:
        prefix = _continuation_prefix(tokens[: begin + 1], vocabulary)
        prefix_size = len(prefix)
        piece = np.concatenate([prefix, piece])
    if aligned_lengths is None:
        patch_size = 1 if config.strategy == "none" else config.patch_size
        join = config.join_speech_mode and config.strategy != "none"
        patch_lengths, provable = static_patches(piece, vocabulary, patch_size, join)
    else:
        inside = _cut_lengths(aligned_lengths, size, begin, end)
        patch_lengths = np.concatenate([np.ones(prefix_size, np.int32), inside])
        starts = np.cumsum(patch_lengths) - patch_lengths
        units = np.add.reduceat(vocabulary.is_unit(piece), starts, dtype=np.int32)
        if ((patch_lengths > 1) & (units < patch_lengths)).any():
            raise ValueError("aligned_lengths has a patch of several tokens that are not all units")
        # Nothing in the tokens of a word says that it ends, not even where it is a single unit.
        provable = units == 0
    loss_weights = np.ones(len(piece), np.float32)
    loss_weights[:prefix_size] = 0
    if end == size:
        loss_weights[-1] = 0
    if answer_begin:
        loss_weights[: answer_begin - 1 if begin == 0 else None] = 0
    speech = bool(vocabulary.is_unit(piece).any())
    return Document(
        piece,
        patch_lengths,
        provable,
        loss_weights,
        final_target=None if end == size else int(tokens[end]),
        speech=speech,
        aligned=speech and aligned_lengths is not None,
    )


def _cut_lengths(patch_lengths: np.ndarray, size: int, begin: int, end: int) -> np.ndarray:
    """Returns the lengths of the patches that cover tokens begin … end of `size`, int32."""
    patch_lengths = np.asarray(patch_lengths, np.int32)
    ends = np.cumsum(patch_lengths)
    if patch_lengths.min(initial=1) < 1 or ends[-1:].sum() != size:
        raise ValueError(
            f"aligned_lengths is {patch_lengths.tolist()}, expected lengths of at least 1 that sum "
            f"to {size}"
        )
    first = np.searchsorted(ends, begin, side="right")
    last = np.searchsorted(ends, end)
    if (first and ends[first - 1] != begin) or ends[last] != end:
        raise ValueError(f"begin is {begin} and end is {end}, expected patch boundaries")
    return patch_lengths[first : last + 1]


@check_shapes
def visible_patches(
    patch_lengths: Int[np.ndarray, " Q"], provable: Bool[np.ndarray, " Q"]
) -> Int32[np.ndarray, " T"]:
    """Returns the last patch known to be complete at each token, which predictions may use.

    At the last token of a patch that is the patch itself if it is provable; everywhere else it is
    the patch before, since a token of a new patch shows that the one before has ended. With
    `provable` true everywhere this is the published `patch(t + 1) − 1`, which takes the end of
    every patch as known one token early.

    Args:
      patch_lengths: int (Q,), at least 1 each, summing to T.
      provable: bool (Q,).

    Returns:
      int32 (T,): index of the patch, −1 before any is complete.
    """
    patch_lengths = np.asarray(patch_lengths)
    visible = np.repeat(np.arange(-1, len(patch_lengths) - 1, dtype=np.int32), patch_lengths)
    visible[np.cumsum(patch_lengths) - 1] += np.asarray(provable, bool)
    return visible


def _continuation_prefix(tokens: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns bos and the last mode token of `tokens` (…, the first token of the continuation)."""
    is_mode = (tokens == vocabulary.text_mode_id) | (tokens == vocabulary.speech_mode_id)
    modes = [] if is_mode[-1] else tokens[is_mode][-1:].tolist()
    return np.array([vocabulary.bos_id, *modes], np.int32)


def largest_head(document: Document, num_patches: int, num_tokens: int) -> int:
    """Returns how many patches from the document's start fit in the given patches and tokens."""
    ends = np.cumsum(document.patch_lengths[: max(num_patches, 0)])
    return int(np.searchsorted(ends, num_tokens, side="right"))


@check_shapes
def fill_row(
    documents: Sequence[Document],
    num_patches: int,
    num_tokens: int,
    visibility: Visibility = "causal",
) -> Batch:
    """Returns one row of a batch.

    Args:
      documents: what the row holds, in order; none gives a row of padding.
      num_patches: P, patch slots.
      num_tokens: N, token slots.
      visibility: `causal` shows a patch once it is proven complete; `reference` at its last token,
        `patch(t + 1) − 1` along the row. Every document ends with a patch, so that the token after
        the row's last one, whatever it may be, belongs to another patch.

    Returns:
      A `Batch` without its first axis: (N,) arrays, and two counts.

    Raises:
      ValueError: the documents do not fit.
    """
    validate_value(Visibility, visibility, "visibility")
    row = padding_rows(num_patches, num_tokens)
    if not documents:
        return row
    lengths = [document.num_tokens for document in documents]
    patch_lengths = np.concatenate([document.patch_lengths for document in documents])
    used = sum(lengths)
    if used > num_tokens or len(patch_lengths) > num_patches:
        raise ValueError(
            f"documents have {used} tokens and {len(patch_lengths)} patches, expected at most "
            f"{num_tokens} and {num_patches}"
        )
    provable = np.concatenate([document.provable for document in documents])
    if visibility == "reference":
        provable = np.ones_like(provable)
    np.concatenate([document.tokens for document in documents], out=row.tokens[:used])
    np.concatenate([document.loss_weights for document in documents], out=row.loss_weights[:used])
    row.targets[: used - 1] = row.tokens[1:used]
    row.targets[np.cumsum(lengths) - 1] = [
        0 if document.final_target is None else document.final_target for document in documents
    ]
    row.document_ids[:used] = np.repeat(np.arange(1, len(documents) + 1), lengths)
    row.patch_ids[:used] = np.repeat(np.arange(len(patch_lengths)), patch_lengths)
    row.visible_patch[:used] = visible_patches(patch_lengths, provable)
    row.speech_examples[...] = sum(document.speech for document in documents)
    row.aligned_examples[...] = sum(document.aligned for document in documents)
    return row
