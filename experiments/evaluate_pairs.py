r"""Accuracy of a trained model on minimal pairs of speech: sWUGGY, sBLIMP.

    python -m experiments.evaluate_pairs --checkpoint=runs/lst --data=swuggy.jsonl \
        --data=sblimp.jsonl --output=pairs.json

prints a line per set and category and writes the same as JSON. The model, its vocabulary and its
patching are those of the run's `model.json`; the format of the files is described in
`lst_jax/evaluation/minimal_pairs.py`. `--submission` writes what the challenge's own tools take.
"""

from __future__ import annotations

import pathlib

import jax
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
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.evaluation.choices import format_table
from lst_jax.evaluation.minimal_pairs import (
    check_submission,
    evaluate_minimal_pairs,
    format_submission,
    read_speech_pairs,
)
from lst_jax.files import new_directory, refuse_to_replace, write_file

define_flags()
_SUBMISSION = define_path("submission", "New folder for lexical/dev.txt and the like: the scores.")
_SUBMISSION_SCORES = flags.DEFINE_enum(
    "submission_scores", "sum", ["sum", "mean"], "Scores there: log-probabilities, or per token."
)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    start(argv)
    saved = open_model()
    description = saved.description
    pairs = read_speech_pairs(
        flags.FLAGS.data,
        description.vocabulary.unit_count,
        description.encoder_fingerprint,
        unpaired=_SUBMISSION.value is not None,
    )
    if _SUBMISSION.value:
        folder = pathlib.Path(_SUBMISSION.value)
        check_writable(folder.parent)
        if folder.exists():
            refuse_to_replace(folder)
        check_submission(pairs)
    trained = load_model(saved)
    results = evaluate_minimal_pairs(trained, pairs, **scoring_options(trained))
    try:
        report(trained, results, format_table(results))
    finally:  # neither is lost where the other fails
        if _SUBMISSION.value and jax.process_index() == 0:
            texts = format_submission(pairs, results, _SUBMISSION_SCORES.value)
            with new_directory(_SUBMISSION.value, refuse_to_replace) as folder:
                for path, text in texts.items():
                    write_file(folder / path, text)


if __name__ == "__main__":
    cli.run_main(main)
