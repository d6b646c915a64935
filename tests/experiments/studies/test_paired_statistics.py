"""Student's t over seeds: known answers, coverage and power by simulation, hostile inputs."""

import itertools
import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.studies.cell_results import collect
from experiments.studies.cells import RESULT, Workdir
from experiments.studies.paired_statistics import (
    holm,
    mean_interval,
    paired_difference,
    power,
    smallest_difference,
)
from experiments.studies.study_config import read_study

SETTINGS = settings(max_examples=50, deadline=None)
NUMBERS = st.floats(-1e6, 1e6)


def simulate(num_seeds, difference, trials=3000, items=200, seed=0):
    """Accuracies of two models, (trials, num_seeds) each, and their true difference.

    Items have difficulties of their own, a data seed moves both models alike, a seed each model on
    its own, and every answer is a coin of its item's chance.
    """
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(0.4, 1.0, items)
    shared = rng.normal(0, 0.15, (trials, num_seeds, 1))

    def accuracy(ability):
        own = rng.normal(0, 0.1, (trials, num_seeds, 1))
        chance = 1 / (1 + np.exp(-(ability + difficulty + shared + own)))
        # The sum of independent coins, one an item, by its first two moments.
        mean, spread = chance.mean(-1), np.sqrt((chance * (1 - chance)).sum(-1)) / items
        return np.round((mean + spread * rng.normal(size=mean.shape)) * items) / items

    # Over many seeds, with other draws of them.
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    effect = math.hypot(0.15, 0.1) * nodes[:, None]

    def truth(ability):
        chance = 1 / (1 + np.exp(-(ability + difficulty + effect)))
        return chance.mean(-1) @ weights / weights.sum()

    return accuracy(difference), accuracy(0.0), truth(difference) - truth(0.0)


def t_bounds(differences):
    """What `paired_difference` gives, for many rows at a time."""
    n = differences.shape[1]
    half = stats.t.ppf(0.975, n - 1) * differences.std(1, ddof=1) / math.sqrt(n)
    return differences.mean(1) - half, differences.mean(1) + half


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_the_interval_covers_the_true_difference(num_seeds):
    a, b, truth = simulate(num_seeds, 0.3)
    lower, upper = t_bounds(a - b)
    for i in range(20):  # the rows are of the function under test
        found = paired_difference(a[i], b[i])
        assert found[1:3] == pytest.approx((lower[i], upper[i]), abs=1e-12)
    covered = np.mean((lower <= truth) & (truth <= upper))
    assert 0.93 <= covered <= 0.97
    one, _, _ = simulate(num_seeds, 0.0, seed=1)
    lower, upper = t_bounds(one)
    assert mean_interval(one[0])[1:3] == pytest.approx((lower[0], upper[0]), abs=1e-12)
    assert 0.93 <= np.mean((lower <= one.mean()) & (one.mean() <= upper)) <= 0.97


@pytest.mark.parametrize(("num_seeds", "share"), [(3, 0.75), (5, 0.84)])
def test_a_percentile_bootstrap_over_few_seeds_does_not(num_seeds, share):
    """Why it is not used: over all resamples there are, it covers 75 and 84 % instead of 95."""
    a, b, truth = simulate(num_seeds, 0.3, trials=1500)
    resamples = np.array(list(itertools.product(range(num_seeds), repeat=num_seeds)))
    means = (a - b)[:, resamples].mean(-1)
    lower, upper = np.quantile(means, [0.025, 0.975], axis=1, method="inverted_cdf")
    assert np.mean((lower <= truth) & (truth <= upper)) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_studies_find_a_difference_as_often_as_the_power_says(num_seeds):
    a, b, truth = simulate(num_seeds, 0.3)
    spread = (a - b).std(1, ddof=1)
    spread = math.sqrt(np.mean(spread**2))
    lower, upper = t_bounds(a - b)
    found = np.mean((lower > 0) | (upper < 0))
    assert found == pytest.approx(power(truth, spread, num_seeds), abs=0.03)
    a, b, _ = simulate(num_seeds, 0.0)
    lower, upper = t_bounds(a - b)
    assert np.mean((lower > 0) | (upper < 0)) == pytest.approx(0.05, abs=0.02)


