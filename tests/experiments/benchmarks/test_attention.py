"""The attention benchmark: it measures every case and reports what it should."""

import json

import pytest

from tests.binaries import run_binary

pytestmark = pytest.mark.multiprocess


@pytest.mark.slow
def test_every_attention_is_measured_with_every_backend(tmp_path):
    output = tmp_path / "attention.json"
    flags = ["--lengths=96", "--window=16", "--documents=packed", "--heads=1", "--repeats=1"]
    result = run_binary("experiments.benchmarks.attention", f"--output={output}", *flags)
    assert result.returncode == 0, result.stderr
    table = result.stdout
    report = json.loads(output.read_text())
    attentions = ("token self", "encoder cross", "global", "decoder cross")
    assert [(r["attention"], r["backend"]) for r in report["results"]] == [
        (attention, backend) for attention in attentions for backend in ("dense", "blocked")
    ]
    for result in report["results"]:
        assert 0 < result["pairs"] <= result["queries"] * result["keys"]
        assert result["forward_ms"] > 0 and result["forward_backward_temp_mib"] > 0
        assert f"{result['attention']:>15}{result['tokens']:>8}" in table
    assert [row["attention"] for row in report["blocked_against_dense"]] == list(attentions)
    assert set(flags) < set(report["command"].split())


def test_a_mistake_is_one_line():
    result = run_binary("experiments.benchmarks.attention", "--documents=many")
    assert result.returncode == 2
    assert "documents is 'many', expected packed or one" in result.stderr
