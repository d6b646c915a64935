r"""Story-completion accuracy of a trained model.

    python -m experiments.evaluate --checkpoint=runs/lst --data=hellaswag.jsonl \
        --data=storycloze.jsonl --directions=S-S,T-T --output=accuracy.json

prints a line per set and direction and writes the same as JSON. The model, its vocabulary and its
patching are those of the run's `model.json`; the format of the example files is described in
`lst_jax/evaluation/story_completion.py`.
"""

from __future__ import annotations

import jax
from absl import flags, logging

from experiments import cli, distributed
from experiments.outputs import make_progress_printer, write_json
from lst_jax.trained_model import load_trained_model
from lst_jax.checkpoints import find_checkpoint, read_description
from lst_jax.evaluation.story_completion import (
    DIRECTIONS,
    evaluate_story_completion,
    format_table,
    parse_direction,
    read_story_examples,
)
from lst_jax.inference.scoring import ScoringShape
from lst_jax.sharding import batch_mesh_size

_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "Workdir of a run (its last checkpoint) or WORKDIR/STEP.", required=True
)
_DATA = flags.DEFINE_multi_string(
    "data", None, "JSONL file of examples; may be given several times.", required=True
)
_DIRECTIONS = flags.DEFINE_list(
    "directions", list(DIRECTIONS), "Modalities of prompt and endings: S speech, T text."
)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write the results to.")
_EXAMPLE_SCORES = flags.DEFINE_bool(
    "example_scores", False, "Write the log-probabilities of every ending, too."
)
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", None, "The run's SentencePiece model, where it is no longer at its place."
)
_BATCH_ROWS = flags.DEFINE_integer(
    "batch_rows", None, "Rows of a batch; by default 8, or one per device where there are more."
)
_PATCHES_PER_ROW = flags.DEFINE_integer("patches_per_row", 1024, "Patch slots of a row.")
_TOKENS_PER_ROW = flags.DEFINE_integer(
    "tokens_per_row", None, "Token slots of a row; by default as many as the patches hold."
)
distributed.define_flags()


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    cli.check_no_arguments(argv)
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.ERROR)  # Orbax warns of every checkpoint it only reads
    distributed.join_processes()
    # What the user gave is checked first: a mistake shows before the parameters are read.
    for direction in _DIRECTIONS.value:
        parse_direction(direction)
    unit_count = read_description(find_checkpoint(_CHECKPOINT.value)).vocabulary.unit_count
    examples = read_story_examples(_DATA.value, unit_count)
    trained = load_trained_model(_CHECKPOINT.value, _TOKENIZER.value)
    results = evaluate_story_completion(
        trained.model,
        trained.params,
        examples,
        vocabulary=trained.vocabulary,
        tokenizer=trained.tokenizer,
        patching=trained.patching,
        mesh=trained.mesh,
        directions=_DIRECTIONS.value,
        shape=ScoringShape(
            batch_rows=_choose_batch_rows(_BATCH_ROWS.value, trained.mesh),
            patches_per_row=_PATCHES_PER_ROW.value,
            tokens_per_row=_TOKENS_PER_ROW.value,
        ),
        visibility=trained.visibility,
        progress=make_progress_printer(),
    )
    if jax.process_index() == 0:
        print(format_table(results), flush=True)
        if _OUTPUT.value:
            source = {
                "checkpoint": str(trained.checkpoint),
                "step": trained.step,
                "model": type(trained.model).__name__,
                "data": _DATA.value,
            }
            write_json(_OUTPUT.value, source | results.as_dict(_EXAMPLE_SCORES.value))


def _choose_batch_rows(batch_rows: int | None, mesh: jax.sharding.Mesh) -> int:
    """The rows given, or 8 rounded up to a multiple of the devices that share them."""
    parts = batch_mesh_size(mesh)
    return parts * -(-ScoringShape.batch_rows // parts) if batch_rows is None else batch_rows


if __name__ == "__main__":
    cli.run_main(main)
