"""Orbax's checkpoints in a bucket: arrays by TensorStore, the rest by etils.epath and gcsfs."""

import multiprocessing
import os
import threading
import time

import fsspec
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.marks import quick

pytestmark = [
    pytest.mark.buckets,
    pytest.mark.multiprocess,
    pytest.mark.usefixtures("fresh_clients", "ended_threads"),
]

RUN = "gs://bucket/run"
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["pytest", "orbax.checkpoint", "gcsfs"])  # gcsfs: by conftest's


@pytest.fixture
def ended_threads(server):
    """Lets the threads of a failed save end before the server does.

    Orbax raises the first error and leaves the others running. Without a server TensorStore would
    try to reach one in them for minutes, and so long would this process not end.
    """
    yield
    for thread in threading.enumerate():
        if type(thread).__name__ == "_SignalingThread":
            threading.Thread.join(thread, 30)  # its own would raise its error again
            assert not thread.is_alive(), thread.name


def tree(step):
    return {
        "w": np.arange(4000, dtype=np.float32) * step,
        "b": {"c": jax.numpy.full((32, 8), step)},
    }


def open_manager(**options):
    options = {"max_to_keep": 2, **options}
    return ocp.CheckpointManager(RUN, options=ocp.CheckpointManagerOptions(**options))


def save(manager, step):
    args = {"params": ocp.args.StandardSave(tree(step)), "data": ocp.args.JsonSave({"step": step})}
    manager.save(step, args=ocp.args.Composite(**args))
    manager.wait_until_finished()


def restore(manager, step):
    shapes = jax.tree.map(np.zeros_like, tree(step))
    args = {"params": ocp.args.StandardRestore(shapes), "data": ocp.args.JsonRestore()}
    return manager.restore(step, args=ocp.args.Composite(**args))


def assert_restores(manager, step):
    restored = restore(manager, step)
    assert restored["data"] == {"step": step}
    jax.tree.map(np.testing.assert_array_equal, restored["params"], tree(step))


def test_checkpoints_are_saved_restored_and_deleted(server):
    with open_manager() as manager:
        for step in (1, 2, 3):
            save(manager, step)
        assert manager.all_steps() == [2, 3]
    assert {name.split("/")[1] for name in server.names()} == {"2", "3"}
    with open_manager() as manager:
        assert manager.latest_step() == 3
        assert_restores(manager, 2)
        assert_restores(manager, 3)


def test_another_process_sees_a_new_checkpoint_once_it_reloads(server):
    with open_manager() as writer, open_manager(read_only=True) as reader:
        assert reader.latest_step() is None
        save(writer, 1)
        reader.reload()
        assert reader.latest_step() == 1
        assert_restores(reader, 1)


@pytest.mark.slow
def test_checkpoints_are_saved_while_requests_fail(server):
    faults = [
        server.faults.add(match="alt=media", cut=20, times=2),
        server.faults.add(status=503, probability=0.03, seed=1),
    ]
    with open_manager() as manager:
        save(manager, 1)
        assert_restores(manager, 1)
    assert all(fault.befell for fault in faults)


@pytest.mark.parametrize("status", [401, 403])
def test_a_bucket_that_may_not_be_written_fails_the_save_at_once(server, status):
    server.faults.add(match="^POST", status=status, message="No.")
    begin = time.monotonic()
    with pytest.raises(Exception, match=r"No\."), open_manager() as manager:
        save(manager, 1)
    assert time.monotonic() - begin < 25  # gcsfs would try for 30 s


def test_a_bucket_that_is_not_there_fails_the_save(server):
    server.store.delete_bucket("bucket")
    pattern = r"bucket does not exist|bucket/o"
    with pytest.raises(Exception, match=pattern), open_manager() as manager:
        save(manager, 1)
    assert server.store.buckets == {}


def save_in_process(environment, step):
    """Body of a process: saves one step."""
    os.environ.update(environment)
    fsspec.config.conf["gcs"] = {"use_listings_cache": False}
    with open_manager() as manager:
        save(manager, step)


# Objects of a step, in the order in which a save comes to them; the last makes it a checkpoint.
POINTS = [
    "_CHECKPOINT_METADATA",
    "params/ocdbt.process_0/manifest",
    "data/metadata",
    "params/_METADATA",
    "params/commit_success",
    "commit_success",
]


@pytest.mark.parametrize("point", quick(POINTS, "commit_success"))
def test_a_save_that_was_killed_leaves_no_step(server, point):
    """Wherever it was; the next save of the step is good."""
    with open_manager() as manager:
        save(manager, 1)
    pattern = f"run/2/{point}".replace("/", "(/|%2F)")
    fault = server.faults.add(match=f"^POST .*{pattern}", status=503)
    process = _PROCESSES.Process(target=save_in_process, args=(server.environment(), 2))
    process.start()
    deadline = time.monotonic() + 120
    while not fault.befell:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.join()
    server.faults.clear()
    time.sleep(0.1)  # for requests that were on their way
    with open_manager() as manager:
        assert manager.all_steps() == [1]
        assert_restores(manager, 1)
        save(manager, 2)
        assert_restores(manager, 2)
    with open_manager() as manager:
        assert manager.all_steps() == [1, 2]
        assert_restores(manager, 2)
