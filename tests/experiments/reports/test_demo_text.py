"""What the demo says of its results follows from them alone."""

import json

import pytest

from experiments.reports.demo_text import (
    EQUAL_FLOPS,
    EQUAL_STEPS,
    LST,
    SeedSpread,
    cover_seeds,
    describe_results,
    difference,
    read_seed_spread,
)
from lst_jax.evaluation.choices import ChoiceResult
from lst_jax.evaluation.statistics import wilson_interval


def result(accuracy, name="A", n=400):
    interval = wilson_interval(accuracy * n, n)
    return {"set_name": name, "direction": "S-S", "accuracy": accuracy, "interval": interval}


def model(role, *accuracies):
    names = "ABC"
    return {
        "role": role,
        "results": [result(x, y) for x, y in zip(accuracies, names, strict=False)],
    }


def test_the_text_names_what_is_apart_and_which_way():
    models = [model(LST, 0.7, 0.5, 0.5), model(EQUAL_STEPS, 0.5, 0.52, 0.7)]
    first, count, last = describe_results(models, covers_seeds=False)
    assert first == (
        "At equal steps and equal patches a step the LST is ahead in A S→S and the baseline is "
        "ahead in C S→S; elsewhere the intervals of the differences hold 0."
    )
    assert count.startswith("These are 3 comparisons at 95 % each, of which about 1 would")
    assert "one run cannot settle" in last


def test_the_text_of_nothing_apart_claims_nothing():
    models = [model(LST, 0.52), model(EQUAL_STEPS, 0.5), model(EQUAL_FLOPS, 0.55)]
    steps, flops, _, last = describe_results(models, covers_seeds=True)
    assert steps.endswith("no difference of the two models has an interval without 0.")
    assert flops.startswith("At equal training FLOPs no difference")
    assert last == "Intervals are over items and seeds."


def test_the_interval_of_a_difference_is_newcombes():
    # His example (10): 56/70 and 48/80, method 10.
    first, second = (
        {"accuracy": x / n, "interval": wilson_interval(x, n)} for x, n in ((56, 70), (48, 80))
    )
    gap, lower, upper = difference(first, second)
    assert (gap, lower, upper) == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)


def choice(name="A", direction="S-S"):
    return ChoiceResult(name, direction, 400, 0.5, 0.6, (0.55, 0.65), 0.6, (0.55, 0.65))


def test_intervals_widen_by_the_spread_of_seeds_where_it_is_known():
    spread = SeedSpread(3, {"lst": {"A/S-S": 0.02}, "baseline": {"A/S-S": 0.0}})
    (wide,) = cover_seeds([choice()], LST, spread)
    half = (0.05**2 + (4.302653 * 0.02) ** 2) ** 0.5
    assert wide.interval == pytest.approx((0.6 - half, 0.6 + half))
    (same,) = cover_seeds([choice()], EQUAL_FLOPS, spread)
    assert same.interval == pytest.approx((0.55, 0.65))
    assert cover_seeds([choice("B")], LST, spread) == [choice("B")]
    assert cover_seeds([choice()], LST, None) == [choice()]


def test_the_spread_is_read_where_a_study_has_left_it(tmp_path):
    assert read_seed_spread(tmp_path / "none.json") is None
    path = tmp_path / "seed_spread.json"
    path.write_text(json.dumps({"seeds": 5, "deviations": {"lst": {"A/S-S": 0.1}, "baseline": {}}}))
    spread = read_seed_spread(path)
    assert spread.seeds == 5 and not spread.covers([choice()])
