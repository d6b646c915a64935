r"""Compares the training step on a CPU with an older commit's, and with its bare matrix products.

    python -m experiments.benchmarks.cpu_step --against=564c667 \
        --output=experiments/benchmarks/results/cpu_step.json

Each side is a separate process, kept warm: the files as they are; the same with the rows on
several CPU devices, as many as there are cores for and the rows divide by; the commit; the step's
attentions alone; and NumPy, which multiplies matrices of the step's shapes and does nothing else.
They take turns, a few steps at a time, on the same batches, from the same parameters; ratios are of
medians. Losses of the first steps are compared, too.

Threads of XLA and of BLAS wait for each other by spinning. Where other work takes some of the cores
they wait for a thread that does not run, and times rise fivefold: measure on an idle machine.
`taskset -c 0,1 python -m …` gives all sides these two cores and as many threads.

The shapes are `demo`, that of the demo, and `larger`, of D 512 in 8 layers and d 256.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import pickle
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax
import jax.extend
from absl import flags

from experiments.benchmarks.step_timing import make_batches
from experiments.common import cli
from experiments.common.machine import command_line, cpu_model, versions
from experiments.common.paths import define_path
from experiments.common.step_config import StepConfig, preset
from experiments.inspection.loss_runs import HERE, find_code
from lst_jax.batch import batch_arrays
from lst_jax.checkpoints.train_state import state_shardings
from lst_jax.files import write_json
from lst_jax.settings import quote
from lst_jax.sharding import (
    MeshConfig,
    abstract_batch,
    batch_sharding,
    make_mesh,
    mesh_context,
)
from lst_jax.training.optimizers import make_optimizer
from lst_jax.training.step import make_train_step

_WORKER = pathlib.Path(__file__).with_name("cpu_step_worker.py")
_NUM_LOSSES = 20


def shapes() -> dict[str, StepConfig]:
    """Returns the measured steps by name."""
    tiny = preset("tiny")
    larger = dataclasses.replace(
        tiny.model,
        dim_local=256,
        dim_global=512,
        num_layers_global=8,
        multiple_of=256,
    )
    return {
        "demo": dataclasses.replace(tiny, num_patches=192, num_tokens=336, num_rows=4),
        "larger": dataclasses.replace(
            tiny, model=larger, num_patches=1024, num_tokens=1408, num_rows=1
        ),
    }


def step_products(config: StepConfig) -> list[tuple[int, int, int, int, int]]:
    """Returns the matrix products of a step as (batch, M, K, N, how many).

    Attention's, whose number depends on the documents, are left out.
    """
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    optimizer = make_optimizer(config.optimizer, config.training.num_steps)
    shape = config.num_patches, config.num_tokens, config.num_rows
    unit = config.vocabulary.first_unit_id
    with mesh_context(mesh):
        step = make_train_step(config.model, config.optimizer, config.training, unit, mesh)
        state = state_shardings(config.model, optimizer, mesh)[0]
        jaxpr = jax.make_jaxpr(step)(state, abstract_batch(*shape, batch_sharding(mesh)))
    return [(*key, count) for key, count in sorted(count_products(jaxpr.jaxpr).items())]


def count_products(jaxpr: Any) -> Counter[tuple[int, int, int, int]]:
    """Counts matrix products by (batch, M, K, N), loops of unknown length left out."""
    counts: Counter[tuple[int, int, int, int]] = Counter()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), (batch, _) = params["dimension_numbers"]
            a, b = (x.aval.shape for x in equation.invars)
            size, k = (math.prod(a[i] for i in axes) for axes in (batch, contracted))
            counts[size, math.prod(a) // (size * k), k, math.prod(b) // (size * k)] += 1
        elif name != "while":
            for inner in jax.extend.core.jaxprs_in_params(params):
                for key, count in count_products(inner).items():
                    counts[key] += count * (params["length"] if name == "scan" else 1)
    return counts


class Side:
    """A process that runs one side's step.

    Attributes:
      losses: of the first steps.
      times: of all steps so far, in seconds.
    """

    def __init__(self, code: pathlib.Path, task: pathlib.Path, kind: str, devices: int) -> None:
        environment = os.environ | {"PYTHONPATH": str(code), "JAX_NUM_CPU_DEVICES": str(devices)}
        environment.setdefault("JAX_PLATFORMS", "cpu")
        self.times: list[float] = []
        self._process = subprocess.Popen(
            [sys.executable, str(_WORKER), str(task), kind],
            cwd=code,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.losses = self._read()

    def run(self, count: int) -> None:
        """Runs and times some steps."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self.times += self._read()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _read(self) -> list[float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ValueError(f"a side ended with exit code {self._process.wait()}; see above")
        return json.loads(line)


