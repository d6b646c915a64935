"""What the loop promises of evaluators, writers, hooks and what it saves, on the smallest model."""

import dataclasses
import io
import itertools
import math
import os
import signal
import time
import types

import grain
import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from lst_jax.checkpoints.checkpointer import Checkpointer
from lst_jax.training import loop
from lst_jax.training.loop import NonFiniteLossError, _Run
from lst_jax.training.metrics import read_evaluations, read_records
from lst_jax.training.profiler import ProfilerWindow, parse_steps
from lst_jax.training.writers import ConsoleWriter, open_jsonl
from tests.lst_jax.training.toy import points, toy, train_toy


class Evaluation:
    """Measures a parameter, and remembers what was saved when it did."""

    def __init__(self, every, names=("first",), values=None, seconds=0.0):
        self.every, self.names = every, names
        self.steps = []
        self._values, self._seconds = values, seconds

    def evaluate(self, params):
        time.sleep(self._seconds)
        self.steps.append(float(params["w"][0]))
        value = float(params["w"][0]) if self._values is None else next(self._values)
        return dict.fromkeys(self.names, value)


class Recorder:
    """A writer that can be told to fail, and a hook."""

    def __init__(self, fails=False):
        self.calls, self.fails = [], fails

    def __call__(self, workdir, start_step, num_steps):
        self.calls.append(("open", start_step, num_steps))
        return self

    def write(self, record):
        self.calls.append(("write", record["step"]))
        if self.fails:
            raise BrokenPipeError("gone")

    def flush(self):
        self.calls.append("flush")

    def close(self):
        self.calls.append("close")

    def before_step(self, step):
        self.calls.append(("before", step))

    def after_step(self, step, state):
        assert int(state.step) == step
        self.calls.append(("after", step))


def saved_steps(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def errors_of(workdir):
    return [(record["step"], record["error"]) for record in read_records(workdir)]


def check_equal_runs(workdir, result, other_workdir, other):
    jax.tree.map(np.testing.assert_array_equal, result.state, other.state)
    assert errors_of(workdir) == errors_of(other_workdir)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run that nobody looked at."""
    workdir = tmp_path_factory.mktemp("plain")
    return workdir, train_toy(workdir)


def test_any_model_is_trained_and_goes_on_after_a_stop(plain, tmp_path):
    class Stopping(Recorder):
        def after_step(self, step, state):
            if step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)

    first = train_toy(tmp_path, hooks=[Stopping()])
    assert (first.finished, first.signal, int(first.state.step)) == (False, "SIGUSR1", 6)
    second = train_toy(tmp_path)
    assert second.finished
    check_equal_runs(tmp_path, second, *plain)


def test_processes_stop_together_at_the_step_that_their_service_names(plain, tmp_path, monkeypatch):
    """A signal of step 3 comes here, the cluster's answer to all of them is step 6."""
    asked_to_stop = _Run._asked_to_stop

    def among_two(run, stop):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "process_count", lambda: 2)
            return asked_to_stop(run, stop)

    class Stopping(Recorder):
        def after_step(self, step, state):
            if step == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(_Run, "_asked_to_stop", among_two)
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: step == 6)
    first = train_toy(tmp_path, hooks=[Stopping()])
    assert (first.finished, first.signal, int(first.state.step)) == (False, "SIGTERM", 6)
    assert saved_steps(tmp_path) == [4, 6]
    monkeypatch.undo()
    check_equal_runs(tmp_path, train_toy(tmp_path), *plain)


def test_whoever_looks_on_changes_no_bit_of_a_run(plain, tmp_path):
    evaluation, hook = Evaluation(3), Recorder()
    result = train_toy(
        tmp_path, evaluators=[evaluation], hooks=[hook], writers=[open_jsonl, Recorder(fails=True)]
    )
    check_equal_runs(tmp_path, result, *plain)
    assert len(evaluation.steps) == 4


def test_evaluation_is_every_so_many_steps_and_after_the_last(tmp_path):
    evaluation = Evaluation(5)
    result = train_toy(tmp_path, evaluators=[evaluation])
    records = read_evaluations(tmp_path)
    assert [record["step"] for record in records] == [5, 10, 12]
    assert [record["first"] for record in records] == evaluation.steps
    assert evaluation.steps[-1] == float(result.state.params["w"][0])


def test_a_metric_that_is_not_finite_is_none_in_its_record(tmp_path):
    train_toy(tmp_path, evaluators=[Evaluation(12, values=iter([math.nan]))])
    assert read_evaluations(tmp_path)[0]["first"] is None


def test_step_times_leave_out_evaluation(tmp_path, monkeypatch):
    # Time passes by evaluation and by looking at the clock alone: no disk or machine is slow.
    clock = itertools.count(0.0, 1e-3)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(
        loop, "time", types.SimpleNamespace(perf_counter=lambda: next(clock) + sum(slept))
    )
    train_toy(tmp_path, evaluators=[Evaluation(3, seconds=0.4)])
    for record in read_records(tmp_path)[1:]:  # the first one's pause has the compilation
        assert record["seconds"] < 0.4
        # The evaluation of a step comes after its record.
        assert (record["pause"] >= 0.4) == (record["step"] in (4, 7, 10))


@pytest.mark.parametrize(("mode", "saved"), [("min", [4, 6, 10, 12]), ("max", [8, 10, 12])])
def test_the_best_checkpoints_and_the_regular_stay_beside_the_latest(tmp_path, mode, saved):
    """Evaluation comes before the save of its step, so the checkpoint has its own metric."""
    values = iter([3.0, 1.0, 2.0, 5.0, 4.0, 6.0])  # of steps 2, 4, …
    train_toy(
        tmp_path,
        evaluators=[Evaluation(2, values=values)],
        training={"keep_checkpoints": 1, "checkpoint_every": 2, "keep_every": 10}
        | {"keep_best": 2, "best_metric": "first", "best_mode": mode},
    )
    assert saved_steps(tmp_path) == saved


