"""From a record to the tokens of a document; each epoch interleaves speech and text differently.

A document is bos, segments each led by its mode token, eos. An utterance alternates blocks of words
given as text with blocks of words given as speech (Section 3 of the paper):

* the first block is text or speech with equal chance;
* a text block has 5 to 30 words, at most 0.6 of the utterance, uniformly;
* the speech block after it has half as many (rounded down), at least 2; a speech block that opens
  the utterance is as long as if a text block had come before it;
* the last block has the words that are left, and where these are under 3 it is merged into the
  block before.

An utterance without words is one speech block, in static patches.

The silence between two blocks is cut in half (the first half gets the smaller part of an odd
number of units). Text never contains silence: the half on a text block's side disappears together
with the speech of that block's words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.records.storage import TextDocument, Utterance
from lst_jax.patching import PatchingConfig, aligned_run_lengths, move_boundaries
from lst_jax.vocabulary import Vocabulary

BY_WORDS = PatchingConfig()  # as far as aligned patches go

_MIN_TEXT_WORDS = 5
_MAX_TEXT_WORDS = 30
_MAX_TEXT_FIFTHS = 3  # a text block has at most 3/5 of the utterance
_MIN_SPEECH_WORDS = 2
_MIN_LAST_WORDS = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Draft:
    """A document before its step, and so its patching, is known.

    Attributes:
      tokens: int32 (T,), bos … eos.
      aligned_lengths: int32 (Q,) lengths of its patches by words (every other token is a patch),
        summing to T; None for text, and where they were not asked for.
      answer_begin: first token that is predicted; those before it are given. 0: none is given.
      draw: uniform in [0, 1); the document is aligned at the steps u with draw < P(u).
    """

    tokens: np.ndarray
    aligned_lengths: np.ndarray | None = None
    answer_begin: int = 0
    draw: float = 0.0


def text_draft(document: TextDocument, vocabulary: Vocabulary) -> Draft:
    """Returns the document bos `<t>` text eos."""
    tokens = np.empty(len(document.pieces) + 3, np.int32)
    tokens[0] = vocabulary.bos_id
    tokens[1] = vocabulary.text_mode_id
    tokens[2:-1] = document.pieces
    tokens[-1] = vocabulary.eos_id
    return Draft(tokens)


def speech_draft(
    utterance: Utterance,
    vocabulary: Vocabulary,
    rng: np.random.Generator | None = None,
    patching: PatchingConfig = BY_WORDS,
    align: bool = False,
    noise_rng: np.random.Generator | None = None,
) -> Draft:
    """Returns the document of an utterance.

    Where units are joined and examples may be aligned, units are joined inside the aligned patches
    alone, in every example: its tokens must not depend on its step.

    Args:
      utterance: W words and silences with their units.
      vocabulary: the id space.
      rng: where the choice of blocks comes from; without it the whole utterance is one speech
        block, with every unit of it.
      patching: what aligned patches are.
      align: whether to give the patches by words as well, where there are words.
      noise_rng: moves boundaries by `patching.boundary_noise`, after `rng` where it is the same;
        without it they stay.

    Raises:
      ValueError: patches are text pieces, and the utterance does not say when they are spoken.
    """
    spoken = np.flatnonzero(utterance.piece_counts)
    if rng is None or not len(spoken):
        sizes, speech = [len(spoken)], True
    else:
        sizes, speech = choose_blocks(len(spoken), rng)
    first_words = np.cumsum([0, *sizes])
    unit_ends = np.cumsum(utterance.unit_counts)
    unit_cuts = _unit_cuts(utterance, unit_ends, spoken, first_words)
    piece_ends = np.cumsum(utterance.piece_counts[spoken])
    piece_cuts = [0, *piece_ends[first_words[1:] - 1].tolist()] if len(spoken) else [0, 0]
    # Nothing says when a word ends where there is none: patches are static.
    align = align and len(spoken) > 0
    by_patches = patching.may_align and not vocabulary.units.is_plain and len(spoken) > 0
    entries = _aligned_entries(utterance, patching) if align or by_patches else None
    parts: list[Sequence[int] | np.ndarray] = [[vocabulary.bos_id]]
    lengths: list[Sequence[int] | np.ndarray] = [[1]]
    for block in range(len(sizes)):
        if speech:
            start, end = unit_cuts[block], unit_cuts[block + 1]
            units, run = utterance.units[start:end], None
            if entries:
                run = _run_lengths(entries, start, end, patching)
                if noise_rng and patching.boundary_noise:
                    run = move_boundaries(run, patching.boundary_noise, noise_rng)
            if run is not None and by_patches:
                joined = [
                    vocabulary.units_to_ids(patch) for patch in np.split(units, np.cumsum(run)[:-1])
                ]
                ids, run = np.concatenate(joined), list(map(len, joined))
            else:
                ids = vocabulary.units_to_ids(units)
            parts += [[vocabulary.speech_mode_id], ids]
            lengths += [[1], run] if run is not None else []
        else:
            start, end = piece_cuts[block], piece_cuts[block + 1]
            parts += [[vocabulary.text_mode_id], utterance.pieces[start:end]]
            lengths.append(np.ones(1 + end - start, np.int32))
        speech = not speech
    tokens = np.concatenate([*parts, [vocabulary.eos_id]], dtype=np.int32, casting="same_kind")
    if not align:
        return Draft(tokens)
    return Draft(tokens, np.concatenate([*lengths, [1]], dtype=np.int32, casting="same_kind"))


def choose_blocks(num_words: int, rng: np.random.Generator) -> tuple[list[int], bool]:
    """Draws the blocks of an utterance, see the module's docstring.

    Args:
      num_words: words of the utterance without silences, at least 1.
      rng: source of randomness.

    Returns:
      The words of each block, at least 1 each and summing to `num_words`, and whether the first
      block is speech.
    """
    if num_words < 1:
        raise ValueError(f"num_words is {num_words}, expected at least 1")
    longest = max(1, min(_MAX_TEXT_WORDS, _MAX_TEXT_FIFTHS * num_words // 5))
    shortest = min(_MIN_TEXT_WORDS, longest)
    first_is_speech = rng.random() < 0.5
    speech = first_is_speech
    sizes: list[int] = []
    text_words = 0
    left = num_words
    while left:
        if not speech or not sizes:
            text_words = shortest + int(rng.random() * (longest - shortest + 1))
        size = max(_MIN_SPEECH_WORDS, text_words // 2) if speech else text_words
        size = min(size, left)
        if size < _MIN_LAST_WORDS and size == left and sizes:
            sizes[-1] += size
        else:
            sizes.append(size)
        left -= size
        speech = not speech
    return sizes, first_is_speech


def _unit_cuts(
    utterance: Utterance, unit_ends: np.ndarray, spoken: np.ndarray, first_words: np.ndarray
) -> list[int]:
    """Returns where each block's units start (K + 1,): amid the silence before its words."""
    after = spoken[first_words[1:-1]]  # the word that opens each block but the first
    before = spoken[first_words[1:-1] - 1]
    silence_start = unit_ends[before]
    silence_end = unit_ends[after] - utterance.unit_counts[after]
    inner = silence_start + (silence_end - silence_start) // 2
    return [0, *inner.tolist(), len(utterance.units)]


def _aligned_entries(
    utterance: Utterance, patching: PatchingConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the units of each word or piece and of each silence, and which are silences."""
    if patching.aligned_by == "words":
        return utterance.unit_counts, utterance.is_silence
    if utterance.piece_unit_counts is None:
        raise ValueError(
            f"utterance {utterance.file_id!r} has no piece_unit_counts, expected them where "
            "PatchingConfig.aligned_by is 'pieces'"
        )
    silent = np.repeat(utterance.is_silence, np.maximum(utterance.piece_counts, 1))
    counts = np.empty(len(silent), np.int32)
    counts[silent] = utterance.unit_counts[utterance.is_silence]
    counts[~silent] = utterance.piece_unit_counts
    return counts, silent


def _run_lengths(
    entries: tuple[np.ndarray, np.ndarray], start: int, end: int, patching: PatchingConfig
) -> np.ndarray:
    """Returns the aligned patch lengths of units start … end of the utterance."""
    counts, silent = entries
    ends = np.cumsum(counts)
    counts = np.minimum(ends, end) - np.maximum(ends - counts, start)
    inside = counts > 0
    return aligned_run_lengths(counts[inside], silent[inside], patching.silence)
