"""The doors of training: what the loop is given, and what it calls on the way.

`training.loop` knows these types and nothing of a model. A model comes in as a `Trainable`; what
looks at a run comes in as an evaluator, a writer or a hook:

| door      | called                                 | an exception of it                |
|-----------|----------------------------------------|-----------------------------------|
| Evaluator | every `every` steps and after the last | ends the run                      |
| Writer    | for every record                       | is logged once, the writer is out |
| Hook      | before and after every step            | ends the run                      |
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
from jax import Array

from lst_jax.checkpoints.train_state import TrainState

AnyBatch = Any  # arrays with the rows first, in any tree; a `batch.Batch` for this library's models
Sums = dict[str, Array]
TrainStep = jax.stages.Wrapped  # (TrainState, AnyBatch) -> (TrainState, Sums)
LossSums = Callable[[Any, AnyBatch], Sums]
Record = dict[str, int | float | None]


def step_of(record: Record) -> int:
    """Returns how many updates were made before a record, which every one says."""
    return int(record["step"] or 0)


class Batches(Protocol):
    """What a run reads: one batch a step, with a state that is saved beside the parameters."""

    def __next__(self) -> AnyBatch:
        """Returns the next batch, this process's rows of it."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Returns where the iterator is, as JSON values."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to where `get_state` was called."""
        ...


class RunTotals(Protocol):
    """Totals of a run and the sums since its last record; saved as JSON with every checkpoint."""

    def add(self, sums: Mapping[str, Any], seconds: float) -> None:
        """Adds the sums of a step, on the host, that took so many seconds."""
        ...

    def add_pause(self, seconds: float) -> None:
        """Adds seconds that the run took and no step did: compilation, evaluation, saving."""
        ...

    def take_record(self, step: int, context: Any) -> Record:
        """Returns the record of the steps since the last one, and begins the next.

        Args:
          step: updates made.
          context: what `Trainable.rate_context` made of the first batch.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that `Trainable.make_progress` takes by name."""
        ...


@dataclasses.dataclass(frozen=True)
class Start:
    """Where a run begins that has no checkpoint yet.

    Attributes:
      state: its state.
      progress: its totals so far.
      origin: the same in words, for the first line of the log.
    """

    state: TrainState
    progress: RunTotals
    origin: str


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Everything that the loop must know of a model and its optimizer.

    Attributes:
      name: what is trained, for the first line of the log.
      shapes: of the state, `jax.ShapeDtypeStruct`s with shardings.
      start: makes the state of a run without a checkpoint; may set the iterator, where the run
        goes on from another run's place in the data.
      step: the jitted update, `(state, batch) -> (state, sums)`; donates the state.
      loss: the jitted loss alone, `(params, batch) -> sums`. Sees a state that no step has looked
        at yet, before it is saved.
      losses: names of the sums that must be finite; `loss` gives those that need no gradient.
      weights: names of the sums that say how much of a batch is learned.
      advice: what may be wrong where nothing of the batches is learned.
      make_progress: makes the totals of a run from the fields of a checkpoint.
      rate_context: checks the first batch and makes what rates are shares of.
    """

    name: str
    shapes: TrainState
    start: Callable[[Batches], Start]
    step: TrainStep
    loss: LossSums
    losses: Sequence[str]
    weights: Sequence[str]
    advice: str
    make_progress: Callable[..., RunTotals]
    rate_context: Callable[[AnyBatch], Any]


class Description(Protocol):
    """What a workdir says of its model; `model.json` for the models of this library."""

    def check(self, workdir: pathlib.Path) -> None:
        """Checks that the workdir holds no other model's run.

        Raises:
          ValueError: it does.
        """
        ...

    def write(self, workdir: pathlib.Path) -> None:
        """Writes the description."""
        ...


class Evaluator(Protocol):
    """Measures a state on the way; must leave it, and all randomness, as they were.

    Attributes:
      every: steps from one evaluation to the next.
      names: of the metrics that `evaluate` gives, known before the run begins.
    """

    @property
    def every(self) -> int: ...

    @property
    def names(self) -> Sequence[str]: ...

    def evaluate(self, params: Any) -> Mapping[str, float]:
        """Returns the metrics of parameters; all processes of a run call it at the same step."""
        ...


class Writer(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Takes the record of `record["step"]`."""
        ...

    def flush(self) -> None:
        """Makes what was written survive the end of the process."""
        ...

    def close(self) -> None:
        """Lets go of files."""
        ...


class OpenWriter(Protocol):
    """Opens a writer, once it is known at which step a run begins."""

    def __call__(self, workdir: pathlib.Path, start_step: int, num_steps: int) -> Writer:
        """Returns the writer of a run that has made `start_step` of `num_steps` updates."""
        ...


class Hook(Protocol):
    """Is told of every step."""

    def before_step(self, step: int) -> None:
        """Runs before update `step` (1, 2, …) is given to the devices."""
        ...

    def after_step(self, step: int, state: TrainState) -> None:
        """Runs after update `step` was given to the devices, which may still compute it.

        Args:
          step: updates made.
          state: after them; the next step donates it, so it cannot be kept.
        """
        ...

    def close(self) -> None:
        """Runs when the run ends, in whatever way."""
        ...
