r"""Accuracy of a trained model on minimal pairs of speech: sWUGGY, sBLIMP.

    python -m experiments.evaluate_pairs --checkpoint=runs/lst --data=swuggy.jsonl \
        --data=sblimp.jsonl --output=pairs.json

prints a line per set and category and writes the same as JSON. The model, its vocabulary and its
patching are those of the run's `model.json`; the format of the files is described in
`lst_jax/evaluation/minimal_pairs.py`.
"""

from __future__ import annotations

from absl import flags

from experiments.common import cli
from experiments.common.likelihood_evaluation import (
    define_flags,
    load_model,
    open_model,
    report,
    scoring_options,
    start,
)
from lst_jax.evaluation.choices import format_table
from lst_jax.evaluation.minimal_pairs import evaluate_minimal_pairs, read_speech_pairs

define_flags()


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    start(argv)
    saved = open_model()
    description = saved.description
    pairs = read_speech_pairs(
        flags.FLAGS.data, description.vocabulary.unit_count, description.encoder_fingerprint
    )
    trained = load_model(saved)
    results = evaluate_minimal_pairs(trained, pairs, **scoring_options(trained))
    report(trained, results, format_table(results))


if __name__ == "__main__":
    cli.run_main(main)
