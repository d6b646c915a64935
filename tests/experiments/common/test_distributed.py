"""Runs of several processes: together, one after the other's checkpoint, and what goes wrong."""

import json
import pathlib
import shutil
import signal
import socket

import gin
import pytest

from data_pipelines.training.dataset import make_training_dataset, merge_states
from experiments.common import gin_config
from lst_jax.batch import join_batches
from lst_jax.checkpoints.digests import find_damage, read_digests
from tests.binaries import run_binary
from tests.experiments.train_commands import (
    NUM_STEPS,
    start,
    training_flags,
    untimed_records,
    write_corpus,
)
from tests.lst_jax.batches import assert_same

pytestmark = pytest.mark.multiprocess

SAVED_STEP = 20
SETTINGS = {"BATCH_ROWS": 8, "CHECKPOINT_EVERY": 10, "KEEP_CHECKPOINTS": 3}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    # Without kept programs: XLA has been seen to hang in collectives of those it loads on CPUs.
    return write_corpus(tmp_path_factory.mktemp("corpus"))[:-1]


def start_processes(arguments, count=2, devices=4):
    """Starts the processes of one run; the devices are each process's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    cluster = [f"--coordinator_address={address}", f"--num_processes={count}"]
    return [
        start(*arguments, *cluster, f"--process_id={index}", devices=devices)
        for index in range(count)
    ]


def finish(*processes):
    """What the first process said, after all of them ended well."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    assert f"finished after step {NUM_STEPS}" in outputs[0]
    assert not any("finished" in output for output in outputs[1:])
    return outputs[0]


@pytest.fixture(scope="module")
def one_process(corpus, tmp_path_factory):
    """A run of one process with eight devices."""
    workdir = tmp_path_factory.mktemp("one")
    finish(start(*training_flags(corpus, workdir, **SETTINGS), devices=8))
    return workdir


@pytest.fixture(scope="module")
def two_processes(corpus, tmp_path_factory):
    """The same run by two processes with four devices each."""
    workdir = tmp_path_factory.mktemp("two")
    output = finish(*start_processes(training_flags(corpus, workdir, **SETTINGS)))
    assert "mesh {'data': 1, 'fsdp': 8, 'tensor': 1}" in output
    return workdir


def stopped_at(step, run, target):
    """A copy of a run whose last checkpoint is that of `step`."""
    shutil.copytree(run, target)
    for later in (target / "checkpoints").iterdir():
        if int(later.name) > step:
            shutil.rmtree(later)
    return target


def check_same_losses(workdir, expected, steps=range(1, NUM_STEPS + 1)):
    """The same counts, and losses that differ by rounding alone, at all of these steps."""
    found, wanted = untimed_records(workdir), untimed_records(expected)
    assert [record["step"] for record in found] == list(steps)
    for record, other in zip(found, wanted, strict=False):
        for name, value in record.items():
            expectation = other[name]
            if isinstance(expectation, float):
                expectation = pytest.approx(expectation, rel=1e-5)
            assert value == expectation, (record["step"], name)


@pytest.mark.slow
def test_two_processes_train_as_one_does(one_process, two_processes):
    check_same_losses(two_processes, one_process)


@pytest.mark.slow
def test_each_process_tells_digests_of_what_it_wrote(two_processes):
    step = two_processes / "checkpoints" / str(NUM_STEPS)
    for item in ("params", "optimizer"):
        for index in (0, 1):
            told = json.loads((step / item / f"digests.process_{index}.json").read_text())["files"]
            names = {name.partition("/")[0] for name in told}
            assert names == {f"ocdbt.process_{index}"}
    told = read_digests(step)
    assert find_damage(step, told) is None
    assert {f"params/digests.process_{index}.json" for index in (0, 1)} <= told.keys()


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_one_process_continues_the_run_of_two(corpus, one_process, two_processes, tmp_path, mesh):
    workdir = stopped_at(SAVED_STEP, two_processes, tmp_path / "run")
    axes = dict(zip(("MESH_DATA", "MESH_FSDP", "MESH_TENSOR"), mesh, strict=True))
    output = finish(start(*training_flags(corpus, workdir, **SETTINGS, **axes), devices=8))
    assert f"resumed at step {SAVED_STEP}" in output
    check_same_losses(workdir, one_process)


@pytest.mark.slow
def test_two_processes_continue_the_run_of_one_until_either_is_told_to_stop(
    corpus, one_process, tmp_path
):
    """Of a damaged step as well: one process finds it, all of them fall back."""
    workdir = stopped_at(SAVED_STEP, one_process, tmp_path / "run")
    files = (workdir / "checkpoints" / str(SAVED_STEP) / "params" / "ocdbt.process_0").rglob("*")
    largest = max(filter(pathlib.Path.is_file, files), key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    processes = start_processes(training_flags(corpus, workdir, **SETTINGS))
    # The second is told when the first reports a step; it says nothing itself.
    begin = []
    for line in processes[0].stdout:
        begin.append(line)
        if line.startswith("step 12/"):
            break
    processes[1].send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [143, 143], outputs
    outputs[0] = "".join([*begin, outputs[0]])
    assert all("falling back to step 10" in output for output in outputs)
    assert "resumed at step 10" in outputs[0]
    stopped = int(outputs[0].rsplit("stopped by SIGTERM after step ", 1)[1].split(";")[0])
    assert 12 <= stopped < NUM_STEPS
    assert (workdir / "checkpoints" / str(stopped)).is_dir()
    check_same_losses(workdir, one_process, range(1, stopped + 1))


@pytest.mark.slow
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_no_example_is_repeated_or_skipped_by_a_change_of_hosts(corpus, two_processes, hosts):
    directory = two_processes / "checkpoints" / str(SAVED_STEP) / "data"
    states = [
        json.loads(path.read_text()) for path in sorted(directory.glob("process_*-of-2.json"))
    ]
    assert len(states) == 2
    gin_config.parse([str(two_processes / "config.gin")], [])
    experiment = gin.get_configurable("train")()
    vocabulary = experiment.describe().vocabulary

    def batches(host, count):
        return iter(
            make_training_dataset(
                experiment.data, vocabulary, host_index=host, host_count=count, prefetch=0
            )
        )

    never_stopped = batches(0, 1)
    for _ in range(SAVED_STEP):
        next(never_stopped)
    continued = [batches(host, hosts) for host in range(hosts)]
    for iterator in continued:
        iterator.set_state(merge_states(states))
    for _ in range(NUM_STEPS - SAVED_STEP):
        expected = next(never_stopped)
        shares = [next(iterator) for iterator in continued]
        assert_same(join_batches(shares), expected)


MISTAKES = {
    "number": (
        ["--coordinator_address=localhost:1", "--num_processes=2", "--process_id=2"],
        {},
        "error: process_id is 2, expected 0 … num_processes - 1 = 1",
    ),
    "address": (["--coordinator_address=localhost"], {}, "'localhost', expected HOST:PORT"),
    "variable": (["--multihost"], {"JAX_NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two'"),
    "nothing": (["--multihost"], {}, "no cluster in the environment"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_cluster_that_is_none_is_one_clear_line(corpus, tmp_path, mistake):
    arguments, variables, message = MISTAKES[mistake]
    flags = training_flags(corpus, tmp_path / "unused")
    result = run_binary("experiments.train", *flags, *arguments, environment=variables)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "unused").exists()
