"""Mixing: which document a stream takes next, and what it becomes in this epoch.

Every source is shuffled again in each epoch and repeated; stream b of B takes the positions
b, b + B, … of every source and mixes them with the sources' weights. (Slicing one mixed order
instead would tie streams to sources, for Grain's mixing is periodic: with two sources of equal
weight every even stream would see only the first.)

All that is random about a document comes from a counter-based generator at the place (seed,
source, epoch, record).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, cast, get_args

import grain
import numpy as np

from data_pipelines.records.storage import Record, Totals, Utterance
from data_pipelines.training.documents import Task, task_draft
from data_pipelines.training.interleaving import (
    Draft,
    choose_blocks,
    speech_draft,
    text_draft,
)
from lst_jax.patching import PatchingConfig
from lst_jax.settings import given
from lst_jax.vocabulary import Vocabulary

RatioUnit = Literal["words", "tokens"]


class DocumentKey(NamedTuple):
    """One visit of a record: the only thing, beside the seed, that its randomness depends on."""

    source: int
    epoch: int
    record: int


@dataclasses.dataclass(frozen=True)
class SourceStatistics:
    """What the weights of a mixture are made of.

    Attributes:
      kind: "speech" or "text".
      totals: what the source's records add up to.
      weight: the source's share among those of its kind, in any scale.
    """

    kind: Literal["speech", "text"]
    totals: Totals
    weight: float = 1.0


def document_weights(
    sources: Sequence[SourceStatistics],
    speech_text_ratio: float,
    ratio_unit: RatioUnit,
    interleaved_share: float,
) -> list[float]:
    """Returns how often to take a document from each source.

    Args:
      sources: at least one.
      speech_text_ratio: amount of speech for an amount 1 of text, above 0; 0.5 is the paper's 1:2.
        Utterances count as speech whole, with the words that interleaving gives as text. It plays
        no part where there are only sources of one kind.
      ratio_unit: what amounts are counted in. `words`: words said or written. `tokens`: text
        tokens and units of the documents, as interleaving leaves them (Table 13); plain units,
        so that runs with another unit vocabulary take the same documents.
      interleaved_share: share of the utterances that are interleaved, 0 … 1.

    Returns:
      Relative frequencies of documents, summing to 1.

    Raises:
      ValueError: an argument is out of range, or a source has nothing to count.
    """
    if ratio_unit not in get_args(RatioUnit):
        raise ValueError(f"ratio_unit is {ratio_unit!r}, expected one of words, tokens")
    if not speech_text_ratio > 0:
        raise ValueError(f"speech_text_ratio is {speech_text_ratio}, expected a positive number")
    kind_amounts = {"speech": speech_text_ratio, "text": 1.0}
    kind_weights = {kind: sum(s.weight for s in sources if s.kind == kind) for kind in kind_amounts}
    frequencies = []
    for number, source in enumerate(sources):
        if not source.weight > 0:
            raise ValueError(f"sources[{number}].weight is {source.weight}, expected above 0")
        size = _mean_size(source, ratio_unit, interleaved_share)
        if not size > 0:
            raise ValueError(f"sources[{number}] has no {ratio_unit} to weigh it by")
        amount = kind_amounts[source.kind] * source.weight / kind_weights[source.kind]
        frequencies.append(amount / size)
    total = sum(frequencies)
    return [frequency / total for frequency in frequencies]


def _mean_size(source: SourceStatistics, ratio_unit: RatioUnit, interleaved_share: float) -> float:
    totals = source.totals
    if not totals.documents:
        return 0.0
    words = totals.words / totals.documents
    if ratio_unit == "words":
        return words
    if source.kind == "text":
        return totals.text_tokens / totals.documents
    spoken = spoken_share(totals, interleaved_share)
    return (spoken * totals.units + (1 - spoken) * totals.text_tokens) / totals.documents


def spoken_share(totals: Totals, interleaved_share: float) -> float:
    """Returns the share of the words of utterances that is speech in documents, on average."""
    words = max(1, round(totals.words / max(1, totals.documents - totals.wordless)))
    return 1 - interleaved_share * (1 - expected_speech_share(words))


@functools.lru_cache
def expected_speech_share(num_words: int) -> float:
    """Returns the share of words that interleaving leaves as speech, about 1/3 for long ones.

    An average over many draws, the same at every call.
    """
    draws = 2000
    rng = np.random.Generator(np.random.Philox(0))
    spoken = 0
    for _ in range(draws):
        sizes, speech_first = choose_blocks(num_words, rng)
        spoken += sum(sizes[0 if speech_first else 1 :: 2])
    return spoken / (draws * num_words)


class RecordReader(Protocol):
    """Records by number, several at a time; `RecordSource` is one."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Record]: ...


