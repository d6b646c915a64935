"""The record of a run is true: who is in its workdir, what its starts were, where it ended."""

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import grain
import numpy as np
import pytest

from lst_jax.config import LSTConfig
from lst_jax.training.lock import LOCK, WorkdirLockedError, locked
from lst_jax.training.loop import DataEndedError, NonFiniteLossError
from lst_jax.training.not_finite import NotFiniteEnd, add_end, forget_end, read_end, steps_to_leave
from lst_jax.training.starts import (
    STARTS,
    add_start,
    check_restart,
    flatten_settings,
    read_starts,
    report_changes,
)
from lst_jax.training.step import TrainingConfig
from tests.lst_jax.training.test_doors import saved_steps
from tests.lst_jax.training.toy import points, toy, train_toy

HOLDER = """
import sys, time
from lst_jax.training.lock import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    if sys.argv[2:] == ["fork"]:
        import os
        if os.fork() == 0:
            print(os.getpid(), flush=True)
            time.sleep(60)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def heard(caplog):
    caplog.set_level("INFO", logger="lst_jax")


def hold(workdir, *arguments):
    """Another process that has the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workdir), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        cwd=pathlib.Path(__file__).parents[3],
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.multiprocess
def test_a_second_process_is_refused_by_name_until_the_first_is_dead(tmp_path):
    process = hold(tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(WorkdirLockedError, match=f"process {process.pid} on host .* since"):
                train_toy(tmp_path)
        assert not (tmp_path / "checkpoints").exists()
    finally:
        process.kill()
        process.wait()
    train_toy(tmp_path)


@pytest.mark.multiprocess
def test_a_child_that_outlives_its_run_does_not_keep_the_lock(tmp_path):
    process = hold(tmp_path, "fork")
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        with locked(tmp_path):
            os.kill(child, 0)  # still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_lock_keeps_out_the_same_process_too_and_ends_with_its_context(tmp_path):
    with locked(tmp_path):
        owner = json.loads((tmp_path / LOCK).read_text())
        assert owner["process"] == os.getpid()
        with pytest.raises(WorkdirLockedError, match=f"process {os.getpid()}"), locked(tmp_path):
            pass
    with locked(tmp_path):
        pass


def test_a_refused_start_leaves_no_workdir(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "new"):
        (tmp_path / "new" / "checkpoints").mkdir()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / "old").mkdir()
    with locked(tmp_path / "old"):
        pass
    assert (tmp_path / "old").is_dir()

    with locked(tmp_path / "new"):
        (tmp_path / "new" / "metrics.jsonl").touch()
    assert (tmp_path / "new" / LOCK).exists()


@pytest.mark.parametrize(
    ("number", "held"), [(errno.EACCES, True), (errno.EAGAIN, True), (37, False)]
)
def test_a_lock_that_another_has_is_refused_and_a_system_without_locks_is_warned_of(
    tmp_path, monkeypatch, caplog, number, held
):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(WorkdirLockedError) if held else contextlib.nullcontext(), locked(tmp_path):
        pass
    assert ("cannot be locked" in caplog.text) is not held


def test_settings_are_named_by_class_and_field():
    config = LSTConfig(300, 16, 32, 1, 1, 1, 2, 2)
    settings = flatten_settings(config, TrainingConfig(3))
    assert settings["LSTConfig.dim_local"] == 16
    assert settings["TrainingConfig.num_steps"] == 3
    assert settings["TrainingConfig.initial_checkpoint"] is None
    json.dumps(settings, allow_nan=False)


def test_every_start_is_kept_and_what_changed_is_said(tmp_path, caplog):
    first = {"learning_rate": 0.1, "gone": 1}
    train_toy(tmp_path, training={"num_steps": 4}, settings=first, config_text=lambda: "first")
    assert "changed:" not in caplog.text
    caplog.clear()
    second = {"learning_rate": 0.3, "new": "x"}
    train_toy(tmp_path, settings=second, config_text=lambda: "second")
    changed = [line for line in caplog.messages if line.startswith("changed: ")]
    assert changed == [
        "changed: TrainingConfig.num_steps is 12, was 4",
        "changed: gone is none, was 1",
        "changed: learning_rate is 0.3, was 0.1",
        "changed: new is 'x', was none",
    ]
    starts = read_starts(tmp_path)
    assert [start["step"] for start in starts] == [0, 4]
    assert [start["config"] for start in starts] == ["first", "second"]
    assert starts[0]["settings"]["learning_rate"] == 0.1
    assert starts[0]["settings"]["TrainingConfig.seed"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "TrainingConfig.seed is 1, expected 0, with which the run"),
        ({"initial_checkpoint": "/else"}, "initial_checkpoint is '/else', expected None"),
        ({"initial_state": "all"}, "initial_state is 'all', expected 'params'"),
        ({"num_steps": 11}, "num_steps is 11, expected at least 12"),
    ],
)
def test_a_restart_refuses_what_cannot_take_effect(tmp_path, changes, message):
    train_toy(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ValueError, match=message):
        train_toy(tmp_path, training=changes)
    assert {path: path.read_bytes() for path in tmp_path.glob("*.*")} == before
    train_toy(tmp_path)


