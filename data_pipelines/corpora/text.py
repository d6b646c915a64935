"""Text corpora: JSONL (`{"text": str}`, with more if known) or plain text, one document a line."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from data_pipelines.corpora.lines import (
    BadLine,
    SkipReport,
    decode_line,
    load_object,
    read_known_texts,
    read_lines,
)
from data_pipelines.records.types import TextDocument, make_text_document
from lst_jax.vocabulary import TextTokenizer

TextFormat = Literal["text", "text_jsonl"]


@dataclasses.dataclass(frozen=True)
class PlainDocument:
    """A document as a text corpus has it, not yet encoded.

    Attributes:
      text: what it says.
      license, source: see `TextDocument`.
    """

    text: str
    license: str | None = None
    source: str | None = None


def parse_text_line(line: bytes) -> PlainDocument:
    """Returns the document in a line of plain text.

    Raises:
      BadLine: the line is blank or not UTF-8.
    """
    return PlainDocument(decode_line(line))


def parse_text_jsonl_line(line: bytes) -> PlainDocument:
    """Returns the document in a line of JSONL: its `text`, and `license` and `source` if there.

    Other keys play no part.

    Raises:
      BadLine: the line is not such an object, or a text in it is blank.
    """
    fields = load_object(line, {"text": str})
    if not fields["text"].strip():
        raise BadLine("empty text")
    return PlainDocument(fields["text"], **read_known_texts(fields, ("license", "source")))


TEXT_PARSERS: dict[TextFormat, Callable[[bytes], PlainDocument]] = {
    "text": parse_text_line,
    "text_jsonl": parse_text_jsonl_line,
}


@dataclasses.dataclass(frozen=True)
class TextParser:
    """Makes a `TextDocument` of a line, named by its place.

    Attributes:
      tokenizer: encodes the text.
      format: what the lines are.
    """

    tokenizer: TextTokenizer
    format: TextFormat

    def __call__(self, line: bytes, place: str) -> TextDocument:
        """Parses and encodes; a text without pieces is a `BadLine` too."""
        plain = TEXT_PARSERS[self.format](line)
        document = make_text_document(
            place, plain.text, self.tokenizer, license=plain.license, source=plain.source
        )
        if not len(document.pieces):
            raise BadLine("a text without pieces", repr(plain.text[:40]))
        return document


def read_text_corpus(
    paths: Iterable[str | pathlib.Path],
    tokenizer: TextTokenizer,
    *,
    format: TextFormat = "text_jsonl",
    skipped: SkipReport | None = None,
    num_workers: int = 0,
) -> Iterator[TextDocument]:
    """Reads text documents, in order.

    Args:
      paths: the files.
      tokenizer: encodes the texts.
      format: "text_jsonl" or "text".
      skipped: where given, bad lines are counted here and passed over.
      num_workers: processes that parse; 0 parses in this one.

    Raises:
      ValueError: the format is unknown.
      FileNotFoundError: a file is missing.
      RecordError: a line is bad and `skipped` is None.
    """
    if format not in TEXT_PARSERS:
        raise ValueError(f"format is {format!r}, expected one of {', '.join(TEXT_PARSERS)}")
    parser = TextParser(tokenizer, format)
    return read_lines(paths, parser, skipped=skipped, num_workers=num_workers)
