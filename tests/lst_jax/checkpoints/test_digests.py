"""What is read of a step is what was written: any change of a value file is damage, and named."""

import json
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.checkpoints import digests as digests_module
from lst_jax.checkpoints.checkpointer import Checkpointer, Retention
from lst_jax.checkpoints.description import write_description
from lst_jax.checkpoints.digests import (
    FileDigest,
    find_damage,
    items_of,
    list_files,
    read_digests,
    share_of,
    write_step_digests,
)
from lst_jax.checkpoints.params import restore_initial_params, restore_params, restore_step_params
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.porting.port import open_checkpoint, write_checkpoint
from lst_jax.sharding import make_mesh
from tests.lst_jax.checkpoints.test_checkpointer import (
    check_restored,
    counter,
    model_params,
    save_steps,
    shapes_of,
    state_at,
)
from tests.lst_jax.training.training_runs import DESCRIPTION
from tests.marks import quick

# Of Orbax: what is in them is not read.
MARKS = ("commit_success.txt", "_CHECKPOINT_METADATA")


def flip(path, position, bit=0):
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(bytes(data))


def model_step(step):
    """Parameters that tell their step."""
    return jax.tree.map(lambda x: step * x + 1 / 3, model_params())


def write_run(workdir, *steps):
    write_description(workdir, DESCRIPTION)
    checkpointer = Checkpointer(workdir, Retention(9))
    for step in steps:
        checkpointer.save(TrainState(jnp.int32(step), model_step(step), ()), counter(), {})
    checkpointer.close()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    write_run(workdir, 1, 2)
    return workdir


@pytest.fixture(scope="module")
def state_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("state_run")
    save_steps(workdir, 2, 4)
    return workdir


def value_files(step):
    """The largest file of every item: values, states of iterators, progress."""
    items = [path for path in step.iterdir() if path.is_dir()]
    files = {
        item.name: [p for p in item.rglob("*") if p.is_file() and p.name not in MARKS]
        for item in items
    }
    return {name: max(paths, key=lambda p: p.stat().st_size) for name, paths in files.items()}