@pytest.mark.parametrize(
    ("evaluators", "message"),
    [
        ([], "best_metric is 'first', expected a metric of the run: none"),
        ([Evaluation(3, names=("other",))], "expected a metric of the run: other"),
        ([Evaluation(3)], "checkpoint_every is 4, expected a multiple of 3"),
        ([Evaluation(2), Evaluation(4)], "metric first comes from two evaluators"),
    ],
)
def test_a_metric_that_no_saved_step_has_is_an_error_at_once(tmp_path, evaluators, message):
    with pytest.raises(ValueError, match=message):
        train_toy(tmp_path / "run", evaluators=evaluators, training={"best_metric": "first"})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("breaks_at", [3, 4, 8, 12])
def test_a_state_that_its_update_broke_is_never_saved(tmp_path, breaks_at):
    """The loss of its step is finite; its own would be seen one step later, after the save."""
    good = (breaks_at - 1) // 4 * 4
    for _ in range(2):  # a restart ends there again, and says the same
        with pytest.raises(NonFiniteLossError) as caught:
            train_toy(tmp_path, model=toy(breaks_at=breaks_at))
        assert saved_steps(tmp_path) == list(range(4, good + 1, 4))
        end = f"checkpoints/{good}" if good else "there is no checkpoint before it"
        assert str(caught.value).endswith(end)


class Dying(grain.DatasetIterator):
    """Batches that end in an error, as where their worker is killed."""

    def __init__(self, error, at=6):
        super().__init__(points())
        self._error, self._left = error, at

    def __next__(self):
        self._left -= 1
        if self._left < 0:
            raise self._error
        return next(self._parent)

    def get_state(self):
        return self._parent.get_state()

    def set_state(self, state):
        self._parent.set_state(state)


def test_a_killed_data_worker_is_one_line_with_the_last_checkpoint(tmp_path):
    words = "a data worker was killed by SIGKILL"
    with pytest.raises(ChildProcessError) as caught:
        train_toy(tmp_path, Dying(ChildProcessError(words)))
    assert str(caught.value) == (
        f"no batch after step 6: {words}; the last good checkpoint is {tmp_path}/checkpoints/4"
    )
    with pytest.raises(RuntimeError, match="a mistake of ours"):
        train_toy(tmp_path, Dying(RuntimeError("a mistake of ours")))


def test_a_writer_that_fails_is_logged_once_and_left_out(plain, tmp_path, caplog):
    writer = Recorder(fails=True)
    result = train_toy(tmp_path, writers=[writer, open_jsonl])
    check_equal_runs(tmp_path, result, *plain)
    assert writer.calls == [("open", 0, 12), ("write", 1)]
    assert caplog.text.count("Recorder failed") == 1


def test_a_closed_console_does_not_end_a_run(plain, tmp_path):
    stream = io.StringIO()
    stream.close()
    result = train_toy(tmp_path, writers=[lambda *_: ConsoleWriter(12, stream), open_jsonl])
    check_equal_runs(tmp_path, result, *plain)


def test_writers_are_flushed_before_a_checkpoint(tmp_path, monkeypatch):
    writer, save = Recorder(), Checkpointer.save

    def saving(*arguments):
        writer.calls.append("save")
        save(*arguments)

    monkeypatch.setattr(Checkpointer, "save", saving)
    train_toy(tmp_path, writers=[writer])
    saves = [index for index, call in enumerate(writer.calls) if call == "save"]
    assert len(saves) == 3
    assert [writer.calls[index - 2 : index] for index in saves] == [
        [("write", step), "flush"] for step in (4, 8, 12)
    ]
    assert writer.calls[-1] == "close"


def test_hooks_are_told_of_every_step_and_of_the_end(tmp_path):
    hook = Recorder()
    with pytest.raises(NonFiniteLossError):
        train_toy(tmp_path, model=toy(breaks_at=2), hooks=[hook])
    assert hook.calls[:4] == [("before", 1), ("after", 1), ("before", 2), ("after", 2)]
    assert hook.calls[-1] == "close"


def test_a_window_of_steps_is_traced(tmp_path):
    train_toy(tmp_path, hooks=[ProfilerWindow(tmp_path / "profile", 5, 7)])
    (trace,) = (tmp_path / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    steps = {
        value
        for plane in jax.profiler.ProfileData.from_file(str(trace)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
        for name, value in event.stats
        if name == "step_num"
    }
    assert {int(step) for step in steps} == {5, 6, 7}


def test_profile_steps_are_first_and_last():
    assert parse_steps("10:15") == (10, 15)
    assert parse_steps("1:1") == (1, 1)


@pytest.mark.parametrize("text", ["", "3", "3:", ":3", "0:2", "4:3", "1:x", "-1:2", "1:2:3"])
def test_other_profile_steps_are_an_error(text):
    with pytest.raises(ValueError, match="expected FIRST:LAST"):
        parse_steps(text)


def test_implicit_transfers_in_a_step_are_an_error(tmp_path):
    """They would be hidden copies in every step."""
    model = toy()

    class Copying:
        def lower(self, *arguments):
            return self

        def compile(self):
            return lambda state, batch: model.step(state, jax.tree.map(np.asarray, batch))

    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        train_toy(tmp_path, model=dataclasses.replace(model, step=Copying()))
