"""A corpus in parts that a kill does not undo, made by any number of processes and hosts.

A corpus is cut, in its own order, into parts of so many recordings. A part's records, rejects and
measures depend on its recordings alone, and its file appears whole, so any process may make any
part, at any time and again. Records are written in one pass over the parts when all are there.

Processes of a pool decode ahead, not Grain's workers (`mp_prefetch`): those bound what waits by its
number, and recordings are of seconds or hours; they divide a source whose length is known, and a
part's pieces are found while it is read; and they start anew with every dataset, so for every part.
What Grain would give in exchange, order and a place to resume at, parts have already.
"""

from __future__ import annotations

import collections
import hashlib
import itertools
import multiprocessing
import pathlib
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
from typing import Any

from data_pipelines.processes import end_with_parent, starting_workers
from data_pipelines.records.metadata import RecordMetadata
from data_pipelines.records.payloads import decode_record, encode_record
from data_pipelines.records.storage import Utterance, write_records
from data_pipelines.speech.preparing import Outcome, Tools, decode, expand
from data_pipelines.speech.recordings import Recording
from lst_jax.files import write_file, write_json
from lst_jax.settings import list_names, quote
from lst_jax.speech.interfaces import Rejection
from lst_jax.strict_json import read_json_object

# Recordings, and seconds of them, that wait while a device works; every worker has one besides.
_AHEAD, _AHEAD_S = 128, 1800.0
_LENGTH = struct.Struct("<I")


class Parts:
    """The parts of a corpus on disk."""

    def __init__(self, folder: pathlib.Path, settings: dict[str, Any]) -> None:
        """Opens the folder of parts, which the first part makes.

        Args:
          folder: of the parts.
          settings: all that decides what is in them, as JSON values.

        Raises:
          ValueError: the folder has parts of other settings; says which.
        """
        self._folder, self._settings = folder, settings
        self.check_settings(folder / "settings.json", settings)

    @staticmethod
    def check_settings(path: pathlib.Path, settings: dict[str, Any]) -> None:
        """Raises a `ValueError` where a file is there and has other settings; says which."""
        there = read_json_object(path) if path.is_file() else settings
        for name in sorted({*there, *settings}):
            if there.get(name) != settings.get(name):
                raise ValueError(
                    f"{path} has {name} = {quote(there.get(name))}, expected "
                    f"{quote(settings.get(name))}: of another run; choose another --output"
                )

    def summary(self, number: int, recordings: Sequence[Recording]) -> dict[str, Any] | None:
        """Returns what a part says of itself; None where it is not there.

        Raises:
          ValueError: it is of other recordings.
        """
        path = self._path(number, "json")
        if not path.is_file():
            return None
        fields = self._read(number)
        if fields["recordings"] != _digest(recordings):
            raise ValueError(f"{path} is of other recordings: the corpus has changed or moved")
        return fields

    def write(
        self, number: int, recordings: Sequence[Recording], outcomes: Iterable[Outcome]
    ) -> dict[str, Any]:
        """Writes a part; returns what it says of itself."""
        payloads, kept = bytearray(), []
        rejects: list[dict[str, str]] = []
        for outcome in outcomes:
            if isinstance(outcome.result, Rejection):
                reason = outcome.result
                rejects.append({"kind": reason.kind, "id": outcome.id, "reason": reason.reason})
            else:
                payload = encode_record(outcome.result)
                payloads += _LENGTH.pack(len(payload)) + payload
                kept.append([round(outcome.duration_s, 6), outcome.score])
        # Now, that a refused start leaves nothing, and again: another process may have come first.
        self.check_settings(self._folder / "settings.json", self._settings)
        write_json(self._folder / "settings.json", self._settings)
        write_file(self._path(number, "records"), bytes(payloads))
        # This file says that the other is whole, so it comes last.
        fields = {
            "recordings": _digest(recordings),
            "crc32": zlib.crc32(payloads),
            "kept": kept,
            "rejects": rejects,
        }
        write_json(self._path(number, "json"), fields)
        return fields

    def read(self, number: int) -> Iterator[tuple[Utterance, float, float | None]]:
        """Yields the records of a part, how long each lasts, and its score."""
        fields, path, place = self._read(number), self._path(number, "records"), 0
        data = path.read_bytes()
        if zlib.crc32(data) != fields["crc32"]:
            raise ValueError(f"{path} is damaged, expected what was written: remove the part")
        for duration_s, score in fields["kept"]:
            (size,) = _LENGTH.unpack_from(data, place)
            record = decode_record(data[place + _LENGTH.size : place + _LENGTH.size + size])
            assert isinstance(record, Utterance)  # as `write` has it
            yield record, duration_s, score
            place += _LENGTH.size + size

    def rejects(self, number: int) -> list[dict[str, str]]:
        """Returns the rejects of a part: kind, id and reason."""
        return self._read(number)["rejects"]

    def count(self, number: int) -> int:
        """Returns the number of a part's records."""
        return len(self._read(number)["kept"])

    def finish(self, settings: pathlib.Path) -> None:
        """Keeps the settings in a file and removes all parts."""
        write_file(settings, (self._folder / "settings.json").read_bytes())
        shutil.rmtree(self._folder)

    def _read(self, number: int) -> dict[str, Any]:
        path = self._path(number, "json")
        fields = read_json_object(path)
        kinds = {"recordings": str, "crc32": int, "kept": list, "rejects": list}
        if {name: type(value) for name, value in fields.items()} != kinds:
            raise ValueError(f"{path} has {list_names(fields)}, expected {list_names(kinds)}")
        return fields

    def _path(self, number: int, suffix: str) -> pathlib.Path:
        return self._folder / f"{number:07d}.{suffix}"


