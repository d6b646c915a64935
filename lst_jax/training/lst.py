"""The LST, or its unpatched baseline, as the training loop takes it.

All that the loop does not know stands here and in `training.step`: how the state is made, what a
step and its sums are, what `model.json` says.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Unpack

import jax

from lst_jax.batch import Batch
from lst_jax.checkpoints.checkpointer import MergeStates, restore_branch
from lst_jax.checkpoints.description import ModelDescription, check_description, write_description
from lst_jax.checkpoints.params import restore_initial_params
from lst_jax.checkpoints.train_state import init_state, state_from_params, state_shardings
from lst_jax.hardware import peak_rate
from lst_jax.model.models import count_parameters
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    check_heads,
    check_rows,
    make_mesh,
)
from lst_jax.training.hooks import Batches, Start, Trainable
from lst_jax.training.log import report
from lst_jax.training.loop import TrainOptions, TrainResult, train
from lst_jax.training.metrics import Progress, RateContext
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer
from lst_jax.training.starts import Settings, flatten_settings
from lst_jax.training.step import TrainingConfig, make_loss, make_train_step


def train_lst(
    description: ModelDescription,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    iterator: Batches,
    workdir: str | pathlib.Path,
    mesh: jax.sharding.Mesh | None = None,
    rules: LogicalRules = DEFAULT_RULES,
    *,
    settings: Settings | None = None,
    **options: Unpack[TrainOptions],
) -> TrainResult:
    """Trains an LST or its baseline, or goes on with the run that is in the workdir.

    Args:
      description: model and vocabulary.
      optimizer_config: of the optimizer.
      training: length, accumulation, records, checkpoints, seed.
      iterator: of this process's rows of every batch (`sharding.row_share`).
      workdir: gets `model.json` and what `loop.train` writes.
      mesh: the device mesh; None: all devices on fsdp.
      rules: logical axis to mesh axes.
      settings: in use besides those of model, optimizer and training.
      **options: further arguments of `loop.train`.

    Returns:
      The last state and the run's totals.

    Raises:
      NonFiniteLossError, DataEndedError: see `loop.train`.
      ValueError: the workdir holds another model's run, or the batch or the model does not divide
        among the devices.
    """
    mesh = make_mesh() if mesh is None else mesh
    check_heads(description.model, mesh, rules)
    trainable = make_lst_trainable(
        description, optimizer_config, training, mesh, rules, options.get("merge_states")
    )
    return train(
        trainable,
        training,
        iterator,
        workdir,
        mesh,
        rules,
        description=_ModelJson(description),
        settings={**flatten_settings(description.model, optimizer_config), **(settings or {})},
        **options,
    )


def make_lst_trainable(
    description: ModelDescription,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
    merge_states: MergeStates | None = None,
) -> Trainable:
    """Returns what the loop must know of an LST or its baseline.

    Raises:
      ValueError: warm-up and decay do not fit into the run.
    """
    model = description.model
    optimizer = make_optimizer(optimizer_config, training.num_steps)
    shapes = state_shardings(model, optimizer, mesh, rules)[0]
    first_unit_id = description.vocabulary.first_unit_id

    def start(iterator: Batches) -> Start:
        path = training.initial_checkpoint
        if not path:
            state = init_state(model, optimizer, training.seed, mesh, rules)
            return Start(state, Progress(), "from step 0")
        if training.initial_state == "all":
            state, progress = restore_branch(path, shapes, iterator, merge_states)
            origin = f"from step {int(state.step)} with the state of {path}"
            return Start(state, Progress(**progress), origin)
        params = restore_initial_params(path, description, mesh, rules)
        state = state_from_params(model, optimizer, params, mesh, rules)
        return Start(state, Progress(), f"from step 0 with the parameters of {path}")

    def rate_context(batch: Batch) -> RateContext:
        rows, length = batch.tokens.shape
        check_rows(rows, mesh, training.accumulation_steps, rules)
        peak = peak_rate(mesh.local_devices[0])
        report(f"peak {peak.flops_per_second:.3g} FLOP/s a device ({peak.source})")
        return RateContext(
            patch_slots=rows * batch.num_patches,
            token_slots=rows * length,
            num_devices=mesh.size,
            peak=peak,
            num_steps=training.num_steps,
        )

    shared = (first_unit_id, mesh, tuple(rules))
    return Trainable(
        name=f"{type(model).__name__} with {count_parameters(model):,} parameters",
        shapes=shapes,
        start=start,
        step=make_train_step(model, optimizer_config, training, *shared),
        loss=make_loss(model, training.accumulation_steps, *shared),
        losses=("text_nll", "speech_nll", "gradient_norm"),
        weights=("text_weight", "speech_weight"),
        advice="is a row shorter than a question with its answer?",
        make_progress=Progress,
        rate_context=rate_context,
    )


@dataclasses.dataclass(frozen=True)
class _ModelJson:
    """`model.json`, as the loop's `Description`."""

    description: ModelDescription

    def check(self, workdir: pathlib.Path) -> None:
        check_description(workdir, self.description)

    def write(self, workdir: pathlib.Path) -> None:
        write_description(workdir, self.description)
