"""What a run is measured by on the way: losses on held-out records, and story completion."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax

from data_pipelines.training.dataset import DataConfig, SourceConfig, make_training_dataset
from experiments.common.encoders import check_same_encoder
from lst_jax.batch import Batch
from lst_jax.checkpoints.description import ModelDescription
from lst_jax.evaluation.story_completion import (
    Direction,
    StoryExample,
    evaluate_story_completion,
    read_story_examples,
)
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.local_paths import PathText
from lst_jax.model.models import build_model
from lst_jax.patching import Strategy
from lst_jax.settings import PositiveFloat, PositiveInt, configuration, given
from lst_jax.sharding import DEFAULT_RULES, batch_mesh_size, row_share
from lst_jax.training.held_out import HeldOutLoss, target_amounts
from lst_jax.training.hooks import Evaluator
from lst_jax.training.step import TrainingConfig, make_loss
from lst_jax.vocabulary import TextTokenizer


@configuration
class EvaluationConfig:
    """What a run is measured by on the way. Nothing of it changes the run.

    The held-out records are those of `records`, or else the share of the training's records that
    `DataConfig.held_out_share` keeps from it.

    Attributes:
      every: steps from one evaluation to the next, the last step has one too; None: none at all.
      batches: held-out batches of each strategy, of the training's shape. Where there are fewer
        records, some are in them again with another interleaving.
      records: sources of held-out records.
      strategies: patching strategies to measure the held-out loss with. None: static and aligned
        where speech is interleaved, static for a task and for text alone, none for the baseline.
      unit_rate: units a second of speech, for losses a second.
      stories: files of story completion (`lst_jax/evaluation/story_completion.py`).
      directions: of story completion.
    """

    every: PositiveInt | None = None
    batches: PositiveInt = 8
    records: tuple[SourceConfig, ...] = ()
    strategies: tuple[Strategy, ...] | None = None
    unit_rate: PositiveFloat = 25.0
    stories: tuple[PathText, ...] = ()
    directions: tuple[Direction, ...] = ("S-S", "T-T")


def make_evaluators(
    config: EvaluationConfig,
    description: ModelDescription,
    data: DataConfig,
    training: TrainingConfig,
    tokenizer: str,
    mesh: jax.sharding.Mesh,
) -> list[Evaluator]:
    """Returns the evaluators of a run, with all that they read read.

    Args:
      config: what is measured.
      description: of the model.
      data: of the training.
      training: gives the accumulation.
      tokenizer: path of the text tokenizer.
      mesh: the device mesh.

    Raises:
      OSError, ValueError: files are missing, or not what they should be, or nothing is measured.
    """
    if config.every is None:
        return []
    stories = (
        # Read before batches are made, which takes longer.
        [StoryCompletion(config, description, data, tokenizer, mesh)] if config.stories else []
    )
    evaluators: list[Evaluator] = []
    if config.records or data.held_out_share:
        batches = {
            strategy: _held_out_batches(config, description, data, strategy, mesh)
            for strategy in config.strategies or _default_strategies(data)
        }
        loss = make_loss(
            description.model,
            training.accumulation_steps,
            description.vocabulary.first_unit_id,
            mesh,
            tuple(DEFAULT_RULES),
        )
        amounts = functools.partial(
            target_amounts,
            token_sizes=TextTokenizer(tokenizer).token_sizes(description.vocabulary),
            first_unit_id=description.vocabulary.first_unit_id,
            unit_rate=config.unit_rate,
        )
        evaluators.append(HeldOutLoss(loss, batches, mesh, config.every, amounts))
    evaluators += stories
    if not evaluators:
        raise ValueError(
            f"EvaluationConfig.every is {config.every} and nothing is measured, expected held-out "
            "records, held_out_share above 0, or stories"
        )
    return evaluators


class StoryCompletion:
    """An evaluator: the share of stories whose right ending is the likeliest."""

    def __init__(
        self,
        config: EvaluationConfig,
        description: ModelDescription,
        data: DataConfig,
        tokenizer: str,
        mesh: jax.sharding.Mesh,
    ) -> None:
        """Reads the stories; see `make_evaluators`."""
        vocabulary = description.vocabulary
        self.every = given(config.every, "every", "steps between evaluations")
        self._examples: Sequence[StoryExample] = read_story_examples(
            config.stories, vocabulary.unit_count, description.encoder_fingerprint
        )
        sets = dict.fromkeys(example.set_name for example in self._examples)
        self.names = tuple(
            _story_metric(*names) for names in itertools.product(sets, config.directions)
        )
        self._trained = TrainedModel(
            model=build_model(description.model),
            params=None,
            mesh=mesh,
            vocabulary=vocabulary,
            patching=data.patching,
            visibility=data.visibility,
            tokenizer=TextTokenizer(tokenizer),
        )
        parts = batch_mesh_size(mesh)
        self._shape = ScoringShape(
            batch_rows=parts * -(-ScoringShape.batch_rows // parts),
            # A story may be longer than a row of the training, which splits what is.
            patches_per_row=max(data.patches_per_row, ScoringShape.patches_per_row),
        )
        self._directions = config.directions

    def evaluate(self, params: Any) -> dict[str, float]:
        """Returns the accuracy of every set and direction."""
        trained = dataclasses.replace(self._trained, params=params)
        results = evaluate_story_completion(
            trained, self._examples, directions=self._directions, shape=self._shape
        )
        return {_story_metric(r.set_name, str(r.group)): r.accuracy for r in results.table}


def _story_metric(set_name: str, direction: str) -> str:
    return f"stories/{set_name}/{direction}/accuracy"


def _default_strategies(data: DataConfig) -> tuple[Strategy, ...]:
    if data.patching.strategy == "none":
        return ("none",)
    speech = any(source.kind == "speech" for source in data.sources)
    return ("static", "aligned") if speech and data.task is None else ("static",)


def _held_out_batches(
    config: EvaluationConfig,
    description: ModelDescription,
    data: DataConfig,
    strategy: Strategy,
    mesh: jax.sharding.Mesh,
) -> list[Batch]:
    """Returns this process's rows of the held-out batches."""
    changes: dict[str, Any] = {
        "patching": dataclasses.replace(data.patching, strategy=strategy),
        "num_epochs": None,
    }
    if config.records:
        changes |= {"sources": config.records, "held_out_share": 0.0}
    share = row_share(mesh)
    dataset = make_training_dataset(
        dataclasses.replace(data, **changes),
        description.vocabulary,
        fingerprint=description.tokenizer_fingerprint,
        prefetch=0,
        host_index=share.index,
        host_count=share.count,
        held_out=not config.records,
    )
    found, expected = dataset.documents.encoder_fingerprint, description.encoder_fingerprint
    check_same_encoder("held-out records", found, expected, "the training's")
    iterator = iter(dataset)
    try:
        return list(itertools.islice(iterator, config.batches))
    finally:
        iterator.close()
