"""The published record format: JSONL of words and the units spoken during them.

A line is `{"file_id": str, "interleaved": str}`, the string a strict alternation of
`<LST MODE SEP>TEXT w` and `<LST MODE SEP>HUBERT u u u …`, the first block a TEXT and the last a
HUBERT. A line may say more of its recording: `transcript`, `speaker`, `license`, `source`.
docs/formats.md has the details.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from data_pipelines.corpora.lines import (
    BadLine,
    SkipReport,
    load_object,
    read_known_texts,
    read_lines,
)
from data_pipelines.records.types import SILENCE, Utterance, make_utterance
from lst_jax.vocabulary import TextTokenizer

_SEPARATOR = "<LST MODE SEP>"
_CONTINUATION = "[BPE]"  # of the preceding word
_WORD_START = "\u2581"  # SentencePiece's mark in a piece that opens a word
_KINDS = ("TEXT", "HUBERT")
_FIELDS = {"file_id": str, "interleaved": str}
_KNOWN_TEXTS = ("transcript", "speaker", "license", "source")  # that a line may have


@dataclasses.dataclass(frozen=True)
class AlignedWords:
    """An utterance as the format has it, words not yet encoded.

    Attributes:
      file_id: name of the recording.
      words: W words, `SILENCE` for a silence.
      units: the speech units of the whole recording.
      unit_counts: units spoken during every word, W numbers; 0 occurs where a word is shorter
        than a unit.
      parts: of every word the blocks that it came in, each its text and number of units.
      transcript, speaker, license, source: see `Utterance`.
    """

    file_id: str
    words: tuple[str, ...]
    units: tuple[int, ...]
    unit_counts: tuple[int, ...]
    parts: tuple[tuple[tuple[str, int], ...], ...]
    transcript: str | None = None
    speaker: str | None = None
    license: str | None = None
    source: str | None = None

    @property
    def text(self) -> str:
        """Returns the words without the silences."""
        return " ".join(word for word in self.words if word != SILENCE)


def parse_reference_line(line: bytes, unit_count: int) -> AlignedWords:
    """Reads one line of the format.

    Args:
      line: UTF-8 JSON.
      unit_count: number of units of the unit set.

    Raises:
      BadLine: the line breaks the format in any way; nothing is mended.
    """
    fields = load_object(line, _FIELDS)
    if not fields["file_id"]:
        raise BadLine("empty file_id")
    known = read_known_texts(fields, _KNOWN_TEXTS)
    words: list[str] = []
    parts: list[list[tuple[str, int]]] = []
    units: list[int] = []
    unit_counts: list[int] = []
    for text, spoken in _split_pairs(fields["interleaved"]):
        new_units = _read_units(spoken, unit_count)
        units += new_units
        if text.startswith(_CONTINUATION):
            text = text.removeprefix(_CONTINUATION).strip()
            _continue_word(words, text)
            unit_counts[-1] += len(new_units)
            parts[-1].append((text, len(new_units)))
        else:
            words.append(_check_word(text))
            unit_counts.append(len(new_units))
            parts.append([(text, len(new_units))])
    if not units:
        raise BadLine("empty utterance", "it has no units")
    return AlignedWords(
        fields["file_id"],
        tuple(words),
        tuple(units),
        tuple(unit_counts),
        tuple(map(tuple, parts)),
        **known,
    )


@dataclasses.dataclass(frozen=True)
class ReferenceParser:
    """Makes an `Utterance` of a line.

    Attributes:
      tokenizer: encodes the words.
      unit_count: number of units of the unit set.
    """

    tokenizer: TextTokenizer
    unit_count: int

    def __call__(self, line: bytes, place: str) -> Utterance:
        """See `parse_reference_line`; a word that cannot be encoded is a `BadLine` too."""
        del place  # utterances have their own names
        aligned = parse_reference_line(line, self.unit_count)
        try:
            utterance = make_utterance(
                aligned.file_id,
                aligned.words,
                aligned.units,
                aligned.unit_counts,
                self.tokenizer,
            )
        except ValueError as error:
            raise BadLine("a word cannot be encoded", str(error)) from error
        return dataclasses.replace(
            utterance,
            piece_unit_counts=_count_piece_units(aligned, utterance, self.tokenizer),
            **{name: getattr(aligned, name) for name in _KNOWN_TEXTS},
        )


def read_reference_jsonl(
    paths: Iterable[str | pathlib.Path],
    tokenizer: TextTokenizer,
    *,
    unit_count: int = 502,
    skipped: SkipReport | None = None,
    num_workers: int = 0,
) -> Iterator[Utterance]:
    """Reads utterances from files of the published format, in order.

    Args:
      paths: the files; no `file_id` may occur twice in all of them together.
      tokenizer: encodes the words.
      unit_count: number of units of the unit set.
      skipped: where given, bad lines are counted here and passed over.
      num_workers: processes that parse; 0 parses in this one.

    Raises:
      FileNotFoundError: a file is missing.
      RecordError: a line is bad and `skipped` is None.
    """
    parser = ReferenceParser(tokenizer, unit_count)
    return read_lines(paths, parser, skipped=skipped, num_workers=num_workers, unique=True)


def _count_piece_units(
    aligned: AlignedWords, utterance: Utterance, tokenizer: TextTokenizer
) -> np.ndarray | None:
    """Returns the units of every piece, int32 (S,), where a line's blocks are the pieces.

    None where some word came in other parts than the tokenizer's, a word of several pieces in one
    block for instance: only the word's units are known then.
    """
    counts: list[int] = []
    start = 0
    for pieces, parts in zip(utterance.piece_counts.tolist(), aligned.parts, strict=True):
        if not pieces:
            continue
        if pieces != len(parts):
            return None
        texts = [text for text, _ in parts]
        ids = utterance.pieces[start : start + pieces].tolist()
        if pieces > 1 and [tokenizer.piece(i).strip(_WORD_START) for i in ids] != texts:
            return None
        counts += [count for _, count in parts]
        start += pieces
    return np.array(counts, np.int32)


@functools.lru_cache(maxsize=8)
def _unit_table(unit_count: int) -> dict[str, int]:
    """Returns the units by their digits: a look-up reads and checks a unit at once."""
    return {str(unit): unit for unit in range(unit_count)}


def _read_units(texts: list[str], unit_count: int) -> list[int]:
    table = _unit_table(unit_count)
    try:
        return [table[text] for text in texts]
    except KeyError as error:
        found = error.args[0][:40]
        detail = f"found {found!r}, expected 0 … {unit_count - 1}"
        raise BadLine("unit outside the unit set", detail) from None


def _split_pairs(interleaved: str) -> Iterator[tuple[str, list[str]]]:
    """Yields pairs of a TEXT block's contents and the HUBERT block's after it."""
    before, *blocks = interleaved.split(_SEPARATOR)
    if before.strip():
        raise BadLine("not alternating", f"{before[:40]!r} stands before the first block")
    if not blocks:
        raise BadLine("empty utterance", "it has no blocks")
    contents = [_block_contents(index, block) for index, block in enumerate(blocks)]
    if len(contents) % 2:
        raise BadLine("not alternating", "the last block is a TEXT")
    for index in range(0, len(contents), 2):
        yield contents[index], contents[index + 1].split()


def _block_contents(index: int, block: str) -> str:
    kind, _, contents = block.partition(" ")
    if kind not in _KINDS:
        raise BadLine("unknown block", f"block {index + 1} is a {kind[:40]!r}")
    expected = _KINDS[index % 2]
    if kind != expected:
        raise BadLine("not alternating", f"block {index + 1} is a {kind}, expected a {expected}")
    return contents.strip()


def _check_word(text: str) -> str:
    if not text:
        raise BadLine("empty word")
    if text.split() != [text]:
        raise BadLine("several words in a block", repr(text[:40]))
    if text != SILENCE and (SILENCE in text or _CONTINUATION in text):
        raise BadLine("a mark inside a word", repr(text[:40]))
    return text


def _continue_word(words: list[str], text: str) -> None:
    """Adds the text of a further piece, which may be none, to the last word."""
    if not words or words[-1] == SILENCE:
        raise BadLine(f"{_CONTINUATION} continues no word")
    if text:
        words[-1] = _check_word(words[-1] + text)
