import dataclasses
import json
import shutil
import threading

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lst_jax.checkpoints.checkpointer import Checkpointer, Retention, restore_branch
from lst_jax.checkpoints.description import (
    DataDescription,
    ModelDescription,
    read_description,
    write_description,
)
from lst_jax.checkpoints.params import restore_initial_params, restore_params
from lst_jax.checkpoints.train_state import TrainState, param_shapes
from lst_jax.config import baseline_of
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer
from lst_jax.vocabulary import Vocabulary
from tests.lst_jax.training.training_runs import DESCRIPTION, TINY
from tests.marks import quick

OPTIMIZER = make_optimizer(OptimizerConfig(warmup_steps=1), 10)


def state_at(step: int) -> TrainState:
    """A state whose values tell its step, and do not compress: small arrays have no file."""
    kernel = jax.random.normal(jax.random.key(step), (64, 64))
    params = {"kernel": kernel, "norm": {"scale": jnp.ones(8)}}
    return TrainState(jnp.int32(step), params, OPTIMIZER.init(params))


def shapes_of(state: TrainState) -> TrainState:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def counter() -> grain.DatasetIterator:
    """Yields 0, 1, 2, …"""
    return iter(grain.MapDataset.range(100).to_iter_dataset())


def save_steps(workdir, *steps, keep=5):
    """Saves after each of the steps, with an iterator that has yielded as many elements."""
    checkpointer = Checkpointer(workdir, Retention(keep))
    iterator = counter()
    for step in range(1, steps[-1] + 1):
        next(iterator)
        if step in steps:
            checkpointer.save(state_at(step), iterator, {"patches": 10 * step})
    checkpointer.close()


def restore(workdir):
    """What a restart finds: state, progress, next element."""
    checkpointer = Checkpointer(workdir, Retention(5))
    iterator = counter()
    restored = checkpointer.restore(shapes_of(state_at(0)), iterator)
    checkpointer.close()
    return restored and (*restored, next(iterator))


def check_restored(workdir, step):
    state, progress, element = restore(workdir)
    jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
    assert progress == {"patches": 10 * step}
    assert element == step


def test_a_restart_finds_all_as_it_was(tmp_path):
    save_steps(tmp_path, 2, 4)
    check_restored(tmp_path, 4)


def test_a_new_workdir_has_nothing_to_restore(tmp_path):
    assert restore(tmp_path / "new") is None


def test_the_latest_checkpoints_are_kept(tmp_path):
    save_steps(tmp_path, 1, 2, 3, 4, keep=2)
    checkpointer = Checkpointer(tmp_path, Retention(2))
    assert checkpointer.latest_step() == 4
    assert not checkpointer.step_directory(2).exists()
    assert checkpointer.step_directory(3).exists()
    checkpointer.close()


