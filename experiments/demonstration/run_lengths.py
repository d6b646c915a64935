"""How long each model of the demo trains, so that all of it takes the minutes that were asked for.

The LST and the baseline are timed for some steps, with the corpus there. What is left of the time
is divided among the trainings, whose lengths stand in fixed proportions:

* the LST, S steps;
* the baseline for S steps, with as many patches a step, and for as many as have the LST's training
  FLOPs. Both are one run at a constant rate that branches: every model's learning rate stays at the
  peak and falls in the last fifth of its steps, so the shorter baseline costs a fifth of its steps;
* fine-tuning, a third of S twice.

The lengths depend on the machine. They are kept in the workdir, and the same command goes on with
them; with equal lengths all numbers are equal.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

from lst_jax.files import write_json
from lst_jax.settings import PositiveFloat, PositiveInt, configuration, require, validate_fields
from lst_jax.strict_json import read_json_object

PILOT_STEPS = 30
# Of the time of S steps of the LST: a step of fine-tuning has fewer patches.
_FINETUNING = 0.2
# What is no training, in steps of the LST: evaluation on the way and at the end, speech, the
# report, and compilation. Rather too many: what is not used is lost, what lacks breaks a promise.
OTHER_STEPS = 1500
_LEAST_STEPS = 50
_FIFTHS = 10  # lengths are multiples of it, so that a fifth of them is one of checkpoints


@configuration
class DemoPlan:
    """What was measured and chosen.

    Attributes:
      minutes: that the demo was to take.
      steps: S.
      lst_seconds, baseline_seconds: of a step.
      lst_flops, baseline_flops: of a step, by the exact count.
    """

    minutes: PositiveFloat
    steps: PositiveInt
    lst_seconds: PositiveFloat
    baseline_seconds: PositiveFloat
    lst_flops: PositiveFloat
    baseline_flops: PositiveFloat


def choose_plan(
    minutes: float,
    spent: float,
    lst: tuple[float, float],
    baseline: tuple[float, float],
) -> DemoPlan:
    """Chooses the lengths.

    Args:
      minutes: that the demo may take.
      spent: seconds of these that have passed.
      lst, baseline: seconds and FLOPs of a step.
    """
    ratio = lst[1] / baseline[1]
    a_step = lst[0] * (1 + _FINETUNING * 2) + baseline[0] * (max(ratio, 1) + 0.2 * min(ratio, 1))
    left = 60 * minutes - spent - OTHER_STEPS * lst[0]
    steps = max(_LEAST_STEPS, _FIFTHS * int(left / a_step / _FIFTHS))
    return DemoPlan(float(minutes), steps, lst[0], baseline[0], lst[1], baseline[1])


def equal_flops_steps(plan: DemoPlan, flops: float) -> int:
    """Returns the baseline's steps for the FLOPs that the LST's training had."""
    return max(_FIFTHS, _FIFTHS * round(flops / plan.baseline_flops / _FIFTHS))


def read_plan(path: pathlib.Path, minutes: float) -> DemoPlan | None:
    """Reads the plan of an earlier start, None where there is none.

    Raises:
      ValueError: it was made for other minutes.
    """
    if not path.exists():
        return None
    plan = validate_fields(DemoPlan, read_json_object(path), path)
    require(minutes == plan.minutes, "--minutes", minutes, f"{plan.minutes:g}, as in {path}")
    return plan


def write_plan(path: pathlib.Path, plan: DemoPlan) -> None:
    """Writes the plan."""
    write_json(path, dataclasses.asdict(plan))


def decay_steps(steps: int) -> int:
    """Returns the last steps of a run, in which its learning rate falls."""
    return max(1, steps // 5)


def length_bindings(steps: int, plan_steps: int, checkpoint_every: int) -> dict[str, Any]:
    """Returns the settings of a run's length.

    Args:
      steps: of the run.
      plan_steps: S, which the warm-up of all models follows.
      checkpoint_every: steps between checkpoints. That after four times as many stays.
    """
    return {
        "NUM_STEPS": steps,
        "SCHEDULE": "wsd",
        "DECAY_STEPS": decay_steps(steps),
        "WARMUP_STEPS": min(40, max(1, plan_steps // 10)),
        "CHECKPOINT_EVERY": checkpoint_every,
        "KEEP_EVERY": 4 * checkpoint_every,
    }
