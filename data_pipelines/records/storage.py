"""Records: prepared documents on disk, in the ArrayRecord schema of docs/formats.md.

A record directory holds shards and a `metadata.json` that says what is in them. Text is stored
as piece ids, so that training calls no tokenizer; the tokenizer's fingerprint is stored too, so
that a record is never read with another one. Version 2 is written, versions 1 and 2 are read.

Damage is noticed when a record is read: by the container's hashes and, in version 2, by the
record's CRC-32C. Records of version 1 have no checksum, so what was damaged before it
came into their container passes.
"""

from __future__ import annotations

import bisect
import dataclasses
import glob
import itertools
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any, SupportsIndex

# A compiled module, without stubs.
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines.records.metadata import METADATA_NAME, Kind, RecordMetadata, Shard
from data_pipelines.records.payloads import decode_record
from data_pipelines.records.types import (
    SILENCE,
    Record,
    TextDocument,
    Totals,
    Utterance,
    count_record,
    make_text_document,
    make_utterance,
)
from data_pipelines.records.writing import write_records
from lst_jax.vocabulary import Vocabulary

__all__ = [
    "METADATA_NAME",
    "SILENCE",
    "Kind",
    "Record",
    "RecordMetadata",
    "RecordSource",
    "Shard",
    "TextDocument",
    "Totals",
    "Utterance",
    "count_record",
    "make_text_document",
    "make_utterance",
    "open_records",
    "write_records",
]

_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 32768


class RecordSource(Sequence[Record]):
    """Random access to the records of one or several directories, in order.

    Shards are opened when first read, in each process apart; pickling passes on only paths and
    counts. Reading is safe from several threads.

    Attributes:
      metadata: what the directories' `metadata.json` say together.
    """

    def __init__(self, paths: Sequence[pathlib.Path], metadata: RecordMetadata) -> None:
        """See `open_records`.

        Args:
          paths: the shard files.
          metadata: with the same number of shards.
        """
        self.metadata = metadata
        self._paths = [str(path) for path in paths]
        self._ends = list(itertools.accumulate(shard.records for shard in metadata.shards))
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self.metadata.totals.documents

    def __getitem__(self, index: SupportsIndex) -> Record:  # type: ignore[override]
        shard, position = self._locate(index)
        return self._read(shard, [position])[0]

    def __getitems__(self, indices: Sequence[SupportsIndex]) -> list[Record]:
        """Returns the records at `indices`, in that order; each shard is read once."""
        places: dict[int, list[tuple[int, int]]] = {}
        for order, index in enumerate(indices):
            shard, position = self._locate(index)
            places.setdefault(shard, []).append((order, position))
        records: dict[int, Record] = {}
        for shard, pairs in places.items():
            orders, positions = zip(*pairs, strict=True)
            records.update(zip(orders, self._read(shard, positions), strict=True))
        return [records[order] for order in range(len(indices))]

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_readers"], state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._readers = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RecordSource({self.metadata.kind}, {len(self)} records of {self._paths})"

    def close(self) -> None:
        """Closes the files; reading opens them again."""
        with self._lock:
            for reader in self._readers.values():
                reader.close()
            self._readers.clear()

    def _locate(self, index: SupportsIndex) -> tuple[int, int]:
        position = index.__index__()
        if not 0 <= position < len(self):
            raise IndexError(f"record index is {position}, expected 0 … {len(self) - 1}")
        shard = bisect.bisect_right(self._ends, position)
        return shard, position - (self._ends[shard - 1] if shard else 0)

    def _read(self, shard: int, positions: Sequence[int]) -> list[Record]:
        reader = self._readers.get(shard) or self._open(shard)
        try:
            return [decode_record(payload) for payload in reader.read(positions)]
        except (RuntimeError, ValueError, IndexError) as error:
            if len(positions) == 1:
                reason = " ".join(str(error).split())[:200]
                raise ValueError(
                    f"{self._paths[shard]}: cannot read record {positions[0]}: {reason}"
                ) from error
        # One at a time they tell which one it is.
        return [record for position in positions for record in self._read(shard, [position])]

    def _open(self, shard: int) -> Any:
        with self._lock:
            if shard in self._readers:
                return self._readers[shard]
            reader = _open_shard(self._paths[shard], self.metadata.shards[shard])
            self._readers[shard] = reader
            return reader


