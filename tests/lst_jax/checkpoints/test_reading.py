"""Damage, deletion and what cannot be read now are told apart."""

import builtins
import errno
import os
import shutil
import threading
import time

import jax
import numpy as np
import pytest

from lst_jax.checkpoints import digests, reading
from lst_jax.checkpoints.checkpointer import Checkpointer
from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.layout import (
    StepDeletedError,
    UnreadableCheckpointError,
    find_checkpoint,
    is_unavailable,
    reading_checkpoint,
    split_path,
)
from lst_jax.checkpoints.params import restore_params
from lst_jax.checkpoints.reading import read_step
from lst_jax.porting.port import open_checkpoint, write_checkpoint
from lst_jax.sharding import make_mesh
from tests.lst_jax.checkpoints.test_checkpointer import (
    check_restored,
    counter,
    restore,
    save_steps,
    shapes_of,
    state_at,
)
from tests.lst_jax.checkpoints.test_digests import check_params, write_run
from tests.lst_jax.training.training_runs import DESCRIPTION

UNAVAILABLE = [errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE]
UNAVAILABLE += [errno.ETIMEDOUT, errno.EINTR, errno.ENOMEM, errno.EREMOTEIO, errno.ENOLCK]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(reading, "_STABLE_SECONDS", 0.01)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_run(workdir, 1, 2)
    return workdir


def fail_to_open(monkeypatch, number, marker):
    """Opening a file whose path has the marker fails with this error."""
    opened = builtins.open

    def fail(path, *args, **kwargs):
        if marker in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", fail)


@pytest.mark.parametrize("number", UNAVAILABLE)
def test_what_cannot_be_read_is_no_damage_and_nothing_is_moved(tmp_path, monkeypatch, number):
    save_steps(tmp_path, 2, 4)
    with monkeypatch.context() as context:
        fail_to_open(context, number, "checkpoints/4/params/ocdbt.process_0")
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            restore(tmp_path)
    assert "checkpoints/4/params" in str(caught.value)
    assert not (tmp_path / "unreadable_checkpoints").exists()
    check_restored(tmp_path, 4)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_reader_says_so_and_takes_no_other_step(run, monkeypatch, number):
    fail_to_open(monkeypatch, number, "checkpoints/2/params/ocdbt.process_0")
    for read in (lambda: restore_params(run, make_mesh()), lambda: open_checkpoint(run)):
        with pytest.raises(OSError, match=os.strerror(number)):
            read()


@pytest.mark.parametrize("number", UNAVAILABLE)
@pytest.mark.parametrize("form", ["os", "earlier tensorstore", "tensorstore", "wrapped"])
def test_errors_of_the_system_are_unavailable_in_every_form(tmp_path, number, form):
    system = OSError(number, os.strerror(number), "file")
    earlier = ValueError(f"Error reading: [OS error {number}: {os.strerror(number)}]")
    text = f"Failed to open: {os.strerror(number)} [os_error_code='{number}']"
    forms = {"os": system, "tensorstore": ValueError(text), "earlier tensorstore": earlier}
    error = forms.get(form, Exception("in a part"))
    if form == "wrapped":
        error.__cause__ = system
    assert is_unavailable(error)
    expected = pytest.raises(OSError, match=f"{tmp_path} cannot be read: ")
    with expected as caught, reading_checkpoint(tmp_path):
        raise error
    assert not isinstance(caught.value, UnreadableCheckpointError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "x"),
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "x"),
        ValueError("DATA_LOSS: Expected 8 bytes"),
        ValueError("NOT_FOUND: Error opening [OS error 2: No such file or directory]"),
        ValueError("NOT_FOUND: Error opening: No such file or directory [os_error_code='2']"),
        KeyError("tree"),
    ],
)
def test_missing_and_wrong_content_is_damage_unless_the_files_are_whole(tmp_path, error):
    with pytest.raises(UnreadableCheckpointError), reading_checkpoint(tmp_path):
        raise error
    expected = pytest.raises(ValueError, match="cannot be read")
    with expected as caught, reading_checkpoint(tmp_path, whole=True):
        raise error
    assert not isinstance(caught.value, UnreadableCheckpointError)


