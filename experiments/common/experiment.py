"""A training run as one configuration: model, data, optimizer, length, mesh."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax

from data_pipelines.training.dataset import DataConfig, make_training_dataset, merge_states
from experiments.common.evaluators import EvaluationConfig, make_evaluators
from experiments.common.outputs import leaving_nothing
from lst_jax.checkpoints.description import DataDescription, ModelDescription
from lst_jax.checkpoints.layout import CHECKPOINTS, find_checkpoint
from lst_jax.config import ModelConfig
from lst_jax.extras import check_extra
from lst_jax.local_paths import PathText, local_path
from lst_jax.settings import UnitCount, Workers, configuration, require
from lst_jax.sharding import AnyMesh, MeshConfig, check_heads, check_rows, make_mesh, row_share
from lst_jax.training.hooks import Hook
from lst_jax.training.log import report
from lst_jax.training.loop import TrainResult
from lst_jax.training.lst import train_lst
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer
from lst_jax.training.starts import flatten_settings
from lst_jax.training.step import TrainingConfig, check_rows_fit
from lst_jax.training.writers import WRITERS
from lst_jax.unit_encoding import UnitEncoding, read_unit_encoding
from lst_jax.vocabulary import TextTokenizer

_EXTRAS = ("clu", "wandb")  # writers whose packages are extras


@configuration
class Experiment:
    """Everything that a run is determined by; `train` in Gin files.

    Attributes:
      model: makes the model's configuration from `vocab_size`, which the tokenizer and
        `unit_count` determine (in Gin: `@LSTConfig` or `@TokenTransformerConfig`).
      tokenizer: path of the SentencePiece model that the records were made with.
      data: records and rows.
      training: length, records, checkpoints.
      optimizer: AdamW and its schedule.
      mesh: devices along each mesh axis.
      unit_count: size of the speech unit set.
      unit_vocabulary: file of a unit vocabulary (`experiments.train_unit_vocabulary`) that joins
        units or drops their repeats; None: every unit is an id.
      num_workers: processes that make batches; 0: the main process does. Changes no batch.
      prefetch: batches made ahead. Changes no batch.
      evaluation: what the run is measured by on the way. Changes nothing of the run.
      writers: where records go, names of `lst_jax.training.writers.WRITERS`.
    """

    model: Callable[..., ModelConfig]
    tokenizer: PathText
    data: DataConfig
    training: TrainingConfig
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    unit_count: UnitCount = 502
    unit_vocabulary: PathText | None = None
    num_workers: Workers = 0
    prefetch: Workers = 2
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    writers: tuple[str, ...] = ("console", "jsonl", "tensorboard")

    def __post_init__(self) -> None:
        unknown = [name for name in self.writers if name not in WRITERS]
        require(not unknown, "Experiment.writers", unknown, f"names of {', '.join(WRITERS)}")

    def settings(self) -> dict[str, Any]:
        """Returns what the record of starts holds besides model, optimizer and training."""
        names = ("tokenizer", "unit_count", "unit_vocabulary", "num_workers", "prefetch")
        parts = flatten_settings(self.data, self.mesh, self.evaluation)
        parts |= {f"Experiment.{name}": getattr(self, name) for name in names}
        return parts | {"Experiment.writers": ", ".join(self.writers)}

    def unit_encoding(self, encoder_fingerprint: str | None = None) -> UnitEncoding:
        """Returns how ids come from units; see `read_unit_encoding`."""
        if self.unit_vocabulary is None:
            return UnitEncoding()
        file = local_path(self.unit_vocabulary, "unit_vocabulary")
        return read_unit_encoding(file, self.unit_count, encoder_fingerprint)

    def describe(self) -> ModelDescription:
        """Returns what `model.json` will say.

        Raises:
          OSError: there is no tokenizer or unit vocabulary.
          ValueError: one of them, or the model's configuration, is not a valid one.
        """
        tokenizer = TextTokenizer(self.tokenizer)
        vocabulary = tokenizer.vocabulary(self.unit_count, self.unit_encoding())
        return ModelDescription(
            model=self.model(vocab_size=vocabulary.size),
            vocabulary=vocabulary,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data=DataDescription(
                patching=self.data.patching,
                visibility=self.data.visibility,
                tokenizer=str(pathlib.Path(self.tokenizer).absolute()),
                patches_per_row=self.data.patches_per_row,
                tokens_per_row=self.data.tokens_per_row,
            ),
        )


def report_length(steps: int | None, num_steps: int) -> None:
    """Says about how many steps the data give, None where they never end."""
    if steps is not None:
        short = f", fewer than the {num_steps} of the run" if steps < num_steps else ""
        report(f"the data give about {steps} steps{short}")


def check_on_mesh(experiment: Experiment, mesh: AnyMesh) -> None:
    """Checks what takes no devices to check, either.

    Raises:
      ValueError: settings do not fit together, or not to the mesh.
    """
    check_rows(experiment.data.batch_size, mesh, experiment.training.accumulation_steps)
    check_heads(experiment.model(vocab_size=1), mesh)
    make_optimizer(experiment.optimizer, experiment.training.num_steps)


def check_experiment(experiment: Experiment) -> jax.sharding.Mesh:
    """Checks what takes neither data nor tokenizer to check.

    Returns:
      The device mesh.

    Raises:
      ValueError: settings do not fit together, or not to the devices.
      ImportError: a writer's package is not installed.
    """
    mesh = make_mesh(experiment.mesh)
    check_on_mesh(experiment, mesh)
    check_rows_fit(
        experiment.model(vocab_size=1),
        experiment.data.batch_size // experiment.training.accumulation_steps,
        experiment.data.patches_per_row,
        experiment.data.tokens_per_row,
        mesh,
    )
    for name in experiment.writers:
        if name in _EXTRAS:
            check_extra(name, name)
    return mesh


def run_experiment(
    experiment: Experiment,
    workdir: str | pathlib.Path,
    config_text: Callable[[], str] | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Trains, or continues to train, in `workdir`.

    Args:
      experiment: what to train.
      workdir: see `lst_jax.training.lst.train_lst`.
      config_text: gives the settings in use, for `config.gin` beside the checkpoints; called when
        everything is built.
      hooks: are told of every step.

    Returns:
      The last state and the run's totals.

    Raises:
      OSError, ValueError: files are missing or settings do not fit together.
      NonFiniteLossError, DataEndedError: see `lst_jax.training.loop.train`.
    """
    mesh = check_experiment(experiment)
    initial = experiment.training.initial_checkpoint
    if initial and not any(pathlib.Path(workdir, CHECKPOINTS).glob("*")):  # else it resumes
        find_checkpoint(initial)
    share = row_share(mesh)
    description = experiment.describe()
    dataset = make_training_dataset(
        experiment.data,
        description.vocabulary,
        fingerprint=description.tokenizer_fingerprint,
        num_workers=experiment.num_workers,
        prefetch=experiment.prefetch,
        host_index=share.index,
        host_count=share.count,
    )
    encoder = dataset.documents.encoder_fingerprint
    experiment.unit_encoding(encoder)  # is of units of this one
    description = dataclasses.replace(description, encoder_fingerprint=encoder)
    evaluators = make_evaluators(
        experiment.evaluation,
        description,
        experiment.data,
        experiment.training,
        experiment.tokenizer,
        mesh,
    )
    report_length(dataset.documents.estimate_steps(), experiment.training.num_steps)
    with contextlib.closing(iter(dataset)) as iterator, leaving_nothing(workdir):
        return train_lst(
            description,
            experiment.optimizer,
            experiment.training,
            iterator,
            workdir,
            mesh,
            evaluators=evaluators,
            writers=[WRITERS[name] for name in experiment.writers],
            hooks=hooks,
            merge_states=merge_states,
            config_text=config_text,
            settings=experiment.settings(),
        )
