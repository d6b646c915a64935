"""Records to batches: the dataset that a training run iterates over.

The batches of a run are a function of its `DataConfig` and the records: the number of hosts and
worker processes, how far ahead they work, and restarts change nothing.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import grain
import numpy as np

from data_pipelines.records.storage import RecordSource, open_records
from data_pipelines.training.documents import Task
from data_pipelines.training.held_out import held_out_mask
from data_pipelines.training.mixture import (
    MixedDrafts,
    RatioUnit,
    SourceStatistics,
    document_weights,
    source_keys,
    stream_keys,
)
from data_pipelines.training.packing import OpenRows, PackingConfig, RowPacker, RowSize
from lst_jax.batch import Batch, batch_arrays, join_batches, padding_rows, stack_rows
from lst_jax.patching import PatchingConfig, Visibility
from lst_jax.settings import (
    BatchRows,
    Bounds,
    Fraction,
    PathText,
    PositiveFloat,
    PositiveInt,
    Seed64,
    configuration,
    require,
)
from lst_jax.vocabulary import Vocabulary

# Tokens; six arrays of them are made at once. The largest batches that models are trained with have
# a quarter of it.
_LARGEST_BATCH = 2**28


@configuration
class SourceConfig:
    """One source of documents.

    Attributes:
      path: a record directory, or a glob pattern for several.
      kind: what it must hold.
      weight: its share of the amount of its kind, relative to the other sources of that kind.
    """

    path: PathText
    kind: Literal["speech", "text"]
    weight: PositiveFloat = 1.0


# A share of records that something is left of.
Share = Annotated[float, Bounds(least=0, below=1)]


@configuration
class DataConfig:
    """What a run trains on.

    Attributes:
      sources: at least one.
      batch_size: rows of the global batch, B.
      patches_per_row: P.
      tokens_per_row: N, equal to P where the strategy is `none`.
      seed: of everything random, 0 … 2⁶⁴ − 1.
      speech_text_ratio: amount of speech for an amount 1 of text, see `document_weights`.
      ratio_unit: what that is counted in, `words` or `tokens`.
      interleaved_share: share of the utterances that are interleaved with their text, drawn again
        in each epoch; the others are speech throughout.
      patching: how speech is segmented.
      visibility: see `fill_row`.
      open_rows: rows that the packer of each stream keeps open.
      largest_gap: see `PackingConfig`.
      num_epochs: how often every record is visited; None forever.
      task: what utterances are made into instead, "asr" or "tts"
        (`data_pipelines.training.documents`); None interleaves them. A task's documents do without
        text sources.
      held_out_share: share of every source's records that training never sees, 0 ≤ share < 1
        (`data_pipelines.training.held_out`).
    """

    sources: tuple[SourceConfig, ...]
    batch_size: BatchRows
    patches_per_row: RowSize
    tokens_per_row: RowSize
    seed: Seed64 = 0
    speech_text_ratio: PositiveFloat = 0.5
    ratio_unit: RatioUnit = "tokens"
    interleaved_share: Fraction = 1.0
    patching: PatchingConfig = dataclasses.field(default_factory=PatchingConfig)
    visibility: Visibility = "causal"
    open_rows: OpenRows = 8
    largest_gap: Fraction = 0.05
    num_epochs: PositiveInt | None = None
    task: Task | None = None
    held_out_share: Share = 0.0

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "DataConfig.sources", self.sources, "at least one source")
        require(
            self.batch_size * self.tokens_per_row <= _LARGEST_BATCH,
            "DataConfig.batch_size",
            self.batch_size,
            f"at most {_LARGEST_BATCH // self.tokens_per_row} rows of {self.tokens_per_row} tokens",
        )
        require(
            self.patching.strategy != "none" or self.patches_per_row == self.tokens_per_row,
            "DataConfig.patches_per_row",
            self.patches_per_row,
            f"tokens_per_row = {self.tokens_per_row} where every token is a patch",
        )
        kinds = {source.kind for source in self.sources}
        speech = self.task is None or kinds == {"speech"}
        expected = f"only speech for task {self.task!r}"
        require(speech, "DataConfig.sources", self.sources, expected)

    @property
    def packing(self) -> PackingConfig:
        """The part that shapes rows."""
        return PackingConfig(
            num_patches=self.patches_per_row,
            num_tokens=self.tokens_per_row,
            open_rows=self.open_rows,
            largest_gap=self.largest_gap,
            patching=self.patching,
            visibility=self.visibility,
        )


def make_training_dataset(
    config: DataConfig,
    vocabulary: Vocabulary,
    *,
    fingerprint: str | None = None,
    num_workers: int = 0,
    prefetch: int = 2,
    host_index: int = 0,
    host_count: int = 1,
    held_out: bool = False,
) -> grain.IterDataset[Batch]:
    """The batches of a run, or this host's rows of them.

    An element has B / host_count rows, which are the rows
    host_index · B / host_count … of the global batch. Element u is the batch of step u. The
    iterators' states are JSON-able, the same for any number of workers, and those of all hosts can
    be merged and divided again with `merge_states`.

    Args:
      config: what to train on.
      vocabulary: the id space.
      fingerprint: where given, the records must have been made with the tokenizer that has it.
      num_workers: processes that make rows; 0 makes them in this one. They need a main module that
        can be imported (`if __name__ == "__main__"`) and, for Grain's sake, parsed absl flags.
      prefetch: batches that are made ahead (by each worker, its part of them); 0 for none where
        there are no workers.
      host_index: number of this host.
      host_count: number of hosts.
      held_out: gives batches of the records that are held out, in place of those of training.

    Raises:
      FileNotFoundError: records are missing.
      ValueError: an argument is out of range, batches cannot be divided evenly, or records do not
        fit the vocabulary.
    """
    records = [
        open_records(source.path, vocabulary, fingerprint=fingerprint, kind=source.kind)
        for source in config.sources
    ]
    streams = _local_streams(config, num_workers, host_index, host_count)
    if prefetch < min(num_workers, 1):
        raise ValueError(f"prefetch is {prefetch}, expected at least {min(num_workers, 1)}")
    make_packer = _PackerFactory(config, vocabulary, records, held_out)
    return TrainingDataset(make_packer, streams, num_workers, prefetch)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state for all hosts, from the states of every host's iterator at the same step.

    Any host can be restored from it, also if there are more or fewer than before.

    Raises:
      ValueError: there are no states, or they are of different steps or configurations.
    """
    if not states:
        raise ValueError("states is empty, expected at least one")
    merged: dict[str, str] = {}
    for state in states:
        for name in ("step", "config"):
            if state[name] != states[0][name]:
                raise ValueError(
                    f"states have {name} {states[0][name]} and {state[name]}, expected the same"
                )
        merged.update(state["streams"])
    return {**states[0], "streams": merged}


