"""Records: prepared documents on disk, in the ArrayRecord schema of docs/formats.md.

A record directory holds shards and a `metadata.json` that says what is in them. Text is stored
as piece ids, so that training calls no tokenizer; the tokenizer's fingerprint is stored too, so
that a record is never read with another one. Version 2 is written, versions 1 and 2 are read.
"""

from __future__ import annotations

import bisect
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, SupportsIndex

from array_record.python import array_record_module

from data_pipelines.records.payloads import FORMAT_VERSION, decode_record, encode_record
from data_pipelines.records.types import (
    SILENCE,
    Count,
    Record,
    TextDocument,
    Totals,
    Utterance,
    check_record,
    count_record,
    make_text_document,
    make_utterance,
)
from lst_jax.settings import Name, configuration, quote, require, validate_fields
from lst_jax.strict_json import parse_json
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
# One record a chunk, so that reading one decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:3"
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 32768


@configuration
class Shard:
    """One file of a record directory: its name, number of records and size in bytes."""

    name: Name
    records: Count
    bytes: Count

    def __post_init__(self) -> None:
        # A path would lead out of the directory.
        plain = not re.search(r"[/\\\0]", self.name) and self.name not in (".", "..")
        require(plain, "Shard.name", self.name, "a file's name without its directory")


@configuration
class RecordMetadata:
    """What `metadata.json` says of a record directory.

    Attributes:
      kind: "speech" (utterances) or "text" (text documents).
      fingerprint: SHA-256 of the tokenizer's model file, hexadecimal.
      text_size: number of text pieces of the tokenizer.
      unit_count: number of speech units of the unit set; 0 where kind is "text".
      totals: what the records add up to.
      shards: the files, in the order of their records.
      encoder_fingerprint: SHA-256, hexadecimal, of the encoder that made the units. None: it is
        not known which one did, as in records of version 1, or there are no units.
    """

    kind: Kind
    fingerprint: Name
    text_size: Count
    unit_count: Count
    totals: Totals
    shards: tuple[Shard, ...]
    encoder_fingerprint: Name | None = None

    def __post_init__(self) -> None:
        _check_fingerprint("RecordMetadata.fingerprint", self.fingerprint)
        if self.encoder_fingerprint is not None:
            _check_fingerprint("RecordMetadata.encoder_fingerprint", self.encoder_fingerprint)
        records = sum(shard.records for shard in self.shards)
        require(
            records == self.totals.documents,
            "RecordMetadata.totals.documents",
            self.totals.documents,
            f"{records}, the sum of the shards' records",
        )

    def identity(self) -> dict[str, Any]:
        """Returns what tells these records from others, as JSON values.

        A field that is newer than version 1 is there only where it says something: runs that began
        on older records know them by what these said.
        """
        fields = dataclasses.asdict(self)
        if self.encoder_fingerprint is None:
            del fields["encoder_fingerprint"]
        return fields

    def to_json(self) -> str:
        """Returns the contents of `metadata.json`."""
        version = {"format": _FORMAT, "format_version": FORMAT_VERSION}
        return json.dumps({**version, **dataclasses.asdict(self)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: object = METADATA_NAME) -> RecordMetadata:
        """Reads `to_json`'s result, or what it was in an earlier version.

        Args:
          text: JSON.
          source: the file that it is from, which errors name.

        Raises:
          ValueError: it is something else.
        """
        try:
            fields = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
        if not isinstance(fields, dict) or fields.pop("format", None) != _FORMAT:
            raise ValueError(
                f'{source} is not the metadata of records: expected "format": "{_FORMAT}"'
            )
        # Version 1 had another name for it, and no fields that version 2 has not.
        name = "version" if "format_version" not in fields else "format_version"
        version, expected = fields.pop(name, None), 1 if name == "version" else FORMAT_VERSION
        if type(version) is not int or version != expected:
            raise ValueError(
                f"{source}: {name} is {quote(version)}, expected version 1 or "
                f"format_version {FORMAT_VERSION}"
            )
        if version == 1 and "encoder_fingerprint" in fields:
            raise ValueError(f"{source}: version 1 has no encoder_fingerprint")
        return validate_fields(cls, fields, source)


def _check_fingerprint(name: str, value: str) -> None:
    expected = "a SHA-256, 64 hexadecimal digits"
    require(re.fullmatch("[0-9a-f]{64}", value) is not None, name, value, expected)


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
        encoder_fingerprint: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Makes ready to write; see `write_records` for the arguments and errors."""
        if kind not in ("speech", "text"):
            raise ValueError(f"kind is {kind!r}, expected 'speech' or 'text'")
        if records_per_shard < 1:
            raise ValueError(f"records_per_shard is {records_per_shard}, expected at least 1")
        if encoder_fingerprint is not None:
            _check_fingerprint("encoder_fingerprint", encoder_fingerprint)
        self._path = pathlib.Path(path).absolute()
        self._overwrite = overwrite
        self._check_output()
        self._kind: Kind = kind
        self._record_type = Utterance if kind == "speech" else TextDocument
        self._fingerprint = tokenizer.fingerprint
        self._vocabulary = tokenizer.vocabulary(unit_count)
        self._records_per_shard = records_per_shard
        self._encoder_fingerprint = encoder_fingerprint
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
            self._encoder_fingerprint if self._kind == "speech" else None,
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
    encoder_fingerprint: str | None = None,
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
      encoder_fingerprint: SHA-256 of the encoder that made the units, None where it is unknown;
        plays no part where kind is "text".
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
        encoder_fingerprint=encoder_fingerprint,
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
        totals=sum((metadata.totals for metadata in parts), Totals()),
        shards=tuple(itertools.chain.from_iterable(metadata.shards for metadata in parts)),
    )
    for shard_path, shard in zip(paths, merged.shards, strict=True):
        _check_shard_size(shard_path, shard)
    return RecordSource(paths, merged)


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
