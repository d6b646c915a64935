"""Blocks of rows, made ahead in a thread or in a process that never outlives the run.

Grain's worker processes share memory with the main one. It is freed by whichever process takes the
arrays, or, after a kill, by Python's resource tracker once the last of them has ended.
"""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable, Sequence
from multiprocessing import resource_tracker
from typing import Any

import grain

from data_pipelines.processes import end_with_parent
from data_pipelines.training.packing import PackingConfig, RowPacker
from lst_jax.batch import batch_arrays, padding_rows, stack_rows

Part = dict[str, Any]

_ENDED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")


class BlockDataset(grain.IterDataset[Part]):
    """Parts of batches: `arrays`, a row of each of some streams, and these streams' `states`."""

    def __init__(
        self,
        make_packer: Callable[[int], RowPacker],
        config: PackingConfig,
        streams: range,
        states: Sequence[str] | None,
    ) -> None:
        """Starts the streams at `states`, or at their beginning where these are None."""
        super().__init__()
        self._make_packer = make_packer
        self._config = config
        self._streams = streams
        self._states = states

    def __iter__(self) -> grain.DatasetIterator[Part]:
        packers = [self._make_packer(stream) for stream in self._streams]
        for packer, state in zip(packers, self._states or [], strict=False):
            packer.set_state(state)
        return _BlockIterator(packers, self._config)

    def start(self, prefetch: int, in_process: bool) -> grain.DatasetIterator[Part]:
        """Returns an iterator, with that many parts made ahead, in a process or in a thread."""
        block: grain.IterDataset[Part] = self
        if in_process:
            _start_quiet_tracker()
            options = grain.MultiprocessingOptions(1, prefetch)
            block = block.mp_prefetch(options, _start_worker)
        elif prefetch:
            block = grain.experimental.ThreadPrefetchIterDataset(
                block, prefetch_buffer_size=prefetch
            )
        return iter(block)


class _BlockIterator(grain.DatasetIterator[Part]):
    def __init__(self, packers: Sequence[RowPacker], config: PackingConfig) -> None:
        super().__init__()
        self._packers = packers
        self._config = config

    def __next__(self) -> Part:
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
        """Returns nothing: `states` travels with the elements."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Does nothing, see `get_state`."""


def next_part(block: grain.DatasetIterator[Part], streams: range) -> Part | None:
    """Returns a block's next part, None after the last.

    Raises:
      ChildProcessError: in one line, that the block's process was ended by something else.
      ValueError: a record cannot be read.
    """
    try:
        return next(block, None)
    except RuntimeError as error:
        ended = _ENDED.search(str(error))
        if ended is None:
            raise
        code = int(ended[1])
    how = f"exit code {code}" if code > 0 else f"signal {signal.Signals(-code).name}"
    raise ChildProcessError(
        f"the data worker of rows {streams.start} … {streams.stop - 1} was ended by {how}, "
        "perhaps for lack of memory: expected it to last as long as the run"
    )


def _start_quiet_tracker() -> None:
    """Starts Python's tracker of shared memory, without a warning of what it frees after a kill.

    It would come after the run's last line, which says what happened.
    """
    sys.warnoptions.append("ignore::UserWarning:multiprocessing.resource_tracker")
    try:
        resource_tracker.ensure_running()
    finally:
        sys.warnoptions.pop()


def _start_worker(_index: int, _count: int) -> None:
    """Makes a worker process end with the main one, and never before it.

    A signal to the whole group (Ctrl-C, a cluster's warning) is the main process' to answer: it
    still reads batches then.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
