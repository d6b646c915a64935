"""What the evaluations by likelihood share: flags, model, shape of the batches, results."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import jax
from absl import flags

from experiments.common import cli, distributed
from experiments.common.outputs import check_output, keep_results, make_progress_printer
from experiments.common.paths import define_path, define_paths
from lst_jax.evaluation.choices import ChoiceResults
from lst_jax.inference.scoring import Logits, ScoringShape
from lst_jax.inference.trained_model import SavedModel, TrainedModel, open_trained_model
from lst_jax.settings import require
from lst_jax.sharding import batch_mesh_size

flags.disclaim_key_flags()  # they are those of the binary that asks for them


def define_flags() -> None:
    """Defines the flags that all these binaries have."""
    define_path(
        "checkpoint",
        "Workdir of a run (its last checkpoint) or WORKDIR/STEP.",
        required=True,
    )
    define_paths("data", "JSONL file of examples; may be given several times.", required=True)
    define_path("output", "JSON file to write the results to.")
    flags.DEFINE_bool(
        "example_scores", False, "Write the log-probabilities of every candidate, too."
    )
    define_path("tokenizer", "The run's SentencePiece model, where it is no longer at its place.")
    flags.DEFINE_integer(
        "batch_rows",
        None,
        "Rows of a batch; by default 8, or one per device where there are more.",
    )
    flags.DEFINE_integer("patches_per_row", 1024, "Patch slots of a row.")
    flags.DEFINE_integer(
        "tokens_per_row", None, "Token slots of a row; by default as many as the patches hold."
    )
    flags.DEFINE_integer(
        "patch_size", None, "Units of a static patch, in place of the run's.", lower_bound=1
    )
    flags.DEFINE_enum(
        "logits",
        "all",
        list(get_args(Logits)),
        "Probabilities of speech: over the whole vocabulary, or over speech alone.",
    )
    distributed.define_flags()


def start(argv: list[str]) -> None:
    """Checks arguments and flags, and joins the other processes, as the flags say."""
    cli.check_no_arguments(argv)
    check_output(flags.FLAGS.output)
    rows = flags.FLAGS.batch_rows
    ScoringShape(
        ScoringShape.batch_rows if rows is None else rows,
        flags.FLAGS.patches_per_row,
        flags.FLAGS.tokens_per_row,
    )
    distributed.join_processes()


def open_model() -> SavedModel:
    """Opens the model that the flags name; its units check the data before it is loaded."""
    return open_trained_model(flags.FLAGS.checkpoint, flags.FLAGS.tokenizer)


def load_model(saved: SavedModel) -> TrainedModel:
    """Loads a model, to be tested with patches of the size that the flags say.

    Raises:
      ValueError: a size is given to a model without patches; or see `SavedModel.load`.
    """
    size, patching = flags.FLAGS.patch_size, saved.description.data.patching
    if size is None or patching is None:
        return saved.load()
    require(patching.strategy != "none", "--patch_size", size, "none: the model has no patches")
    return dataclasses.replace(
        saved.load(), patching=dataclasses.replace(patching, patch_size=size)
    )


def scoring_options(trained: TrainedModel) -> dict[str, Any]:
    """Returns how a model's likelihoods are computed: what `score_continuations` takes by name."""
    return {
        "shape": ScoringShape(
            batch_rows=_choose_batch_rows(flags.FLAGS.batch_rows, trained.mesh),
            patches_per_row=flags.FLAGS.patches_per_row,
            tokens_per_row=flags.FLAGS.tokens_per_row,
        ),
        "logits": flags.FLAGS.logits,
        "progress": make_progress_printer(),
    }


def report(trained: TrainedModel, results: ChoiceResults, table: str) -> None:
    """Writes the JSON file and prints the table, on one process."""
    source = {
        "checkpoint": str(trained.checkpoint),
        "step": trained.step,
        "model": type(trained.model).__name__,
        "patch_size": 1 if trained.patching.strategy == "none" else trained.patching.patch_size,
        "data": flags.FLAGS.data,
    }
    keep_results(
        flags.FLAGS.output, source | results.as_dict(flags.FLAGS.example_scores), lambda: table
    )


def _choose_batch_rows(batch_rows: int | None, mesh: jax.sharding.Mesh) -> int:
    """Returns the rows given, or 8 rounded up to a multiple of the devices that share them."""
    parts = batch_mesh_size(mesh)
    return parts * -(-ScoringShape.batch_rows // parts) if batch_rows is None else batch_rows
