"""Trains a unit vocabulary: pieces of several speech units, or units without their repeats.

    python -m experiments.train_unit_vocabulary --records=RECORDS --vocab_size=1000 \\
        --output=units.json
    python -m experiments.train_unit_vocabulary --records=RECORDS --deduplicate --output=units.json

A run takes it by `--gin.UNIT_VOCABULARY=units.json`.
"""

from __future__ import annotations

from absl import flags

from data_pipelines.records.storage import open_records
from data_pipelines.unit_vocabulary import choose_unit_sequences, train_unit_encoding
from experiments.common import cli
from experiments.common.outputs import check_output
from experiments.common.paths import define_path
from lst_jax.files import write_json
from lst_jax.unit_encoding import unit_encoding_to_json

_RECORDS = define_path("records", "Records of speech, or a pattern for several.", required=True)
_OUTPUT = define_path("output", "The file to write.", required=True)
_VOCAB_SIZE = flags.DEFINE_integer(
    "vocab_size", None, "Speech ids, units and pieces together; else no unit is joined.", 2, 2**20
)
_DEDUPLICATE = flags.DEFINE_bool("deduplicate", False, "Make a run of equal units one unit.")
_SEQUENCES = flags.DEFINE_integer("sequences", 100_000, "Utterances to learn from, at most.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice of utterances.", 0)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    if _VOCAB_SIZE.value is None and not _DEDUPLICATE.value:
        raise ValueError("expected --vocab_size, --deduplicate or both")
    check_output(_OUTPUT.value)
    records = open_records(_RECORDS.value)
    unit_count = records.metadata.unit_count
    encoding = train_unit_encoding(
        choose_unit_sequences(records, _SEQUENCES.value, _SEED.value),
        unit_count,
        vocab_size=_VOCAB_SIZE.value,
        deduplicated=_DEDUPLICATE.value,
    )
    made_by = records.metadata.encoder_fingerprint
    write_json(_OUTPUT.value, unit_encoding_to_json(encoding, unit_count, made_by))
    print(
        f"wrote {_OUTPUT.value}: {unit_count} units and {len(encoding.pieces)} pieces, "
        f"{encoding.units_per_id:.2f} units an id"
    )


if __name__ == "__main__":
    cli.run_main(main)
