"""Spoken words drawn from aligned records, each with the patch that it is."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Annotated

import numpy as np

from data_pipelines.records.storage import RecordSource, Utterance
from data_pipelines.training.interleaving import speech_draft
from lst_jax.evaluation.patch_states import ChosenPatches
from lst_jax.patching import Document, PatchingConfig, largest_head, patch_document
from lst_jax.settings import Bounds, PositiveInt, Seed32, configuration
from lst_jax.vocabulary import Vocabulary

NO_WORD = -1
_TOKENS_A_PATCH = 8  # that rows have room for; a word has 6 in the paper


@configuration
class SampleConfig:
    """Which words are looked at.

    Attributes:
      words: W, at most so many different ones.
      occurrences: of each word, so that all count alike.
      max_records: utterances that are searched, which bounds time and memory.
      seed: of what is drawn.
    """

    words: Annotated[int, Bounds(least=2, most=10_000)] = 50
    occurrences: Annotated[int, Bounds(least=2, most=10_000)] = 20
    max_records: PositiveInt = 2000
    seed: Seed32 = 0


@dataclasses.dataclass(frozen=True, eq=False)
class WordSample:
    """M = W · occurrences spoken words.

    Attributes:
      names: the W words.
      words: (M,) which of them each is.
      first_pieces: (M,) the first text piece of the word.
      next_pieces: (M,) that of the word said after it, `NO_WORD` where none is.
      chosen: their patches, in the utterances that they are from.
      searched: utterances among which they were found.
    """

    names: tuple[str, ...]
    words: np.ndarray
    first_pieces: np.ndarray
    next_pieces: np.ndarray
    chosen: ChosenPatches
    searched: int


def sample_words(
    source: RecordSource,
    config: SampleConfig,
    patching: PatchingConfig,
    vocabulary: Vocabulary,
    patches_per_row: int,
) -> WordSample:
    """Draws words, and occurrences of each, from records drawn before.

    Utterances are segmented by words, each as one run of speech, whatever the model was trained
    with. What does not fit into a row is left out.

    Args:
      source: utterances.
      config: how many.
      patching: gives what silence is.
      vocabulary: the id space.
      patches_per_row: patch slots of a row.

    Raises:
      ValueError: fewer than two words occur often enough.
    """
    rng = np.random.default_rng(config.seed)
    count = min(config.max_records, len(source))
    records = np.sort(rng.choice(len(source), count, replace=False)).tolist()
    aligned = dataclasses.replace(patching, strategy="aligned", join_speech_mode=False)

    def segment(utterance: Utterance) -> _Segmented:
        return _segment(utterance, aligned, vocabulary, patches_per_row)

    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for record in records:
        utterance = _utterance(source, record)
        for index in segment(utterance).words:
            found[utterance.words[index]].append((record, index))
    often = sorted(word for word, places in found.items() if len(places) >= config.occurrences)
    if len(often) < 2:
        raise ValueError(
            f"{len(often)} words occur {config.occurrences} times in {count} records, expected at "
            "least 2: ask for fewer --occurrences or more --max_records"
        )
    names = sorted(rng.choice(often, min(config.words, len(often)), replace=False).tolist())
    drawn = [
        (*found[name][place], word)
        for word, name in enumerate(names)
        for place in np.sort(rng.choice(len(found[name]), config.occurrences, replace=False))
    ]
    return _collect(source, sorted(drawn), tuple(names), count, segment)


@dataclasses.dataclass(frozen=True, eq=False)
class _Segmented:
    document: Document
    words: Sequence[int]
    patches: np.ndarray


def _segment(
    utterance: Utterance, patching: PatchingConfig, vocabulary: Vocabulary, patches_per_row: int
) -> _Segmented:
    """Returns an utterance's document, the words that are in it, and the patch of every entry."""
    by_words = dataclasses.replace(patching, aligned_by="words")
    draft = speech_draft(utterance, vocabulary, None, by_words, align=True)
    lengths = draft.aligned_lengths
    assert lengths is not None  # it was asked for
    document = patch_document(draft.tokens, patching, vocabulary, lengths)
    kept = largest_head(document, patches_per_row, _TOKENS_A_PATCH * patches_per_row)
    if kept < document.num_patches:
        end = int(document.patch_lengths[:kept].sum())
        document = patch_document(draft.tokens, patching, vocabulary, lengths, end=end)
    starts = 2 + np.cumsum(utterance.unit_counts) - utterance.unit_counts  # after bos and <s>
    patches = np.searchsorted(np.cumsum(lengths), starts, side="right")
    there = ~utterance.is_silence & (utterance.unit_counts > 0) & (patches < kept)
    return _Segmented(document, np.flatnonzero(there).tolist(), patches)


def _collect(
    source: RecordSource,
    drawn: Sequence[tuple[int, int, int]],
    names: tuple[str, ...],
    searched: int,
    segment: Callable[[Utterance], _Segmented],
) -> WordSample:
    """Returns the sample of words drawn, each as its record, its place there and its number."""
    documents, columns = [], []
    for record, group in itertools.groupby(drawn, key=lambda place: place[0]):
        utterance = _utterance(source, record)
        segmented = segment(utterance)
        first = np.cumsum(utterance.piece_counts) - utterance.piece_counts
        spoken = np.flatnonzero(utterance.piece_counts)
        for _, place, word in group:
            later = spoken[spoken > place]
            following = utterance.pieces[first[later[0]]] if len(later) else NO_WORD
            own, patch = utterance.pieces[first[place]], segmented.patches[place]
            columns.append((word, own, following, len(documents), patch))
        documents.append(segmented.document)
    words, own, following, document, patch = np.array(columns, np.int64).T
    return WordSample(
        names, words, own, following, ChosenPatches(documents, document, patch), searched
    )


def _utterance(source: RecordSource, index: int) -> Utterance:
    record = source[index]
    assert isinstance(record, Utterance)  # of records of speech
    return record
