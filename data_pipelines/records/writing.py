"""Writing record directories: whole or not at all, and never over what is something else."""

from __future__ import annotations

import contextlib
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

# A compiled module, without stubs.
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from data_pipelines.records.metadata import (
    METADATA_NAME,
    Kind,
    RecordMetadata,
    Shard,
    check_fingerprint,
    is_metadata,
)
from data_pipelines.records.payloads import encode_record
from data_pipelines.records.types import (
    Record,
    TextDocument,
    Totals,
    Utterance,
    check_record,
    count_record,
)
from lst_jax.files import new_directory, refuse_to_replace, write_file
from lst_jax.settings import Fraction, one_line, validate_value
from lst_jax.vocabulary import TextTokenizer

# One record a chunk, so that reading one decompresses no other.
_WRITER_OPTIONS = "group_size:1,zstd:3"
_SHARD_NAME = re.compile(r"(speech|text)-\d+-of-\d+\.array_record")


class _RecordWriter:
    """Writes shards and `metadata.json` in a directory that is there."""

    def __init__(
        self,
        folder: pathlib.Path,
        kind: Kind,
        tokenizer: TextTokenizer,
        unit_count: int,
        records_per_shard: int,
        encoder_fingerprint: str | None,
    ) -> None:
        self._folder = folder
        self._kind: Kind = kind
        self._record_type = Utterance if kind == "speech" else TextDocument
        self._tokenizer = tokenizer
        self._vocabulary = tokenizer.vocabulary(unit_count)
        self._records_per_shard = records_per_shard
        self._encoder_fingerprint = encoder_fingerprint
        self._totals = Totals()
        self._unknown_pieces = 0
        self._first_unknown: str | None = None
        self._counts: list[int] = []
        self._writer: Any = None

    def write(self, record: Record) -> None:
        """Adds a record.

        Raises:
          ValueError: the record is not of the writer's kind, or breaks its own promises.
        """
        if not isinstance(record, self._record_type):
            raise ValueError(f"record is {record!r}, expected a {self._record_type.__name__}")
        check_record(record, self._vocabulary)
        if not self._counts or self._counts[-1] == self._records_per_shard:
            self._next_shard()
        payload = encode_record(record)
        with _telling_errors():
            self._writer.write(payload)
        self._counts[-1] += 1
        self._totals += count_record(record)
        unknown = self._tokenizer.count_unknown(record.pieces)
        if unknown and self._first_unknown is None:
            self._first_unknown = record.file_id
        self._unknown_pieces += unknown

    def finish(self, largest_unknown_share: float) -> RecordMetadata:
        """Completes the directory.

        Raises:
          ValueError: nothing was written, or too many pieces are unknown.
        """
        if not self._counts:
            raise ValueError("no records to write")
        share = self._unknown_pieces / max(1, self._totals.text_tokens)
        if share > largest_unknown_share:
            raise ValueError(
                f"{share:.2%} of the text's pieces are unknown to the tokenizer, first in "
                f"{self._first_unknown!r}, expected at most {largest_unknown_share:.2%}: train a "
                "tokenizer on such text or with byte_fallback, or allow a larger "
                "max_unknown_share"
            )
        self.close()
        metadata = RecordMetadata(
            self._kind,
            self._tokenizer.fingerprint,
            self._vocabulary.text_size,
            self._vocabulary.unit_count if self._kind == "speech" else 0,
            self._totals,
            tuple(self._name_shard(shard) for shard in range(len(self._counts))),
            self._encoder_fingerprint if self._kind == "speech" else None,
            self._unknown_pieces,
        )
        write_file(self._folder / METADATA_NAME, metadata.to_json())
        return metadata

    def close(self) -> None:
        """Closes the shard that is open."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with _telling_errors():
                writer.close()

    def _shard_path(self, shard: int) -> pathlib.Path:
        return self._folder / f"{self._kind}-{shard:05d}.array_record"

    def _next_shard(self) -> None:
        self.close()
        path = self._shard_path(len(self._counts))
        with _telling_errors():
            self._writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        self._counts.append(0)

    def _name_shard(self, shard: int) -> Shard:
        """Gives a closed shard its final name, which tells the number of shards."""
        name = f"{self._kind}-{shard:05d}-of-{len(self._counts):05d}.array_record"
        path = self._shard_path(shard).rename(self._folder / name)
        return Shard(name, self._counts[shard], path.stat().st_size)


def write_records(
    path: str | pathlib.Path,
    kind: Kind,
    items: Iterable[Record],
    tokenizer: TextTokenizer,
    *,
    unit_count: int = 502,
    records_per_shard: int = 100_000,
    encoder_fingerprint: str | None = None,
    max_unknown_share: float = 0.01,
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
      max_unknown_share: largest share of the pieces, 0 … 1, that may stand for what the tokenizer
        cannot spell: a model learns nothing of such text.
      overwrite: whether to replace an output that is there. Only a directory of records is ever
        replaced, and only one that holds nothing else.

    Returns:
      What `metadata.json` says.

    Raises:
      FileExistsError: the output exists, is not empty and may not be replaced.
      OSError: they cannot be written.
      ValueError: an item is of the wrong kind or breaks its promises; there are no items; too many
        pieces are unknown.
    """
    if kind not in ("speech", "text"):
        raise ValueError(f"kind is {kind!r}, expected 'speech' or 'text'")
    if records_per_shard < 1:
        raise ValueError(f"records_per_shard is {records_per_shard}, expected at least 1")
    if encoder_fingerprint is not None:
        check_fingerprint("encoder_fingerprint", encoder_fingerprint)
    validate_value(Fraction, max_unknown_share, "max_unknown_share")
    check = _check_records if overwrite else refuse_to_replace
    with new_directory(path, check) as folder:
        writer = _RecordWriter(
            folder, kind, tokenizer, unit_count, records_per_shard, encoder_fingerprint
        )
        with contextlib.closing(writer):
            for item in items:
                writer.write(item)
            return writer.finish(max_unknown_share)


@contextlib.contextmanager
def _telling_errors() -> Iterator[None]:
    """Makes an `OSError` of what ArrayRecord raises where it cannot write."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(f"records cannot be written: {error}")) from error


def _check_records(path: pathlib.Path) -> None:
    """Raises a `FileExistsError` unless the path is a directory of records and of nothing else."""
    if not path.is_dir():
        raise FileExistsError(f"output {path} is a file, expected a directory of records")
    entries = sorted(path.iterdir())
    if not entries:
        return
    metadata = path / METADATA_NAME
    if not metadata.is_file() or not is_metadata(metadata.read_bytes()):
        raise FileExistsError(
            f"output {path} is not empty and has no {METADATA_NAME} of records, expected a "
            "directory of records to replace"
        )
    for entry in entries:
        known = entry.name == METADATA_NAME or _SHARD_NAME.fullmatch(entry.name)
        if not known or entry.is_symlink() or not entry.is_file():
            raise FileExistsError(
                f"output {path} holds {entry.name!r} beside records, expected nothing else in a "
                "directory to replace"
            )