def test_a_run_of_an_earlier_version_goes_on_without_a_record(tmp_path):
    train_toy(tmp_path, training={"num_steps": 4})
    (tmp_path / STARTS).unlink()
    assert train_toy(tmp_path).finished
    assert [start["step"] for start in read_starts(tmp_path)] == [4]


def test_a_start_that_a_crash_cut_is_passed_over(tmp_path):
    add_start(tmp_path, {"TrainingConfig.seed": 3}, 0)
    with (tmp_path / STARTS).open("a") as file:
        file.write('{"step": 5, "settings": {"TrainingConf')
    with pytest.raises(ValueError, match="seed is 4, expected 3"):
        check_restart(tmp_path, {"TrainingConfig.seed": 4}, 5, 9)
    add_start(tmp_path, {"TrainingConfig.seed": 3}, 6)
    assert [start["step"] for start in read_starts(tmp_path)] == [0, 6]


def test_settings_are_those_of_earlier_versions_by_another_name(tmp_path, caplog):
    earlier = {"train.prefetch": 2, "train_ctc.language": "en", "train_vocoder.format": "folder"}
    add_start(tmp_path, {**earlier, "trainer.rate": 1}, 0)
    now = {"Experiment.prefetch": 3, "CTCExperiment.language": "en", "trainer.rate": 1}
    report_changes(tmp_path, {**now, "VocoderExperiment.format": "folder"})
    assert caplog.messages == ["changed: Experiment.prefetch is 3, was 2"]


def ends(workdir, **changes):
    """How a run ends whose update of step 10 breaks it."""
    with pytest.raises(NonFiniteLossError) as caught:
        train_toy(workdir, model=toy(breaks_at=10), training=changes)
    return str(caught.value)


def test_a_run_that_ends_twice_at_a_step_goes_back_one_checkpoint_more(tmp_path, caplog):
    end = f"at step 11; the last good checkpoint is {tmp_path}/checkpoints/8"
    assert ends(tmp_path).endswith(end)
    assert saved_steps(tmp_path) == [4, 8]
    again = ends(tmp_path)
    assert "resumed at step 8" in caplog.text
    assert ", 2 times now: the next start goes back one more checkpoint" in again
    caplog.clear()
    ends(tmp_path)
    assert "resumed at step 4" in caplog.text
    assert "not finite at step 11, 2 times: going back to the checkpoint of step 4" in caplog.text
    assert [path.name for path in (tmp_path / "abandoned_checkpoints").iterdir()] == ["8.0"]
    assert saved_steps(tmp_path) == [4, 8]
    # Once it is past that step, all is forgotten.
    caplog.clear()
    assert train_toy(tmp_path).finished
    assert "going back to the checkpoint of step 4" in caplog.text
    assert read_end(tmp_path) is None


def test_an_end_right_behind_a_checkpoint_is_counted_until_it_is_passed(tmp_path):
    """Step 9 cannot be learned: whatever is saved before it is no reason to forget that."""

    def broken():
        batches = [*itertools.islice(points(), 12)]
        batches[8] = batches[8] | {"x": batches[8]["x"] + np.inf}
        return iter(grain.MapDataset.source(batches).to_iter_dataset())

    for times in (1, 2, 3):
        with pytest.raises(NonFiniteLossError, match="at step 9"):
            train_toy(tmp_path, broken())
        assert read_end(tmp_path) == NotFiniteEnd(9, times)


def test_ends_are_counted_by_step(tmp_path):
    assert read_end(tmp_path) is None
    assert [add_end(tmp_path, step).times for step in (7, 7, 9, 9, 9)] == [1, 2, 1, 2, 3]
    forget_end(tmp_path, 8)
    assert read_end(tmp_path) == NotFiniteEnd(9, 3)
    forget_end(tmp_path, 9)
    assert read_end(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 3}', '{"step": "3", "times": 2}'])
def test_a_damaged_memory_of_an_end_stops_no_run(tmp_path, text):
    (tmp_path / "not_finite.json").write_text(text)
    assert read_end(tmp_path) is None


@pytest.mark.parametrize(
    ("times", "left"), [(1, []), (2, [8]), (3, [8, 6]), (4, [8, 6]), (9, [8, 6])]
)
def test_the_first_checkpoint_is_never_left_out(times, left):
    assert steps_to_leave(NotFiniteEnd(10, times), [4, 6, 8]) == left
    assert steps_to_leave(NotFiniteEnd(10, times), [4]) == []
    assert steps_to_leave(None, [4, 6]) == []


def test_data_that_end_are_said_at_once_by_the_same_command(tmp_path):
    for _ in range(2):
        with pytest.raises(DataEndedError, match="the data ended after 5 steps, expected 12"):
            train_toy(tmp_path, points(5))
    assert saved_steps(tmp_path) == [4, 5]
