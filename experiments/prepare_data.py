"""Converts a corpus to records: JSONL of aligned speech or of text, or plain text.

    python -m experiments.prepare_data --input='corpus/*.jsonl' --format=reference_jsonl \\
        --tokenizer=tokenizer.model --output=records/train

docs/formats.md describes the formats. Nothing is dropped silently: a bad line ends the run, or
with --skip_bad_records is counted and reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import cast

from absl import flags

from data_pipelines.corpora.lines import SkipReport
from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
from data_pipelines.corpora.text import TextFormat, read_text_corpus
from data_pipelines.records import storage as records
from experiments.common import cli
from experiments.common.inputs import FORMATS, find_inputs
from experiments.common.paths import define_path, define_paths
from lst_jax.vocabulary import TextTokenizer

_INPUT = define_paths("input", "File or glob pattern; may be given several times.", required=True)
_FORMAT = flags.DEFINE_enum("format", None, FORMATS, "What the files hold.", required=True)
_TOKENIZER = define_path("tokenizer", "SentencePiece model file.", required=True)
_OUTPUT = define_path("output", "Directory to make.", required=True)
_UNIT_COUNT = flags.DEFINE_integer("unit_count", 502, "Size of the unit set.", 1, 2**20)
_RECORDS_PER_SHARD = flags.DEFINE_integer(
    "records_per_shard", 100_000, "Records a file of the output.", 1, 2**31
)
_SKIP_BAD_RECORDS = flags.DEFINE_bool(
    "skip_bad_records", False, "Count and report bad lines instead of ending at the first."
)
_MAX_UNKNOWN_SHARE = flags.DEFINE_float(
    "max_unknown_share",
    0.01,
    "Largest share of the text's pieces that the tokenizer cannot spell.",
    lower_bound=0,
    upper_bound=1,
)
_OVERWRITE = flags.DEFINE_bool(
    "overwrite", False, "Replace records that are there already, and nothing but records."
)
_NUM_WORKERS = flags.DEFINE_integer(
    "num_workers", 0, "Processes that parse and encode; 0: the main one does.", 0, 2**10
)

_SECONDS_BETWEEN_REPORTS = 10.0


def main(argv: list[str]) -> None:
    """Converts as the flags say and prints a summary."""
    cli.check_no_arguments(argv)
    paths = find_inputs(_INPUT.value)
    tokenizer = TextTokenizer(_TOKENIZER.value)
    skipped = SkipReport() if _SKIP_BAD_RECORDS.value else None
    options = {"skipped": skipped, "num_workers": _NUM_WORKERS.value}
    items: Iterable[records.Record]
    if _FORMAT.value == "reference_jsonl":
        kind = "speech"
        items = read_reference_jsonl(paths, tokenizer, unit_count=_UNIT_COUNT.value, **options)
    else:
        kind = "text"
        items = read_text_corpus(
            paths, tokenizer, format=cast(TextFormat, _FORMAT.value), **options
        )
    try:
        metadata = records.write_records(
            _OUTPUT.value,
            kind,
            _report_progress(items),
            tokenizer,
            unit_count=_UNIT_COUNT.value,
            records_per_shard=_RECORDS_PER_SHARD.value,
            max_unknown_share=_MAX_UNKNOWN_SHARE.value,
            overwrite=_OVERWRITE.value,
        )
    finally:
        if skipped is not None:
            print(skipped, flush=True)
    print(f"wrote {_OUTPUT.value}: {len(metadata.shards)} shards, {metadata.summary()}")


def _report_progress(items: Iterable[records.Record]) -> Iterator[records.Record]:
    start = reported = time.monotonic()
    for count, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - reported >= _SECONDS_BETWEEN_REPORTS:
            print(f"{count:,} documents, {count / (now - start):,.0f} a second", flush=True)
            reported = now


if __name__ == "__main__":
    cli.run_main(main)
