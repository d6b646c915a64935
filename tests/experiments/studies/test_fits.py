"""Fits: known truths come back, intervals cover, edges name no optimum, predictions say how far."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.studies.bootstrap import Point
from experiments.studies.fits import fit_accuracy, fit_loss, predict
from experiments.studies.isoflop import fit_isoflop

# Hoffmann et al. (2022), approach 3.
E, A, ALPHA, B, BETA = 1.69, 406.4, 0.34, 410.7, 0.28
CHINCHILLA = (E, A, ALPHA, B, BETA)
BUDGETS = (1e18, 1e19, 1e20, 1e21)
SHARES = (0.25, 0.5, 1.0, 2.0, 4.0)


def runs(truth=CHINCHILLA, budgets=BUDGETS, shares=SHARES, noise=0.0, seed=0, p=1.0, seeds=1):
    """Runs of sizes around the best of each budget, with 6 N^p D FLOPs, and the best sizes."""
    e, a, alpha, b, beta = truth
    rng = np.random.default_rng(seed)
    best = {
        c: (alpha * a / (p * beta * b) * (c / 6) ** beta) ** (1 / (alpha + p * beta))
        for c in budgets
    }
    points = []
    for c in budgets:
        for size in (share * best[c] for share in shares for _ in range(seeds)):
            data = c / 6 / size**p
            loss = (e + a / size**alpha + b / data**beta) * math.exp(noise * rng.normal())
            points.append(Point(size, data, c, loss))
    return points, best


@pytest.mark.slow
def test_a_known_loss_comes_back():
    points, best = runs()
    fit = fit_loss(points, draws=10)
    assert fit.values == pytest.approx(CHINCHILLA, rel=1e-4)
    assert (fit.flops_coefficient, fit.flops_exponent) == pytest.approx((6, 1))
    assert fit.size_growth.value == pytest.approx(BETA / (ALPHA + BETA), rel=1e-4)
    assert fit.data_growth.value == pytest.approx(ALPHA / (ALPHA + BETA), rel=1e-4)
    for budget, size in best.items():
        assert fit.optimum(budget) == pytest.approx((size, budget / 6 / size), rel=1e-3)


@pytest.mark.slow
def test_soda_s_exponents_come_back_although_they_do_not_sum_to_1():
    """N* ∝ C^0.367 and D* ∝ C^0.579, so that C ∝ N^p D with p = 0.421 / 0.367."""
    p, beta = (1 - 0.579) / 0.367, 0.3
    truth = (1.5, 50.0, beta * (1 / 0.367 - p), 500.0, beta)
    points, _ = runs(truth, (3e18, 1e19, 3e19, 1e20, 3e20), p=p)
    fit = fit_loss(points, draws=0)
    assert fit.flops_exponent == pytest.approx(p)
    assert (fit.size_growth.value, fit.data_growth.value) == pytest.approx((0.367, 0.579), abs=2e-3)
    laws = fit_isoflop(points)
    growth = laws.size_law.exponent.value, laws.data_law.exponent.value
    assert growth == pytest.approx((0.367, 0.579), abs=2e-3)


def test_parabolas_find_the_optima_of_a_known_loss():
    points, best = runs()
    fit = fit_isoflop(points)
    assert fit.refusals == ()
    assert [round(optimum.flops / 1e18) for optimum in fit.optima] == [1, 10, 100, 1000]
    for optimum in fit.optima:
        # The loss is no parabola: its minimum is off by 2 %.
        size = best[min(best, key=lambda c, o=optimum: abs(c - o.flops))]
        assert optimum.size.value == pytest.approx(size, rel=0.03)
        assert 6 * optimum.size.value * optimum.data.value == pytest.approx(optimum.flops)
        x = math.log(optimum.size.value)
        curve = sum(c * x**i for i, c in enumerate(optimum.curve))
        assert curve == pytest.approx(optimum.loss)
    assert fit.size_law.exponent.value == pytest.approx(BETA / (ALPHA + BETA), abs=1e-3)
    assert fit.data_law.exponent.value == pytest.approx(ALPHA / (ALPHA + BETA), abs=1e-3)
    predicted = fit.size_law.coefficient * 1e20**fit.size_law.exponent.value
    assert predicted == pytest.approx(best[1e20], rel=0.03)


# Hoffmann et al., Table 3: parameters, FLOPs and tokens, whose laws are C^0.50 and C^0.50.
TABLE_3 = [
    (400e6, 1.92e19, 8.0e9),
    (1e9, 1.21e20, 20.2e9),
    (10e9, 1.23e22, 205.1e9),
    (67e9, 5.76e23, 1.5e12),
    (175e9, 3.85e24, 3.7e12),
    (280e9, 9.90e24, 5.9e12),
    (520e9, 3.43e25, 11.0e12),
    (1e12, 1.27e26, 21.2e12),
    (10e12, 1.30e28, 216.2e12),
]


def test_published_optima_have_their_published_laws():
    points = [
        Point(share * size, data / share, flops, 2 + math.log(share) ** 2)
        for size, flops, data in TABLE_3
        for share in (0.5, 1.0, 2.0)
    ]
    fit = fit_isoflop(points)
    sizes = [optimum.size.value for optimum in fit.optima]
    assert sizes == pytest.approx([size for size, _, _ in TABLE_3])
    assert fit.size_law.exponent.value == pytest.approx(0.50, abs=0.005)
    assert fit.data_law.exponent.value == pytest.approx(0.50, abs=0.005)
    # As many points as parameters: no interval.
    assert fit.optima[0].size[1:] == (None, None)


def covered(estimate, truth):
    return estimate.lower <= truth <= estimate.upper


@pytest.mark.slow
def test_intervals_of_optima_and_laws_cover_the_truth():
    kwargs = {"budgets": BUDGETS[:3], "shares": (0.25, 0.5, 1, 2)}
    clean = fit_isoflop(runs(**kwargs)[0], draws=0)  # the parabola's own optimum
    sizes, laws = [], []
    for seed in range(150):
        fit = fit_isoflop(runs(noise=0.002, seed=seed, **kwargs)[0], draws=100)
        if len(fit.optima) == len(clean.optima):
            sizes.append(covered(fit.optima[0].size, clean.optima[0].size.value))
            laws.append(covered(fit.size_law.exponent, clean.size_law.exponent.value))
    assert len(laws) > 140
    assert np.mean(sizes) > 0.87 and np.mean(laws) > 0.9


@pytest.mark.slow
def test_predictions_cover_a_run_that_the_fit_has_not_seen():
    rng, trials, hits, exponents = np.random.default_rng(0), 10, 0, 0
    for seed in range(trials):
        fit = fit_loss(runs(noise=0.004, seed=seed, budgets=BUDGETS[:3])[0], draws=40)
        size, flops = 1e9, 1e21
        loss = E + A / size**ALPHA + B / (flops / 6 / size) ** BETA
        hits += covered(predict(fit, size, flops).loss, loss * math.exp(0.004 * rng.normal()))
        exponents += covered(fit.size_exponent, ALPHA)
    assert hits >= 0.8 * trials and exponents >= 0.75 * trials


def sigmoid(x, top, slope, middle, chance=0.25):
    return chance + (top - chance) / (1 + np.exp(-slope * (x - middle)))


@pytest.mark.slow
def test_a_known_sigmoid_comes_back_and_its_interval_covers():
    x = np.linspace(2, 4, 12)
    fit = fit_accuracy(x, sigmoid(x, 0.9, -4.0, 3.0), 0.25, draws=10)
    found = fit.top.value, fit.slope.value, fit.middle.value
    assert found == pytest.approx((0.9, -4.0, 3.0), rel=1e-4)
    rng, hits, trials = np.random.default_rng(0), 0, 15
    for _ in range(trials):
        values = sigmoid(x, 0.9, -4.0, 3.0) + rng.normal(0, 0.02, len(x))
        hits += covered(fit_accuracy(x, values, 0.25, draws=60).middle, 3.0)
    assert hits >= 0.85 * trials


@pytest.mark.slow
def test_predictions_say_loss_accuracy_and_how_far_they_extrapolate():
    points, _ = runs(noise=0.002)
    fit = fit_loss(points, draws=60)
    accuracies = [float(sigmoid(p.loss, 0.95, -3.0, 2.8)) for p in points]
    sigmoids = {"HellaSwag": fit_accuracy([p.loss for p in points], accuracies, 0.25, draws=60)}
    inside = predict(fit, points[10].size, 1e20, sigmoids)
    assert inside.loss.lower < points[10].loss < inside.loss.upper
    accuracy = inside.accuracies["HellaSwag"]
    assert accuracy.lower < accuracies[10] < accuracy.upper
    assert set(inside.extrapolation.values()) == {1}
    near = predict(fit, 1e3, min(p.flops for p in points)).extrapolation
    assert near["size"] == pytest.approx(1e3 / min(p.size for p in points)) and near["flops"] == 1
    far = predict(fit, 1e12, 1e26, sigmoids)
    assert far.extrapolation == pytest.approx(
        {
            "size": 1e12 / max(p.size for p in points),
            "data": far.data / max(p.data for p in points),
            "flops": 1e5,
        }
    )
    assert far.data == pytest.approx(1e26 / 6e12)
    assert far.loss.upper - far.loss.lower > 1.5 * (inside.loss.upper - inside.loss.lower)
    assert E < far.loss.value < inside.loss.value
    for result in (fit, fit_isoflop(points), sigmoids["HellaSwag"]):
        json.dumps(dataclasses.asdict(result), allow_nan=False)
    json.dumps(far, allow_nan=False)


def test_an_edge_is_no_optimum():
    falling, _ = runs(shares=(0.02, 0.04, 0.08))
    fit = fit_isoflop(falling)
    assert fit.optima == () and fit.size_law is None and fit.data_law is None
    assert "has a minimum at an edge of its sizes, expected one inside" in fit.refusals[0]
    assert fit.refusals[-1] == "power laws need 2 budgets with an optimum, there are 0"
    hill = [Point(n, 1e9, 1e18, 3 - math.log(n / 1e6) ** 2 / 10) for n in (5e5, 1e6, 2e6)]
    assert "has no minimum" in fit_isoflop(hill).refusals[0]
    two = fit_isoflop(falling[:2])
    assert "has 2 sizes, expected 3 for a parabola" in two.refusals[0]
    # So noisy that a fifth of the draws have no minimum.
    noisy = fit_isoflop(runs(noise=0.3, seed=3, shares=(0.7, 0.9, 1.1, 1.3))[0])
    assert any("has no sure minimum" in line for line in noisy.refusals)


@pytest.mark.slow
def test_a_loss_that_size_does_not_change_has_no_optimum():
    points = [point._replace(loss=E + B / point.data**BETA) for point in runs()[0]]
    fit = fit_loss(points, draws=0)
    assert "no interior minimum" in fit.refusal and "with size" in fit.refusal
    assert fit.size_growth is None
    with pytest.raises(ValueError, match="no interior minimum"):
        fit.optimum(1e20)
    assert predict(fit, points[7].size, points[7].flops).loss.value == pytest.approx(
        points[7].loss, rel=1e-3
    )


@pytest.mark.slow
def test_no_size_or_budget_ends_in_anything_but_numbers_or_one_line():
    fit = fit_loss(runs()[0], draws=5)
    json.dumps(predict(fit, 1e300, 1e300), allow_nan=False)
    for size, budget in ((1e-300, 1.0), (1e9, 1e-300), (math.nan, 1), (1, math.inf)):
        with pytest.raises(ValueError, match="expected") as error:
            predict(fit, size, budget)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="flops is -1"):
        fit.optimum(-1)
    cheaper = [point._replace(flops=point.data / point.size) for point in runs()[0]]
    fit = fit_loss(cheaper, draws=0)
    with pytest.raises(ValueError, match="has p = -1, expected above 0"):
        fit.optimum(1e20)


NAN = math.nan
POINTS = runs()[0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_loss(POINTS[:4]), "4 combinations of 4 sizes and 4 amounts of data, expected"),
        (lambda: fit_loss([POINTS[0]] * 9), "1 combinations of 1 sizes"),
        (lambda: fit_loss([]), "number of points is 0"),
        (lambda: fit_loss([Point(1, 1, 1, NAN)]), r"points\[0\].loss is nan, expected a finite"),
        (lambda: fit_isoflop([Point(0, 1, 1, 1)]), r"points\[0\].size is 0, expected a finite"),
        (lambda: fit_isoflop([Point(1, 1, "x", 1)]), r"points\[0\].flops is 'x'"),
        (lambda: fit_accuracy([1, 2], [0.5, 0.6], 0.25), "x has 2 different values, expected at"),
        (lambda: fit_accuracy([1, 1, 2], [0.5, 0.6, 0.7], 0.25), "x has 2 different values"),
        (lambda: fit_accuracy([1, 2, NAN], [0.5, 0.6, 0.7], 0.25), "x is .*, expected finite"),
        (lambda: fit_accuracy([1, 2], [0.5], 0.25), "one for each accuracy"),
        (lambda: fit_accuracy([1, 2, 3], [0.5, 0.6, 1.7], 0.25), "accuracies is .*, expected"),
        (lambda: fit_accuracy([1, 2, 3], [0.5, 0.6, 0.7], 1.0), "chance is 1.0, expected at"),
    ],
)
def test_too_little_to_fit_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


AMOUNTS = st.floats(1e-3, 1e15)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(AMOUNTS, AMOUNTS, AMOUNTS, st.floats(1e-3, 1e3)), max_size=12))
def test_any_points_give_parabolas_or_one_line(points):
    try:
        fit = fit_isoflop([Point(*point) for point in points], draws=20)
    except ValueError as error:
        assert "\n" not in str(error)
        return
    json.dumps(dataclasses.asdict(fit), allow_nan=False)
    assert all("\n" not in line for line in fit.refusals)
    for optimum in fit.optima:
        sizes = [n for n, _, c, _ in points if abs(math.log(c / optimum.flops)) < 1]
        assert min(sizes) < optimum.size.value < max(sizes)
