"""Trains a SentencePiece model with the settings of Llama 2's.

    python -m experiments.train_tokenizer --input='corpus/*.jsonl' --format=text_jsonl \\
        --vocab_size=32000 --output=tokenizer

writes `tokenizer.model`. Of aligned speech the words are used, silences aside.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import cast

from absl import flags

from data_pipelines.corpora.lines import SkipReport, read_lines
from data_pipelines.corpora.reference_jsonl import parse_reference_line
from data_pipelines.corpora.text import TEXT_PARSERS, TextFormat
from data_pipelines.tokenizers import ModelType, train_tokenizer
from experiments.common import cli
from experiments.common.inputs import FORMATS, find_inputs
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path, define_paths
from lst_jax.vocabulary import TextTokenizer

_INPUT = define_paths("input", "File or glob pattern; may be given several times.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, FORMATS, "What the files hold.", required=True)
_OUTPUT = define_path("output", "Path of the model without .model.", required=True)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", None, "Number of pieces.", 2, 2**21, required=True)
_MODEL_TYPE = flags.DEFINE_enum("model_type", "bpe", ("bpe", "unigram"), "Kind of model.")
_BYTE_FALLBACK = flags.DEFINE_bool(
    "byte_fallback", True, "Spell characters without a piece as bytes, not as unk."
)
_CHARACTER_COVERAGE = flags.DEFINE_float(
    "character_coverage", 0.99995, "Share of the characters that get their own pieces."
)
_UNIT_COUNT = flags.DEFINE_integer(
    "unit_count", 502, "Size of the unit set of aligned speech.", 1, 2**20
)
_SKIP_BAD_RECORDS = flags.DEFINE_bool(
    "skip_bad_records", False, "Count and report bad lines instead of ending at the first."
)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    output = pathlib.Path(f"{_OUTPUT.value}.model")
    check_writable(output.parent)
    if os.path.lexists(output):
        TextTokenizer(output)  # nothing else is replaced
    skipped = SkipReport() if _SKIP_BAD_RECORDS.value else None
    parse = _choose_parser(_FORMAT.value, _UNIT_COUNT.value)
    try:
        path = train_tokenizer(
            read_lines(find_inputs(_INPUT.value), parse, skipped=skipped),
            _OUTPUT.value,
            _VOCAB_SIZE.value,
            model_type=cast(ModelType, _MODEL_TYPE.value),
            byte_fallback=_BYTE_FALLBACK.value,
            character_coverage=_CHARACTER_COVERAGE.value,
        )
    finally:
        if skipped is not None:
            print(skipped, flush=True)
    tokenizer = TextTokenizer(path)
    print(f"wrote {path}: {tokenizer.size:,} pieces, SHA-256 {tokenizer.fingerprint}")


def _choose_parser(line_format: str, unit_count: int) -> Callable[[bytes, str], str]:
    if line_format == "reference_jsonl":
        return lambda line, place: parse_reference_line(line, unit_count).text
    parse_text = TEXT_PARSERS[cast(TextFormat, line_format)]
    return lambda line, place: parse_text(line).text


if __name__ == "__main__":
    cli.run_main(main)
