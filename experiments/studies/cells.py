"""The commands of a cell: ordinary training and evaluation, in the cell's own folder."""

from __future__ import annotations

import dataclasses
import math
import pathlib

from experiments.common import gin_config
from experiments.common.experiment import Experiment
from experiments.studies.protocols import Branch
from experiments.studies.study_config import Cell

TRAIN, EVALUATE = "experiments.train", "experiments.evaluate"
RUN, STORIES, RESULT, FAILURE, LOG = "run", "stories.json", "result.json", "failure.json", "log.txt"


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Where things of a study are."""

    root: pathlib.Path

    @property
    def plan(self) -> pathlib.Path:
        """Returns the file of what was planned."""
        return self.root / "plan.json"

    def cell(self, cell: Cell) -> pathlib.Path:
        """Returns the folder of a cell."""
        return self.root / "cells" / cell.name

    def trunk(self, cell: Cell, step: int) -> pathlib.Path:
        """Returns the folder of the part up to `step` of the run that a cell's budgets share."""
        return self.root / "trunks" / cell.trunk / str(step)

    def claim(self, name: str) -> pathlib.Path:
        """Returns the folder whose lock a worker has while it works on what `name` names."""
        return self.root / "claims" / name

    def core(self, host: str, number: int) -> pathlib.Path:
        """Returns the folder whose lock a worker has while a processor core is its own."""
        return self.root / "cores" / f"{host}-{number}"

    def programs(self, host: str) -> pathlib.Path:
        """Returns where a machine keeps compiled programs, which suit no other."""
        return self.root / "programs" / host


def run_bindings(cell: Cell, steps: int) -> list[str]:
    """Returns all bindings of a run of `steps` steps that is measured at its end, at least."""
    study = cell.study
    bindings = [
        *cell.settings()[1],
        f"NUM_STEPS={steps}",
        f"HELD_OUT_SHARE={study.held_out_share}",
        f"EVAL_BATCHES={study.held_out_batches}",
        f"EvaluationConfig.unit_rate={cell.data.unit_rate}",
        f"EvaluationConfig.directions={study.directions}",
    ]
    on_the_way = study.evaluations > 1 and bool(cell.data.stories)
    if study.held_out_share or on_the_way:
        bindings.append(f"EVAL_EVERY={math.ceil(steps / study.evaluations)}")
    if on_the_way:
        bindings.append(f"EVAL_STORIES={cell.data.stories}")
    return bindings


def trunk_bindings(cell: Cell, step: int, before: pathlib.Path | None) -> list[str]:
    """Returns the bindings of a part of the run that budgets share, up to `step`.

    Args:
      cell: of the budget that leaves the shared run at that step.
      step: its last one.
      before: workdir of the part before; None: it is the first.
    """
    shared = ["SCHEDULE=constant", "EVAL_EVERY=None"]
    return [*run_bindings(cell, step), *shared, *_branching_off(before)]


def branch_bindings(cell: Cell, branch: Branch, trunk: pathlib.Path) -> list[str]:
    """Returns the bindings of a cell that is the decay from a shared run."""
    decay = ["SCHEDULE=wsd", f"DECAY_STEPS={branch.decay_steps}"]
    return [*run_bindings(cell, branch.num_steps), *decay, *_branching_off(trunk)]


def _branching_off(run: pathlib.Path | None) -> list[str]:
    if run is None:
        return []
    return [f"INITIAL_CHECKPOINT={str(run)!r}", "INITIAL_STATE=all"]


def configure(cell: Cell, steps: int) -> Experiment:
    """Makes a cell Gin's configuration, and returns its run.

    Raises:
      OSError, ValueError: a file is missing, or a setting is not valid.
    """
    gin_config.parse(cell.settings()[0], run_bindings(cell, steps))
    return gin_config.build_experiment()


def train_command(cell: Cell, bindings: list[str], workdir: pathlib.Path) -> list[str]:
    """Returns module and flags of the training."""
    files = [f"--gin_file={file}" for file in cell.settings()[0]]
    return [TRAIN, *files, *(f"--gin_binding={x}" for x in bindings), f"--workdir={workdir}"]


def evaluate_command(cell: Cell, folder: pathlib.Path) -> list[str]:
    """Returns module and flags of the evaluation of the last checkpoint."""
    return [
        EVALUATE,
        f"--checkpoint={folder / RUN}",
        *(f"--data={path}" for path in cell.data.stories),
        f"--directions={','.join(cell.study.directions)}",
        "--example_scores",
        f"--output={folder / STORIES}",
    ]
