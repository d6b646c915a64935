r"""Story-completion accuracy of a trained model.

    python -m experiments.evaluate --checkpoint=runs/lst --data=hellaswag.jsonl \
        --data=storycloze.jsonl --directions=S-S,T-T --output=accuracy.json

prints a line per set and direction and writes the same as JSON. The model, its vocabulary and its
patching are those of the run's `model.json`; the format of the example files is described in
`lst_jax/evaluation/story_completion.py`.
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
from lst_jax.evaluation.story_completion import (
    DIRECTIONS,
    evaluate_story_completion,
    format_table,
    parse_direction,
    read_story_examples,
)

define_flags()
_DIRECTIONS = flags.DEFINE_list(
    "directions", list(DIRECTIONS), "Modalities of prompt and endings: S speech, T text."
)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    start(argv)
    # What the user gave is checked first: a mistake shows before the parameters are read.
    for direction in _DIRECTIONS.value:
        parse_direction(direction)
    saved = open_model()
    description = saved.description
    examples = read_story_examples(
        flags.FLAGS.data, description.vocabulary.unit_count, description.encoder_fingerprint
    )
    trained = load_model(saved)
    results = evaluate_story_completion(
        trained,
        examples,
        directions=_DIRECTIONS.value,
        **scoring_options(trained),
    )
    report(trained, results, format_table(results))


if __name__ == "__main__":
    cli.run_main(main)
