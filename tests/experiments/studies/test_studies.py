"""Planning, claims, results and their refusals, without training anything."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from experiments.studies import plan, running
from experiments.studies.cell_results import (
    collect,
    format_csv,
    format_status,
    pilot_spread,
    score_cell,
)
from experiments.studies.cells import FAILURE, RESULT, RUN, STORIES, Workdir, run_bindings
from experiments.studies.commands import StudyCommands, StudyOptions, choose_cells
from experiments.studies.plan import (
    GroupCost,
    Plan,
    format_plan,
    plan_steps,
    read_steps,
    save_plan,
    with_seconds,
)
from experiments.studies.protocols import StepCost
from experiments.studies.report import write_report
from experiments.studies.running import ChildError, Children, StoppedError, claimed, run_cells
from experiments.studies.study_config import read_study
from lst_jax.checkpoints.description import ModelDescription, write_description
from lst_jax.config import TokenTransformerConfig
from lst_jax.training.lock import LOCK
from lst_jax.vocabulary import Vocabulary

PILOT = "experiments/configs/studies/pilot.gin"
BASE = StepCost(patches=100, speech_units=70, text_tokens=30, speech_seconds=2.8, flops=1e6)
LST = StepCost(patches=100, speech_units=112, text_tokens=48, speech_seconds=4.48, flops=1.2e6)
COSTS = {"base": GroupCost(BASE, 1000), "curriculum": GroupCost(LST, 1100)}


def read(*bindings):
    return read_study([PILOT], ["CORPUS=corpus", *bindings])


def steps(*bindings):
    """Steps by arm, of a study of one budget and seed."""
    study = read("SEEDS=(0,)", *bindings)
    found = plan_steps(study, COSTS)
    return {cell.arm.name: found[cell.name] for cell in study.cells()}


@pytest.mark.parametrize(
    "protocol, unit, amount, expected",
    [
        ("compute", "steps", 600, (600, 600)),
        ("compute", "patches", 60_000, (600, 600)),
        ("flops", "steps", 600, (600, 500)),
        ("flops", "flops", 6e8, (600, 500)),
        ("data", "tokens", 16_000, (160, 100)),
        ("data", "speech_hours", 448 / 3600, (160, 100)),
        ("own", "speech_hours", 448 / 3600, (160, 100)),
        ("own", "steps", 7, (7, 7)),
        ("own", "flops", 6e8, (600, 500)),
    ],
)
def test_a_budget_and_a_protocol_make_steps(protocol, unit, amount, expected):
    found = steps(
        f"Study.protocol='{protocol}'",
        f"Study.budget_unit='{unit}'",
        f"Study.budgets=({float(amount)},)",
    )
    assert (found["base"], found["curriculum"]) == expected


def test_compute_optimal_budgets_are_multiples_of_the_rule():
    costs = {
        name: cost._replace(
            step=dataclasses.replace(cost.step, speech_units=25.0, text_tokens=75.0)
        )
        for name, cost in COSTS.items()
    }
    study = read("Study.budget_unit='optimal'", "Study.budgets=(0.5, 1.0)")
    found = plan_steps(study, costs)
    # 30 tokens a parameter of the reference, 100 tokens a step.
    assert found["base-1optimal-seed0"] == found["curriculum-1optimal-seed0"] == 300
    assert found["base-0.5optimal-seed1"] == 150


def test_an_arm_may_spend_the_flops_of_another_whatever_the_protocol():
    arms = ["Study.arms=(@base/Arm(), @curriculum/Arm(), @more/Arm())", "more/Arm.name='more'"]
    study = read("SEEDS=(0,)", *arms, "more/Arm.same_flops_as='curriculum'")
    found = plan_steps(study, COSTS | {"more": COSTS["base"]})
    assert [found[f"{name}-1000steps-seed0"] for name in ("base", "curriculum", "more")] == [
        *(1000, 1000),
        1200,  # steps of 1e6 FLOPs for 1000 of 1.2e6
    ]


def test_a_protocol_that_cannot_be_met_is_one_line_that_names_the_budget():
    other = dataclasses.replace(LST, patches=50)
    with pytest.raises(ValueError, match=r"budget 1000 steps: compute-controlled: base has 100"):
        plan_steps(read(), COSTS | {"curriculum": GroupCost(other, 1100)})


def test_the_bill_adds_up_and_hours_are_of_measured_steps():
    study = read("SEEDS=(0, 1)")
    bill = Plan(study, COSTS, plan_steps(study, COSTS), {})
    assert bill.hours(study.cells()) is None
    bill = dataclasses.replace(bill, costs=with_seconds(COSTS, {"base": 3.6, "curriculum": 7.2}))
    assert bill.hours(study.cells()) == pytest.approx(2 * (1 + 2))
    *_, total, rest = format_plan(bill, ["base-1000steps-seed0"]).splitlines()
    assert total.split() == ["total", "4,000", "400,000", "520,000", "4.4e+09", "6"]
    assert rest.startswith("3 of 4 cells are left: 5 hours")


def test_the_bill_of_equal_data_says_what_is_saved():
    study = read("Study.protocol='data'", "Study.budgets=(160,)")
    lines = format_plan(Plan(study, COSTS, plan_steps(study, COSTS), {})).splitlines()
    # 100 steps of as many patches, and of 1.2 times the FLOPs, for 160.
    assert "curriculum saves 37.5% of base's patches and 25.0% of its FLOPs" in lines


def test_workers_divide_the_cells_and_devices(tmp_path):
    study = read("SEEDS=(0, 1, 2)")
    parts = [[c.name for c in choose_cells(study, f"{i}/4", ())] for i in (1, 2, 3, 4)]
    assert sorted(name for part in parts for name in part) == sorted(
        cell.name for cell in study.cells()
    )
    name = study.cells()[3].name
    assert [cell.name for cell in choose_cells(study, None, [name])] == [name]
    for share in ("0/2", "3/2", "1", "a/b"):
        with pytest.raises(ValueError, match="expected I/N"):
            choose_cells(study, share, ())
    with pytest.raises(ValueError, match="expected one of base-1000steps-seed0"):
        choose_cells(study, None, ["x"])
    with pytest.raises(ValueError, match="device is 'first', expected numbers"):
        StudyCommands([PILOT], ["CORPUS=corpus"], tmp_path, StudyOptions(device="first"))


def test_every_cell_of_a_pair_is_measured_alike():
    first, second = read("Study.evaluations=3").cells()[:2]
    assert run_bindings(first, 100) == run_bindings(second, 100)
    assert {"NUM_STEPS=100", "EVAL_EVERY=34"} <= set(run_bindings(first, 100))
    assert not any(b.startswith("EVAL_STORIES") for b in run_bindings(read().cells()[0], 9))


def test_a_claim_is_one_worker_s_until_it_dies(tmp_path):
    code = (
        "import fcntl, sys, time\nfile = open(sys.argv[1], 'w')\n"
        "fcntl.lockf(file, fcntl.LOCK_EX)\nprint(flush=True)\ntime.sleep(60)\n"
    )
    (tmp_path / "c").mkdir()
    lock = str(tmp_path / "c" / LOCK)
    with subprocess.Popen([sys.executable, "-c", code, lock], stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        with claimed(tmp_path / "c") as own:
            assert not own
        assert running.owner(tmp_path / "c") == "another process"  # it has not said who it is
        worker.kill()
    with claimed(tmp_path / "c") as own, claimed(tmp_path / "c") as again:
        assert own and not again
    assert running.owner(tmp_path / "c") is running.owner(tmp_path / "d") is None


def test_pinned_workers_have_cores_of_their_own(tmp_path):
    workdir, before = Workdir(tmp_path), os.sched_getaffinity(0)
    with running.pinned(1, workdir):
        (core,) = os.sched_getaffinity(0)
        with pytest.raises(ValueError, match="no other worker"), running.pinned(1, workdir):
            pass  # it has that core alone
    assert core in before and os.sched_getaffinity(0) == before
    most = pytest.raises(ValueError, match=f"at most {len(before)}")
    with most, running.pinned(len(before) + 1, workdir):
        pass


class Fake(Children):
    """Writes what the binaries would, and fails where it is told to."""

    def __init__(self, failing=(), stopping=()):
        super().__init__()
        self.failing, self.stopping, self.commands = failing, stopping, []

    def run(self, command, log):
        self.commands.append(command)
        log.parent.mkdir(parents=True, exist_ok=True)
        folder = log.parent
        if folder.name in self.stopping:
            raise StoppedError("SIGTERM")
        log.write_text("a line\nerror: too small\n" if folder.name in self.failing else "")
        if folder.name in self.failing:
            return 2
        if "trunks" in folder.parts:
            (folder / RUN / "checkpoints" / folder.name).mkdir(parents=True)
            return 0
        arm, seed = folder.name.split("-")[0], int(folder.name[-1])
        if command[0] == "experiments.evaluate":
            write_stories(folder / STORIES, 0.5 + 0.1 * (arm == "curriculum") + 0.01 * seed**2)
        else:
            num = next(x for x in command if "NUM_STEPS" in x).rpartition("=")[2]
            write_metrics(folder / RUN, int(num))
        return 0


def write_stories(path, accuracy):
    entries = [
        {"set_name": name, "direction": d, "accuracy": accuracy + shift, "chance": 0.5}
        for name, shift in (("A", 0.0), ("B", 0.2))
        for d in ("S-S", "T-T")
    ]
    path.write_text(json.dumps({"results": entries}))


def write_metrics(run, num_steps):
    vocabulary = Vocabulary(10, unit_count=4)
    model = TokenTransformerConfig(
        vocab_size=vocabulary.size, dim_global=8, num_layers_global=1, num_heads_global=1
    )
    write_description(run, ModelDescription(model, vocabulary, None))
    totals = {f"total_{name}": 7 for name in ("patches", "tokens", "speech_units", "seconds")}
    records = [
        {"step": step, "total_flops": 10.0 * step} | totals for step in (num_steps // 2, num_steps)
    ]
    losses = {"held_out/static/nats_per_second": 9.0, "held_out/static/bits_per_byte": 3.0}
    losses |= {"held_out/aligned/nats_per_second": 1.0, "evaluation_seconds": 1.0}
    evaluation = {"step": 3 * num_steps // 4, **losses}
    lines = [*records, evaluation, {**evaluation, "step": num_steps}]
    run.joinpath("metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


@pytest.fixture
def ran(tmp_path):
    """A study of three seeds, one cell of which has failed."""
    study, workdir = read("SEEDS=(0, 1, 2)", "Study.budgets=(8,)"), Workdir(tmp_path)
    children = Fake(failing=("base-8steps-seed1",))
    lengths = plan_steps(study, COSTS)
    failed = run_cells(study.cells(), lengths, workdir, children, lambda: None)
    return study, lengths, workdir, failed, children


def test_a_mean_over_named_sets_is_compared_and_shown(tmp_path):
    study, workdir = read("primary/Comparison.metric='B+A/S-S'"), Workdir(tmp_path)
    lengths = plan_steps(study, COSTS)
    for index, cell in enumerate(study.cells()):
        accuracies = {"A/S-S": 0.1 * index, "B/S-S": 0.3, "C/S-S": 0.9, "mean/S-S": 0.5}
        entry = {"metrics": accuracies, "chances": dict.fromkeys(accuracies, 0.5)}
        workdir.cell(cell).mkdir(parents=True)
        training = {"training": {"total_flops": 1.0}, "curve": []}
        (workdir.cell(cell) / RESULT).write_text(json.dumps(entry | training))
    results = collect(study, lengths, workdir)
    (shown, *_) = (x for x in results["means"] if (x["arm"], x["metric"]) == ("base", "B+A/S-S"))
    assert shown["values"] == pytest.approx([0.15, 0.25]) and shown["chance"] == 0.5
    assert results["comparisons"][0]["differences"] == pytest.approx([0.05, 0.05])


def test_a_failed_cell_is_kept_and_the_others_go_on(ran):
    study, lengths, workdir, failed, _ = ran
    assert failed == ["base-8steps-seed1"]
    results = collect(study, lengths, workdir)
    states = [entry["state"] for entry in results["cells"]]
    assert states.count("scored") == 5 and states.count("failed") == 1
    (entry,) = (entry for entry in results["cells"] if entry["state"] == "failed")
    assert entry["error"] == "experiments.train ended with exit code 2: error: too small"
    names = [entry["cell"] for entry in results["cells"]]
    lines = format_status(results, dict.fromkeys(names) | {names[0]: "me"}).splitlines()
    assert lines[0] == f"{names[0]}  running, me" and lines[1] == f"{names[1]}  scored"
    assert lines[2].endswith("failed: " + entry["error"])
    assert lines[-1] == "5 scored, 1 failed, 0 missing"
    # Given again, the command does what is missing and nothing else.
    again = Fake()
    assert run_cells(study.cells(), lengths, workdir, again, lambda: None) == []
    assert [command[0] for command in again.commands] == [
        "experiments.train",
        "experiments.evaluate",
    ]
    assert collect(study, lengths, workdir)["complete"]
    assert not (workdir.cell(study.cells()[2]) / FAILURE).exists()


def test_budgets_share_a_run_that_is_trained_once(tmp_path):
    study = read("SEEDS=(7,)", "Study.budgets=(10, 20, 40)", "Study.decay=0.2")
    lengths, workdir = plan_steps(study, COSTS), Workdir(tmp_path)
    bill = Plan(study, with_seconds(COSTS, dict.fromkeys(COSTS, 3600.0)), lengths, {})
    cells = [cell for cell in study.cells() if cell.arm.name == "base"]
    # Of 10, 20 and 40 steps 8, 16 and 32 are shared.
    assert [bill.trained(cell) for cell in cells] == [8 + 2, 8 + 4, 16 + 8]
    assert bill.hours(cells) == 46
    children = Fake()
    found = run_cells(cells[1:], lengths, workdir, children, lambda: None, bill.branches)
    found += run_cells(cells, lengths, workdir, children, lambda: None, bill.branches)
    assert found == []
    trained = [command for command in children.commands if command[0] == "experiments.train"]
    folders = [str(tmp_path / "trunks" / "base-seed7" / str(step)) for step in (8, 16, 32)]
    cell_folders = [str(workdir.cell(cell)) for cell in cells]
    expected = [*folders[:2], cell_folders[1], folders[2], cell_folders[2], cell_folders[0]]
    workdirs = [flag_of(command, "--workdir") for command in trained]
    assert workdirs == [f"{folder}/run" for folder in expected]
    starts = [flag_of(command, "--gin_binding=INITIAL_CHECKPOINT") for command in trained]
    runs = [f"'{folder}/run'" for folder in folders]
    assert starts == [None, runs[0], runs[1], runs[1], runs[2], runs[0]]
    assert [flag_of(command, "--gin_binding=DECAY_STEPS") for command in trained] == [
        *(None, None, "4", None, "8", "2")
    ]


def flag_of(command, name):
    """The last value of a flag, or of a binding."""
    found = [x.removeprefix(f"{name}=") for x in command if x.startswith(f"{name}=")]
    return found[-1] if found else None


def test_a_cell_that_another_worker_left_is_taken_in_the_next_round(tmp_path):
    study, workdir = read("SEEDS=(0,)"), Workdir(tmp_path)
    first, second = study.cells()
    with contextlib.ExitStack() as other:
        other.enter_context(claimed(workdir.claim(first.name)))
        lengths = plan_steps(study, COSTS)
        # The other worker dies while this one is at the second cell.
        children = Fake()
        assert run_cells(study.cells(), lengths, workdir, children, other.close) == []
    scored = [command for command in children.commands if command[0] == "experiments.evaluate"]
    assert [
        str(workdir.cell(cell)) in str(command)
        for cell, command in zip((second, first), scored, strict=True)
    ] == [True, True]


def test_a_signal_ends_a_worker_and_leaves_the_cell_to_go_on(tmp_path):
    study, workdir = read(), Workdir(tmp_path)
    lengths, name = plan_steps(study, COSTS), study.cells()[1].name
    with pytest.raises(StoppedError):
        run_cells(study.cells(), lengths, workdir, Fake(stopping=(name,)), lambda: None)
    folders = [workdir.cell(cell) for cell in study.cells()]
    assert [(f / RESULT).exists() for f in folders] == [True, False, False, False]
    assert not any((f / FAILURE).exists() for f in folders)


def test_differences_are_of_pairs_and_have_no_interval_of_one(ran):
    study, lengths, workdir, _, _ = ran
    results = collect(study, lengths, workdir)
    primary, text, speech = results["comparisons"]
    assert (primary["kind"], primary["seeds"]) == ("primary", [0, 2])
    np.testing.assert_allclose(primary["differences"], [0.1, 0.1])
    assert primary["mean"] == pytest.approx(0.1) and text["kind"] == "secondary"
    # Differences that are all alike have no spread to make an interval of.
    assert speech["mean"] == 0 and speech["lower"] is speech["corrected_p_value"] is None
    means = {(m["arm"], m["metric"]): m for m in results["means"]}
    mean = means["curriculum", "mean/S-S"]
    np.testing.assert_allclose(mean["values"], [0.7, 0.71, 0.74])
    assert mean["lower"] < mean["mean"] < mean["upper"] and mean["n"] == 3
    assert means["base", "speech"]["mean"] == 9  # of static patches
    assert means["base", "A/S-S"]["chance"] == 0.5
    lines = format_csv(results).splitlines()
    assert len(lines) == 1 + 5 * 8 and lines[1].endswith("A/S-S,0.5")


def test_a_page_shows_in_bold_what_excludes_zero_and_nothing_else(ran, tmp_path):
    study, lengths, workdir, _, _ = ran
    results = collect(study, lengths, workdir)
    bold = "<tr class=clear>"
    assert bold not in write_report(results | {"means": []}, tmp_path).read_text()
    results["comparisons"][1] |= {"lower": 0.01, "upper": 0.2}
    assert write_report(results | {"means": []}, tmp_path).read_text().count(bold) == 1


def test_a_curve_s_flops_lie_between_records(ran):
    study, _, workdir, _, _ = ran
    result = json.loads((workdir.cell(study.cells()[0]) / RESULT).read_text())
    assert [(point["step"], point["flops"]) for point in result["curve"]] == [(6, 60), (8, 80)]


def test_a_run_that_is_not_at_its_end_is_not_scored(ran):
    study, _, workdir, _, _ = ran
    cell = study.cells()[0]
    folder = workdir.cell(cell)
    with pytest.raises(ValueError, match="is at step 8, expected 9"):
        score_cell(cell, 9, folder / RUN, folder / STORIES)


def test_a_pilot_s_spread_is_that_of_its_pairs(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(
        json.dumps({"comparisons": [{"metric": "mean/S-S", "differences": [0.1, 0.3]}]})
    )
    assert pilot_spread(path, "mean/S-S") == pytest.approx(0.2 / 2**0.5)
    with pytest.raises(ValueError, match="no comparison of speech"):
        pilot_spread(path, "speech")


def test_a_changed_study_is_no_study_of_the_workdir(tmp_path):
    study = read()
    bill = Plan(study, COSTS, plan_steps(study, COSTS), {"study": dataclasses.asdict(study)})
    save_plan(bill, Workdir(tmp_path), "here")
    assert read_steps(study, Workdir(tmp_path)) == bill.steps
    with pytest.raises(ValueError, match=r"study.seeds\[2\] is 2, expected unknown"):
        read_steps(read("SEEDS=(0, 1, 2)"), Workdir(tmp_path))


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", {"base-1000steps-seed0": 1000}),
        ("steps", "many"),
        ("steps", {"base-1000steps-seed0": "many"}),
        ("steps", {"base-1000steps-seed0": -1}),
        ("step_seconds", [3]),
        ("step_seconds", {"here": {"base": "fast"}}),
        ("identity", {}),
    ],
)
def test_a_plan_that_was_altered_is_one_line_that_names_it(tmp_path, name, value):
    study, workdir = read(), Workdir(tmp_path)
    bill = Plan(study, COSTS, plan_steps(study, COSTS), {"study": dataclasses.asdict(study)})
    save_plan(bill, workdir, "here")
    kept = json.loads(workdir.plan.read_text())
    workdir.plan.write_text(json.dumps(kept | {"step_seconds": {"base": 0.4}}))
    assert read_steps(study, workdir) == bill.steps  # as an earlier version wrote it
    workdir.plan.write_text(json.dumps(kept | {name: value}))
    with pytest.raises(ValueError, match=r"plan\.json.*expected") as error:
        read_steps(study, workdir)
    assert "\n" not in str(error.value)


def test_a_cell_s_result_that_was_altered_is_one_line_that_names_it(ran):
    study, lengths, workdir, _, _ = ran
    (workdir.cell(study.cells()[0]) / RESULT).write_text('{"metrics": {}}')
    with pytest.raises(ValueError, match=r"seed0/result\.json is without chances, training, curve"):
        collect(study, lengths, workdir)


def test_a_study_that_changed_after_cells_were_scored_is_refused(tmp_path, monkeypatch):
    def planned(study):
        identity = {"study": json.loads(json.dumps(dataclasses.asdict(study)))}
        return Plan(study, COSTS, plan_steps(study, COSTS), identity)

    monkeypatch.setattr(plan, "make_plan", planned)
    workdir = Workdir(tmp_path)
    known = with_seconds(COSTS, {"base": 2.0})
    save_plan(
        dataclasses.replace(plan.load_plan(read(), workdir, "here"), costs=known), workdir, "here"
    )
    # Measured steps are kept until the study changes, which it may until a cell is scored.
    assert plan.load_plan(read(), workdir, "here").costs["base"].step_seconds == 2.0
    assert plan.load_plan(read(), workdir, "there").costs["base"].step_seconds is None
    changed = read("SEEDS=(5, 6)")
    assert plan.load_plan(changed, workdir, "here").costs["base"].step_seconds is None
    folder = workdir.cell(read().cells()[0])
    folder.mkdir(parents=True)
    (folder / RESULT).write_text("{}")
    with pytest.raises(ValueError, match=r"study.seeds\[0\] is 5, expected 0, as when 1 cells"):
        plan.load_plan(changed, workdir, "here")


def test_a_signal_is_passed_on_to_the_child_and_ends_the_wait(tmp_path, monkeypatch):
    code = "import os, signal, time\nos.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(30)"
    monkeypatch.setattr(running.sys, "executable", "python3")
    with Children() as children, pytest.raises(StoppedError, match="SIGTERM"):
        # The child is `python3 -m experiments.studies.child`; here it is the line above.
        monkeypatch.setattr(
            running.subprocess,
            "Popen",
            lambda arguments, _popen=running.subprocess.Popen, **options: _popen(
                ["python3", "-c", code], **options
            ),
        )
        children.run(["x"], tmp_path / "log")


def test_a_binary_that_fails_says_why(tmp_path):
    (tmp_path / "log").write_text("first\nerror: this is why\n\n")

    class Failing(Fake):
        def run(self, command, log):
            return 2

    with pytest.raises(ChildError, match="x ended with exit code 2: error: this is why"):
        running._call(Failing(), ["x"], tmp_path / "log")