def _local_streams(config: DataConfig, num_workers: int, host_index: int, host_count: int) -> range:
    if host_count < 1 or config.batch_size % host_count:
        raise ValueError(
            f"host_count is {host_count}, expected a divisor of the {config.batch_size} rows"
        )
    if not 0 <= host_index < host_count:
        raise ValueError(f"host_index is {host_index}, expected 0 … {host_count - 1}")
    if config.num_epochs is not None and host_count > 1:
        raise ValueError(
            f"num_epochs is {config.num_epochs} on {host_count} hosts, expected None: hosts would "
            "end at different steps"
        )
    rows = config.batch_size // host_count
    if num_workers < 0 or (num_workers and rows % num_workers):
        raise ValueError(
            f"num_workers is {num_workers}, expected 0 or a divisor of this host's {rows} rows"
        )
    return range(host_index * rows, (host_index + 1) * rows)


class _PackerFactory:
    """Makes the packer of any stream; sent to worker processes."""

    def __init__(
        self,
        config: DataConfig,
        vocabulary: Vocabulary,
        records: Sequence[RecordSource],
        held_out: bool,
    ) -> None:
        self.config = config
        self._vocabulary = vocabulary
        self._records = records
        self._weights = document_weights(
            [
                SourceStatistics(source.kind, opened.metadata.totals, source.weight)
                for source, opened in zip(config.sources, records, strict=True)
            ],
            config.speech_text_ratio,
            config.ratio_unit,
            config.interleaved_share,
        )
        self._visited = [
            _visited_records(number, len(opened), config, held_out)
            for number, opened in enumerate(records)
        ]

    @functools.cached_property
    def settings(self) -> list[Any]:
        """All that batches depend on, as JSON values; where records lie does not matter."""
        fields = dataclasses.asdict(self.config)
        for source, records in zip(fields["sources"], self._records, strict=True):
            source["path"] = records.metadata.identity()
        if not self.config.held_out_share:
            del fields["held_out_share"]  # as in runs begun before there was one
        return json.loads(json.dumps([fields, dataclasses.asdict(self._vocabulary)]))

    @functools.cached_property
    def digest(self) -> str:
        """Tells settings apart."""
        text = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(self, stream: int) -> RowPacker:
        config = self.config
        keys = stream_keys(
            [
                source_keys(number, len(records), config.seed, config.num_epochs, visited)
                for number, (records, visited) in enumerate(
                    zip(self._records, self._visited, strict=True)
                )
            ],
            self._weights,
            stream,
            config.batch_size,
            endless=config.num_epochs is None,
        )
        drafts = MixedDrafts(
            keys,
            self._records,
            config.seed,
            config.patching,
            self._vocabulary,
            config.interleaved_share,
            config.task,
        )
        return RowPacker(drafts, config.packing, self._vocabulary)


