"""Training: the loop that feeds the step, watches it and saves its state.

It knows nothing of a model (`hooks.Trainable` tells it) and promises of every one:

* The trajectory is that of the step and the batches alone. Evaluators, writers and hooks, kills and
  restarts change no bit of it.
* What is saved has been seen to work: before a state is saved, its own loss was computed and found
  finite. (The loss of step n is that of the state before its update.)
* Evaluation comes before the save of its step, so that the checkpoint knows its metrics.
* Step times are those of steps. Compilation, evaluation and saving are pauses, counted apart.
"""

from __future__ import annotations

import contextlib
import math
import pathlib
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypedDict

import jax
import numpy as np

from lst_jax.checkpoints.checkpointer import Checkpointer, MergeStates, Retention
from lst_jax.checkpoints.layout import ABANDONED
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.files import write_file
from lst_jax.hardware import check_memory
from lst_jax.local_paths import local_path
from lst_jax.settings import quote
from lst_jax.sharding import DEFAULT_RULES, LogicalRules, mesh_context, shard_batch
from lst_jax.training.hooks import (
    AnyBatch,
    Batches,
    Description,
    Evaluator,
    Hook,
    OpenWriter,
    RunTotals,
    Sums,
    Trainable,
)
from lst_jax.training.lock import locked
from lst_jax.training.log import report
from lst_jax.training.metrics import evaluation_record
from lst_jax.training.not_finite import add_end, forget_end, read_end, steps_to_leave
from lst_jax.training.signals import StopSignal
from lst_jax.training.starts import (
    Settings,
    add_start,
    check_restart,
    flatten_settings,
    report_changes,
)
from lst_jax.training.step import TrainingConfig
from lst_jax.training.writers import DEFAULT_WRITERS, GuardedWriters


class NonFiniteLossError(ArithmeticError):
    """The loss or its gradient is not a finite number; training cannot go on from here."""


class DataEndedError(ValueError):
    """The batches ended before the steps; what was trained until then is saved."""


class TrainOptions(TypedDict, total=False):
    """Arguments of `train` that what trains one kind of model only passes on."""

    evaluators: Sequence[Evaluator]
    writers: Sequence[OpenWriter]
    hooks: Sequence[Hook]
    merge_states: MergeStates | None
    config_text: Callable[[], str] | None


class TrainResult(NamedTuple):
    """Where a call of `train` ended.

    Attributes:
      state: after the last update.
      progress: totals of the run.
      finished: whether all steps are done.
      signal: name of the signal that asked to stop, None where none did.
    """

    state: TrainState
    progress: RunTotals
    finished: bool
    signal: str | None


def train(
    trainable: Trainable,
    training: TrainingConfig,
    iterator: Batches,
    workdir: str | pathlib.Path,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
    *,
    description: Description | None = None,
    settings: Settings | None = None,
    evaluators: Sequence[Evaluator] = (),
    writers: Sequence[OpenWriter] = DEFAULT_WRITERS,
    hooks: Sequence[Hook] = (),
    merge_states: MergeStates | None = None,
    config_text: Callable[[], str] | None = None,
) -> TrainResult:
    """Trains to `training.num_steps`, from the workdir's last checkpoint if it has one.

    A signal of `signals.STOP_SIGNALS` ends the run after the step that is under way, with a
    checkpoint; a second SIGINT ends the process at once.

    Args:
      trainable: the model with its optimizer.
      training: length, records, checkpoints.
      iterator: of this process's rows of every batch (`sharding.row_share`), one batch a step, from
        step 0; restored with the checkpoint.
      workdir: gets `config.gin`, `checkpoints/` and what the description and the writers write.
        What describes an earlier run there stays as it is if this one cannot go on.
      mesh: the device mesh.
      rules: logical axis to mesh axes.
      description: of the model, checked and written in the workdir.
      settings: in use besides `training`, for the record of the run's starts.
      evaluators: measure the state every so many steps and after the last one.
      writers: open the writers of the records, on one process.
      hooks: are told of every step.
      merge_states: see `Checkpointer.restore`; with it a run may continue on another number of
        processes.
      config_text: gives the settings in use, for `config.gin`; called when everything is built.

    Returns:
      The last state and the run's totals.

    Raises:
      WorkdirLockedError: another run is in the workdir.
      NonFiniteLossError: names the step and the last good checkpoint.
      DataEndedError: the data ended early; the last state is saved.
      ChildProcessError: a process that made batches was killed.
      ValueError: the workdir holds another model's run, or one that some settings come too late
        for, no evaluator gives the metric that checkpoints are compared by, the state is larger
        than the devices' memory, or nothing of the batches is learned.
    """
    workdir = local_path(workdir, "workdir").absolute()
    settings = {**flatten_settings(training), **(settings or {})}
    _check_metric_names(evaluators, training)
    check_memory(trainable.shapes, mesh, f"the state of {trainable.name}")
    if description is not None:
        description.check(workdir)
    with StopSignal() as stop, locked(workdir), contextlib.ExitStack() as cleanup:
        checkpointer = Checkpointer(workdir, _retention(training))
        cleanup.callback(checkpointer.close)  # until the last checkpoint is written
        for hook in hooks:
            cleanup.callback(hook.close)
        run = _Run(trainable, training, iterator, mesh, rules, checkpointer, evaluators, hooks)
        run.check_settings(settings)
        run.begin(merge_states)
        report_changes(workdir, settings)
        # It is known only now that the run goes on.
        if description is not None:
            description.write(workdir)
        if jax.process_index() == 0:
            config = None if config_text is None else config_text()
            if config is not None:
                write_file(workdir / "config.gin", config)
            add_start(workdir, settings, run.step, config)
        with mesh_context(mesh, rules):
            return run.run(stop, writers)