@pytest.mark.parametrize("kind", [MemoryError, RuntimeError, jax.errors.JaxRuntimeError])
def test_errors_that_say_nothing_of_the_step_are_no_damage(tmp_path, monkeypatch, kind):
    save_steps(tmp_path, 2, 4)
    checkpointer = Checkpointer(tmp_path)

    def fail(*_, **__):
        raise kind("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpointer._manager, "restore", fail)
    with pytest.raises(kind, match="out of memory"):
        checkpointer.restore(shapes_of(state_at(0)), counter())
    checkpointer.close()
    assert not (tmp_path / "unreadable_checkpoints").exists()
    check_restored(tmp_path, 4)


def test_another_optimizer_is_no_damage(tmp_path):
    save_steps(tmp_path, 2, 4)
    checkpointer = Checkpointer(tmp_path)
    shapes = shapes_of(state_at(0)).replace(opt_state=(np.zeros(3),))
    with pytest.raises(ValueError, match="checkpoints/4 cannot be read: "):
        checkpointer.restore(shapes, counter())
    checkpointer.close()
    check_restored(tmp_path, 4)


def delete_at(monkeypatch, step_directory, call):
    """Deletes a step before call number `call` of looking for its files."""
    list_files, calls = reading.list_files, []

    def look(directory):
        calls.append(directory)
        if len(calls) == call:
            shutil.rmtree(step_directory)
        return list_files(directory)

    monkeypatch.setattr(reading, "list_files", look)


@pytest.mark.parametrize("call", [1, 2])
def test_a_step_deleted_while_it_is_read_gives_the_newest(run, tmp_path, monkeypatch, call):
    workdir = shutil.copytree(run, tmp_path / "run")
    delete_at(monkeypatch, workdir / "checkpoints" / "2", call)
    check_params(restore_params(workdir, make_mesh()), 1)


@pytest.mark.parametrize("call", [1, 2])
def test_who_named_the_step_is_told_that_it_was_deleted(run, tmp_path, monkeypatch, call):
    workdir = shutil.copytree(run, tmp_path / "run")
    delete_at(monkeypatch, workdir / "checkpoints" / "2", call)
    with pytest.raises(StepDeletedError, match="checkpoints/2 was deleted while it was read"):
        restore_params(workdir / "2", make_mesh())


def test_a_deletion_under_way_is_no_damage(run, tmp_path):
    """Its files vanish one after another, while the directory is still there."""
    workdir = shutil.copytree(run, tmp_path / "run")
    step = workdir / "checkpoints" / "2"
    with pytest.raises(StepDeletedError), reading.reading_step(step, ("params",)):
        values = [path for path in step.rglob("*") if "ocdbt.process_0" in path.parts]
        next(path for path in values if path.is_file()).unlink()
        raise UnreadableCheckpointError("a chunk is missing")


def test_every_step_is_tried_from_the_last_to_the_first(tmp_path, caplog):
    (tmp_path / "model.json").touch()
    for step in (2, 5, 9, 10):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    tried = []

    def read(directory, whole):
        tried.append(int(directory.name))
        if len(tried) < 3:
            raise UnreadableCheckpointError("damaged")
        return "read"

    assert read_step(tmp_path, read) == "read" and tried == [10, 9, 5]
    assert "falling back to step 9" in caplog.text and "falling back to step 5" in caplog.text
    assert "step 2" not in caplog.text


def test_what_looks_like_damage_is_looked_at_again_after_a_while(run, tmp_path, monkeypatch):
    """A file may be found cut before the first one is gone."""
    step = shutil.copytree(run / "checkpoints" / "2", tmp_path / "2")
    watch = reading.StepWatch(step)
    watch.look()
    damage = UnreadableCheckpointError("a file is cut")
    monkeypatch.setattr(reading.time, "sleep", lambda _: None)
    assert watch.explain(damage) is damage
    monkeypatch.setattr(reading.time, "sleep", lambda _: shutil.rmtree(step))
    assert isinstance(watch.explain(damage), StepDeletedError)


@pytest.mark.parametrize("when", ["first", "last"])
@pytest.mark.parametrize("kind", ["safetensors", "orbax"])
def test_no_export_of_a_deleted_step_appears(run, tmp_path, when, kind):
    """Missing chunks are errors, not zeros; after the last read the step is looked at again."""
    workdir = shutil.copytree(run, tmp_path / "run")
    checkpoint = open_checkpoint(workdir)
    read, at = [], {"first": 1, "last": len(checkpoint.specs)}[when]

    def on_tensor(spec):
        read.append(spec)
        if len(read) == at:
            shutil.rmtree(workdir / "checkpoints" / "2")

    with pytest.raises(StepDeletedError, match="checkpoints/2 was deleted while it was read"):
        write_checkpoint(checkpoint, tmp_path / "out", kind, on_tensor=on_tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_missing_chunks_are_errors_without_digests_too(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    for file in workdir.rglob("digests*.json"):
        file.unlink()
    checkpoint = open_checkpoint(workdir / "2")
    for file in (workdir / "checkpoints" / "2" / "params" / "ocdbt.process_0" / "d").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match="checkpoints/2"):
        for name in checkpoint.specs:
            checkpoint.read(name)


def test_values_that_are_zero_are_read_as_such(tmp_path):
    """Also where a store would leave out what equals its fill value."""
    write_run(tmp_path / "run", 1)
    source = open_checkpoint(tmp_path / "run")
    zeros = {name: np.zeros(spec.shape, np.float32) for name, spec in source.specs.items()}
    fields = {"read": zeros.__getitem__, "check_still_there": lambda: None}
    write_checkpoint(type(source)(**{**vars(source), **fields}), tmp_path / "zeros", "orbax")
    ported = open_checkpoint(tmp_path / "zeros")
    for name in ported.specs:
        np.testing.assert_array_equal(ported.read(name), zeros[name])


@pytest.mark.parametrize("place", ["write_step_digests", "_write_process_digests"])
def test_a_save_that_fails_is_one_line_and_leaves_nothing_half_written(
    tmp_path, monkeypatch, place
):
    save_steps(tmp_path, 2)
    checkpointer, iterator = Checkpointer(tmp_path), counter()

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")

    with monkeypatch.context() as context:
        context.setattr(digests, place, fail)
        checkpointer.save(state_at(4), iterator, {})
        with pytest.raises(OSError, match=r"cannot be saved: .*No space left") as caught:
            checkpointer.wait()
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    checkpointer.close()
    check_restored(tmp_path, 2)


class LateWriter(threading.Thread):
    """A thread like Orbax's: whoever joins it gets the error that it ended by."""

    def join(self, timeout=None):
        super().join(timeout)
        raise RuntimeError("another part cannot be saved either")


LateWriter.__module__ = "orbax.checkpoint.late"


def test_what_still_writes_a_save_that_failed_is_waited_for(tmp_path, monkeypatch):
    save_steps(tmp_path, 2)
    checkpointer = Checkpointer(tmp_path)
    folder = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"

    def write():
        time.sleep(0.3)
        folder.mkdir(exist_ok=True)
        (folder / "part").touch()

    def fail(*_):
        LateWriter(target=write).start()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "file")

    with monkeypatch.context() as context:
        context.setattr(digests, "write_step_digests", fail)
        checkpointer.save(state_at(4), counter(), {})
        with pytest.raises(OSError, match=r"cannot be saved: .*No space left"):
            checkpointer.wait()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    checkpointer.close()


def test_a_workdir_may_be_named_like_a_step(tmp_path):
    workdir = tmp_path / "checkpoints" / "48213"
    write_run(workdir, 1, 2)
    for path in (workdir, workdir / "2", workdir / "checkpoints" / "2"):
        assert find_checkpoint(path) == workdir / "checkpoints" / "2"
        assert read_description(path) == DESCRIPTION
        check_params(restore_params(path, make_mesh()), 2)
    assert split_path(workdir) == (workdir, None)
    save_steps(workdir / "again", 2)


def test_a_file_of_another_name_is_no_step(tmp_path):
    write_run(tmp_path, 1)
    for name in ("²", "٣", "1.partial", "99999999999999999999"):
        (tmp_path / "checkpoints" / name).mkdir()
    (tmp_path / "checkpoints" / "7").touch()
    assert find_checkpoint(tmp_path).name == "1"


def test_a_workdir_that_cannot_be_listed_is_an_error_of_the_system(run, monkeypatch):
    scandir = os.scandir

    def fail(path="."):
        if str(path).endswith("checkpoints"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(PermissionError, match="checkpoints"):
        read_step(run, lambda *_: None)
