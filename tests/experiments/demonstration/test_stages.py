"""The demo's lengths and branches, with trainings that are only recorded."""

import json
import time
import types

import pytest

from data_pipelines.microworld.corpus import MicroworldConfig
from experiments.demonstration import stages
from experiments.demonstration.run_lengths import read_plan

ROWS = ["BATCH_ROWS=8"]  # one for each of the tests' devices


@pytest.fixture
def trained(monkeypatch):
    """The lengths of trainings, whose LST takes twice the time and 1.5 times the FLOPs a step."""
    lengths = {}

    def train(experiment, workdir, _):
        steps = lengths[workdir.name] = experiment.training.num_steps
        factor = 1 if "baseline" in workdir.name else 2
        record = {"step": steps, "step_seconds": 0.1 * factor}
        record["total_flops"] = steps * (2e9 if factor == 1 else 3e9)
        workdir.mkdir(parents=True)
        (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
        return types.SimpleNamespace(finished=True)

    monkeypatch.setattr(stages, "run_experiment", train)
    return lengths


def test_lengths_follow_from_steps_that_were_timed_and_stay(tmp_path, trained):
    demo = stages.Demo(tmp_path, MicroworldConfig(), 20.0, [], ROWS)
    assert demo._measure(time.monotonic())
    plan = read_plan(tmp_path / "plan.json", 20.0)
    assert (plan.lst_seconds, plan.baseline_seconds) == (0.2, 0.1)
    assert (plan.lst_flops, plan.baseline_flops) == (3e9, 2e9)
    assert plan.steps > 1000
    assert set(trained.values()) == {30} and not list(tmp_path.glob("pilot*"))

    assert demo._train("lst") and trained["lst"] == plan.steps
    longer, shorter = demo._baselines()
    assert (longer, shorter) == ("baseline", "baseline_equal_steps")
    assert demo._steps("baseline") == pytest.approx(1.5 * plan.steps, abs=5)
    trunk, branch = (demo._configure(name) for name in (longer, shorter))
    origin = f"{tmp_path}/baseline/{plan.steps - plan.steps // 5}"
    assert branch.training.initial_checkpoint == origin
    assert branch.training.initial_state == "all" and trunk.training.initial_checkpoint is None
    assert branch.training.num_steps == plan.steps
    assert trunk.training.keep_every == plan.steps - branch.optimizer.decay_steps
    assert branch.optimizer.schedule == trunk.optimizer.schedule == "wsd"
    assert demo._configure("lst_asr").training.num_steps == plan.steps // 3

    again = stages.Demo(tmp_path, MicroworldConfig(), 20.0, [], ROWS)
    assert again._steps("lst") == plan.steps


def test_what_the_demo_sets_itself_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^--gin\.DECAY_STEPS is 'DECAY_STEPS = 3', expected none"
    ):
        stages.Demo(tmp_path, MicroworldConfig(), 20.0, [], ["DECAY_STEPS = 3"])