class _Run:
    """The loop of `train`: feeds the step, follows its sums one step behind, evaluates, saves."""

    def __init__(
        self,
        trainable: Trainable,
        training: TrainingConfig,
        iterator: Batches,
        mesh: jax.sharding.Mesh,
        rules: LogicalRules,
        checkpointer: Checkpointer,
        evaluators: Sequence[Evaluator],
        hooks: Sequence[Hook],
    ) -> None:
        self._trainable = trainable
        self._training = training
        self._iterator = iterator
        self._mesh = mesh
        self._rules = rules
        self._checkpointer = checkpointer
        self._evaluators = evaluators
        self._hooks = hooks
        self._writers = GuardedWriters(())
        self._pending: Sums | None = None  # of the last step, not looked at yet
        self._recorded_step: int | None = None
        self._learned = False  # whether anything of this start's batches is learned

    def check_settings(self, settings: Settings) -> None:
        """Refuses settings that come too late for the run in the workdir."""
        reached = self._checkpointer.latest_step()
        if reached is not None:
            check_restart(self._checkpointer.workdir, settings, reached, self._training.num_steps)

    def begin(self, merge_states: MergeStates | None) -> None:
        """Restores the last checkpoint, or makes the state that the run starts with."""
        trainable = self._trainable
        restored = self._checkpointer.restore(
            trainable.shapes, self._iterator, merge_states, self._steps_to_leave()
        )
        if restored is None:
            start = trainable.start(self._iterator)
            self._state, self._progress, origin = start.state, start.progress, start.origin
        else:
            self._state, fields = restored
            self._progress = trainable.make_progress(**fields)
            origin = f"resumed at step {int(self._state.step)}"
        self._step = int(self._state.step)
        if self._step > self._training.num_steps:  # of the run that this one branches off from
            raise ValueError(
                f"TrainingConfig.num_steps is {self._training.num_steps}, expected more than "
                f"{self._step}, the step that the run begins with"
            )
        self._saved_step = None if restored is None else self._step
        report(
            f"{trainable.name}, {origin}; mesh {dict(self._mesh.shape)} of "
            f"{self._mesh.devices.flat[0].device_kind}"
        )

    @property
    def step(self) -> int:
        """Returns the updates made."""
        return self._step

    def _steps_to_leave(self) -> list[int]:
        """Returns the checkpoints that have led to the same end again and again."""
        end = read_end(self._checkpointer.workdir)
        steps = self._checkpointer.all_steps()
        left = steps_to_leave(end, steps)
        if left and end is not None:
            report(
                f"the loss was not finite at step {end.step}, {end.times} times: going back to the "
                f"checkpoint of step {max(set(steps) - set(left))}; "
                f"{', '.join(map(str, left))}: moved to {ABANDONED}"
            )
        return left

    def run(self, stop: StopSignal, open_writers: Sequence[OpenWriter]) -> TrainResult:
        """Trains until the end or until a signal asks to stop."""
        num_steps = self._training.num_steps
        if self._step < num_steps:
            if jax.process_index() == 0:
                workdir = self._checkpointer.workdir
                self._writers = GuardedWriters(
                    open_writer(workdir, self._step, num_steps) for open_writer in open_writers
                )
            try:
                self._loop(stop)
            finally:
                self._writers.close()
        finished = self._step >= num_steps
        # Another process may have been told; all signals are passed on as SIGTERM.
        name = stop.name if finished else stop.name or signal.SIGTERM.name
        return TrainResult(self._state, self._progress, finished, name)

    def _loop(self, stop: StopSignal) -> None:
        self._finished_at = time.perf_counter()
        self._batch = self._next_batch()
        if self._batch is None:
            raise self._data_ended()
        self._context = self._trainable.rate_context(self._batch)
        self._compile()
        while True:
            self._take_step()
            if self._is_last():
                return self._pause(save=True)
            if self._asked_to_stop(stop):  # there may be no time to evaluate
                return self._pause(save=True, evaluate=False)
            save_is_due = self._step % self._training.checkpoint_every == 0
            if save_is_due or self._due_evaluators():
                self._pause(save_is_due)
            batch = self._next_batch()
            if batch is None:
                self._end_with_data()
            self._batch = batch

    def _is_last(self) -> bool:
        return self._step >= self._training.num_steps

    def _next_batch(self) -> AnyBatch | None:
        """Puts the next batch on the devices; None where there is none."""
        try:
            batch = next(self._iterator, None)
        except ChildProcessError as error:
            raise ChildProcessError(
                f"no batch after step {self._step}: {error}; {self._describe_last()}"
            ) from error
        return None if batch is None else shard_batch(batch, self._mesh, self._rules)

    def _compile(self) -> None:
        """Compiles the step and the loss, before the first step and not in its time."""
        start = time.perf_counter()
        self._train_step = self._trainable.step.lower(self._state, self._batch).compile()
        # Called, since a compiled copy would not be the one that evaluators use.
        jax.block_until_ready(self._trainable.loss(self._state.params, self._batch))
        report(f"compiled the step in {time.perf_counter() - start:.1f} s")
        self._count_pause()

    def _take_step(self) -> None:
        """Gives the devices a step, then looks at the one before while they compute."""
        step = self._step + 1
        for hook in self._hooks:
            hook.before_step(step)
        annotation = jax.profiler.StepTraceAnnotation("train", step_num=step)
        with jax.transfer_guard("disallow"), annotation:
            self._state, sums = self._train_step(self._state, self._batch)
        self._settle()
        self._step, self._pending = step, sums
        for hook in self._hooks:
            hook.after_step(step, self._state)

    def _settle(self) -> None:
        """Waits for the sums of the last step, checks and adds them, writes a record if due."""
        if self._pending is None:
            return
        host: dict[str, np.ndarray] = jax.device_get(self._pending)
        self._pending = None
        now = time.perf_counter()
        seconds, self._finished_at = now - self._finished_at, now
        self._check_finite(host, f"at step {self._step}")
        self._progress.add(host, seconds)
        self._learned |= sum(host[name] for name in self._trainable.weights) > 0
        whole_window = self._step % self._training.log_every == 0 or self._is_last()
        if whole_window and not self._learned:
            raise ValueError(
                f"no token of the batches up to step {self._step} is learned, expected some: "
                f"{self._trainable.advice}"
            )
        if self._step == 1 or whole_window:
            self._write_record()

    def _write_record(self) -> None:
        self._writers.write(self._progress.take_record(self._step, self._context))
        self._recorded_step = self._step

    def _pause(self, save: bool, evaluate: bool = True) -> None:
        """Waits for the step, then evaluates and saves it; none of this counts as a step's time."""
        self._settle()
        save = save and self._saved_step != self._step
        if save:
            self._check_own_loss()
        metrics = self._evaluate() if evaluate else {}
        self._count_pause()
        if save:
            self._save(metrics)
            self._count_pause()

    def _count_pause(self) -> None:
        """Counts the time since the last step was finished as no step's."""
        now = time.perf_counter()
        self._progress.add_pause(now - self._finished_at)
        self._finished_at = now

    def _check_own_loss(self) -> None:
        """Checks the state itself: the last loss was that of the state before its update."""
        sums = jax.device_get(self._trainable.loss(self._state.params, self._batch))
        self._check_finite(sums, f"after the update of step {self._step}")

    def _check_finite(self, sums: Mapping[str, np.ndarray], when: str) -> None:
        for name in self._trainable.losses:
            if name in sums and not math.isfinite(sums[name]):
                raise NonFiniteLossError(f"{name} is {sums[name]} {when}{self._describe_end()}")

    def _describe_end(self) -> str:
        """Remembers that the run ended here; returns what a restart goes on from."""
        workdir, again = self._checkpointer.workdir, ""
        if jax.process_index() == 0:
            times = add_end(workdir, self._step).times
            if times > 1:
                again = f", {times} times now: the next start goes back one more checkpoint"
        return f"{again}; {self._describe_last()}"

    def _describe_last(self) -> str:
        """Waits for the last save; returns what a restart goes on from."""
        self._checkpointer.wait()
        last = self._checkpointer.latest_step()
        if last is None:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is {self._checkpointer.step_directory(last)}"

    def _due_evaluators(self) -> list[Evaluator]:
        last = self._is_last()
        return [e for e in self._evaluators if last or self._step % e.every == 0]

    def _evaluate(self) -> dict[str, float]:
        """Returns the metrics of the evaluators that are due, and writes them."""
        due, metrics = self._due_evaluators(), {}
        start = time.perf_counter()
        for evaluator in due:
            metrics |= evaluator.evaluate(self._state.params)
        if due:
            seconds = time.perf_counter() - start
            self._writers.write(evaluation_record(self._step, metrics, seconds))
        return metrics

    def _save(self, metrics: Mapping[str, float]) -> None:
        # What a checkpoint comes after must be on disk when it is: a resume starts behind it.
        self._writers.flush()
        self._checkpointer.save(self._state, self._iterator, self._progress.to_json(), metrics)
        self._saved_step = self._step
        if jax.process_index() == 0:
            forget_end(self._checkpointer.workdir, self._step)

    def _asked_to_stop(self, stop: StopSignal) -> bool:
        if jax.process_count() > 1:  # all processes must stop at the same step
            return self._checkpointer.reached_preemption(self._step)
        return stop.name is not None

    def _end_with_data(self) -> None:
        """Records and saves the last state.

        Raises:
          DataEndedError: always.
        """
        self._settle()
        if self._recorded_step != self._step:
            self._write_record()
        self._pause(save=True)
        raise self._data_ended()

    def _data_ended(self) -> DataEndedError:
        self._checkpointer.wait()
        last = self._checkpointer.latest_step()
        where = ""
        if last is not None:
            where = f"; the last state is saved in {self._checkpointer.step_directory(last)}"
        return DataEndedError(
            f"the data ended after {self._step} steps, expected {self._training.num_steps}{where}"
        )


def _check_metric_names(evaluators: Sequence[Evaluator], training: TrainingConfig) -> None:
    """Checks that every metric has one source and the one to compare by is measured.

    Raises:
      ValueError: two evaluators give one metric, or none gives `best_metric`, or not at the steps
        that are saved.
    """
    every: dict[str, int] = {}
    for evaluator in evaluators:
        for name in evaluator.names:
            if name in every:
                raise ValueError(f"metric {name} comes from two evaluators, expected one")
            every[name] = evaluator.every
    best = training.best_metric
    if best is None:
        return
    if best not in every:
        names = ", ".join(every) or "none, since nothing is evaluated"
        raise ValueError(
            f"TrainingConfig.best_metric is {quote(best)}, expected a metric of the run: {names}"
        )
    if training.checkpoint_every % every[best]:
        raise ValueError(
            f"TrainingConfig.checkpoint_every is {training.checkpoint_every}, expected a multiple "
            f"of {every[best]}, the steps from one evaluation of best_metric {best} to the next"
        )


def _retention(training: TrainingConfig) -> Retention:
    return Retention(
        latest=training.keep_checkpoints,
        every_steps=training.keep_every,
        best=training.keep_best,
        best_metric=training.best_metric,
        best_mode=training.best_mode,
    )
