"""One record as bytes and back, byte by byte as docs/formats.md has it."""

from __future__ import annotations

import struct

import numpy as np

from data_pipelines.records.types import Record, TextDocument, Utterance

_VERSION = 1
_UTTERANCE_MAGIC = b"LSTU"
_TEXT_MAGIC = b"LSTT"
# magic, version, bytes of file_id, bytes of words, W, number of pieces, number of units
_UTTERANCE_HEADER = struct.Struct("<4s6i")
# magic, version, bytes of file_id, word_count, number of pieces
_TEXT_HEADER = struct.Struct("<4s4i")
_WORD_SEPARATOR = "\n"


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
