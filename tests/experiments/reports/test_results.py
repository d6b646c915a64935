"""Pages of results: up to date with the result files, and whole for any run."""

import dataclasses
import json
import re

import pytest

from experiments.reports import results
from experiments.reports.study_results import studies_page
from experiments.studies.study_config import read_study, study_files

RUN = {
    "stage": "run",
    "device": "NVIDIA H100 80GB HBM3",
    "started": "2026-11-28T02:00:00Z",
    "driver": "580.1",
    "python": "3.12.3",
    "versions": {"jax": "0.11.2"},
    "command": "python -m experiments.benchmarks.accelerator --output=x",
}
STEP = {
    "stage": "step",
    "job": "1b none",
    "status": "ok",
    "model": "1b",
    "remat": "none",
    "rows": 6,
    "step": {"median_ms": 480.4},
    "patches_per_second": 51234.5,
    "tokens_per_second": 70000.0,
    "mfu": 0.5,
    "memory": {"planned_peak": 2**36},
}


@pytest.fixture(scope="module")
def pages():
    return results.pages()


def test_the_pages_are_what_the_result_files_say(pages):
    assert {path.name for path in results.PAGES.iterdir()} == set(pages)
    for name, page in pages.items():
        written = (results.PAGES / name).read_text(encoding="utf-8")
        assert written == page, "run python -m experiments.reports.results"


def test_every_result_file_is_named_on_a_page(pages):
    text = "\n".join(pages.values())
    for path in results.RESULTS.glob("*.json"):
        assert path.name in text, f"{path.name} is shown on no page"


def test_the_index_names_every_page(pages):
    linked = set(re.findall(r"\(([a-z]+\.md)\)", pages["index.md"]))
    assert linked == set(pages) - {"index.md"}


def test_rows_of_a_table_have_as_many_cells_as_its_head(pages):
    for name, page in pages.items():
        for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
            counts = {len(re.split(r"(?<!\\)\|", line)) for line in block.splitlines()}
            assert len(counts) == 1, f"{name}: {block}"


def test_gpu_results_do_without_files_that_are_not_there(tmp_path):
    assert "Nothing has been timed on a GPU yet" in results.gpu_results(tmp_path)


def test_a_run_that_was_cut_off_gives_what_it_has(tmp_path):
    kernels = (results.RESULTS / "gpu_kernels.json").read_text()
    (tmp_path / "gpu_kernels.json").write_text(kernels)
    (tmp_path / "accelerator").mkdir()
    failed = {"stage": "trace", "job": "1b", "status": "failed", "error": "RuntimeError: a | b"}
    old = [{"stage": "run"}, {"stage": "step", "status": "begun", "job": "420m none"}]
    lines = [json.dumps(x) for x in (*old, RUN, STEP | {"status": "begun"}, STEP, failed)]
    (tmp_path / "accelerator" / "h100.jsonl").write_text("\n".join(lines) + "\n")
    page = results.gpu_results(tmp_path)
    assert "Nothing has been timed" not in page and "420m none" not in page
    assert "| 1b | none | 6 | 480 ms | 51,234 | 70,000 | 50.0% | 64.00 GiB |" in page
    assert "| trace: 1b | failed | RuntimeError: a \\| b |" in page


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, "mean/S-S, a − b: 1.2 (-0.5 … 3.0, 3 seeds)"),
        ({"lower": None, "seeds": [0]}, "mean/S-S, a − b: 1.2 (1 seed)"),
        ({"metric": "speech"}, "speech, a − b: 0.012 (-0.005 … 0.030, 3 seeds)"),
        ({"mean": None}, "| the paper's | "),
    ],
)
def test_a_study_that_was_run_shows_its_primary_comparison(changes, shown):
    (file,) = [file for file in study_files() if file.stem == "patch_size"]
    study = dataclasses.replace(read_study([str(file)], ["CORPUS=c"]), paper="the paper's")
    found = {"kind": "primary", "arm": "a", "against": "b", "metric": "mean/S-S", "mean": 0.0124}
    found |= {"lower": -0.005, "upper": 0.03, "seeds": [0, 1, 2]} | changes
    other = {"kind": "secondary", "metric": "speech"}
    results_of = {"patch_size": {"comparisons": [other, found]}}
    page = studies_page({"patch_size": study, "unrun": study}, {}, results_of)
    row, unrun = [line for line in page.splitlines() if line.startswith("| How many")]
    assert shown in row and "static_3, static_4, static_6, static_9" in row
    assert "| the paper's |  | 12 |  |  |  |" in unrun
