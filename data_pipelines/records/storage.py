"""Records: prepared documents on disk, in the ArrayRecord schema of docs/formats.md.

A record directory holds shards and a `metadata.json` that says what is in them. Text is stored
as piece ids, so that training calls no tokenizer; the tokenizer's fingerprint is stored too, so
that a record is never read with another one.
"""

from __future__ import annotations

import bisect
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, SupportsIndex

from array_record.python import array_record_module

from data_pipelines.records.payloads import decode_record, encode_record
from data_pipelines.records.types import (
    SILENCE,
    Record,
    TextDocument,
    Totals,
    Utterance,
    check_record,
    count_record,
    make_text_document,
    make_utterance,
)
from lst_jax.vocabulary import TextTokenizer, Vocabulary

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

METADATA_NAME = "metadata.json"

Kind = Literal["speech", "text"]

_FORMAT = "lst-jax-records"
_VERSION = 1
# One record a chunk, so that reading one decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:3"
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 32768


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of a record directory: its name, number of records and size in bytes."""

    name: str
    records: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class RecordMetadata:
    """What `metadata.json` says of a record directory.

    Attributes:
      kind: "speech" (utterances) or "text" (text documents).
      fingerprint: SHA-256 of the tokenizer's model file, hexadecimal.
      text_size: number of text pieces of the tokenizer.
      unit_count: number of speech units of the unit set; 0 where kind is "text".
      totals: what the records add up to.
      shards: the files, in the order of their records.
    """

    kind: Kind
    fingerprint: str
    text_size: int
    unit_count: int
    totals: Totals
    shards: tuple[Shard, ...]

    def to_json(self) -> str:
        """The contents of `metadata.json`."""
        fields = {"format": _FORMAT, "version": _VERSION, **dataclasses.asdict(self)}
        return json.dumps(fields, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> RecordMetadata:
        """Reads `to_json`'s result.

        Raises:
          ValueError: it is something else.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("format") != _FORMAT:
            raise ValueError(f'expected an object with "format": "{_FORMAT}"')
        if fields.get("version") != _VERSION:
            raise ValueError(f"version is {fields.get('version')!r}, expected {_VERSION}")
        del fields["format"], fields["version"]
        try:
            metadata = cls(
                **fields
                | {
                    "totals": Totals(**fields["totals"]),
                    "shards": tuple(Shard(**shard) for shard in fields["shards"]),
                }
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"fields are missing or unknown: {error}") from error
        metadata._check()
        return metadata

    def _check(self) -> None:
        if self.kind not in ("speech", "text"):
            raise ValueError(f"kind is {self.kind!r}, expected 'speech' or 'text'")
        numbers = [self.text_size, self.unit_count, *dataclasses.astuple(self.totals)]
        numbers += [number for shard in self.shards for number in (shard.records, shard.bytes)]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a size or count is not a whole number")
        texts = [self.fingerprint, *(shard.name for shard in self.shards)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("the fingerprint or a shard's name is not a string")
        if sum(shard.records for shard in self.shards) != self.totals.documents:
            raise ValueError("the shards' records do not add up to the number of documents")


class _RecordWriter:
    """Writes a record directory, whole or not at all.

    The files grow in a directory beside the output, which takes the output's name only when all
    of them and `metadata.json` are complete.
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        kind: Kind,
        tokenizer: TextTokenizer,
        *,
        unit_count: int = 502,
        records_per_shard: int = 100_000,
        overwrite: bool = False,
    ) -> None:
        """Makes ready to write; see `write_records` for the arguments and errors."""
        if kind not in ("speech", "text"):
            raise ValueError(f"kind is {kind!r}, expected 'speech' or 'text'")
        if records_per_shard < 1:
            raise ValueError(f"records_per_shard is {records_per_shard}, expected at least 1")
        self._path = pathlib.Path(path).absolute()
        self._overwrite = overwrite
        self._check_output()
        self._kind: Kind = kind
        self._record_type = Utterance if kind == "speech" else TextDocument
        self._fingerprint = tokenizer.fingerprint
        self._vocabulary = tokenizer.vocabulary(unit_count)
        self._records_per_shard = records_per_shard
        self._totals = Totals()
        self._counts: list[int] = []
        self._writer: Any = None
        self._partial = self._path.with_name(f"{self._path.name}.incomplete-{os.getpid()}")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)

    def write(self, record: Record) -> None:
        """Adds a record.

        Raises:
          ValueError: the record is not of the writer's kind, or breaks its own promises.
        """
        if not isinstance(record, self._record_type):
            raise ValueError(f"record is {record!r}, expected a {self._record_type.__name__}")
        check_record(record, self._vocabulary)
        if self._writer is None or self._counts[-1] == self._records_per_shard:
            self._next_shard()
        self._writer.write(encode_record(record))
        self._counts[-1] += 1
        self._totals += count_record(record)

    def finish(self) -> RecordMetadata:
        """Completes the output.

        Raises:
          ValueError: nothing was written.
          FileExistsError: the output has come into being meanwhile.
        """
        if not self._counts:
            raise ValueError(f"no records to write to {self._path}")
        self._close_shard()
        metadata = RecordMetadata(
            self._kind,
            self._fingerprint,
            self._vocabulary.text_size,
            self._vocabulary.unit_count if self._kind == "speech" else 0,
            self._totals,
            tuple(self._name_shard(shard) for shard in range(len(self._counts))),
        )
        (self._partial / METADATA_NAME).write_text(metadata.to_json(), encoding="utf-8")
        self._check_output()
        self._replace_output()
        return metadata

    def discard(self) -> None:
        """Gives up: removes what was written so far."""
        self._close_shard()
        shutil.rmtree(self._partial, ignore_errors=True)

    def _check_output(self) -> None:
        if not self._path.exists() or self._overwrite:
            return
        if not self._path.is_dir() or any(self._path.iterdir()):
            raise FileExistsError(f"output {self._path} exists and is not empty")

    def _shard_path(self, shard: int) -> pathlib.Path:
        return self._partial / f"{self._kind}-{shard:05d}.array_record"

    def _next_shard(self) -> None:
        self._close_shard()
        path = self._shard_path(len(self._counts))
        self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        self._counts.append(0)

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _name_shard(self, shard: int) -> Shard:
        """Gives a closed shard its final name, which tells the number of shards."""
        name = f"{self._kind}-{shard:05d}-of-{len(self._counts):05d}.array_record"
        path = self._shard_path(shard).rename(self._partial / name)
        return Shard(name, self._counts[shard], path.stat().st_size)

    def _replace_output(self) -> None:
        if not self._path.exists():
            self._partial.rename(self._path)
            return
        old = self._path.with_name(f"{self._path.name}.replaced-{os.getpid()}")
        self._path.rename(old)
        self._partial.rename(self._path)
        if old.is_dir():
            shutil.rmtree(old)
        else:
            old.unlink()


def write_records(
    path: str | pathlib.Path,
    kind: Kind,
    items: Iterable[Record],
    tokenizer: TextTokenizer,
    *,
    unit_count: int = 502,
    records_per_shard: int = 100_000,
    overwrite: bool = False,
) -> RecordMetadata:
    """Writes records to a directory, all or nothing, in the order given.

    Args:
      path: the directory to make; may exist if empty.
      kind: "speech" for utterances, "text" for text documents.
      items: the records.
      tokenizer: what the pieces were encoded with.
      unit_count: number of speech units of the unit set; plays no part where kind is "text".
      records_per_shard: records a file.
      overwrite: whether to replace an existing output.

    Returns:
      What `metadata.json` says.

    Raises:
      FileExistsError: the output exists, is not empty and `overwrite` is false.
      ValueError: an item is of the wrong kind or breaks its promises; there are no items.
    """
    writer = _RecordWriter(
        path,
        kind,
        tokenizer,
        unit_count=unit_count,
        records_per_shard=records_per_shard,
        overwrite=overwrite,
    )
    try:
        for item in items:
            writer.write(item)
        return writer.finish()
    finally:
        writer.discard()


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
        """The records at `indices`, in that order; each shard is read once."""
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
            raise ValueError(
                f"{self._paths[shard]}: cannot read record {_numbers(positions)}: {error}"
            ) from error

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
        totals=sum((metadata.totals for metadata in parts), Totals()),
        shards=tuple(itertools.chain.from_iterable(metadata.shards for metadata in parts)),
    )
    for shard_path, shard in zip(paths, merged.shards, strict=True):
        _check_shard_size(shard_path, shard)
    return RecordSource(paths, merged)


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
    try:
        return RecordMetadata.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSON's are ValueErrors
        raise ValueError(f"{path} is not the metadata of records: {error}") from error


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


def _numbers(positions: Sequence[int]) -> str:
    return ", ".join(map(str, positions[:8])) + (" …" if len(positions) > 8 else "")