def test_known_answers():
    a, b = [0.3, 0.4, 0.5], [0.1, 0.15, 0.3]
    found = paired_difference(a, b)
    scipys = stats.ttest_rel(a, b)
    assert found.p_value == pytest.approx(scipys.pvalue)
    assert found[1:3] == pytest.approx(tuple(scipys.confidence_interval(0.95)))
    assert (found.mean, found.n) == (pytest.approx(0.65 / 3), 3)
    # t of 1 degree of freedom at 97.5 % is tan(0.475 π).
    found = mean_interval([1.0, 3.0])
    assert found == pytest.approx((2, 2 - math.tan(0.475 * math.pi), 4 - 2 + 12.7062047, 2))
    # Holm's own steps: 3 · 0.01, max(that, 2 · 0.03), max(that, 0.04).
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.999])
def test_power_is_the_noncentral_t_s(confidence):
    compared = 0
    for n, shift in itertools.product((2, 3, 5, 10, 100), (0, 0.1, 1, 3, 10, 100)):
        critical = stats.t.isf((1 - confidence) / 2, n - 1)
        known = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
        if np.isfinite(known):  # SciPy's is not, here and there
            compared += 1
            assert power(shift / math.sqrt(n), 1, n, confidence) == pytest.approx(known, abs=1e-9)
    assert compared > 20


@settings(max_examples=10, deadline=None)
@given(
    st.floats(1e-6, 1e6),
    st.integers(2, 1000),
    st.floats(0.2, 0.9999),
    st.floats(0.81, 0.999999),
)
def test_the_smallest_difference_is_found_as_often_as_asked(spread, n, wanted, confidence):
    smallest = smallest_difference(spread, n, wanted, confidence)
    assert power(smallest, spread, n, confidence) == pytest.approx(wanted, abs=1e-6)
    assert smallest_difference(spread, n + 1, wanted, confidence) < smallest
    assert power(-smallest, spread, n, confidence) == power(smallest, spread, n, confidence)


@SETTINGS
@example([(0.0, 0.0), (0.0, 5e-304)], 0.5)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=12), st.floats(0.01, 0.999))
def test_intervals_hold_their_mean_or_are_refused_in_one_line(pairs, confidence):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    try:
        found = paired_difference(a, b, confidence)
    except ValueError as error:
        assert "\n" not in str(error)
        differences = np.subtract(a, b)
        least = max(1e-11 * np.abs([a, b]).max(), 1e-150) if pairs else 0
        assert len(pairs) < 2 or np.ptp(differences) <= least
        return
    assert found.lower <= found.mean <= found.upper
    assert 0 <= found.p_value <= 1
    # The interval and the test agree.
    if abs(found.p_value - (1 - confidence)) > 1e-9:
        assert (found.p_value < 1 - confidence) == (found.lower > 0 or found.upper < 0)
    mirrored = paired_difference(b, a, confidence)
    assert mirrored == pytest.approx(
        (-found.mean, -found.upper, -found.lower, found.p_value, found.n)
    )


@SETTINGS
@given(st.lists(st.floats(0, 1), max_size=10), st.randoms(use_true_random=False))
def test_holm_is_between_no_correction_and_bonferroni_s_in_any_order(p_values, random):
    corrected = holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert p <= q <= min(1, len(p_values) * p + 1e-12)
    order = random.sample(range(len(p_values)), len(p_values))
    assert holm([p_values[i] for i in order]) == [corrected[i] for i in order]


