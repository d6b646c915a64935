r"""Memory and time of porting a model of real size between Orbax and safetensors.

    python -m experiments.benchmarks.porting --workdir=/scratch/porting \
        --output=experiments/benchmarks/results/porting.json

fills a model with random numbers, saves it as training does, and runs the porting binary in
separate processes: Orbax → safetensors → Orbax → safetensors. The two folders of safetensors
must be the same to the byte. Peak memory is the kernel's figure for the largest resident set of the
process (`ru_maxrss`), Python, JAX and mapped files included.
"""

from __future__ import annotations

import filecmp
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import flax.traverse_util
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import app, flags

from experiments.common import gin_config
from experiments.common.machine import cpu_model
from experiments.common.paths import define_path
from lst_jax.checkpoints.description import ModelDescription, write_description
from lst_jax.checkpoints.layout import params_directory, step_directory
from lst_jax.checkpoints.params import params_save_args
from lst_jax.files import write_json
from lst_jax.porting.parameter_names import parameter_shapes
from lst_jax.vocabulary import Vocabulary

_GIN_FILE = flags.DEFINE_string(
    "gin_file", "experiments/configs/models/1b.gin", "Model file of the shape to port."
)
_TEXT_SIZE = flags.DEFINE_integer("text_size", 32_000, "Pieces of the text tokenizer.")
_WORKDIR = define_path(
    "workdir",
    "Scratch folder that is not there yet; takes four times the model.",
    required=True,
)
_OUTPUT = define_path("output", "JSON file for the results.")


def main(argv: list[str]) -> None:
    """Measures as the flags say."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}")
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True)
    # In a separate process: what this one has touched would count in those that it starts.
    maker = multiprocessing.get_context("spawn").Process(
        target=_make_run, args=(workdir / "run", _GIN_FILE.value, _TEXT_SIZE.value)
    )
    maker.start()
    maker.join()
    if maker.exitcode:
        raise RuntimeError("making the model failed")
    results = [
        _port(workdir / source, workdir / target, kind)
        for source, target, kind in (
            ("run", "first", "safetensors"),
            ("first", "back", "orbax"),
            ("back", "second", "safetensors"),
        )
    ]
    first = sorted((workdir / "first").glob("*.safetensors"))
    same = all(filecmp.cmp(file, workdir / "second" / file.name, shallow=False) for file in first)
    if not first or not same:
        raise AssertionError("the round trip changed the tensors")
    size = sum(file.stat().st_size for file in first)
    print(f"{'to':>14}{'model GB':>12}{'peak GB':>12}{'seconds':>12}")
    for result in results:
        peak, seconds = result["peak_gb"], result["seconds"]
        print(f"{result['to']:>14}{size / 1e9:>12.2f}{peak:>12.2f}{seconds:>12.1f}")
    if _OUTPUT.value:
        write_json(
            _OUTPUT.value,
            {
                "command": "python -m experiments.benchmarks.porting "
                + " ".join(arg for arg in sys.argv[1:] if "workdir" not in arg),
                "cpu": cpu_model(),
                "gin_file": _GIN_FILE.value,
                "model_gb": round(size / 1e9, 3),
                "round_trip_bitwise": same,
                "ports": results,
            },
        )


def _port(source: pathlib.Path, target: pathlib.Path, kind: str) -> dict[str, Any]:
    """Returns the peak memory, 10^9 bytes, and seconds of one run of the porting binary."""
    command = [sys.executable, "-m", "experiments.port_checkpoint"]
    command += [f"--input={source}", f"--output={target}", f"--to={kind}"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    return {
        "to": kind,
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 3),
        "seconds": round(seconds, 1),
    }


def _make_run(workdir: pathlib.Path, gin_file: str, text_size: int) -> None:
    """Makes a run with one checkpoint of random float32 parameters, saved as by the trainer."""
    data = ("experiments/configs/data/speech_text.gin", "experiments/configs/runs/pretrain.gin")
    paths = ("TOKENIZER=none", "SPEECH_RECORDS=none", "TEXT_RECORDS=none")
    gin_config.parse([gin_file, *data], paths)
    vocabulary = Vocabulary(text_size)
    model = gin_config.build_experiment().model(vocab_size=vocabulary.size)
    rng = np.random.default_rng(0)
    leaves = {
        path: jnp.asarray(rng.standard_normal(shape, np.float32))
        for path, shape in parameter_shapes(model).items()
    }
    params = flax.traverse_util.unflatten_dict(leaves)
    write_description(workdir, ModelDescription(model, vocabulary, None))
    with ocp.StandardCheckpointer() as writer:
        directory = params_directory(step_directory(workdir.absolute(), 1))
        writer.save(directory, params, save_args=params_save_args(params))


if __name__ == "__main__":
    app.run(main)
