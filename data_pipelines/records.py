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
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal, SupportsIndex

import numpy as np
from array_record.python import array_record_module

from lst_jax.vocabulary import TextTokenizer, Vocabulary

SILENCE = "[SIL]"
METADATA_NAME = "metadata.json"

Kind = Literal["speech", "text"]

_FORMAT = "lst-jax-records"
_VERSION = 1
_UTTERANCE_MAGIC = b"LSTU"
_TEXT_MAGIC = b"LSTT"
# magic, version, bytes of file_id, bytes of words, W, number of pieces, number of units
_UTTERANCE_HEADER = struct.Struct("<4s6i")
# magic, version, bytes of file_id, word_count, number of pieces
_TEXT_HEADER = struct.Struct("<4s4i")
_WORD_SEPARATOR = "\n"
# One record a chunk, so that reading one decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:3"
_READER_OPTIONS = "readahead_buffer_size:0"
_READER_BUFFER_BYTES = 32768


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """Speech aligned with the words said: W words and silences in the order of time.

    Attributes:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      pieces: int32 (Σ piece_counts,) text ids of all the words one after the other, each word
        as it reads after a space.
      piece_counts: int32 (W,) pieces of every word, 0 for a silence and for nothing else.
      units: int32 (Σ unit_counts,) speech units 0 … unit_count−1 of the whole recording.
      unit_counts: int32 (W,) units spoken during every word, at least 1.
    """

    file_id: str
    words: tuple[str, ...]
    pieces: np.ndarray
    piece_counts: np.ndarray
    units: np.ndarray
    unit_counts: np.ndarray

    @property
    def is_silence(self) -> np.ndarray:
        """Bool (W,): which of the words are silences."""
        return self.piece_counts == 0


@dataclasses.dataclass(frozen=True, eq=False)
class TextDocument:
    """A document of text.

    Attributes:
      file_id: name of the document.
      pieces: int32 (T,) text ids without bos and eos, T at least 1.
      word_count: words between whitespace.
    """

    file_id: str
    pieces: np.ndarray
    word_count: int


Record = Utterance | TextDocument


def make_utterance(
    file_id: str,
    words: Sequence[str],
    units: np.ndarray | Sequence[int],
    unit_counts: np.ndarray | Sequence[int],
    tokenizer: TextTokenizer,
) -> Utterance:
    """An utterance with its words encoded.

    Args:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      units: (U,) speech units.
      unit_counts: (W,) units spoken during every word; they sum to U.
      tokenizer: encodes the words.

    Raises:
      ValueError: a word cannot be encoded (see `TextTokenizer.encode_words`).
    """
    spoken = [word for word in words if word != SILENCE]
    pieces, spoken_counts = tokenizer.encode_words(spoken)
    piece_counts = np.zeros(len(words), np.int32)
    piece_counts[[word != SILENCE for word in words]] = spoken_counts
    return Utterance(
        file_id,
        tuple(words),
        pieces,
        piece_counts,
        np.asarray(units, np.int32),
        np.asarray(unit_counts, np.int32),
    )


def make_text_document(file_id: str, text: str, tokenizer: TextTokenizer) -> TextDocument:
    """A text document with its text encoded.

    Raises:
      ValueError: the text cannot be encoded.
    """
    return TextDocument(file_id, tokenizer.encode(text), len(text.split()))


# --- One record <-> bytes ---------------------------------------------------------------------


def check_record(record: Record, vocabulary: Vocabulary) -> None:
    """Checks what the docstrings of `Utterance` and `TextDocument` promise.

    Raises:
      ValueError: a promise is broken; names the record, the field and what was expected.
    """
    if isinstance(record, Utterance):
        _check_utterance(record, vocabulary)
    else:
        _check_text(record, vocabulary)


def encode_record(record: Record) -> bytes:
    """The payload of a record; `check_record` says whether it makes sense."""
    file_id = record.file_id.encode()
    if isinstance(record, TextDocument):
        header = _TEXT_HEADER.pack(
            _TEXT_MAGIC, _VERSION, len(file_id), record.word_count, len(record.pieces)
        )
        return b"".join((header, _to_bytes(record.pieces), file_id))
    words = _WORD_SEPARATOR.join(record.words).encode()
    header = _UTTERANCE_HEADER.pack(
        _UTTERANCE_MAGIC,
        _VERSION,
        len(file_id),
        len(words),
        len(record.words),
        len(record.pieces),
        len(record.units),
    )
    arrays = (record.piece_counts, record.unit_counts, record.pieces, record.units)
    return b"".join((header, *map(_to_bytes, arrays), file_id, words))


def decode_record(payload: bytes) -> Record:
    """The record in a payload; its arrays are read-only views of the payload.

    Raises:
      ValueError: the payload is not one of `encode_record`'s.
    """
    magic = payload[:4]
    if magic == _UTTERANCE_MAGIC:
        return _decode_utterance(payload)
    if magic == _TEXT_MAGIC:
        return _decode_text(payload)
    raise ValueError(
        f"a payload starts with {magic!r}, expected {_UTTERANCE_MAGIC!r} or {_TEXT_MAGIC!r}"
    )


