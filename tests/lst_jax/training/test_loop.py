import dataclasses
import functools
import json
import math
import os
import signal

import grain
import jax
import numpy as np
import pytest

from lst_jax.checkpoints.checkpointer import Checkpointer
from lst_jax.checkpoints.params import restore_initial_params
from lst_jax.checkpoints.train_state import TrainState, init_state, state_from_params
from lst_jax.hardware import PeakRate
from lst_jax.model.models import build_model, logits, output_kernel
from lst_jax.sharding import DEFAULT_RULES, MeshConfig, make_mesh, mesh_context, shard_batch
from lst_jax.training import lst
from lst_jax.training.held_out import HeldOutLoss
from lst_jax.training.loop import DataEndedError, NonFiniteLossError
from lst_jax.training.lst import train_lst
from lst_jax.training.metrics import RateContext, read_evaluations, read_records
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer
from lst_jax.training.signals import STOP_SIGNALS, StopSignal
from lst_jax.training.step import TrainingConfig, batch_sums, make_loss, make_train_step
from tests.lst_jax.batches import VOCABULARY
from tests.lst_jax.training.training_runs import DESCRIPTION, TINY, batches, random_batch
from tests.marks import quick

FIRST_UNIT = VOCABULARY.first_unit_id
OPTIMIZER = OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=1)
TRAINING = TrainingConfig(num_steps=6, accumulation_steps=2, log_every=2, checkpoint_every=2)
# Of the runs: each device of a mesh adds to what a save costs.
MESH = make_mesh(MeshConfig(data=1, fsdp=2, tensor=1), jax.devices()[:2])
# Of a record, what is not a measurement of time.
TIMES = {"patches_per_second", "tokens_per_second", "mfu", "step_seconds", "eta_seconds"} | {
    "pause_seconds",
    "total_seconds",
}


def one_step(mesh_config: MeshConfig, accumulation_steps: int):
    """State and sums after one step from the same start on the same batch."""
    num_devices = math.prod(dataclasses.astuple(mesh_config))
    mesh = make_mesh(mesh_config, jax.devices()[:num_devices])
    training = dataclasses.replace(TRAINING, accumulation_steps=accumulation_steps)
    state = init_state(TINY, make_optimizer(OPTIMIZER, training.num_steps), 0, mesh)
    step = make_train_step(TINY, OPTIMIZER, training, FIRST_UNIT, mesh)
    with mesh_context(mesh):
        state, sums = step(state, shard_batch(random_batch(0), mesh))
    return jax.device_get(state), jax.device_get(sums)


@pytest.fixture(scope="module")
def plain_step():
    """One device, one microbatch."""
    return one_step(MeshConfig(1, 1, 1), 1)


@pytest.mark.slow
def test_neither_the_mesh_nor_accumulation_changes_a_gradient(plain_step):
    state, sums = one_step(MeshConfig(data=2, fsdp=2, tensor=2), 4)
    expected_state, expected_sums = plain_step
    for name, value in expected_sums.items():
        np.testing.assert_allclose(sums[name], value, rtol=1e-4, err_msg=name)
    # Adam's first update is a sign, so compare the mean of the gradients instead of parameters.
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-7),
        state.opt_state[1][0].mu,
        expected_state.opt_state[1][0].mu,
    )


