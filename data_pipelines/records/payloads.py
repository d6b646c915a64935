"""One record as bytes and back, byte by byte as docs/formats.md has it.

Records are written in version 2; versions 1 and 2 are read. Version 2 adds a CRC-32C and room for
what may be known of a record beyond its ids.
"""

from __future__ import annotations

import itertools
import struct

import google_crc32c
import numpy as np

from data_pipelines.records.types import Record, TextDocument, Utterance

FORMAT_VERSION = 2

_UTTERANCE_MAGIC = b"LSTU"
_TEXT_MAGIC = b"LSTT"
_WORD_SEPARATOR = "\n"

_PREFIX = struct.Struct("<4si")  # magic, version
# Of version 2, after the prefix: CRC-32C of the payload without these four bytes.
_CHECKSUM = struct.Struct("<I")
# Version 1, after the prefix: bytes of file_id, bytes of words, W, number of pieces, of units.
_UTTERANCE_HEADER_1 = struct.Struct("<5i")
# Version 1: bytes of file_id, word_count, number of pieces.
_TEXT_HEADER_1 = struct.Struct("<3i")
# Version 2, after the checksum: which arrays are there, W, number of pieces, of units; bytes of
# file_id, words, transcript, speaker, license, source.
_UTTERANCE_HEADER_2 = struct.Struct("<10i")
# Version 2: word_count, number of pieces; bytes of file_id, license, source.
_TEXT_HEADER_2 = struct.Struct("<5i")

# Bits of arrays that may be missing; a text that is missing has no bytes.
_HAS_PIECE_UNITS = 1
_HAS_WORD_TIMES = 2
_HAS_PIECE_TIMES = 4
_ALL_BITS = 7


def encode_record(record: Record) -> bytes:
    """Returns the payload of a record; `check_record` says whether it makes sense."""
    if isinstance(record, TextDocument):
        magic, body = _TEXT_MAGIC, _encode_text(record)
    else:
        magic, body = _UTTERANCE_MAGIC, _encode_utterance(record)
    prefix = _PREFIX.pack(magic, FORMAT_VERSION)
    return b"".join((prefix, _CHECKSUM.pack(_checksum(prefix, body)), body))


def decode_record(payload: bytes) -> Record:
    """Returns the record in a payload; its arrays are read-only views of the payload.

    Raises:
      ValueError: the payload is not one of `encode_record`'s, of this version or an earlier one,
        or a bit of it has changed.
    """
    if len(payload) < _PREFIX.size:
        raise ValueError(f"a payload has {len(payload)} bytes, expected at least {_PREFIX.size}")
    magic, version = _PREFIX.unpack_from(payload)
    if magic not in (_UTTERANCE_MAGIC, _TEXT_MAGIC):
        raise ValueError(
            f"a payload starts with {magic!r}, expected {_UTTERANCE_MAGIC!r} or {_TEXT_MAGIC!r}"
        )
    if version == 1:
        return (
            _decode_utterance_1(payload) if magic == _UTTERANCE_MAGIC else _decode_text_1(payload)
        )
    if version != FORMAT_VERSION:
        raise ValueError(f"a payload has version {version}, expected 1 … {FORMAT_VERSION}")
    _check_sum(payload)
    return _decode_utterance(payload) if magic == _UTTERANCE_MAGIC else _decode_text(payload)


def _encode_utterance(utterance: Utterance) -> bytes:
    optional_arrays = (
        (_HAS_PIECE_UNITS, utterance.piece_unit_counts),
        (_HAS_WORD_TIMES, utterance.word_times_ms),
        (_HAS_PIECE_TIMES, utterance.piece_times_ms),
    )
    arrays = [utterance.piece_counts, utterance.unit_counts, utterance.pieces, utterance.units]
    arrays += [array for _, array in optional_arrays if array is not None]
    words = _WORD_SEPARATOR.join(utterance.words)
    texts = [
        (text or "").encode()
        for text in (
            *(utterance.file_id, words, utterance.transcript),
            *(utterance.speaker, utterance.license, utterance.source),
        )
    ]
    header = _UTTERANCE_HEADER_2.pack(
        sum(bit for bit, array in optional_arrays if array is not None),
        len(utterance.words),
        len(utterance.pieces),
        len(utterance.units),
        *map(len, texts),
    )
    return b"".join((header, *map(_to_bytes, arrays), *texts))


