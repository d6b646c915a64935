"""The gate of numerics: recorded losses, and the binary that says where two runs part."""

import json
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.inspection import loss_gate, loss_runs
from experiments.inspection.loss_comparison import (
    RecordedLosses,
    compare,
    read_recorded,
    relative_difference,
    write_recorded,
)
from experiments.inspection.loss_runs import MEASURES, ROOT, RunSettings, platform_in_use

GOLDEN = ROOT / "tests" / "testdata" / "golden_losses.json"
RENEW = f"python -m experiments.compare_losses . --record={GOLDEN.relative_to(ROOT)}"


def run(*arguments, cwd=ROOT):
    command = [sys.executable, "-m", "experiments.compare_losses", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def losses(*values):
    return [
        {"step": step, **dict.fromkeys(MEASURES, value)} for step, value in enumerate(values, 1)
    ]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_losses_are_the_recorded_ones():
    """Bit for bit on recorded versions and instructions; within the measured bound elsewhere."""
    done = run(".", GOLDEN, "--json")
    assert done.returncode in (0, 4), done.stderr
    report = json.loads(done.stdout)
    recorded = any(e["platform"] == platform_in_use() for e in read_recorded(GOLDEN).entries)
    assert report["tolerance"] == 0 or not recorded
    assert report["equal"], f"{report['first']}; where that is meant, {RENEW}"
    assert done.returncode == 0


def test_the_versions_of_the_constraints_are_recorded():
    constraints = dict(
        re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    versions = [entry["platform"]["versions"] for entry in read_recorded(GOLDEN).entries]
    tested = {name: constraints[name] for name in ("jax", "jaxlib", "flax", "optax")}
    assert tested in versions, RENEW


def test_recorded_losses_are_of_runs_that_learn():
    for entry in read_recorded(GOLDEN).entries:
        first, *_, last = entry["losses"]
        assert len(entry["losses"]) == read_recorded(GOLDEN).settings.steps
        for name in ("loss_text", "loss_speech"):
            assert last[name] < 0.9 * first[name]


def test_what_platforms_differ_in_is_far_from_what_mistakes_do():
    assert 0 < read_recorded(GOLDEN).allowed_difference() < 1e-3


@pytest.mark.multiprocess
@pytest.mark.slow
def test_an_option_that_changes_the_numbers_is_seen(tmp_path):
    done = run(".", GOLDEN, "--gin_a=OptimizerConfig.beta2=0.951", "--json")
    assert done.returncode == 4, done.stderr
    report = json.loads(done.stdout)
    step, name, ours, recorded = report["first"]
    assert (step, name) != (1, "loss_text")  # the first loss is before any update
    assert ours != recorded
    assert max(report["differences"]) > report["tolerance"]


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_commit_is_trained_by_its_own_code(tmp_path):
    """A repository of two commits, the second of which changes the model."""
    code = loss_runs.find_code("HEAD", tmp_path / "code")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", code], check=True)
    layers = code / "lst_jax" / "model" / "layers.py"

    def commit(name):
        subprocess.run(["git", "add", "-A"], cwd=code, check=True)
        subprocess.run([*git, "commit", "-qm", name], cwd=code, check=True)

    commit("first")
    text = layers.read_text()
    assert text.count("nn.silu(") == 1
    layers.write_text(text.replace("nn.silu(", "1.001 * nn.silu("))
    commit("second")
    module = [sys.executable, "-m", "experiments.compare_losses", "HEAD~1"]
    for other, exit_code in (("HEAD~1", 0), ("HEAD", 4)):
        done = subprocess.run([*module, other, "--steps=2"], cwd=code, capture_output=True)
        assert done.returncode == exit_code, done.stderr


@pytest.mark.multiprocess
@pytest.mark.slow
def test_meshes_differ_by_rounding():
    done = run(".", GOLDEN, "--mesh_a=data=2,fsdp=2,tensor=1", "--tolerance=1e-3", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["first"] is not None


@pytest.mark.parametrize(
    ("sides", "options", "message"),
    [
        ([], {}, "expected two"),
        (["."], {}, "expected two"),
        ([".", "."], {"record": "x"}, "expected one"),
        (["no_such_commit", "."], {}, r"side A \(no_such_commit\): .* expected a commit"),
        (["--help", "."], {}, "expected a commit"),
        ([str(GOLDEN)] * 2, {}, "at most one file"),
        ([".", str(GOLDEN)], {"steps": 3}, "brings its --steps"),
        ([".", str(GOLDEN)], {"bindings": ["SEED=1"]}, "brings its --steps"),
        ([".", "."], {"meshes": ("3", None)}, "mesh is '3'"),
        ([".", "."], {"steps": 0}, "steps is 0"),
    ],
)
def test_a_mistake_in_the_sides_is_named(sides, options, message):
    with pytest.raises(ValueError, match=message):
        loss_gate.run(sides, loss_gate.GateOptions(**options))


@pytest.mark.slow
@pytest.mark.multiprocess
def test_a_side_that_cannot_run_is_one_line():
    done = run(".", ".", "--gin_a=NO_SUCH=1")
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: side A (.): training failed with exit code 2: ")
    assert "NO_SUCH" in line
    assert len(line) < 500
    assert "Traceback" not in done.stderr


@given(st.lists(st.floats(1e-3, 1e3), min_size=1), st.data())
def test_runs_part_at_the_first_value_that_differs(values, data):
    index = data.draw(st.integers(0, len(values) - 1))
    changed = [*values]
    changed[index] *= 1 + 1e-9
    assert compare(losses(*values), losses(*values)).first is None
    parting = compare(losses(*values), losses(*changed))
    assert parting.first[0] == index + 1
    assert parting.largest == pytest.approx(1e-9, rel=1e-3)


def test_a_loss_that_is_missing_is_no_small_difference():
    assert relative_difference(None, None) == 0
    assert relative_difference(None, 1.0) == float("inf")
    with pytest.raises(ValueError, match="1 and 2 steps"):
        compare(losses(1.0), losses(1.0, 2.0))


def test_each_platform_has_one_entry_and_others_are_allowed_what_was_measured(tmp_path):
    def entry(name, value, difference):
        return {
            "platform": {"machine": name},
            "instruction_set_difference": difference,
            "losses": losses(value),
        }

    recorded = RecordedLosses(RunSettings(steps=1), [])
    for values in (("x", 3.0, 0.0), ("x", 1.0, 1e-6), ("y", 1.00001, 2e-6)):
        recorded = recorded.replace(entry(*values))
    write_recorded(tmp_path / "losses.json", recorded)
    recorded = read_recorded(tmp_path / "losses.json")
    assert recorded.settings == RunSettings(steps=1)
    assert recorded.find({"machine": "x"}) == (losses(1.0), 0.0)
    found, allowed = recorded.find({"machine": "z"})
    assert found == losses(1.00001)
    assert allowed == pytest.approx(4e-5, rel=1e-3)


@pytest.mark.parametrize("text", ["[]", "{}", '{"version": 2}', '{"version": 1, "settings": []}'])
def test_a_file_that_is_none_of_losses_is_refused(tmp_path, text):
    path = tmp_path / "losses.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_recorded(path)
