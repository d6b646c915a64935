"""The training step that Gin files describe, for what reads no data."""

from __future__ import annotations

from collections.abc import Sequence

import gin

from data_pipelines.training.dataset import DataConfig, SourceConfig
from experiments.common import gin_config
from experiments.common.experiment import Experiment
from experiments.common.step_config import StepConfig
from lst_jax.config import ModelConfig
from lst_jax.sharding import MeshConfig
from lst_jax.vocabulary import Vocabulary

PRETRAIN = "experiments/configs/runs/pretrain.gin"


def read_config(
    files: Sequence[str],
    bindings: Sequence[str],
    text_size: int = 32000,
    attention: str = "auto",
) -> StepConfig:
    """Returns the step that Gin files describe, after those of the paper's run.

    Args:
      files: a model file, and what should differ from `runs/pretrain.gin`.
      bindings: `NAME=VALUE` each.
      text_size: pieces of the text tokenizer; Llama 2 has 32,000.
      attention: backend, in place of the one that the files name.

    Raises:
      OSError, ValueError: see `gin_config.parse`; or no file gives a model.
    """
    gin_config.parse([PRETRAIN, *files], [*bindings])
    try:
        gin.query_parameter("train.model")
    except ValueError:
        raise ValueError(
            "Experiment.model is not set, expected a model file (--gin_file)"
        ) from None
    with gin_config.calling_gin():
        data = gin.get_configurable(DataConfig)(sources=(SourceConfig("none", "text"),))
        experiment = gin.get_configurable("train")(tokenizer="none", data=data)
        units = experiment.unit_encoding()
        vocabulary = Vocabulary(text_size, unit_count=experiment.unit_count, units=units)
        model = experiment.model(vocab_size=vocabulary.size, attention=attention)
    return _step_config(experiment, model, vocabulary)


def step_config(experiment: Experiment) -> StepConfig:
    """Returns the step of a run; its tokenizer is read.

    Raises:
      OSError, ValueError: see `Experiment.describe`.
    """
    description = experiment.describe()
    return _step_config(experiment, description.model, description.vocabulary)


def _step_config(experiment: Experiment, model: ModelConfig, vocabulary: Vocabulary) -> StepConfig:
    data = experiment.data
    return StepConfig(
        model=model,
        vocabulary=vocabulary,
        optimizer=experiment.optimizer,
        training=experiment.training,
        patching=data.patching,
        num_patches=data.patches_per_row,
        num_tokens=data.tokens_per_row,
        num_rows=data.batch_size,
    )


def mesh_in_force() -> MeshConfig:
    """Returns the mesh of the configuration that was read last."""
    with gin_config.calling_gin():
        return gin.get_configurable(MeshConfig)()