@pytest.mark.parametrize("item", ["params", "optimizer", "data", "progress"])
def test_a_flipped_bit_anywhere_is_damage_and_the_step_before_is_restored(
    state_run, tmp_path, item
):
    workdir = shutil.copytree(state_run, tmp_path / "run")
    file = value_files(workdir / "checkpoints" / "4")[item]
    flip(file, file.stat().st_size // 2, bit=3)
    check_restored(workdir, 2)
    (aside,) = (workdir / "unreadable_checkpoints").iterdir()
    assert aside.name == "4.0"


@pytest.mark.parametrize(
    "content",
    quick([b"", b'{"m": 3.0', b"\xff\xfe", b'{"n": 4.0}', b"[1]", None], b"\xff\xfe", None),
)
def test_damaged_metrics_are_damage_like_any(tmp_path, content):
    """The manager reads them when it is opened, before any restore."""
    retention = Retention(5, best_metric="m")
    checkpointer, iterator = Checkpointer(tmp_path, retention), counter()
    for step in range(1, 5):
        next(iterator)
        checkpointer.save(state_at(step), iterator, {"patches": 10 * step}, {"m": float(step)})
    checkpointer.close()
    file = tmp_path / "checkpoints" / "4" / "metrics" / "metrics"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    checkpointer = Checkpointer(tmp_path, retention)
    state, progress = checkpointer.restore(shapes_of(state_at(0)), counter())
    checkpointer.close()
    assert progress == {"patches": 30}
    jax.tree.map(np.testing.assert_array_equal, state, state_at(3))


def test_every_file_of_a_step_is_told_but_marks(state_run):
    step = state_run / "checkpoints" / "4"
    told = set(read_digests(step))
    files = {n for n in list_files(step) if n.rpartition("/")[2] not in MARKS}
    assert told == files - {"digests.json"}
    values = {name for name in told if "/ocdbt.process_0/" in name}
    by_process = json.loads((step / "params" / "digests.process_0.json").read_text())["files"]
    assert {f"params/{name}" for name in by_process} == {n for n in values if n[:3] == "par"}
    assert by_process


def test_the_digests_are_damaged_like_any_file(state_run, tmp_path):
    for number, name in enumerate(["digests.json", "params/digests.process_0.json"]):
        workdir = shutil.copytree(state_run, tmp_path / str(number))
        file = workdir / "checkpoints" / "4" / name
        flip(file, file.read_bytes().index(b'": [') + 15)
        check_restored(workdir, 2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_flip_is_overlooked(state_run, data):
    """Every file, any bit of it; compared with the digests alone."""
    step = state_run / "checkpoints" / "4"
    told = read_digests(step)
    name = data.draw(st.sampled_from(sorted(told)))
    file = step / name
    content = file.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    try:
        flip(file, position, data.draw(st.integers(0, 7)))
        assert find_damage(step, told) == f"{name} holds other bytes than were written"
    finally:
        file.write_bytes(content)
    assert find_damage(step, told) is None


def test_missing_cut_and_longer_files_are_named(tmp_path):
    for name in ("a", "sub/b", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12345678")
    write_step_digests(tmp_path)
    told = read_digests(tmp_path)
    assert find_damage(tmp_path, told) is None
    (tmp_path / "more").write_bytes(b"of another's")
    assert find_damage(tmp_path, told) is None
    (tmp_path / "c").write_bytes(b"123456789")
    assert find_damage(tmp_path, told) == "c has 9 bytes, expected 8"
    (tmp_path / "a").unlink()
    assert find_damage(tmp_path, told) == "'a' is missing"


def test_a_name_in_the_digests_is_no_path_that_is_opened(tmp_path):
    (tmp_path / "step").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    told = {"../secret": FileDigest(1, 0), "/etc/passwd": FileDigest(1, 0)}
    assert "is missing" in find_damage(tmp_path / "step", told)


def test_files_are_dealt_out_once_each_and_evenly():
    rng = np.random.default_rng(0)
    told = {f"f{i}": FileDigest(int(size), i) for i, size in enumerate(rng.integers(1, 100, 200))}
    for count in (1, 3, 8):
        shares = [share_of(told, index, count) for index in range(count)]
        assert sorted(name for share in shares for name in share) == sorted(told)
        loads = [sum(d.size for d in share.values()) for share in shares]
        assert max(loads) - min(loads) <= 100
    few = {"a": FileDigest(5, 0)}
    assert [share_of(few, index, 3) for index in range(3)] == [few, {}, {}]


def test_a_reader_of_one_item_checks_that_one(state_run):
    told = read_digests(state_run / "checkpoints" / "4")
    params = items_of(told, ("params",))
    assert params
    assert all(name.startswith("params/") for name in params)
    assert items_of(told, None) == told


def flip_params(workdir, step):
    file = value_files(workdir / "checkpoints" / str(step))["params"]
    flip(file, file.stat().st_size // 3, bit=6)


def check_params(params, step):
    jax.tree.map(np.testing.assert_array_equal, params, model_step(step))


@pytest.mark.slow
def test_damaged_parameters_give_those_of_the_step_before_bit_for_bit(run, tmp_path, caplog):
    workdir = shutil.copytree(run, tmp_path / "run")
    flip_params(workdir, 2)
    params, checkpoint = restore_step_params(workdir, make_mesh())
    assert checkpoint == workdir / "checkpoints" / "1"
    check_params(params, 1)
    check_params(restore_initial_params(workdir, DESCRIPTION, make_mesh()), 1)
    assert "other bytes than were written), falling back to step 1" in caplog.text
    # Nothing is moved by a reader, and who names the step is told.
    with pytest.raises(ValueError, match="checkpoints/2 is damaged"):
        restore_params(workdir / "2", make_mesh())
    flip_params(workdir, 1)
    with pytest.raises(ValueError, match="checkpoints/1 is damaged"):
        restore_params(workdir, make_mesh())


def test_a_port_of_damaged_parameters_is_that_of_the_step_before(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    flip_params(workdir, 2)
    write_checkpoint(open_checkpoint(workdir), tmp_path / "out", "safetensors")
    write_checkpoint(open_checkpoint(run / "1"), tmp_path / "expected", "safetensors")
    name = "model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["step"] == 1
    with pytest.raises(ValueError, match="checkpoints/2 is damaged"):
        open_checkpoint(workdir / "checkpoints" / "2")


@pytest.mark.slow
def test_a_step_that_was_ported_has_digests(run, tmp_path):
    write_checkpoint(open_checkpoint(run), tmp_path / "out", "orbax")
    step = tmp_path / "out" / "checkpoints" / "2"
    assert find_damage(step, read_digests(step)) is None
    restore_params(tmp_path / "out", make_mesh())
    flip_params(tmp_path / "out", 2)
    with pytest.raises(ValueError, match="checkpoints/2 is damaged"):
        restore_params(tmp_path / "out", make_mesh())


def test_a_step_without_digests_is_read_and_a_line_says_so(run, tmp_path, caplog):
    workdir = shutil.copytree(run, tmp_path / "run")
    for file in workdir.rglob("digests*.json"):
        file.unlink()
    check_params(restore_params(workdir, make_mesh()), 2)
    assert open_checkpoint(workdir).step == 2
    assert "has no digests: it is read unchecked" in caplog.text


def test_each_file_is_read_once_to_be_checked(run, monkeypatch):
    seen = []
    hash_file = digests_module.hash_file
    monkeypatch.setattr(
        digests_module,
        "hash_file",
        lambda path: (seen.append(pathlib.Path(path)), hash_file(path))[1],
    )
    restore_params(run, make_mesh())
    assert len(seen) == len(set(seen)) > 0
    assert all("params" in path.parts for path in seen)


def test_evaluation_and_generation_take_the_step_before(run, tmp_path, monkeypatch):
    workdir = shutil.copytree(run, tmp_path / "run")
    flip_params(workdir, 2)
    module = "lst_jax.inference.trained_model"
    monkeypatch.setattr(f"{module}.TextTokenizer", lambda path: path)
    monkeypatch.setattr(f"{module}.check_tokenizer", lambda *_: None)
    fields = json.loads((workdir / "model.json").read_text())
    fields["data"] |= {"patching": {"strategy": "static"}, "visibility": "causal"}
    (workdir / "model.json").write_text(json.dumps(fields))
    loaded = load_trained_model(workdir, os.devnull)
    assert loaded.step == 1
    check_params(loaded.params, 1)
