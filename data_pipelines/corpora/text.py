"""Text corpora: JSONL (`{"text": str}`) or plain text, one document a line."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Literal

from data_pipelines.corpora.lines import BadLine, SkipReport, decode_line, load_object, read_lines
from data_pipelines.records.types import TextDocument, make_text_document
from lst_jax.vocabulary import TextTokenizer

TextFormat = Literal["text", "text_jsonl"]


def parse_text_line(line: bytes) -> str:
    """The document in a line of plain text.

    Raises:
      BadLine: the line is blank or not UTF-8.
    """
    return decode_line(line)


def parse_text_jsonl_line(line: bytes) -> str:
    """The document in a line of JSONL, its `"text"`; other keys play no part.

    Raises:
      BadLine: the line is not such an object, or its text is blank.
    """
    text = load_object(line, {"text": str})["text"]
    if not text.strip():
        raise BadLine("empty text")
    return text


TEXT_PARSERS: dict[TextFormat, Callable[[bytes], str]] = {
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
        text = TEXT_PARSERS[self.format](line)
        document = make_text_document(place, text, self.tokenizer)
        if not len(document.pieces):
            raise BadLine("a text without pieces", repr(text[:40]))
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