@pytest.mark.slow
def test_losses_are_apart_for_text_and_speech(plain_step):
    sums = plain_step[1]
    batch = random_batch(0)
    speech = batch.targets >= FIRST_UNIT
    np.testing.assert_allclose(sums["speech_weight"], batch.loss_weights[speech].sum())
    np.testing.assert_allclose(sums["text_weight"], batch.loss_weights[~speech].sum())
    # An untrained model is about as good as a uniform guess.
    uniform = np.log(VOCABULARY.size)
    assert sums["text_nll"] / sums["text_weight"] == pytest.approx(uniform, rel=0.3)
    assert sums["speech_nll"] / sums["speech_weight"] == pytest.approx(uniform, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_sums_are_what_the_batch_holds(seed):
    batch = random_batch(seed)
    sums = jax.device_get(batch_sums(batch, FIRST_UNIT))
    slots, speech_slots = set(), set()
    for row, column in np.argwhere(batch.document_ids > 0):
        slot = (row, batch.patch_ids[row, column])
        slots.add(slot)
        if batch.tokens[row, column] >= FIRST_UNIT:
            speech_slots.add(slot)
    assert sums["tokens"] == np.count_nonzero(batch.document_ids)
    assert sums["patches"] == len(slots)
    assert sums["speech_patches"] == len(speech_slots)
    assert sums["speech_units"] == np.count_nonzero(batch.tokens >= FIRST_UNIT)
    assert sums["speech_examples"] == batch.speech_examples.sum() > 0
    assert sums["aligned_examples"] == batch.aligned_examples.sum()


@pytest.fixture(autouse=True, scope="module")
def one_step_function():
    """Runs of the same settings trace their step once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lst, "make_train_step", functools.cache(lst.make_train_step))
        yield


@pytest.fixture(autouse=True)
def heard(caplog):
    """What runs say of themselves."""
    caplog.set_level("INFO", logger="lst_jax")


def train_in(workdir, iterator, *, optimizer=OPTIMIZER, doors=None, **changes):
    training = dataclasses.replace(TRAINING, **changes)
    return train_lst(DESCRIPTION, optimizer, training, iterator, workdir, MESH, **(doors or {}))


class Interrupting(grain.DatasetIterator):
    """Sends a signal to this process while it reads batch number `at`."""

    def __init__(self, parent, at, which=signal.SIGTERM):
        super().__init__(parent)
        self._at, self._which = at, which
        self._count = 0

    def __next__(self):
        if self._count == self._at:
            os.kill(os.getpid(), self._which)
        self._count += 1
        return next(self._parent)

    def get_state(self):
        return self._parent.get_state()

    def set_state(self, state):
        self._parent.set_state(state)


def untimed(records):
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def test_a_run_starts_with_the_seed_and_from_what_its_settings_name(monkeypatch):
    """The state is made in one of three ways; its totals go on where the whole state is taken."""
    monkeypatch.setattr(lst, "init_state", lambda _, __, seed, *rest: seed)
    monkeypatch.setattr(lst, "restore_initial_params", lambda path, *_: f"params of {path}")
    monkeypatch.setattr(lst, "state_from_params", lambda _, __, params, *rest: params)
    monkeypatch.setattr(
        lst,
        "restore_branch",
        lambda path, shapes, iterator, merge: (TrainState(4, path, iterator), {"patches": 7}),
    )

    def start(**changes):
        training = dataclasses.replace(TRAINING, seed=5, **changes)
        trainable = lst.make_lst_trainable(DESCRIPTION, OPTIMIZER, training, MESH)
        return trainable.start("iterator")

    made = start()
    assert (made.state, made.progress.patches, made.origin) == (5, 0, "from step 0")
    made = start(initial_checkpoint="x")
    assert (made.state, made.progress.patches) == ("params of x", 0)
    assert made.origin == "from step 0 with the parameters of x"
    made = start(initial_checkpoint="x", initial_state="all")
    assert (made.state, made.progress.patches) == (TrainState(4, "x", "iterator"), 7)
    assert made.origin == "from step 4 with the state of x"


def test_rates_are_shares_of_all_devices_and_of_all_slots_of_a_batch(monkeypatch):
    monkeypatch.setattr(lst, "peak_rate", lambda device: PeakRate(7.0, device.platform))
    trainable = lst.make_lst_trainable(DESCRIPTION, OPTIMIZER, TRAINING, MESH)
    context = trainable.rate_context(random_batch(0))
    assert context == RateContext(16 * 48, 16 * 64, 2, PeakRate(7.0, "cpu"), 6)
    assert trainable.losses == ("text_nll", "speech_nll", "gradient_norm")
    assert trainable.weights == ("text_weight", "speech_weight")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that was never interrupted."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, train_in(workdir, batches(3))


def test_training_lowers_the_loss_of_both_modalities(finished):
    records = read_records(finished[0])
    assert [record["step"] for record in records] == [1, 2, 4, 6]
    for name in ("loss", "loss_text", "loss_speech"):
        assert records[-1][name] < records[0][name]
    assert records[-1]["total_patches"] == finished[1].progress.patches
    assert finished[1].finished


@pytest.mark.slow
def test_neither_the_mesh_nor_accumulation_changes_the_first_record(finished, plain_step):
    record, sums = read_records(finished[0])[0], plain_step[1]
    for kind in ("text", "speech"):
        loss = sums[f"{kind}_nll"] / sums[f"{kind}_weight"]
        assert record[f"loss_{kind}"] == pytest.approx(loss, rel=1e-5)
    assert record["gradient_norm"] == pytest.approx(sums["gradient_norm"], rel=1e-4)
    assert record["total_flops"] == pytest.approx(sums["flops"], rel=1e-6)
    assert record["total_patches"] == sums["patches"] and record["total_tokens"] == sums["tokens"]
    assert record["total_speech_units"] == sums["speech_units"]
    assert record["patch_padding"] == pytest.approx(1 - sums["patches"] / (16 * 48))
    assert record["token_padding"] == pytest.approx(1 - sums["tokens"] / (16 * 64))
    mean = sums["speech_units"] / sums["speech_patches"]
    assert record["mean_patch_length"] == pytest.approx(mean)


@pytest.mark.parametrize("which", quick(STOP_SIGNALS, signal.SIGTERM))
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(finished, tmp_path, caplog, which):
    before = signal.getsignal(which)
    first = train_in(tmp_path, Interrupting(batches(3), at=2, which=which))
    assert not first.finished
    assert first.signal == which.name
    assert int(first.state.step) == 3  # no step of the schedule: between two records
    assert signal.getsignal(which) is before
    second = train_in(tmp_path, batches(3))
    assert "resumed at step 3" in caplog.text
    jax.tree.map(np.testing.assert_array_equal, second.state, finished[1].state)
    assert untimed(read_records(tmp_path)) == untimed(read_records(finished[0]))
    assert second.progress.flops == finished[1].progress.flops
    totals = [record["total_seconds"] for record in read_records(tmp_path)]
    assert totals == sorted(totals) and totals[0] > 0


def test_a_finished_run_does_nothing_more(finished):
    workdir, result = finished
    before = (workdir / "metrics.jsonl").read_text()
    again = train_in(workdir, batches(3))
    assert again.finished
    jax.tree.map(np.testing.assert_array_equal, again.state, result.state)
    assert (workdir / "metrics.jsonl").read_text() == before


@pytest.mark.slow
def test_a_run_starts_from_the_parameters_of_another_and_with_nothing_else(
    finished, tmp_path, caplog
):
    workdir, other = finished
    start = {"initial_checkpoint": str(workdir)}
    first = train_in(tmp_path, Interrupting(batches(3), at=0), **start)
    assert f"from step 0 with the parameters of {workdir}" in caplog.text
    assert int(first.state.step) == 1
    # The first update from there, made by hand.
    params = restore_initial_params(workdir, DESCRIPTION, MESH)
    jax.tree.map(np.testing.assert_array_equal, params, other.state.params)
    optimizer = make_optimizer(OPTIMIZER, TRAINING.num_steps)
    state = state_from_params(TINY, optimizer, params, MESH)
    step = make_train_step(TINY, OPTIMIZER, TRAINING, FIRST_UNIT, MESH)
    with mesh_context(MESH):
        state, _ = step(state, shard_batch(random_batch(0), MESH))
    jax.tree.map(np.testing.assert_array_equal, first.state, state)
    # Started again it goes on with its own.
    train_in(tmp_path, batches(3), **start)
    assert "resumed at step 1" in caplog.text


def test_a_start_from_another_model_is_an_error(finished, tmp_path):
    model = dataclasses.replace(TINY, local_window=3)
    with pytest.raises(ValueError, match=r"another model than this run: model\.local_window is"):
        restore_initial_params(finished[0], dataclasses.replace(DESCRIPTION, model=model), MESH)
    with pytest.raises(FileNotFoundError, match="no run there"):
        train_in(tmp_path, batches(1), initial_checkpoint=str(tmp_path / "none"))


def poisoned_batches(step):
    """Batches of which the one of `step` (from 1) makes the loss infinite."""
    rows = [random_batch(seed) for seed in range(6)]
    rows[step - 1].loss_weights[1, 0] = np.inf
    return iter(grain.MapDataset.source(rows).to_iter_dataset())


@pytest.mark.slow
@pytest.mark.parametrize("step", [4, 5])
def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path, step):
    last_good = {4: 2, 5: 4}[step]
    match = rf"at step {step}; the last good checkpoint is .*checkpoints/{last_good}$"
    with pytest.raises(NonFiniteLossError, match=match):
        train_in(tmp_path, poisoned_batches(step))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {str(s) for s in range(2, last_good + 1, 2)}
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] < step


@pytest.mark.slow
def test_without_a_checkpoint_the_error_says_so(tmp_path):
    with pytest.raises(NonFiniteLossError, match="at step 1; there is no checkpoint before it"):
        train_in(tmp_path, poisoned_batches(1))


class Orphaned(Interrupting):
    """Batches whose worker process is killed before number `at`."""

    def __next__(self):
        if self._count == self._at:
            raise ChildProcessError("the worker of rows 0 … 3 was ended by signal SIGKILL")
        return super().__next__()


@pytest.mark.slow
@pytest.mark.parametrize(("step", "last_good"), [(0, None), (3, 2), (4, 4)])
def test_a_data_worker_that_ends_is_named_with_the_last_good_checkpoint(tmp_path, step, last_good):
    good = "there is no checkpoint" if last_good is None else f"the last .*checkpoints/{last_good}$"
    with pytest.raises(ChildProcessError, match=f"rows 0 … 3 was ended by .* SIGKILL; {good}"):
        train_in(tmp_path, Orphaned(batches(3), step))


@pytest.mark.slow
@pytest.mark.parametrize("count", quick([1, 2, 3], 1))
def test_where_the_data_end_the_last_state_is_saved_and_recorded(finished, tmp_path, count):
    """Also where nothing was due at that step, or it was saved already."""
    match = rf"the data ended after {count} steps, expected 6; .* saved in .*/checkpoints/{count}$"
    rows = [random_batch(seed) for seed in range(3)]
    few = grain.MapDataset.source(rows[:count]).to_iter_dataset()
    for _ in range(2):  # started again it says the same
        with pytest.raises(DataEndedError, match=match):
            train_in(tmp_path, iter(few))
        records = read_records(tmp_path)
        assert [record["step"] for record in records] == [*range(1, count + 1)]
    # With more data the run goes on from there, to the same parameters.
    more = iter(grain.MapDataset.source(rows).repeat().to_iter_dataset())
    result = train_in(tmp_path, more)
    jax.tree.map(np.testing.assert_array_equal, result.state, finished[1].state)


@pytest.mark.slow
def test_batches_without_anything_to_learn_are_an_error(tmp_path):
    batch = random_batch(0)
    batch.loss_weights[:] = 0
    dataset = grain.MapDataset.source([batch]).repeat().to_iter_dataset()
    with pytest.raises(ValueError, match="no token of the batches up to step 2 is learned"):
        train_in(tmp_path, iter(dataset))
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.slow
def test_sigterm_lets_the_last_checkpoint_be_written(tmp_path, monkeypatch):
    """Saving goes on behind the last step; until it is done the process must live."""
    close = Checkpointer.close

    def close_interrupted(checkpointer):
        os.kill(os.getpid(), signal.SIGTERM)
        close(checkpointer)

    monkeypatch.setattr(Checkpointer, "close", close_interrupted)
    fatal = []
    before = signal.signal(signal.SIGTERM, lambda *_: fatal.append("would have died"))
    try:
        assert train_in(tmp_path, batches(3), num_steps=2).finished
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not fatal
    assert (tmp_path / "checkpoints" / "2").is_dir()


def test_rows_that_accumulation_does_not_divide_are_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"16 rows, expected a multiple of 32 = .* 16 accumulation"
    ):
        train_in(tmp_path, batches(1), accumulation_steps=16)


@pytest.mark.parametrize("field", ["num_steps", "log_every", "keep_checkpoints"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5])
def test_counts_that_are_not_positive_integers_are_named(field, value):
    with pytest.raises(ValueError, match=f"{field} is {value!r}"):
        dataclasses.replace(TRAINING, **{field: value})


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_stop_signal_is_named_and_its_handler_given_back(name):
    which = getattr(signal, name)
    outside = signal.signal(which, signal.default_int_handler)  # under nohup one is ignored
    try:
        with StopSignal() as stop:
            assert stop.name is None
            os.kill(os.getpid(), which)
            assert stop.name == name
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.name == "SIGTERM"
        assert signal.getsignal(which) is signal.default_int_handler
    finally:
        signal.signal(which, outside)


def test_a_second_interrupt_ends_the_process_at_once():
    for first in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), StopSignal():
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)


def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.name is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
def test_a_held_out_loss_changes_no_bit_of_a_run_and_is_that_of_its_batches(finished, tmp_path):
    loss = make_loss(TINY, TRAINING.accumulation_steps, FIRST_UNIT, MESH, tuple(DEFAULT_RULES))
    held_out = {"static": [random_batch(7), random_batch(8)], "aligned": [random_batch(9)]}
    result = train_in(
        tmp_path, batches(3), doors={"evaluators": [HeldOutLoss(loss, held_out, MESH, every=3)]}
    )
    jax.tree.map(np.testing.assert_array_equal, result.state, finished[1].state)
    assert untimed(read_records(tmp_path)) == untimed(read_records(finished[0]))
    records = read_evaluations(tmp_path)
    assert [record["step"] for record in records] == [3, 6]
    # By the model itself: one batch at a time, one device, no microbatches.
    (device,) = jax.devices()[:1]
    params = jax.device_put(jax.device_get(result.state.params), device)
    for strategy, rows in held_out.items():
        totals = {"text": [0.0, 0.0], "speech": [0.0, 0.0]}
        for batch in rows:
            hidden = build_model(TINY).apply({"params": params}, batch)["hidden"]
            scores = logits(hidden, output_kernel(params), TINY.vocab_size)
            nll = -jax.nn.log_softmax(scores)
            nll = np.take_along_axis(np.asarray(nll), batch.targets[..., None], -1)[..., 0]
            speech = batch.targets >= FIRST_UNIT
            for kind, mask in (("speech", speech), ("text", ~speech)):
                weights = batch.loss_weights * mask
                totals[kind] = np.add(totals[kind], [(nll * weights).sum(), weights.sum()])
        expected = {f"loss_{kind}": nll / weight for kind, (nll, weight) in totals.items()}
        nll, weight = np.add(*totals.values())
        for name, value in (expected | {"loss": nll / weight}).items():
            assert records[-1][f"held_out/{strategy}/{name}"] == pytest.approx(value, rel=1e-4)


@pytest.mark.slow
def test_a_decay_branches_off_from_a_kept_checkpoint(tmp_path):
    """As if the run had been the decay's from the beginning; the run it leaves stays as it is."""
    decay = dataclasses.replace(OPTIMIZER, schedule="wsd", decay_steps=2, final_ratio=0.0)
    train_in(tmp_path / "stable", batches(3), optimizer=decay, num_steps=8, keep_checkpoints=9)
    start = {"initial_checkpoint": str(tmp_path / "stable" / "4"), "initial_state": "all"}
    branch = train_in(tmp_path / "branch", batches(3), optimizer=decay, **start)
    whole = train_in(tmp_path / "whole", batches(3), optimizer=decay)
    jax.tree.map(np.testing.assert_array_equal, branch.state, whole.state)
    assert branch.progress.flops == whole.progress.flops
    records = untimed(read_records(tmp_path / "branch"))
    assert records == untimed(read_records(tmp_path / "whole"))[-len(records) :]
    names = {path.name for path in (tmp_path / "stable" / "checkpoints").iterdir()}
    assert names == {"2", "4", "6", "8"}