def _decode_utterance(payload: bytes) -> Utterance:
    start = _PREFIX.size + _CHECKSUM.size
    bits, words, pieces, units, *text_bytes = _unpack(_UTTERANCE_HEADER_2, payload, start)
    if bits & ~_ALL_BITS:
        raise ValueError(f"a payload has arrays {bits}, expected bits of {_ALL_BITS}")
    lengths = (
        *(words, words, pieces, units),
        pieces if bits & _HAS_PIECE_UNITS else 0,
        2 * words if bits & _HAS_WORD_TIMES else 0,
        2 * pieces if bits & _HAS_PIECE_TIMES else 0,
    )
    start += _UTTERANCE_HEADER_2.size
    arrays, texts = _split(payload, start, lengths, text_bytes)
    piece_counts, unit_counts, piece_ids, unit_ids, piece_units, word_times, piece_times = arrays
    file_id, joined, transcript, speaker, license, source = texts
    return Utterance(
        file_id,
        tuple(joined.split(_WORD_SEPARATOR)),
        piece_ids,
        piece_counts,
        unit_ids,
        unit_counts,
        piece_units if bits & _HAS_PIECE_UNITS else None,
        word_times.reshape(-1, 2) if bits & _HAS_WORD_TIMES else None,
        piece_times.reshape(-1, 2) if bits & _HAS_PIECE_TIMES else None,
        transcript or None,
        speaker or None,
        license or None,
        source or None,
    )


def _encode_text(document: TextDocument) -> bytes:
    texts = [
        (text or "").encode() for text in (document.file_id, document.license, document.source)
    ]
    header = _TEXT_HEADER_2.pack(document.word_count, len(document.pieces), *map(len, texts))
    return b"".join((header, _to_bytes(document.pieces), *texts))


def _decode_text(payload: bytes) -> TextDocument:
    start = _PREFIX.size + _CHECKSUM.size
    word_count, pieces, *text_bytes = _unpack(_TEXT_HEADER_2, payload, start)
    start += _TEXT_HEADER_2.size
    (piece_ids,), (file_id, license, source) = _split(payload, start, (pieces,), text_bytes)
    return TextDocument(file_id, piece_ids, word_count, license or None, source or None)


def _decode_utterance_1(payload: bytes) -> Utterance:
    sizes = _unpack(_UTTERANCE_HEADER_1, payload, _PREFIX.size)
    *text_bytes, words, pieces, units = sizes
    arrays, (file_id, joined) = _split(
        payload, _PREFIX.size + _UTTERANCE_HEADER_1.size, (words, words, pieces, units), text_bytes
    )
    piece_counts, unit_counts, piece_ids, unit_ids = arrays
    split = tuple(joined.split(_WORD_SEPARATOR))
    return Utterance(file_id, split, piece_ids, piece_counts, unit_ids, unit_counts)


def _decode_text_1(payload: bytes) -> TextDocument:
    id_bytes, word_count, pieces = _unpack(_TEXT_HEADER_1, payload, _PREFIX.size)
    start = _PREFIX.size + _TEXT_HEADER_1.size
    (piece_ids,), (file_id,) = _split(payload, start, (pieces,), (id_bytes,))
    return TextDocument(file_id, piece_ids, word_count)


def _to_bytes(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, "<i4").tobytes()


def _checksum(prefix: bytes, body: bytes) -> int:
    return google_crc32c.extend(google_crc32c.value(prefix), body)


def _check_sum(payload: bytes) -> None:
    """Checks the payload against the CRC-32C in it."""
    body = _PREFIX.size + _CHECKSUM.size
    if len(payload) < body:
        raise ValueError(f"a payload has {len(payload)} bytes, expected at least {body}")
    (expected,) = _CHECKSUM.unpack_from(payload, _PREFIX.size)
    found = _checksum(payload[: _PREFIX.size], payload[body:])
    if found != expected:
        raise ValueError(
            f"a payload has CRC-32C {found:#010x}, expected {expected:#010x}: it is damaged"
        )


def _unpack(header: struct.Struct, payload: bytes, start: int) -> tuple[int, ...]:
    """Returns the numbers of a header, each a count."""
    if len(payload) < start + header.size:
        raise ValueError(
            f"a payload has {len(payload)} bytes, expected at least {start + header.size}"
        )
    numbers = header.unpack_from(payload, start)
    if min(numbers) < 0:
        raise ValueError(f"a payload's header has the count {min(numbers)}, expected 0 or more")
    return numbers


def _split(
    payload: bytes, start: int, lengths: tuple[int, ...], text_bytes: tuple[int, ...] | list[int]
) -> tuple[list[np.ndarray], list[str]]:
    """Returns the arrays of a payload, of so many int32 each, and the texts after them."""
    expected = start + 4 * sum(lengths) + sum(text_bytes)
    if len(payload) != expected:
        raise ValueError(f"a payload has {len(payload)} bytes, its header says {expected}")
    array = np.frombuffer(payload, "<i4", sum(lengths), start)
    ends = itertools.accumulate(lengths, initial=0)
    arrays = [array[begin:end] for begin, end in itertools.pairwise(ends)]
    ends = itertools.accumulate(text_bytes, initial=start + 4 * sum(lengths))
    return arrays, [payload[begin:end].decode() for begin, end in itertools.pairwise(ends)]
