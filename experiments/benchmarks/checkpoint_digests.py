r"""What digests of checkpoints cost: seconds of a save and a restore, and of hashing in them.

    python -m experiments.benchmarks.checkpoint_digests --workdir=/scratch/digests --gigabytes=6 \
        --output=experiments/benchmarks/results/checkpoint_digests.json

saves a state of random numbers as training does, and restores it. Files were just written, so they
come from the operating system's cache where they fit; a restore reads each once more than without
digests, a share of them on each host.
"""

from __future__ import annotations

import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
from absl import app, flags

from experiments.common.machine import cpu_model
from experiments.common.paths import define_path
from lst_jax.checkpoints.checkpointer import Checkpointer
from lst_jax.checkpoints.digests import find_damage, hash_file, read_digests
from lst_jax.checkpoints.train_state import TrainState
from lst_jax.files import write_json
from lst_jax.settings import given

_GIGABYTES = flags.DEFINE_float(
    "gigabytes", 6.0, "Size of the state: parameters and two moments.", lower_bound=0.01
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Saves and restores.", lower_bound=1)
_WORKDIR = define_path(
    "workdir", "Scratch folder that is not there yet; takes the state's size.", required=True
)
_OUTPUT = define_path("output", "JSON file for the results.")

_LEAF_BYTES = 2**28


def main(argv: list[str]) -> None:
    """Measures as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True)
    state = _make_state(_GIGABYTES.value)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e9
    runs = []
    for number in range(_REPEATS.value):
        times, state = _measure(workdir / str(number), state)
        runs.append(times)
        shutil.rmtree(workdir / str(number))
        print("  ".join(f"{name} {value}" for name, value in runs[-1].items()), flush=True)
    workdir.rmdir()
    best = {name: min(run[name] for run in runs) for name in runs[0]}
    if _OUTPUT.value:
        write_json(
            _OUTPUT.value,
            {
                "command": "python -m experiments.benchmarks.checkpoint_digests "
                + " ".join(
                    arg for arg in sys.argv[1:] if "workdir" not in arg and "output" not in arg
                ),
                "cpu": cpu_model(),
                "state_gb": round(size, 3),
                "best_of": len(runs),
                "load_average": round(os.getloadavg()[0], 1),  # of others on the machine, too
                **best,
            },
        )


def _make_state(gigabytes: float) -> TrainState:
    """Returns a state of random float32 numbers in leaves of at most 256 MB."""
    count = max(1, round(gigabytes * 1e9 / 3 / _LEAF_BYTES))
    width = int(gigabytes * 1e9 / 3 / count / 4)
    keys = iter(jax.random.split(jax.random.key(0), 3 * count))

    def leaves() -> dict[str, jax.Array]:
        return {f"leaf_{i}": jax.random.normal(next(keys), (width,)) for i in range(count)}

    return TrainState(jnp.int32(1), leaves(), (leaves(), leaves()))


def _measure(workdir: pathlib.Path, state: TrainState) -> tuple[dict[str, float], TrainState]:
    """Returns seconds of a save and a restore, what hashing takes in them, and what was restored.

    The state is deleted before, so that memory holds one, and a copy while it is saved.
    """
    iterator = iter(grain.MapDataset.range(2).to_iter_dataset())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    checkpointer = Checkpointer(workdir)

    def save() -> None:
        checkpointer.save(state, iterator, {})
        checkpointer.wait()

    saved = _seconds(save)
    step = checkpointer.step_directory(1)
    told = given(read_digests(step), "digests", "those of the step that was just saved")
    hashed = _seconds(lambda: [hash_file(step / name) for name in told])
    checked = _seconds(lambda: find_damage(step, told))
    for leaf in jax.tree.leaves(state):
        leaf.delete()
    found = []
    restored = _seconds(
        lambda: found.append(jax.block_until_ready(checkpointer.restore(shapes, iterator)))
    )
    checkpointer.close()
    return {
        "save_seconds": saved,
        "hash_on_one_thread_seconds": hashed,
        "restore_seconds": restored,
        "check_in_restore_seconds": checked,
    }, found[0][0]


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return round(time.perf_counter() - start, 3)


if __name__ == "__main__":
    app.run(main)
