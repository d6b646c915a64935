"""Fits of a study's results: the law that made them comes back, and too few cells are refused."""

import dataclasses
import itertools
import json

import pytest

from experiments.studies.fit_figures import draw_fits
from experiments.studies.fitting import fit_study, fits_to_json, format_fits, format_predictions


def results(sizes, budgets):
    """Of two seeds, exact: L = 1 + 400 / N^0.5 + 900 / D^0.4 at C = 6 N D."""
    cells = []
    for arm, size, flops, seed in itertools.product(("lst",), sizes, budgets, (0, 1)):
        data = flops / (6 * size)
        loss = (1 + 400 / size**0.5 + 900 / data**0.4) * (1 + 1e-4 * (seed - 0.5))
        cells.append(
            {
                **{"arm": arm, "state": "scored", "seed": seed, "parameters": size},
                "training": {"total_tokens": data, "total_flops": flops},
                "metrics": {"speech": loss, "mean/S-S": max(0.5, 1 - loss / 20)},
                "chances": {"mean/S-S": 0.5},
            }
        )
    return {"cells": [*cells, {"arm": "lst", "state": "missing"}]}


@pytest.mark.slow
def test_the_law_of_the_cells_comes_back():
    (fit,) = fit_study(results((1e5, 4e5, 1.6e6, 6.4e6), (1e13, 1e14, 1e15)), draws=20)
    assert fit.law.size_exponent.value == pytest.approx(0.5, rel=0.1)
    assert fit.law.data_exponent.value == pytest.approx(0.4, rel=0.1)
    text = format_fits([fit])
    assert "L = E + A/N^α + B/D^β of 24 cells" in text and "N* ∝ C^0.4" in text
    kept = json.dumps(fits_to_json([fit]))
    assert '"law"' in kept and "draws" not in kept
    said = format_predictions([fit], 1e6, 1e16)
    expected = 1 + 400 / 1e3 + 900 / (1e16 / 6e6) ** 0.4
    assert float(said.split("speech: ")[1].split()[0]) == pytest.approx(expected, rel=0.02)
    assert "mean/S-S 0.9" in said and "outside of the cells: flops × 10" in said
    (few,) = fit_study(results((1e5,), (1e13, 1e14)), draws=2)
    # Arms without a law are named beside the others; a law without an optimum says so.
    flat = dataclasses.replace(fit.law, refusal="flat")
    both = format_predictions([dataclasses.replace(fit, law=flat), few], 1e4, 1e14)
    assert "no, points are 2 combinations" in both and "  no optimum: flat" in both
    assert "outside of the cells: size × 0.1" in both
    figures = draw_fits([fit], {"speech": "nats", "text": "bits"})
    assert list(figures) == ["isoFLOP: nats", "accuracy over nats"]
    assert [len(figure.axes) for figure in figures.values()] == [1, 1]


def test_too_few_cells_name_no_optimum():
    fits = fit_study(results((1e5,), (1e13, 1e14)), draws=20)
    assert fits[0].law is None and "  no: points are 2 combinations" in format_fits(fits)
    with pytest.raises(ValueError, match="lst, speech: no, points are 2 combinations"):
        format_predictions(fits, 1e6, 1e16)
    with pytest.raises(ValueError, match="one or more that are scored"):
        fit_study({"cells": []})
