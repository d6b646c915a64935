"""What the tasks beside the LST share: models of speech, as the training loop takes them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

from lst_jax.checkpoints.train_state import TrainState, place_state
from lst_jax.settings import require
from lst_jax.sharding import (
    LogicalRules,
    batch_sharding,
    check_rows,
    mesh_context,
    no_mesh,
    replicated,
)
from lst_jax.training.hooks import LossSums, Record, Start, Sums, Trainable
from lst_jax.training.step import TrainingConfig


@dataclasses.dataclass
class SpeechProgress:
    """Totals of a run and the sums since its last record.

    Attributes:
      audio_seconds: trained on.
      seconds: wall time of training, over all restarts.
      window: sums over the steps since the last record.
    """

    audio_seconds: float = 0.0
    seconds: float = 0.0
    window: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, sums: Mapping[str, Any], seconds: float) -> None:
        """Adds a step; its sums name `audio_seconds`."""
        self.audio_seconds += float(sums["audio_seconds"])
        self.seconds += seconds
        for name, value in {**sums, "seconds": seconds, "steps": 1}.items():
            self.window[name] = self.window.get(name, 0) + float(value)

    def add_pause(self, seconds: float) -> None:
        """Adds seconds that the run took and no step did."""
        self.seconds += seconds

    def describe(self, window: Mapping[str, float]) -> Record:
        """Returns what a task records of the sums over some steps."""
        raise NotImplementedError

    def take_record(self, step: int, context: int) -> Record:
        """Returns the record of the steps since the last one; `context` is the run's steps."""
        window, self.window = self.window, {}
        step_seconds = window["seconds"] / window["steps"]
        return {
            "step": step,
            **self.describe(window),
            "learning_rate": window["learning_rate"] / window["steps"],
            "step_seconds": step_seconds,
            "eta_seconds": (context - step) * step_seconds,
            "total_audio_seconds": self.audio_seconds,
            "total_seconds": self.seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class SpeechTask:
    """What one model's training is.

    Attributes:
      kind: the model in words, as in "a CTC model".
      init: returns the parameters for a key, in Flax's boxes.
      init_optimizer: returns the optimizer's state over parameters.
      step: the update, `(state, batch) -> (state, sums)`.
      loss: the loss alone, `(params, batch) -> sums`.
      losses, weights, advice, progress: see `Trainable`.
    """

    kind: str
    init: Callable[[Array], Any]
    init_optimizer: Callable[[Any], Any]
    step: Callable[[TrainState, Any], tuple[TrainState, Sums]]
    loss: LossSums
    losses: Sequence[str]
    weights: Sequence[str]
    advice: str
    progress: type[SpeechProgress]


def check_plain(training: TrainingConfig, kind: str) -> None:
    """Checks that a run has no settings that `make_speech_trainable` does not know.

    Raises:
      ValueError: it has.
    """
    for name, only in (("accumulation_steps", 1), ("initial_checkpoint", None)):
        value = getattr(training, name)
        require(value == only, f"TrainingConfig.{name}", value, f"{only} for {kind}")


def make_speech_trainable(
    task: SpeechTask, training: TrainingConfig, mesh: jax.sharding.Mesh, rules: LogicalRules
) -> Trainable:
    """Returns what the loop must know of a task; a batch is a tuple of arrays, rows first."""

    def boxed(key: Array) -> TrainState:
        params = task.init(key)
        return TrainState(jnp.zeros((), jnp.int32), params, task.init_optimizer(params))

    def create(key: Array) -> TrainState:
        params = nn.unbox(task.init(key))
        return TrainState(jnp.zeros((), jnp.int32), params, cast(Any, task.init_optimizer(params)))

    with no_mesh():
        shapes, shardings = place_state(jax.eval_shape(boxed, jax.random.key(0)), mesh, rules)

    def start(_: Any) -> Start:
        with mesh_context(mesh, rules):
            made = jax.jit(create, in_shardings=replicated(mesh), out_shardings=shardings)
            return Start(made(jax.random.key(training.seed)), task.progress(), "from step 0")

    def rate_context(batch: Any) -> int:
        check_rows(len(batch[0]), mesh, 1, rules)
        return training.num_steps

    rows = batch_sharding(mesh, rules)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))
    return Trainable(
        name=f"{task.kind} with {count:,} parameters",
        shapes=shapes,
        start=start,
        step=jax.jit(
            task.step,
            in_shardings=(shardings, rows),
            out_shardings=(shardings, replicated(mesh)),
            donate_argnums=0,
        ),
        loss=jax.jit(
            task.loss, in_shardings=(shardings.params, rows), out_shardings=replicated(mesh)
        ),
        losses=task.losses,
        weights=task.weights,
        advice=task.advice,
        make_progress=task.progress,
        rate_context=rate_context,
    )
