"""What results say of cells, and steps of arms that follow others, on figures made up here."""

import pytest

from experiments.studies.cell_results import _compare, _losses, _point
from experiments.studies.plan import GroupCost, _check_metric, plan_steps
from experiments.studies.protocols import StepCost
from experiments.studies.study_config import Arm, Comparison, Study, StudyData

LOSS_NAMES = ("nats_per_second", "bits_per_byte")
ARMS = (Arm("a"), Arm("b"), Arm("c", same_flops_as="b"))
COMPARISON = Comparison("a", "b", "mean/S-S")
STUDY = Study(
    "s",
    StudyData((), ()),
    (),
    ARMS,
    (300.0, 1200.0),
    COMPARISON,
    budget_unit="patches",
    protocol="own",
)


def test_held_out_losses_are_of_static_patches_where_there_are_several():
    names = ("mixed", "aligned", "none", "static")
    entry = {f"held_out/{name}/{x}": i for i, name in enumerate(names) for x in LOSS_NAMES}
    assert set(_losses(entry).values()) == {3}
    del entry[f"held_out/static/{LOSS_NAMES[0]}"]
    assert sorted(_losses(entry).values()) == [2, 3]


def test_flops_of_a_point_lie_on_the_line_between_records_from_nothing_on():
    records = [{"step": 10, "total_flops": 100.0}, {"step": 20, "total_flops": 300.0}]
    found = [_point({"step": step}, records)["flops"] for step in (1, 5, 10, 15, 20)]
    assert found == [10, 50, 100, 200, 300]


def test_a_comparison_is_at_the_largest_budget_unless_it_names_one():
    scored = [
        {"model": None, "budget": budget, "arm": arm, "seed": 0, "metrics": {"mean/S-S": value}}
        for budget, arm, value in (
            *((300.0, "a", 0.5), (300.0, "b", 0.25)),
            *((1200.0, "a", 1.0), (1200.0, "b", 0.25)),
        )
    ]
    assert _compare(STUDY, COMPARISON, "primary", scored)["mean"] == 0.75
    small = Comparison("a", "b", "mean/S-S", budget=300.0)
    assert _compare(STUDY, small, "primary", scored)["mean"] == 0.25


def test_an_arm_may_spend_the_flops_of_one_that_is_no_reference():
    costs = {
        name: GroupCost(StepCost(patches, 1, 1, 1, flops), 1)
        for name, patches, flops in (("a", 10, 7.0), ("b", 30, 4.0), ("c", 30, 2.0))
    }
    steps = plan_steps(STUDY, costs)
    found = {name: steps[f"{name}-1200patches-seed1"] for name in "abc"}
    assert found == {"a": 120, "b": 40, "c": 80}


def test_a_mean_over_sets_needs_a_set():
    with pytest.raises(ValueError, match="metric is 'mean/S-S', expected sets of mean"):
        _check_metric(STUDY, "mean/S-S", ["mean"])
    _check_metric(STUDY, "mean/S-S", ["mean", "one"])