def _visited_records(
    source: int, size: int, config: DataConfig, held_out: bool
) -> np.ndarray | None:
    """Returns the numbers of a source's records that are visited; None for all."""
    if not config.held_out_share and not held_out:
        return None
    mask = held_out_mask(source, size, config.held_out_share)
    visited = np.flatnonzero(mask == held_out)
    if not len(visited):
        raise ValueError(
            f"held_out_share is {config.held_out_share}, expected one that divides the {size} "
            f"records of sources[{source}] in two parts, neither of them empty"
        )
    return visited


class TrainingDataset(grain.IterDataset[Batch]):
    """Batches from streams, with or without worker processes; see `make_training_dataset`."""

    def __init__(
        self, make_packer: _PackerFactory, streams: range, num_workers: int, prefetch: int
    ) -> None:
        super().__init__()
        self._make_packer = make_packer
        self._streams = streams
        self._num_workers = num_workers
        self._prefetch = prefetch

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        return _TrainingIterator(
            self._make_packer, self._streams, self._num_workers, self._prefetch
        )


class _TrainingIterator(grain.DatasetIterator[Batch]):
    """Joins the parts of each batch that blocks of streams make.

    A block sends its streams' states along with its rows, so that this iterator's state is that of
    the streams after the last batch it gave out, whatever the blocks have made ahead since. It is
    restored by making new blocks that start there.
    """

    def __init__(
        self, make_packer: _PackerFactory, streams: range, num_workers: int, prefetch: int
    ) -> None:
        super().__init__()
        self._make_packer = make_packer
        self._streams = streams
        self._num_workers = num_workers
        self._prefetch = prefetch
        self._step = 0
        self._states: dict[int, str] | None = None
        self._blocks: list[grain.DatasetIterator[_Part]] = []

    def __next__(self) -> Batch:
        if not self._blocks:
            self._start()
        parts = [next(block, None) for block in self._blocks]
        if all(part is None for part in parts):
            raise StopIteration
        states = self._states or {}
        size = len(self._streams) // len(parts)
        for number, part in enumerate(parts):
            if part is not None:
                block = self._streams[number * size : (number + 1) * size]
                states.update(zip(block, part["states"], strict=True))
        self._states = states
        self._step += 1
        config = self._make_packer.config
        empty = padding_rows(config.patches_per_row, config.tokens_per_row, (size,))
        batches = [
            empty if part is None else dataclasses.replace(empty, **part["arrays"])
            for part in parts
        ]
        # Copies, also of a single part: what a worker sends is shared memory that it owns.
        return join_batches(batches)

    def get_state(self) -> dict[str, Any]:
        """`step`: the next batch's; `config`: a digest of `settings`, all that batches depend on;
        `streams`: each stream's state, as JSON.
        """
        if self._states is None:
            start = self._make_packer(self._streams[0]).get_state()
            self._states = dict.fromkeys(self._streams, start)
        return {
            "step": self._step,
            "config": self._make_packer.digest,
            "settings": self._make_packer.settings,
            "streams": {str(stream): state for stream, state in self._states.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of this host's streams, or of more (see `merge_states`).

        Raises:
          ValueError: the state is of another configuration or lacks a stream.
        """
        same = state["config"] == self._make_packer.digest
        # The text that a digest is of tells 2 from 2.0, which are one number.
        if not same and state.get("settings") != self._make_packer.settings:
            difference = _difference(state.get("settings"), self._make_packer.settings)
            raise ValueError(f"the run's data are others: {difference}")
        missing = [stream for stream in self._streams if str(stream) not in state["streams"]]
        if missing:
            raise ValueError(
                f"state has no stream {missing[0]}, expected streams {self._streams.start} … "
                f"{self._streams.stop - 1}: merge the states of all hosts first"
            )
        self._stop()
        self._states = {stream: state["streams"][str(stream)] for stream in self._streams}
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the worker processes."""
        self._stop()
        super().close()

    def _start(self) -> None:
        num_blocks = max(1, self._num_workers)
        size = len(self._streams) // num_blocks
        for number in range(num_blocks):
            streams = self._streams[number * size : (number + 1) * size]
            states = None if self._states is None else [self._states[s] for s in streams]
            block: grain.IterDataset[_Part] = _BlockDataset(self._make_packer, streams, states)
            if self._num_workers:
                options = grain.MultiprocessingOptions(1, self._prefetch)
                block = block.mp_prefetch(options, _end_with_parent)
            elif self._prefetch:
                block = grain.experimental.ThreadPrefetchIterDataset(
                    block, prefetch_buffer_size=self._prefetch
                )
            self._blocks.append(iter(block))
        for block_iterator in self._blocks:
            # Grain makes a worker's process when its state or its first element is asked for;
            # asking for elements one after the other would start the workers one by one.
            block_iterator.get_state()
            block_iterator.start_prefetch()

    def _stop(self) -> None:
        for block in self._blocks:
            block.close()
        self._blocks = []


def _difference(there: list[Any] | None, here: list[Any]) -> str:
    """Says in what settings differ; earlier versions did not keep them."""
    old, new = _flatten(there or []), _flatten(here)
    for name in {**old, **new} if old else ():
        before, now = (fields.get(name, "unknown") for fields in (old, new))
        if before != now:
            return f"{name} is {before!r} in the checkpoint and {now!r} here"
    return "the configuration or the records have changed"


def _flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Scalars in nested lists and objects, by the names that lead to them."""
    if isinstance(value, dict):
        items = [(f"{name}.{key}".lstrip("."), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{name}[{i}]" if name else "", item) for i, item in enumerate(value)]
    else:
        return {name: value}
    return {key: leaf for part in items for key, leaf in _flatten(part[1], part[0]).items()}


def _end_with_parent(_index: int, _count: int) -> None:
    """Makes a worker process end with the main one, and never before it.

    Where the main process was killed, a worker would wait forever. A signal to the whole group
    (Ctrl-C, a cluster's warning, a closed terminal) is the main process' to answer: it still reads
    batches then.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_Part = dict[str, Any]


class _BlockDataset(grain.IterDataset[_Part]):
    """Parts of batches: `arrays`, a row of each of some streams, and these streams' `states`."""

    def __init__(
        self, make_packer: _PackerFactory, streams: range, states: Sequence[str] | None
    ) -> None:
        super().__init__()
        self._make_packer = make_packer
        self._streams = streams
        self._states = states

    def __iter__(self) -> grain.DatasetIterator[_Part]:
        packers = [self._make_packer(stream) for stream in self._streams]
        for packer, state in zip(packers, self._states or [], strict=False):
            packer.set_state(state)
        return _BlockIterator(packers, self._make_packer.config.packing)


class _BlockIterator(grain.DatasetIterator[_Part]):
    def __init__(self, packers: Sequence[RowPacker], config: PackingConfig) -> None:
        super().__init__()
        self._packers = packers
        self._config = config

    def __next__(self) -> _Part:
        rows = [next(packer, None) for packer in self._packers]
        if all(row is None for row in rows):
            raise StopIteration
        empty = padding_rows(self._config.num_patches, self._config.num_tokens)
        batch = stack_rows([row or empty for row in rows])
        return {
            "arrays": batch_arrays(batch),
            "states": [packer.get_state() for packer in self._packers],
        }

    def get_state(self) -> dict[str, Any]:
        """Nothing: `states` travels with the elements, and `_TrainingIterator` restores."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, see `get_state`."""
