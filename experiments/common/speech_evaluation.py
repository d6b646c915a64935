"""What the evaluations of recognition and of synthesis share: flags, data, models, results."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from absl import flags

from experiments.common import distributed
from experiments.common.encoders import check_same_encoder
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path, define_paths
from lst_jax.evaluation.answer_rates import HEADER, TaskResult, table_row
from lst_jax.evaluation.spoken_texts import SpokenText, read_spoken_texts
from lst_jax.evaluation.tables import format_rows
from lst_jax.inference.trained_model import TrainedModel, open_trained_model
from lst_jax.sharding import make_mesh

flags.disclaim_key_flags()  # they are those of the binary that asks for them


def define_flags() -> None:
    """Defines the flags that both binaries have."""
    define_paths(
        "checkpoint",
        "Workdir of a run, or WORKDIR/STEP; several are compared.",
        required=True,
    )
    define_paths("data", "JSONL file of spoken texts; may be given several times.", required=True)
    flags.DEFINE_integer("limit", None, "Only so many utterances, the first ones.", lower_bound=1)
    define_path("output", "JSON file to write the results to.")
    define_path("tokenizer", "The runs' SentencePiece model, where it is no longer at its place.")
    flags.DEFINE_integer("batch_rows", 8, "Rows of a batch.", lower_bound=1, upper_bound=2**20)
    distributed.define_flags()


class SpeechEvaluation:
    """An evaluation in progress: its data, its models one after the other, its table."""

    def __init__(self) -> None:
        """Joins the other processes and reads the data, as the flags say."""
        check_output(flags.FLAGS.output)
        distributed.join_processes()
        self._saved = [
            open_trained_model(path, flags.FLAGS.tokenizer) for path in flags.FLAGS.checkpoint
        ]
        first, *others = self._saved
        known = first.description.encoder_fingerprint
        for saved in others:
            found = saved.description.encoder_fingerprint
            check_same_encoder(f"model {saved.path}", found, known, str(first.path))
            known = known or found
        unit_count = min(saved.description.vocabulary.unit_count for saved in self._saved)
        self.spoken: tuple[SpokenText, ...] = read_spoken_texts(flags.FLAGS.data, unit_count, known)
        self.spoken = self.spoken[: flags.FLAGS.limit]
        self._rows = [list(HEADER)]
        self._results: list[dict[str, Any]] = []

    def models(self) -> Iterator[TrainedModel]:
        """Yields the models, each loaded when it is needed."""
        mesh = make_mesh()
        for saved in self._saved:
            yield saved.load(mesh)

    def add(self, trained: TrainedModel, result: TaskResult) -> None:
        """Takes the result of a model."""
        self._rows.append(table_row(str(trained.checkpoint), result))
        source = {"checkpoint": str(trained.checkpoint), "model": type(trained.model).__name__}
        self._results.append(source | result.as_dict())

    def add_row(self, cells: list[str]) -> None:
        """Adds a line to the table."""
        self._rows.append(cells + [""] * (len(HEADER) - len(cells)))

    def finish(self, **further: Any) -> None:
        """Writes the JSON file, with further entries, and prints the table, on one process."""
        values = {"data": flags.FLAGS.data, **further, "results": self._results}
        keep_results(flags.FLAGS.output, values, lambda: format_rows(self._rows, 1))