class MixedDrafts:
    """The documents of one stream by position, a `DraftStream`."""

    def __init__(
        self,
        keys: grain.MapDataset[DocumentKey],
        sources: Sequence[RecordReader],
        seed: int,
        patching: PatchingConfig,
        vocabulary: Vocabulary,
        interleaved_share: float,
        task: Task | None = None,
    ) -> None:
        """See `stream_keys` for `keys`; the rest as in `DataConfig`."""
        self._keys = keys
        self._sources = sources
        self._random = DocumentRandom(seed)
        self._patching = patching
        self._vocabulary = vocabulary
        self._interleaved_share = interleaved_share
        self._task: Task | None = task
        self._ahead: dict[int, tuple[DocumentKey, Record]] = {}
        self._next_unread = 0

    def __len__(self) -> int:
        return len(self._keys)

    def load(self, index: int, probability: float) -> Draft:
        """Loads document `index`, with its patches by words if its draw is below `probability`."""
        if index not in self._ahead:
            # Reading several records at once halves the cost; a restored packer asks for a few
            # scattered ones first.
            count = _READ_AHEAD if index == self._next_unread else 1
            self._read(index, min(index + count, len(self)))
        key, record = self._ahead.pop(index)
        rng = self._random.generator(key)
        draw = rng.random()
        return dataclasses.replace(self._draft(record, rng, draw < probability), draw=draw)

    def _read(self, begin: int, end: int) -> None:
        keys = {index: given(self._keys[index], "key", "a document") for index in range(begin, end)}
        for number, source in enumerate(self._sources):
            indices = [index for index, key in keys.items() if key.source == number]
            records = source.__getitems__([keys[index].record for index in indices])
            for index, record in zip(indices, records, strict=True):
                self._ahead[index] = keys[index], record
        self._next_unread = max(self._next_unread, end)

    def _draft(self, record: Record, rng: np.random.Generator, align: bool) -> Draft:
        if not isinstance(record, Utterance):
            return text_draft(record, self._vocabulary)
        vocabulary, patching = self._vocabulary, self._patching
        if self._task:
            return task_draft(record, self._task, vocabulary, patching, align, rng)
        blocks_rng = rng if rng.random() < self._interleaved_share else None
        return speech_draft(record, vocabulary, blocks_rng, patching, align, rng)


_READ_AHEAD = 16


class DocumentRandom:
    """Random numbers for each visit of a record; those of different visits never overlap."""

    def __init__(self, seed: int) -> None:
        """Takes a seed of 0 … 2⁶⁴ − 1."""
        self._bits = np.random.Philox(0)
        self._generator = np.random.Generator(self._bits)
        self._state = np.random.Philox(0).state
        self._state["state"]["key"][0] = seed

    def generator(self, key: DocumentKey) -> np.random.Generator:
        """Returns the generator at the start of this visit's numbers, for use before the next call.

        There is one generator, which is moved: making a new one takes ten times as long.
        """
        place = self._state["state"]
        place["key"][1] = key.source
        # The two low words of Philox' 256-bit counter count the draws.
        place["counter"][:] = 0, 0, key.epoch, key.record
        self._bits.state = self._state
        return self._generator


def source_keys(
    source: int,
    size: int,
    seed: int,
    num_epochs: int | None,
    records: np.ndarray | None = None,
) -> grain.MapDataset[DocumentKey]:
    """Returns the visits of a source's records in order: shuffled again in each epoch.

    Args:
      source: number of the source.
      size: number of its records.
      seed: of the shuffle.
      num_epochs: how often to repeat; None forever.
      records: numbers of the records that are visited; None: all of them.
    """
    # Grain shuffles with 32-bit seeds, and each epoch with the next one.
    shuffle_seed = int(np.random.SeedSequence([seed, source]).generate_state(1)[0])
    if records is None:
        numbers = grain.MapDataset.range(size)
    else:
        numbers, size = grain.MapDataset.source(cast(Sequence[int], records)), len(records)
    visits = numbers.shuffle(shuffle_seed).repeat(num_epochs)
    return visits.map_with_index(functools.partial(_make_key, source, size))


def _make_key(source: int, size: int, position: int, record: int) -> DocumentKey:
    return DocumentKey(source, position // size, int(record))


def stream_keys(
    sources: Sequence[grain.MapDataset[DocumentKey]],
    weights: Sequence[float],
    stream: int,
    num_streams: int,
    endless: bool,
) -> grain.MapDataset[DocumentKey]:
    """Returns the documents of one stream.

    Args:
      sources: the visits of each source.
      weights: relative frequencies, one a source.
      stream: number of the stream, from 0.
      num_streams: number of all streams; together they take every visit once.
      endless: whether the sources repeat forever.

    Returns:
      The visits in order. Where sources end, those that are left go on.
    """
    parts = [source[stream::num_streams] for source in sources]
    if endless:
        return grain.MapDataset.mix(parts, weights)
    lengths = [len(part) for part in parts]
    # Its class of such maps is at another place in each version of Grain, which asks for none.
    selection = cast(Any, _FiniteSelection(lengths, weights))
    return grain.MapDataset.select_from_datasets(parts, selection)


class _FiniteSelection:
    """Every element of every part once, parts taken with the given frequencies while they last."""

    def __init__(self, lengths: Sequence[int], weights: Sequence[float]) -> None:
        places = [
            (np.arange(length) + 0.5) / weight
            for length, weight in zip(lengths, weights, strict=True)
        ]
        parts = np.repeat(np.arange(len(lengths)), lengths)
        order = np.argsort(np.concatenate(places), kind="stable")
        self._parts = parts[order]
        self._elements = np.concatenate([np.arange(length) for length in lengths])[order]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return int(self._parts[index]), int(self._elements[index])
