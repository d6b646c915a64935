"""The accelerator benchmark on a CPU, at tiny size: all stages, a kill, a budget, mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments.benchmarks.job_runner import read_records
from experiments.benchmarks.step_timing import make_batches
from experiments.common.step_config import PRESETS, baseline, preset

ROOT = pathlib.Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "experiments.benchmarks.accelerator", "--models=tiny"]
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


def run(*flags, check=True):
    command = [*COMMAND, *flags]
    return subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, check=check, capture_output=True, text=True
    )


@pytest.mark.multiprocess
@pytest.mark.slow
def test_every_stage_leaves_results(tmp_path):
    run("--minutes=12", "--most_rows=1", f"--output={tmp_path}")
    header, *records = read_records(tmp_path / "accelerator.jsonl")
    assert header["stage"] == "run" and header["platform"] == "cpu" and header["versions"]["jax"]
    assert header["command"].startswith("python -m experiments.benchmarks.accelerator")
    assert not [x for x in records if x["status"] in ("failed", "cut off", "skipped")]
    found = {stage: [] for stage in [x["stage"] for x in records]}
    for record in records:
        if record["status"] == "ok":
            found[record["stage"]].append(record)
    assert list(found) == [
        *("device", "numerics", "step", "trace", "attention", "parts", "decoding", "convergence")
    ]
    for record in found["numerics"]:
        if "errors" in record:
            bound = 1e-2 if record["dtype"] == "bfloat16" else 1e-5
            assert record["worst"] < bound
            assert len(record["errors"]) == 4
    assert {x["auto"] for x in found["numerics"] if "auto" in x} == {"blocked"}
    steps = [x for x in found["step"] if "patches_per_second" in x]
    assert [x["remat"] for x in steps] == ["none", "dots"]
    for step in steps:
        assert 0 < step["mfu"] < 1 and step["rows"] == 1 and np.isfinite(step["loss"])
        rate = step["patches_per_step"] / (step["step"]["median_ms"] / 1e3)
        assert step["patches_per_second"] == pytest.approx(rate)
    assert {x["attention"] for x in found["attention"]} == {
        *("token self", "encoder cross", "global", "decoder cross")
    }
    (parts,) = found["parts"]
    assert [part["part"] for part in parts["parts"]] == [
        *("encoder", "global", "decoder", "loss", "optimizer")
    ]
    (trace,) = found["trace"]
    assert (tmp_path / trace["file"]).stat().st_size > 1000
    assert trace["kernels_ms_per_step"]
    assert [x["model"] for x in found["decoding"]] == ["LST", "baseline"]
    (convergence,) = found["convergence"]
    losses = convergence["losses"]["float32"]
    assert losses[-1] < losses[0] - 0.2 and convergence["largest_difference"] < 0.1


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_killed_run_leaves_results_that_count(tmp_path):
    path = tmp_path / "accelerator.jsonl"
    flags = ["--minutes=5", "--stages=device,numerics", f"--output={tmp_path}"]
    process = subprocess.Popen([*COMMAND, *flags], cwd=ROOT, env=ENVIRONMENT, stdout=-3)
    while sum(x.get("status") == "ok" for x in read_records(path)) < 2:
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(x.get("status") == "ok" for x in records) >= 2
    count = len(records)
    run("--minutes=0.5", "--stages=device", f"--output={tmp_path}")
    again = read_records(path)
    assert again[:count] == records and again[count]["stage"] == "run"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_the_budget_is_kept(tmp_path):
    begin = time.monotonic()
    run("--minutes=0.4", f"--output={tmp_path}", check=False)
    assert time.monotonic() - begin < 0.4 * 60 + 3
    records = read_records(tmp_path / "accelerator.jsonl")
    # What did not fit was left out, or, on a machine that is busy, cut off.
    assert {x["status"] for x in records[1:]} & {"skipped", "cut off"}
    assert not [x for x in records if x.get("status") == "failed"]
    assert "convergence" not in {x["stage"] for x in records if x.get("status") == "begun"}


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--stages=device,dance"], "stages is 'device,dance', expected some of device,"),
        (["--models=huge"], "models is 'huge', expected some of tiny,"),
        (["--minutes=nan"], "minutes is nan, expected 0 …"),
        (["--minutes=-1"], "minutes is -1.0, expected 0 …"),
        (["--attention=fast"], "attention"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, flags, says):
    output = tmp_path / "new"
    result = run(f"--output={output}", *flags, check=False)
    assert result.returncode in (1, 2)
    (line,) = result.stderr.strip().splitlines()
    assert says in line and len(line) < 500
    assert not output.exists()


@pytest.mark.multiprocess
def test_an_empty_output_is_refused():
    result = run("--output=", check=False)
    assert "--output=: it is '', expected a local path" in result.stderr


@pytest.mark.parametrize("name", PRESETS)
def test_presets_describe_steps_that_fit_together(name):
    config = preset(name)
    assert config.model.vocab_size == config.vocabulary.size
    unpatched = baseline(config)
    assert unpatched.num_tokens == unpatched.num_patches == config.num_patches
    small = make_batches(preset("tiny"), 2)[0]
    assert small.tokens.shape == (2, 352)
    assert small.tokens.max() < preset("tiny").vocabulary.size
