"""What `metadata.json` says of a record directory, and how it is held to be undamaged."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any, Literal

import google_crc32c

from data_pipelines.records.payloads import FORMAT_VERSION
from data_pipelines.records.types import Count, Totals
from lst_jax.settings import Name, configuration, quote, require, validate_fields
from lst_jax.strict_json import parse_object

METADATA_NAME = "metadata.json"

Kind = Literal["speech", "text"]

_FORMAT = "lst-jax-records"


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
      unknown_pieces: text pieces that stand for what the tokenizer cannot spell. None: they were
        not counted, as in records of version 1.
    """

    kind: Kind
    fingerprint: Name
    text_size: Count
    unit_count: Count
    totals: Totals
    shards: tuple[Shard, ...]
    encoder_fingerprint: Name | None = None
    unknown_pieces: Count | None = None

    def __post_init__(self) -> None:
        check_fingerprint("RecordMetadata.fingerprint", self.fingerprint)
        if self.encoder_fingerprint is not None:
            check_fingerprint("RecordMetadata.encoder_fingerprint", self.encoder_fingerprint)
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
        on older records know them by what these said. What follows from the records is not there.
        """
        fields = self._fields()
        del fields["unknown_pieces"]
        if self.encoder_fingerprint is None:
            del fields["encoder_fingerprint"]
        return fields

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        if not self.totals.wordless:
            del fields["totals"]["wordless"], fields["totals"]["wordless_units"]
        return fields

    def summary(self) -> str:
        """Returns the totals in one line."""
        totals = self.totals
        wordless = f" ({totals.wordless:,} of them without words)" if totals.wordless else ""
        summary = (
            f"{totals.documents:,} documents{wordless}, {totals.words:,} words, "
            f"{totals.text_tokens:,} text tokens"
        )
        if self.unknown_pieces:
            share = self.unknown_pieces / totals.text_tokens
            summary += f" ({self.unknown_pieces:,} of them unknown, {share:.2%})"
        if self.kind == "text":
            return summary
        summary += f", {totals.silences:,} silences, {totals.units:,} units"
        if totals.words:
            summary += f"; mean length of a word {totals.mean_word_length:.2f} units"
        if totals.silences:
            summary += f", of a silence {totals.mean_silence_length:.2f}"
        return summary

    def to_json(self) -> str:
        """Returns the contents of `metadata.json`."""
        version = {"format": _FORMAT, "format_version": FORMAT_VERSION}
        fields = {**version, **self._fields()}
        return json.dumps({**fields, "crc32c": _checksum(fields)}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, source: object = METADATA_NAME) -> RecordMetadata:
        """Reads `to_json`'s result, or what it was in an earlier version.

        Args:
          text: JSON.
          source: the file that it is from, which errors name.

        Raises:
          ValueError: it is something else, or has changed since it was written.
        """
        fields = _parse_fields(text, source)
        # Version 1 had another name for it, and no fields that version 2 has not.
        name = "version" if "format_version" not in fields else "format_version"
        version, expected = fields.get(name), 1 if name == "version" else FORMAT_VERSION
        if type(version) is not int or version != expected:
            raise ValueError(
                f"{source}: {name} is {quote(version)}, expected version 1 or "
                f"format_version {FORMAT_VERSION}"
            )
        if version == 1 and "encoder_fingerprint" in fields:
            raise ValueError(f"{source}: version 1 has no encoder_fingerprint")
        # The first records of version 2 had no checksum here.
        if version != 1 and "crc32c" in fields:
            stored, found = fields.pop("crc32c"), _checksum(fields)
            if stored != found:
                raise ValueError(
                    f"{source}: its contents have CRC-32C {found}, expected {quote(stored)}: it is "
                    "damaged, or was edited"
                )
        del fields["format"], fields[name]
        return validate_fields(cls, fields, source)


def is_metadata(text: bytes) -> bool:
    """Returns whether the contents of a file say that it is the metadata of records."""
    try:
        _parse_fields(text, METADATA_NAME)
    except ValueError:
        return False
    return True


def _parse_fields(text: str | bytes, source: object) -> dict[str, Any]:
    try:
        fields = parse_object(text)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if fields.get("format") != _FORMAT:
        raise ValueError(f'{source} is not the metadata of records: expected "format": "{_FORMAT}"')
    return fields


def _checksum(fields: dict[str, Any]) -> str:
    """Returns the CRC-32C of the fields' values, however they are laid out in a file."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
    return f"{google_crc32c.value(text.encode()):08x}"


def check_fingerprint(name: str, value: str) -> None:
    """Raises a `ValueError` where a value is no SHA-256."""
    expected = "a SHA-256, 64 hexadecimal digits"
    require(re.fullmatch("[0-9a-f]{64}", value) is not None, name, value, expected)