def compare(name: str, config: StepConfig, against: str, rounds: int, count: int) -> dict[str, Any]:
    """Measures one shape and returns what is written of it.

    Args:
      name: of the shape.
      config: the step.
      against: the older commit.
      rounds: turns of each side.
      count: steps of a turn.
    """
    task = {
        "model": _settings(config.model),
        "optimizer": _settings(config.optimizer),
        "num_steps": config.training.num_steps,
        "first_unit_id": config.vocabulary.first_unit_id,
        "num_patches": config.num_patches,
        "batches": [batch_arrays(batch) for batch in make_batches(config, config.num_rows)],
        "products": step_products(config),
        "losses": _NUM_LOSSES,
    }
    with tempfile.TemporaryDirectory() as directory:
        path = pathlib.Path(directory, "task.pickle")
        path.write_bytes(pickle.dumps(task))
        devices = split_devices(config.num_rows, len(os.sched_getaffinity(0)))
        runs = {"now": (HERE, "step", 1), "before": (against, "step", 1)}
        if devices > 1:
            runs["split"] = HERE, "step", devices
        runs |= {kind: (HERE, kind, 1) for kind in ("attention", "products")}
        sides: dict[str, Side] = {}
        # One after another, so that none compiles while another runs.
        for side, (commit, kind, number) in runs.items():
            code = find_code(commit, pathlib.Path(directory, side))
            sides[side] = Side(code, path, kind, number)
        for turn in range(rounds):
            order = list(sides.values())
            for side in order[turn % len(order) :] + order[: turn % len(order)]:
                side.run(count)
        for side in sides.values():
            side.close()
    medians = {side: statistics.median(x.times) for side, x in sides.items()}
    flops = sum(2 * math.prod(product) for product in task["products"])
    largest = max(
        abs(a - b) / b
        for side in ("now", "split")
        if side in sides
        for a, b in zip(sides[side].losses, sides["before"].losses, strict=True)
    )
    return {
        "shape": name,
        "devices_of_split": devices,
        "gigaflops_of_products": round(flops / 1e9, 1),
        "median_ms": {side: round(1e3 * x, 2) for side, x in medians.items()},
        "fastest_ms": {side: round(1e3 * min(x.times), 2) for side, x in sides.items()},
        "ratio": round(medians["now"] / medians["before"], 3),
        "ratio_of_split": round(medians["split"] / medians["before"], 3) if devices > 1 else None,
        "products_share": round(medians["products"] / medians["now"], 3),
        "attention_share": round(medians["attention"] / medians["now"], 3),
        "largest_relative_difference_of_losses": largest,
    }


def split_devices(rows: int, most: int) -> int:
    """Returns the most devices, up to `most`, that the rows of a batch divide among."""
    return max(count for count in range(1, most + 1) if rows % count == 0)


def _settings(config: Any) -> dict[str, Any]:
    """Returns the settings that are not defaults: older commits need not know the others."""
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _format(result: dict[str, Any], against: str) -> str:
    """Returns the line of one shape."""
    ms = result["median_ms"]
    split = ""
    if result["ratio_of_split"] is not None:
        split = (
            f"{result['ratio_of_split']:.2f} ({ms['split']:,.0f} ms) with rows on "
            f"{result['devices_of_split']} devices; "
        )
    return (
        f"{result['shape']}: {ms['now']:,.0f} ms, {result['ratio']:.2f} of {against}'s "
        f"{ms['before']:,.0f}; {split}attention {ms['attention']:,.0f} ms, bare products "
        f"{ms['products']:,.0f} ms, {result['products_share']:.0%} of the step; losses differ by "
        f"{result['largest_relative_difference_of_losses']:.1e}"
    )


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_string("against", "564c667", "Older commit to compare with.")
    flags.DEFINE_list("shapes", list(shapes()), "Shapes to measure.")
    flags.DEFINE_integer("rounds", 12, "Turns of each side.", lower_bound=1)
    flags.DEFINE_integer("steps", 3, "Steps of a turn.", lower_bound=1)
    define_path("output", "JSON file to write the results to.")


def main(argv: Sequence[str]) -> None:
    """Measures the shapes and reports."""
    cli.check_no_arguments(list(argv))
    values = flags.FLAGS
    known = shapes()
    for name in values.shapes:
        if name not in known:
            raise ValueError(f"shapes is {quote(name)}, expected some of {','.join(known)}")
    report: dict[str, Any] = {
        "command": command_line("cpu_step"),
        "against": values.against,
        "device": cpu_model(),
        "cores": os.cpu_count(),
        "load_average_before": round(os.getloadavg()[0], 2),
        "steps": values.rounds * values.steps,
        "versions": versions("jax", "jaxlib", "numpy"),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith("XLA_")},
        "results": [],
    }
    for name in values.shapes:
        result = compare(name, known[name], values.against, values.rounds, values.steps)
        report["results"].append(result)
        print(_format(result, values.against), flush=True)
    if values.output:
        write_json(values.output, report)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