def test_a_branch_begins_with_all_of_the_step_that_it_names(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    save_steps(tmp_path, 1, 2)
    cases = [(tmp_path / "1", 1, None), (tmp_path, 2, lambda states: states[0])]
    for path, step, merge_states in cases:
        iterator = counter()
        state, progress = restore_branch(path, shapes_of(state_at(0)), iterator, merge_states)
        jax.tree.map(np.testing.assert_array_equal, state, state_at(step))
        assert progress == {"patches": 10 * step} and next(iterator) == step


def leave_unfinished(directory):
    """A save that was killed: a directory under its temporary name, or without a commit mark."""
    directory.with_name(directory.name + ".orbax-checkpoint-tmp").mkdir()
    (directory / "params").mkdir(parents=True)
    (directory / "params" / "manifest.ocdbt").write_bytes(b"\0" * 10)


def test_an_unfinished_save_does_not_stop_a_restart(tmp_path):
    save_steps(tmp_path, 2)
    leave_unfinished(tmp_path / "checkpoints" / "4")
    check_restored(tmp_path, 2)
    save_steps(tmp_path, 4)
    check_restored(tmp_path, 4)


def test_a_closed_checkpointer_leaves_neither_threads_nor_unfinished_saves(tmp_path):
    """A thread that outlives it would fail loudly where the process ends right after."""
    save_steps(tmp_path, 2)
    unfinished = tmp_path / "checkpoints" / "4.orbax-checkpoint-tmp"
    for number in range(200):  # a thread would be busy for a while
        (unfinished / str(number)).mkdir(parents=True)
    before = set(threading.enumerate())
    checkpointer = Checkpointer(tmp_path, Retention(5))
    checkpointer.close()
    assert not {thread.name for thread in set(threading.enumerate()) - before}
    assert not unfinished.exists()


def cut_file(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_file(path):
    path.unlink()


DAMAGES = [
    (item, damage)
    for item in ("params", "params/ocdbt.process_0/d", "optimizer", "data", "progress", "")
    for damage in (cut_file, remove_file)
]


# Parameters of known shapes can be read without their `_METADATA`, but not with half of it.
@pytest.mark.parametrize(
    ("item", "damage"),
    quick(
        [*DAMAGES, ("params/_METADATA", cut_file)],
        ("params", remove_file),
        ("data", cut_file),
        ("progress", remove_file),
    ),
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(tmp_path, item, damage):
    save_steps(tmp_path, 2, 4)
    root = tmp_path / "checkpoints" / "4" / item
    for path in [path for path in (root, *root.rglob("*")) if path.is_file()]:
        damage(path)
    check_restored(tmp_path, 2)
    # Its name is free for when training comes to that step again.
    save_steps(tmp_path, 4)
    check_restored(tmp_path, 4)


def test_damage_everywhere_is_an_error_and_nothing_is_moved(tmp_path):
    save_steps(tmp_path, 2)
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "params")
    with pytest.raises(ValueError, match=r"no checkpoint in .* can be read \(steps \[2\]\)"):
        restore(tmp_path)
    assert (tmp_path / "checkpoints" / "2" / "optimizer").is_dir()


class Stubborn(grain.DatasetIterator):
    """Of another pipeline than the one saved."""

    def __next__(self):
        raise StopIteration

    def get_state(self):
        return {}

    def set_state(self, state):
        raise ValueError(f"state is {state}, expected another")


def test_another_pipeline_is_an_error_and_no_damage(tmp_path):
    save_steps(tmp_path, 2, 4)
    checkpointer = Checkpointer(tmp_path)
    with pytest.raises(ValueError, match="expected another"):
        checkpointer.restore(shapes_of(state_at(0)), Stubborn())
    # Nor is a damaged step moved for a run that does not go on.
    shutil.rmtree(tmp_path / "checkpoints" / "4" / "params")
    with pytest.raises(ValueError, match="expected another"):
        checkpointer.restore(shapes_of(state_at(0)), Stubborn())
    checkpointer.close()
    assert (tmp_path / "checkpoints" / "4").is_dir()
    check_restored(tmp_path, 2)


def test_keeping_no_checkpoint_is_an_error():
    with pytest.raises(ValueError, match="latest is 0, expected at least 1"):
        Retention(latest=0)


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_of_all_saves_the_latest_the_regular_and_the_best_are_left(tmp_path, count):
    """Every second step was evaluated; a step without the metric is none of the best."""
    values = np.random.default_rng(0).permutation(count).astype(float)
    values[count // 2] = np.nan  # compares with nothing
    evaluated = {step: values[step] for step in range(2, count, 2)}
    retention = Retention(2, every_steps=count // 4, best=3, best_metric="loss")
    iterator, state = counter(), TrainState(jnp.int32(0), {"kernel": jnp.ones(2)}, ())
    for begin in (1, count // 2 + 1):  # metrics outlive a restart
        checkpointer = Checkpointer(tmp_path, retention)
        for step in range(begin, begin + count // 2):
            metrics = {"loss": evaluated[step], "other": 0.0} if step in evaluated else {}
            checkpointer.save(state.replace(step=jnp.int32(step)), iterator, {}, metrics)
        checkpointer.close()
    best = sorted(evaluated, key=lambda step: np.nan_to_num(evaluated[step], nan=np.inf))[:3]
    left = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert left == {count - 1, count, count // 4, count // 2, count * 3 // 4, *best}


@pytest.mark.parametrize(("mode", "best"), [("min", 1), ("max", 3)])
def test_the_best_is_the_lowest_or_the_highest(tmp_path, mode, best):
    checkpointer = Checkpointer(tmp_path, Retention(1, best_metric="m", best_mode=mode))
    for step, value in enumerate((1.0, 2.0, 3.0, 2.0), start=1):
        checkpointer.save(state_at(step), counter(), {}, {"m": value})
    checkpointer.close()
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {best, 4}


def test_steps_compared_by_another_metric_are_none_of_the_best(tmp_path):
    for steps, name in (((1, 2), "old"), ((3, 4, 5), "new")):
        checkpointer = Checkpointer(tmp_path, Retention(1, best=2, best_metric=name))
        for step in steps:
            checkpointer.save(state_at(step), counter(), {}, {name: float(step)})
        checkpointer.close()
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == {3, 4, 5}


@pytest.mark.parametrize("model", [TINY, baseline_of(TINY)])
def test_a_description_comes_back_as_written(tmp_path, model):
    description = dataclasses.replace(
        DESCRIPTION, model=model, data=DataDescription(tokenizer="t.model")
    )
    write_description(tmp_path, description)
    assert read_description(tmp_path) == description
    assert read_description(tmp_path / "checkpoints" / "12") == description


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model": dataclasses.replace(TINY, dim_local=8)}, "dim_local is 16 there and 8 here"),
        ({"model": baseline_of(TINY)}, "model is LSTConfig there and TokenTransformerConfig"),
        ({"tokenizer_fingerprint": "f"}, "tokenizer_fingerprint is '0+' there and 'f' here"),
        (
            {
                "vocabulary": Vocabulary(41, unit_count=19),
                "model": dataclasses.replace(TINY, vocab_size=Vocabulary(41, unit_count=19).size),
            },
            "text_size is 40 there and 41 here",
        ),
    ],
)
def test_another_model_in_the_workdir_is_named(tmp_path, change, message):
    write_description(tmp_path, DESCRIPTION)
    save_steps(tmp_path, 1)
    with pytest.raises(ValueError, match=f"workdir {tmp_path} holds a run of another model: ") as e:
        write_description(tmp_path, dataclasses.replace(DESCRIPTION, **change))
    e.match(message)
    assert read_description(tmp_path) == DESCRIPTION


def test_how_a_model_is_computed_may_change_on_the_way(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    save_steps(tmp_path, 1)
    model = dataclasses.replace(TINY, remat="full", attention="blocked", dtype="bfloat16")
    write_description(tmp_path, dataclasses.replace(DESCRIPTION, model=model))
    assert read_description(tmp_path).model == model


def test_a_workdir_without_checkpoints_may_change_its_model(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    other = dataclasses.replace(DESCRIPTION, model=baseline_of(TINY))
    write_description(tmp_path, other)
    assert read_description(tmp_path) == other


def test_a_model_of_another_vocabulary_is_an_error():
    with pytest.raises(ValueError, match=f"vocab_size is {TINY.vocab_size}, expected 30"):
        ModelDescription(TINY, Vocabulary(4, unit_count=20), "0")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"model": {"kind": "Other"}}'])
def test_a_file_that_describes_no_model_is_named(tmp_path, text):
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(ValueError, match=r"model\.json: "):
        read_description(tmp_path)


def test_a_directory_of_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected the workdir of a run"):
        read_description(tmp_path)


def model_params():
    """Parameters of the tiny model without initializing it."""
    shapes = param_shapes(TINY, make_mesh())
    leaves, tree = jax.tree.flatten(shapes)
    values = [jnp.arange(leaf.size, dtype=jnp.float32).reshape(leaf.shape) for leaf in leaves]
    return jax.tree.unflatten(tree, values)


def test_parameters_are_restored_on_any_mesh(tmp_path):
    params = model_params()
    write_description(tmp_path, DESCRIPTION)
    checkpointer = Checkpointer(tmp_path)
    for step in (1, 2):
        scaled = jax.tree.map(lambda x, s=step: s * x, params)
        checkpointer.save(TrainState(jnp.int32(step), scaled, ()), counter(), {})
    checkpointer.close()
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(MeshConfig(2, 2, 2))):
        first = restore_params(tmp_path / "checkpoints" / "1", mesh)
        last = restore_params(tmp_path, mesh)
        jax.tree.map(np.testing.assert_array_equal, first, params)
        jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, 2 * y), last, params)
        shardings = jax.tree.map(lambda leaf: leaf.sharding, param_shapes(TINY, mesh))
        assert jax.tree.map(lambda leaf: leaf.sharding, last) == shardings


def test_other_conventions_of_a_start_are_warned_of(tmp_path, caplog):
    patching = PatchingConfig("curriculum", patch_size=4)
    data = DataDescription(patching, "causal")
    write_description(tmp_path, dataclasses.replace(DESCRIPTION, data=data))
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(TrainState(jnp.int32(1), model_params(), ()), counter(), {})
    checkpointer.close()
    changed = PatchingConfig("static", patch_size=4, join_speech_mode=True)
    here = dataclasses.replace(DESCRIPTION, data=DataDescription(changed, "reference"))
    restore_initial_params(tmp_path, here, make_mesh())
    said = [message for message in caplog.messages if "was trained with" in message]
    assert len(said) == 2
    assert "trained with visibility 'causal', this run has 'reference'" in said[0]
    assert "trained with patching.join_speech_mode False, this run has True" in said[1]


# Where the values are, where they are found, and what they are.
@pytest.mark.parametrize(
    "damaged", quick(["ocdbt.process_0/d", "d", "manifest.ocdbt", "_METADATA"], "d", "_METADATA")
)
@pytest.mark.parametrize("damage", [cut_file, remove_file])
def test_damaged_parameters_are_named(tmp_path, damaged, damage):
    write_description(tmp_path, DESCRIPTION)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(TrainState(jnp.int32(1), model_params(), ()), counter(), {})
    checkpointer.close()
    root = tmp_path / "checkpoints" / "1" / "params" / damaged
    for path in [path for path in (root, *root.rglob("*")) if path.is_file()]:
        damage(path)
    with pytest.raises(ValueError, match=r"checkpoints/1 is damaged \('?params/"):
        restore_params(tmp_path, make_mesh())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim_local": 24}, r"has shape \(.*\) there, expected \(.*\)"),
        ({"num_layers_encoder": 2}, "has shape none there, expected"),
    ],
)
def test_parameters_of_another_shape_than_described_are_named(tmp_path, change, message):
    write_description(tmp_path, DESCRIPTION)
    checkpointer = Checkpointer(tmp_path)
    checkpointer.save(TrainState(jnp.int32(1), model_params(), ()), counter(), {})
    checkpointer.close()
    path = tmp_path / "model.json"
    fields = json.loads(path.read_text())
    fields["model"] |= change
    path.write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=f"not of the model that model.json describes: .*{message}"
    ):
        restore_params(tmp_path, make_mesh())


