"""The binary as a user runs it: stopped, going on with two workers, one killed, and reporting."""

import json
import pathlib
import signal
import time

import pytest

from lst_jax.training.lock import LOCK
from tests.binaries import Binary
from tests.experiments.train_commands import SETTINGS, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
NUM_STEPS = 8
STUDY = f"""
Study.name = 'tiny'
Study.data = @StudyData()
StudyData.files = ('experiments/configs/data/speech.gin',)
Study.files = ('experiments/configs/models/tiny.gin', 'experiments/configs/runs/tiny.gin')
Study.arms = (@base/Arm(), @static/Arm())
base/Arm.name = 'base'
base/Arm.files = ('experiments/configs/runs/baseline.gin',)
static/Arm.name = 'static'
static/Arm.bindings = ('STRATEGY=static',)
Study.seeds = (3,)
Study.budgets = ({NUM_STEPS}.0,)
Study.directions = ('T-T',)
Study.primary = @Comparison()
Comparison.arm = 'static'
Comparison.against = 'base'
Comparison.metric = 'speech'
Study.held_out_share = 0.3
Study.held_out_batches = 1
Study.plan_batches = 4
"""


@pytest.fixture
def study(tmp_path):
    """Starts the binary with a verb and flags, in one workdir."""
    corpus = write_corpus(tmp_path)
    bindings = [flag.removeprefix("--gin.") for flag in corpus if flag.startswith("--gin.")]
    stories = tmp_path / "stories.jsonl"
    story = {"id": "1", "set": "quick", "prompt": {"text": "the quick"}, "label": 0}
    stories.write_text(json.dumps(story | {"endings": [{"text": "fox"}, {"text": "dog"}]}) + "\n")
    settings = SETTINGS | {"NUM_TOKENS": 160}
    del settings["NUM_STEPS"]
    file = tmp_path / "tiny.gin"
    file.write_text(
        f"{STUDY}Study.bindings = {tuple(f'{name}={x}' for name, x in settings.items())}\n"
        f"StudyData.bindings = {tuple(bindings)}\nStudyData.stories = ({str(stories)!r},)\n"
    )

    def start(verb, *flags):
        workdir = f"--workdir={tmp_path / 'study'}"
        return Binary("experiments.study", verb, f"--gin_file={file}", workdir, *flags)

    return start, tmp_path / "study"


def finish(process):
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return output


def wait_for(log: pathlib.Path, text, *processes):
    """Waits for a line while one of the processes lives."""
    end = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()):
        assert any(process.returncode is None for process in processes)
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopped_study_goes_on_with_two_workers_one_of_which_is_killed_and_reports(study):
    start, workdir = study
    process = start("run", "--threads=1")
    log = workdir / "cells" / f"base-{NUM_STEPS}steps-seed3" / "log.txt"
    wait_for(log, f"step 2/{NUM_STEPS}", process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 143, output
    first, second = (start("run", "--threads=1") for _ in range(2))
    cell = f"static-{NUM_STEPS}steps-seed3"
    wait_for(workdir / "cells" / cell / "log.txt", f"step 2/{NUM_STEPS}", first, second)
    holder = json.loads((workdir / "claims" / cell / LOCK).read_text())["process"]
    killed, left = (first, second) if holder == first.pid else (second, first)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    # It has lost its claim, and its run has ended with it.
    said = finish(left)
    if cell not in said:  # it had nothing else to do, and ended before the other was killed
        said = finish(start("run", "--threads=1"))
    assert "scored after" in said[said.index(cell) :] and "resumed at step" in log.read_text()
    results = json.loads((workdir / "results.json").read_text())
    assert results["complete"]
    (comparison,) = results["comparisons"]
    assert comparison["seeds"] == [3] and comparison["lower"] is None
    for cell in results["cells"]:
        assert set(cell["metrics"]) == {"quick/T-T", "mean/T-T", "speech", "text"}
        assert cell["training"]["total_flops"] > 0
    # Of one length and of the same words: the losses are of one size, the tokens are not.
    base, static = (cell["metrics"]["speech"] for cell in results["cells"])
    assert 0.5 < base / static < 2
    page = (workdir / "report.html").read_text()
    assert page.count("<svg") == 3 and "Traceback" not in page