def open_records(
    path: str | pathlib.Path,
    vocabulary: Vocabulary | None = None,
    *,
    fingerprint: str | None = None,
    kind: Kind | None = None,
) -> RecordSource:
    """Opens a record directory, or several at once.

    Args:
      path: a directory that `write_records` made, or a glob pattern for several of one kind,
        which follow each other in the order of their names.
      vocabulary: where given, the records must have its sizes of text and units.
      fingerprint: where given, the records must have been made with the tokenizer that has it.
      kind: where given, the records must be of this kind.

    Returns:
      The records in order.

    Raises:
      FileNotFoundError: nothing matches `path`, or a directory lacks `metadata.json` or a shard.
      ValueError: `metadata.json` is malformed, a shard is truncated, or the records are not what
        the arguments ask for.
    """
    directories = _find_directories(path)
    parts = [_read_metadata(directory) for directory in directories]
    for directory, metadata in zip(directories, parts, strict=True):
        _check_matches(directory, metadata, vocabulary, fingerprint, kind)
        _check_matches(
            directory,
            metadata,
            Vocabulary(parts[0].text_size, 0, 1, max(parts[0].unit_count, 1)),
            parts[0].fingerprint,
            parts[0].kind,
        )
    paths = [
        directory / shard.name
        for directory, metadata in zip(directories, parts, strict=True)
        for shard in metadata.shards
    ]
    merged = dataclasses.replace(
        parts[0],
        encoder_fingerprint=_common_encoder(directories, parts),
        unknown_pieces=_sum_known([metadata.unknown_pieces for metadata in parts]),
        totals=sum((metadata.totals for metadata in parts), Totals()),
        shards=tuple(itertools.chain.from_iterable(metadata.shards for metadata in parts)),
    )
    for shard_path, shard in zip(paths, merged.shards, strict=True):
        _check_shard_size(shard_path, shard)
    return RecordSource(paths, merged)


def _sum_known(counts: Sequence[int | None]) -> int | None:
    """Returns the sum of counts, None where one is not known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _common_encoder(
    directories: Sequence[pathlib.Path], parts: Sequence[RecordMetadata]
) -> str | None:
    """Returns the encoder that made the units of all directories, None where one does not say."""
    known = {
        part.encoder_fingerprint: place for place, part in zip(directories, parts, strict=True)
    }
    unknown = known.pop(None, None) is not None
    if len(known) > 1:
        (first, place), (second, other) = list(known.items())[:2]
        raise ValueError(
            f"records {other} have units of the encoder {second}, expected {first}, that of {place}"
        )
    return None if unknown or not known else next(iter(known))


def _find_directories(path: str | pathlib.Path) -> list[pathlib.Path]:
    directory = pathlib.Path(path)
    if directory.exists() or not glob.has_magic(str(path)):
        return [directory]
    anchor = pathlib.Path(directory.anchor)
    directories = sorted(anchor.glob(str(directory.relative_to(anchor))))
    if not directories:
        raise FileNotFoundError(f"records {path}: nothing matches")
    return directories


def _read_metadata(directory: pathlib.Path) -> RecordMetadata:
    path = directory / METADATA_NAME
    if not directory.is_dir():
        raise FileNotFoundError(f"records {directory}: no such directory")
    if not path.is_file():
        raise FileNotFoundError(f"records {directory}: no {METADATA_NAME} in it")
    return RecordMetadata.from_json(path.read_bytes(), path)


def _check_matches(
    directory: pathlib.Path,
    metadata: RecordMetadata,
    vocabulary: Vocabulary | None,
    fingerprint: str | None,
    kind: Kind | None,
) -> None:
    if kind is not None and metadata.kind != kind:
        raise ValueError(f"records {directory} hold {metadata.kind}, expected {kind}")
    if fingerprint is not None and metadata.fingerprint != fingerprint:
        raise ValueError(
            f"records {directory} were made with the tokenizer {metadata.fingerprint}, "
            f"expected the tokenizer {fingerprint}"
        )
    if vocabulary is None:
        return
    if metadata.text_size != vocabulary.text_size:
        raise ValueError(
            f"records {directory} have {metadata.text_size} text pieces, "
            f"expected {vocabulary.text_size}"
        )
    if metadata.kind == "speech" and metadata.unit_count != vocabulary.unit_count:
        raise ValueError(
            f"records {directory} have {metadata.unit_count} speech units, "
            f"expected {vocabulary.unit_count}"
        )


def _check_shard_size(path: pathlib.Path, shard: Shard) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"shard {path}: no such file")
    size = path.stat().st_size
    if size != shard.bytes:
        raise ValueError(
            f"shard {path} has {size} bytes, expected {shard.bytes}: truncated or changed"
        )


def _open_shard(path: str, shard: Shard) -> Any:
    try:
        reader = array_record_module.ArrayRecordReader(
            path, options=_READER_OPTIONS, file_reader_buffer_size=_READER_BUFFER_BYTES
        )
        count = reader.num_records()
    except RuntimeError as error:
        raise ValueError(f"shard {path} cannot be opened: {error}") from error
    if count != shard.records:
        raise ValueError(f"shard {path} holds {count} records, expected {shard.records}")
    return reader
