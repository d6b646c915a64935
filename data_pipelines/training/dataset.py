"""Records to batches: the dataset that a training run iterates over.

The batches of a run are a function of its `DataConfig` and the records: the number of hosts and
worker processes, how far ahead they work, and restarts change nothing.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Sequence
from typing import Any

import grain

from data_pipelines.processes import starting_workers
from data_pipelines.training.data_config import DataConfig, SourceConfig
from data_pipelines.training.run_documents import RunDocuments
from data_pipelines.training.workers import BlockDataset, Part, next_part
from lst_jax.batch import Batch, join_batches, padding_rows
from lst_jax.vocabulary import Vocabulary

__all__ = ["DataConfig", "SourceConfig", "TrainingDataset", "make_training_dataset", "merge_states"]


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
) -> TrainingDataset:
    """Returns the batches of a run, or this host's rows of them.

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
    streams = _local_streams(config, num_workers, host_index, host_count)
    if prefetch < min(num_workers, 1):
        raise ValueError(f"prefetch is {prefetch}, expected at least {min(num_workers, 1)}")
    documents = RunDocuments(config, vocabulary, fingerprint, held_out)
    return TrainingDataset(documents, streams, num_workers, prefetch)


def merge_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns one state for all hosts, from the states of every host's iterator at the same step.

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
            f"DataConfig.num_epochs is {config.num_epochs} on {host_count} hosts, expected None: "
            "hosts would end at different steps"
        )
    rows = config.batch_size // host_count
    if num_workers < 0 or (num_workers and rows % num_workers):
        raise ValueError(
            f"num_workers is {num_workers}, expected 0 or a divisor of this host's {rows} rows"
        )
    return range(host_index * rows, (host_index + 1) * rows)


class TrainingDataset(grain.IterDataset[Batch]):
    """Batches from streams, with or without worker processes; see `make_training_dataset`.

    Attributes:
      documents: what the streams are made of.
    """

    def __init__(
        self, documents: RunDocuments, streams: range, num_workers: int, prefetch: int
    ) -> None:
        super().__init__()
        self.documents = documents
        self._streams = streams
        self._num_workers = num_workers
        self._prefetch = prefetch

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        size = len(self._streams) // max(1, self._num_workers)
        blocks = [self._streams[i : i + size] for i in range(0, len(self._streams), size)]
        return _TrainingIterator(self.documents, blocks, self._num_workers > 0, self._prefetch)


class _TrainingIterator(grain.DatasetIterator[Batch]):
    """Joins the parts of each batch that blocks of streams make.

    A block sends its streams' states along with its rows, so that this iterator's state is that of
    the streams after the last batch it gave out, whatever the blocks have made ahead since. It is
    restored by making new blocks that start there.
    """

    def __init__(
        self, documents: RunDocuments, blocks: Sequence[range], in_processes: bool, prefetch: int
    ) -> None:
        super().__init__()
        self._documents = documents
        self._streams = blocks
        self._in_processes = in_processes
        self._prefetch = prefetch
        self._step = 0
        self._states: dict[int, str] | None = None
        self._blocks: list[grain.DatasetIterator[Part]] = []

    def __next__(self) -> Batch:
        if not self._blocks:
            self._start()
        pairs = zip(self._blocks, self._streams, strict=True)
        parts = [next_part(block, streams) for block, streams in pairs]
        if all(part is None for part in parts):
            raise StopIteration
        states = self._states or {}
        for part, streams in zip(parts, self._streams, strict=True):
            if part is not None:
                states.update(zip(streams, part["states"], strict=True))
        self._states = states
        self._step += 1
        config, size = self._documents.config, (len(self._streams[0]),)
        empty = padding_rows(config.patches_per_row, config.tokens_per_row, size)
        # Copies, also of a single part: what a worker sends is shared memory that it owns.
        return join_batches(
            [empty if p is None else dataclasses.replace(empty, **p["arrays"]) for p in parts]
        )

    def get_state(self) -> dict[str, Any]:
        """Returns where the iterator is, as JSON.

        `step` is the next batch's; `config` a digest of `settings`, all that batches depend on;
        `streams` has each stream's state.
        """
        if self._states is None:
            start = self._documents.packer(self._streams[0][0]).get_state()
            self._states = {stream: start for block in self._streams for stream in block}
        return {
            "step": self._step,
            **self._documents.fingerprint(),
            "streams": {str(stream): state for stream, state in self._states.items()},
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a state of this host's streams, or of more (see `merge_states`).

        Raises:
          ValueError: the state is of another configuration or lacks a stream.
        """
        self._documents.check_fingerprint(state)
        streams = [stream for block in self._streams for stream in block]
        missing = [stream for stream in streams if str(stream) not in state["streams"]]
        if missing:
            raise ValueError(
                f"state has no stream {missing[0]}, expected streams {streams[0]} … "
                f"{streams[-1]}: merge the states of all hosts first"
            )
        self._stop()
        self._states = {stream: state["streams"][str(stream)] for stream in streams}
        self._step = int(state["step"])

    def close(self) -> None:
        """Ends the worker processes."""
        self._stop()
        super().close()

    def _start(self) -> None:
        # A cluster sends SIGTERM to all: it is the main process that answers, with a checkpoint.
        with starting_workers(signal.SIGTERM):
            for streams in self._streams:
                states = None if self._states is None else [self._states[s] for s in streams]
                packing = self._documents.config.packing
                block = BlockDataset(self._documents.packer, packing, streams, states)
                self._blocks.append(block.start(self._prefetch, self._in_processes))
            for block_iterator in self._blocks:
                # Grain makes a worker's process when its state or its first element is asked for;
                # asking for elements one after the other would start the workers one by one.
                block_iterator.get_state()
                block_iterator.start_prefetch()

    def _stop(self) -> None:
        for block in self._blocks:
            block.close()
        self._blocks = []