NAN, INF = math.nan, math.inf
# Differences of these are equal but for rounding, which is large beside them.
LARGE = ([1e6 + 0.3, 1e6 + 0.4, 1e6 + 0.9], [1e6 + 0.2, 1e6 + 0.3, 1e6 + 0.8])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([]), "number of seeds of values is 0, expected at least 2"),
        (lambda: mean_interval([0.5]), "number of seeds of values is 1, expected at least 2"),
        (lambda: mean_interval([0.5] * 3), "values is 0.5 for all 3 seeds, expected a spread"),
        (lambda: mean_interval([0.5, NAN]), "values is .*nan.*, expected finite numbers"),
        (lambda: mean_interval([1e308, -1e308]), "expected finite numbers"),
        (lambda: mean_interval(["a", 1]), "expected finite numbers"),
        (lambda: mean_interval([[1, 2], [3, 4]]), "expected finite numbers"),
        (lambda: mean_interval(None), "values is None"),
        (lambda: mean_interval([1, 2], 1.0), "confidence is 1.0, expected a value inside"),
        (lambda: mean_interval([1, 2], NAN), "confidence is nan"),
        (lambda: paired_difference([1, 2], [1]), "a has 2 and b 1 seeds, expected pairs"),
        (lambda: paired_difference([0.3, 0.4], [0.1, 0.2]), "for all 2 seeds"),
        (lambda: paired_difference([1, 2], [1, INF]), "b is .*inf.*, expected finite numbers"),
        (lambda: paired_difference([1], [2]), "number of seeds of a − b is 1"),
        (lambda: holm([0.5, 1.5]), "p_values is .*, expected values in 0 … 1"),
        (lambda: holm([NAN]), "expected finite numbers"),
        (lambda: power(0.1, 0.0, 3), "spread is 0.0, expected a finite number above 0"),
        (lambda: power(NAN, 1, 3), "difference is nan"),
        (lambda: power(0.1, 1, 1), "num_seeds is 1, expected an integer, at least 2"),
        (lambda: power(0.1, 1, 2.5), "num_seeds is 2.5"),
        (lambda: smallest_difference(1, 3, power=0.01), "power is 0.01, expected above 0.05"),
        (lambda: smallest_difference(1, 3, power=1.0), "power is 1.0"),
        (lambda: smallest_difference(1, 3, power=0.25, confidence=0.75), "expected above 0.25"),
        (lambda: paired_difference(*LARGE), "for all 3 seeds, expected a spread"),
        (lambda: smallest_difference(NAN, 3), "spread is nan"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_page_s_intervals_cover_a_known_difference(tmp_path):
    """End to end: scored cells of three seeds, 300 items a set, a gain of 3 points."""
    study = read_study(
        ["experiments/configs/studies/pilot.gin"],
        ["CORPUS=corpus", "SEEDS=(0, 1, 2)", "Study.budgets=(8.0,)"],
    )
    cells, workdir = study.cells(), Workdir(tmp_path)
    steps = {cell.name: 8 for cell in cells}
    rng, trials, hits, found = np.random.default_rng(0), 200, 0, 0
    for cell in cells:
        workdir.cell(cell).mkdir(parents=True)
    for _ in range(200):
        data = {seed: rng.normal(0, 0.03) for seed in study.seeds}
        for cell in cells:
            chance = 0.6 + data[cell.seed] + rng.normal(0, 0.01)
            chance += 0.03 * (cell.arm.name == "curriculum")
            metrics = {"mean/S-S": rng.binomial(300, chance) / 300, "mean/T-T": 0.7, "speech": 9.0}
            result = {
                "metrics": metrics,
                "chances": {},
                "training": {"total_flops": 1.0},
                "curve": [],
            }
            (workdir.cell(cell) / RESULT).write_text(json.dumps(result))
        primary, text, speech = collect(study, steps, workdir)["comparisons"]
        assert text["lower"] is speech["p_value"] is None  # no spread, no interval
        if primary["lower"] is None:  # three differences of the same number of items
            trials -= 1
            continue
        hits += primary["lower"] <= 0.03 <= primary["upper"]
        found += primary["p_value"] < 0.05
        assert primary["corrected_p_value"] is None
    assert trials > 190
    assert 0.91 <= hits / trials <= 0.99
    assert found / trials < 0.3  # three seeds see little of three points