def test_a_step_that_was_not_saved_is_named(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    save_steps(tmp_path, 1)
    with pytest.raises(
        FileNotFoundError, match="checkpoints/3: no such checkpoint; steps of the run: 1"
    ):
        restore_params(tmp_path / "checkpoints" / "3", make_mesh())


def test_parameters_of_a_run_without_a_checkpoint_are_an_error(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        restore_params(tmp_path, make_mesh())


def test_the_description_is_plain_json(tmp_path):
    write_description(tmp_path, DESCRIPTION)
    fields = json.loads((tmp_path / "model.json").read_text())
    assert fields["model"]["kind"] == "LSTConfig"
    assert fields["vocabulary"]["unit_count"] == DESCRIPTION.vocabulary.unit_count


def split_data(workdir, step):
    """Makes the iterator's state what two processes would have saved, without digests."""
    for file in (workdir / "checkpoints" / str(step)).rglob("digests*.json"):
        file.unlink()
    data = workdir / "checkpoints" / str(step) / "data"
    state = (data / "process_0-of-1.json").read_bytes()
    (data / "process_0-of-1.json").unlink()
    for index in (0, 1):
        (data / f"process_{index}-of-2.json").write_bytes(state)
    return data


def test_the_states_of_other_processes_are_merged_or_an_error(tmp_path):
    save_steps(tmp_path, 2)
    split_data(tmp_path, 2)
    checkpointer, iterator = Checkpointer(tmp_path), counter()
    with pytest.raises(ValueError, match="saved by 2 processes; expected as many as there are, 1"):
        checkpointer.restore(shapes_of(state_at(0)), iterator)
    assert next(iterator) == 0
    checkpointer.restore(shapes_of(state_at(0)), iterator, merge_states=lambda states: states[1])
    assert next(iterator) == 2
    checkpointer.close()


def test_a_checkpoint_without_the_state_of_every_process_is_damaged(tmp_path):
    save_steps(tmp_path, 2, 4)
    (split_data(tmp_path, 4) / "process_1-of-2.json").unlink()
    check_restored(tmp_path, 2)