def _digest(recordings: Sequence[Recording]) -> str:
    return hashlib.sha256(repr(list(recordings)).encode("utf-8", "backslashreplace")).hexdigest()


def batched(recordings: Iterable[Recording], size: int) -> Iterator[list[Recording]]:
    """Yields recordings, as many at a time as a part has."""
    iterator = iter(recordings)
    while part := list(itertools.islice(iterator, size)):
        yield part


class Decoders:
    """Processes that decode recordings ahead; with 0 of them this one does."""

    def __init__(self, num_workers: int) -> None:
        """Starts nothing before the first recording."""
        context = multiprocessing.get_context("spawn")
        self._pool = (
            futures.ProcessPoolExecutor(num_workers, context, end_with_parent)
            if num_workers
            else None
        )
        self._num_workers = num_workers

    def decode(self, recordings: Sequence[Recording], tools: Tools) -> Iterator[Any]:
        """Yields what `prepare_utterances` takes as decoded."""
        options = tools.sample_rates, tools.longest_s
        parts = expand(recordings, tools)
        if self._pool is None:
            for part in parts:
                yield decode(part, *options)
            return
        running: collections.deque[tuple[futures.Future[Any], float]] = collections.deque()
        waiting_s = 0.0
        for part in parts:
            seconds = part.about_s
            while len(running) > self._num_workers and (
                len(running) >= _AHEAD or waiting_s + seconds > _AHEAD_S
            ):
                done, its_s = running.popleft()
                waiting_s -= its_s
                yield done.result()
            with starting_workers():
                running.append((self._pool.submit(decode, part, *options), seconds))
            waiting_s += seconds
        while running:
            yield running.popleft()[0].result()

    def close(self) -> None:
        """Ends the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def write_parts(
    parts: Parts,
    numbers: Iterable[int],
    output: pathlib.Path,
    tools: Tools,
    see: Callable[[Utterance, float, float | None], None],
    **options: Any,
) -> RecordMetadata:
    """Writes the records of parts to one directory, in order.

    Args:
      parts: where they are.
      numbers: of the parts.
      output: directory of records; records that are there are replaced.
      tools: what made them.
      see: is called with every record, how long it lasts, and its score.
      options: of `write_records`.
    """

    def records() -> Iterator[Utterance]:
        for number in numbers:
            for record, duration_s, score in parts.read(number):
                see(record, duration_s, score)
                yield record

    encoder = tools.units.encoder
    return write_records(
        output,
        "speech",
        records(),
        tools.tokenizer,
        unit_count=tools.units.unit_count,
        encoder_fingerprint=encoder.fingerprint if encoder else None,
        overwrite=True,
        **options,
    )