def _decode_utterance(payload: bytes) -> Utterance:
    header = _UTTERANCE_HEADER.size
    _check_header(payload, header)
    _, version, id_bytes, word_bytes, words, pieces, units = _UTTERANCE_HEADER.unpack_from(payload)
    array_length = 2 * words + pieces + units
    text_start = header + 4 * array_length
    _check_payload(payload, version, text_start + id_bytes + word_bytes)
    array = np.frombuffer(payload, "<i4", array_length, header)
    text_end = text_start + id_bytes
    return Utterance(
        payload[text_start:text_end].decode(),
        tuple(payload[text_end:].decode().split(_WORD_SEPARATOR)),
        array[2 * words : 2 * words + pieces],
        array[:words],
        array[2 * words + pieces :],
        array[words : 2 * words],
    )


def _decode_text(payload: bytes) -> TextDocument:
    header = _TEXT_HEADER.size
    _check_header(payload, header)
    _, version, id_bytes, word_count, pieces = _TEXT_HEADER.unpack_from(payload)
    text_start = header + 4 * pieces
    _check_payload(payload, version, text_start + id_bytes)
    array = np.frombuffer(payload, "<i4", pieces, header)
    return TextDocument(payload[text_start:].decode(), array, word_count)


def _to_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, "<i4").tobytes()


def _check_header(payload: bytes, header_bytes: int) -> None:
    if len(payload) < header_bytes:
        raise ValueError(f"a payload has {len(payload)} bytes, expected at least {header_bytes}")


def _check_payload(payload: bytes, version: int, expected_bytes: int) -> None:
    if version != _VERSION:
        raise ValueError(f"a payload has version {version}, expected {_VERSION}")
    if len(payload) != expected_bytes:
        raise ValueError(f"a payload has {len(payload)} bytes, its header says {expected_bytes}")


def _check_utterance(utterance: Utterance, vocabulary: Vocabulary) -> None:
    where = f"utterance {utterance.file_id!r}"
    words = utterance.words
    if not words:
        raise ValueError(f"{where} has no words")
    if not all(words) or any(_WORD_SEPARATOR in word for word in words):
        raise ValueError(f"{where} has a word that is empty or holds a line break")
    for name in ("piece_counts", "unit_counts"):
        shape = getattr(utterance, name).shape
        if shape != (len(words),):
            raise ValueError(f"{where}: {name} has shape {shape}, expected ({len(words)},)")
    if (utterance.unit_counts < 1).any():
        raise ValueError(f"{where} has a word without units")
    silences = np.fromiter((word == SILENCE for word in words), bool, len(words))
    if (utterance.piece_counts < 0).any() or (utterance.is_silence != silences).any():
        raise ValueError(f"{where} has a word without pieces, or a silence with some")
    _check_ids(where, "pieces", utterance.pieces, vocabulary.text_size, utterance.piece_counts)
    _check_ids(where, "units", utterance.units, vocabulary.unit_count, utterance.unit_counts)


def _check_text(document: TextDocument, vocabulary: Vocabulary) -> None:
    where = f"text document {document.file_id!r}"
    if not len(document.pieces):
        raise ValueError(f"{where} is empty")
    if document.word_count < 0:
        raise ValueError(f"{where}: word_count is {document.word_count}, expected at least 0")
    expected_length = np.array([len(document.pieces)])
    _check_ids(where, "pieces", document.pieces, vocabulary.text_size, expected_length)


def _check_ids(where: str, name: str, ids: np.ndarray, size: int, counts: np.ndarray) -> None:
    if ids.shape != (counts.sum(),):
        raise ValueError(f"{where}: {name} has shape {ids.shape}, expected ({counts.sum()},)")
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"{where}: {name} has dtype {ids.dtype}, expected int32")
    if ids.size and (ids.min() < 0 or ids.max() >= size):
        raise ValueError(
            f"{where}: {name} range from {ids.min()} to {ids.max()}, expected 0 … {size - 1}"
        )


# --- Totals and metadata ----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Totals:
    """What a set of records adds up to; silences and their units are counted apart."""

    documents: int = 0
    words: int = 0
    silences: int = 0
    text_tokens: int = 0
    units: int = 0
    silence_units: int = 0

    def __add__(self, other: Totals) -> Totals:
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Totals(*itertools.starmap(int.__add__, pairs))

    @property
    def mean_word_length(self) -> float:
        """Units a word, silences aside; NaN without words that have units."""
        return (self.units - self.silence_units) / self.words if self.units else float("nan")

    @property
    def mean_silence_length(self) -> float:
        """Units a silence; NaN without silences."""
        return self.silence_units / self.silences if self.silences else float("nan")


def count_record(record: Record) -> Totals:
    """The totals of one record."""
    if isinstance(record, TextDocument):
        return Totals(1, record.word_count, text_tokens=len(record.pieces))
    silent = record.is_silence
    silences = int(silent.sum())
    return Totals(
        documents=1,
        words=len(record.words) - silences,
        silences=silences,
        text_tokens=len(record.pieces),
        units=len(record.units),
        silence_units=int(record.unit_counts[silent].sum()),
    )


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


# --- Writing ----------------------------------------------------------------------------------


class RecordWriter:
    """Writes a record directory; as a context manager, finishes or discards it whole.

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

    @property
    def totals(self) -> Totals:
        """What has been written so far."""
        return self._totals

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

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error_type is None:
                self.finish()
        finally:
            self.discard()

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
    writer = RecordWriter(
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


# --- Reading ----------------------------------------------------------------------------------


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
    directories = [pathlib.Path(match) for match in sorted(glob.glob(str(path)))]
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
