"""Lengths of the demo's trainings: they fill the time, compare what is equal, and stay."""

import pytest

from experiments.demonstration.run_lengths import (
    OTHER_STEPS,
    choose_plan,
    decay_steps,
    equal_flops_steps,
    length_bindings,
    read_plan,
    write_plan,
)

LST, BASELINE = (0.3, 1.1e10), (0.15, 0.75e10)


def seconds(plan, spent):
    """What trainings of the plan take, with all that is no training."""
    flops_steps = equal_flops_steps(plan, plan.steps * plan.lst_flops)
    longer, shorter = max(flops_steps, plan.steps), min(flops_steps, plan.steps)
    baselines = plan.baseline_seconds * (longer + decay_steps(shorter))
    return spent + OTHER_STEPS * plan.lst_seconds + plan.lst_seconds * plan.steps * 1.4 + baselines


@pytest.mark.parametrize("minutes", [12, 16, 60])
@pytest.mark.parametrize("baseline", [BASELINE, (0.15, 2e10)])
def test_lengths_fill_the_time(minutes, baseline):
    plan = choose_plan(minutes, 90, LST, baseline)
    assert 0.95 * 60 * minutes < seconds(plan, 90) <= 1.01 * 60 * minutes


def test_a_faster_machine_trains_longer_and_the_slowest_a_little():
    slow, fast = (choose_plan(16, 60, (x, 1e10), (x / 2, 1e10)).steps for x in (0.3, 0.15))
    assert fast > 2 * slow
    assert choose_plan(0.01, 60, LST, BASELINE).steps == 50


def test_equal_flops_are_equal_within_a_percent():
    plan = choose_plan(16, 60, LST, BASELINE)
    total = plan.steps * plan.lst_flops * 1.03  # what the training counted, not what was planned
    assert equal_flops_steps(plan, total) * plan.baseline_flops == pytest.approx(total, rel=0.01)


@pytest.mark.parametrize("steps", [10, 50, 800])
def test_a_shorter_run_branches_off_where_its_decay_begins(steps):
    short = length_bindings(steps, steps, steps // 5)
    longer = length_bindings(steps * 3 // 2 // 10 * 10, steps, steps // 5)
    branch = longer["KEEP_EVERY"]
    assert branch == steps - short["DECAY_STEPS"]  # a checkpoint that stays
    assert branch <= longer["NUM_STEPS"] - longer["DECAY_STEPS"]  # at the peak, still
    assert short["WARMUP_STEPS"] == longer["WARMUP_STEPS"] <= branch


def test_a_plan_stays_and_other_minutes_are_refused(tmp_path):
    path = tmp_path / "plan.json"
    assert read_plan(path, 16) is None
    plan = choose_plan(16, 60, LST, BASELINE)
    write_plan(path, plan)
    assert read_plan(path, 16.0) == plan
    with pytest.raises(ValueError, match=r"^--minutes is 5, expected 16, as in .*plan\.json$"):
        read_plan(path, 5)
