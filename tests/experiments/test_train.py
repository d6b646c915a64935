"""The training binary as a user runs it: kills, resumption, mistakes."""

import json
import os
import pathlib
import re
import signal

import jax
import numpy as np
import pytest

from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.params import restore_params
from lst_jax.sharding import make_mesh
from lst_jax.training.metrics import read_evaluations, read_records
from lst_jax.training.signals import STOP_SIGNALS
from lst_jax.training.starts import read_starts
from tests.binaries import run_binary
from tests.experiments.train_commands import (
    FILES,
    NUM_STEPS,
    ROOT,
    signal_at,
    start,
    training_flags,
    untimed_records,
    write_corpus,
)

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def train(corpus, workdir, **changes):
    """A run to its end."""
    process = start(*training_flags(corpus, workdir, **changes))
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert f"finished after step {NUM_STEPS}" in output
    return output


def check_same_run(workdir, expected):
    """Bitwise the same parameters, the same records."""
    mesh = make_mesh(devices=jax.devices()[:1])
    jax.tree.map(
        np.testing.assert_array_equal, restore_params(workdir, mesh), restore_params(expected, mesh)
    )
    records = untimed_records(workdir)
    assert records == untimed_records(expected)
    assert len(records) == NUM_STEPS


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(corpus, workdir)
    return workdir


def test_a_killed_run_ends_with_the_same_parameters(corpus, uninterrupted, tmp_path):
    process = start(*training_flags(corpus, tmp_path, NUM_WORKERS=2))
    output = signal_at(process, 10, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL, output
    output = train(corpus, tmp_path, NUM_WORKERS=2)
    assert "resumed at step" in output
    check_same_run(tmp_path, uninterrupted)


@pytest.mark.parametrize("which", STOP_SIGNALS, ids=lambda which: which.name)
def test_a_stopped_run_saves_and_ends_with_the_same_parameters(
    corpus, uninterrupted, tmp_path, which
):
    process = start(*training_flags(corpus, tmp_path))
    output = signal_at(process, 10, which)
    assert process.returncode == 143, output  # steps are left: start it again
    stopped = int(output.rsplit(f"stopped by {which.name} after step ", 1)[1].split(";")[0])
    assert 10 <= stopped < NUM_STEPS
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert f"resumed at step {stopped}" in train(corpus, tmp_path)
    check_same_run(tmp_path, uninterrupted)


def test_a_run_of_joined_units_is_continued_scored_and_heard(corpus, tmp_path):
    """Its unit vocabulary is in `model.json`: the file is needed to train, and then no more."""
    records = next(flag for flag in corpus if "SPEECH_RECORDS" in flag).partition("=")[2]
    units, other, workdir = tmp_path / "units.json", tmp_path / "other.json", tmp_path / "run"
    for path, flags in ((units, ["--vocab_size=520"]), (other, ["--deduplicate"])):
        output = f"--output={path}"
        run_binary("experiments.train_unit_vocabulary", f"--records={records}", output, *flags)
    changes = {"UNIT_VOCABULARY": units, "NUM_STEPS": 3, "STRATEGY": "mixed", "CHECKPOINT_EVERY": 3}
    done = run_binary("experiments.train", *training_flags(corpus, workdir, **changes))
    assert done.returncode == 0, done.stderr
    vocabulary = read_description(workdir).vocabulary
    assert len(vocabulary.units.pieces) == 18 and vocabulary.size == 300 + 6 + 520
    changes["UNIT_VOCABULARY"] = other
    done = run_binary("experiments.train", *training_flags(corpus, workdir, **changes))
    assert done.returncode == 2
    assert "another model: model.vocab_size is 826 there and 808 here" in done.stderr
    units.unlink()
    stories, said = tmp_path / "stories.jsonl", [5, 5, 7, *vocabulary.units.pieces[0]]
    story = {"id": "1", "set": "s", "prompt": {"units": said}, "label": 0}
    endings = [{"units": said[::-1]}, {"units": [1]}]
    stories.write_text(json.dumps(story | {"endings": endings}) + "\n")
    checkpoint = f"--checkpoint={workdir}"
    score = ["--directions=S-S", f"--data={stories}"]
    done = run_binary("experiments.evaluate", checkpoint, *score)
    assert done.returncode == 0, done.stderr
    output = tmp_path / "made"
    ask = [f"--units={','.join(map(str, said))}", "--max_tokens=9", f"--output={output}"]
    done = run_binary("experiments.generate", checkpoint, *ask)
    assert done.returncode == 0, done.stderr
    segments = json.loads(next(output.glob("*.jsonl")).read_text())["segments"]
    made = [unit for segment in segments for unit in segment.get("units") or []]
    assert made and max(made) < 502


def test_evaluation_and_the_profiler_change_nothing_of_a_run(corpus, uninterrupted, tmp_path):
    """Separate held-out records: training sees the same records as the run without them."""
    stories = tmp_path / "stories.jsonl"
    story = {"id": "1", "set": "quick", "prompt": {"text": "the quick"}, "label": 0}
    endings = [{"text": "brown fox"}, {"text": "lazy dog jumps"}]
    stories.write_text(json.dumps(story | {"endings": endings}) + "\n")
    source = next(flag for flag in corpus if "SPEECH_RECORDS" in flag).partition("=")[2]
    gin_file = tmp_path / "held_out.gin"
    gin_file.write_text(
        f"held_out/SourceConfig.path = '{source}'\nheld_out/SourceConfig.kind = 'speech'\n"
        "EvaluationConfig.directions = ('T-T',)\n"
    )
    workdir = tmp_path / "run"
    arguments = training_flags(
        corpus,
        workdir,
        EVAL_EVERY=6,
        EVAL_BATCHES=2,
        EVAL_RECORDS="(@held_out/SourceConfig(),)",
        EVAL_STORIES=f"('{stories}',)",
        CHECKPOINT_EVERY=6,
        KEEP_CHECKPOINTS=1,
        BEST_METRIC="held_out/static/loss",
    )
    process = start(*arguments, f"--gin_file={gin_file}", "--profile_steps=3:4")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    check_same_run(workdir, uninterrupted)
    evaluations = read_evaluations(workdir)
    assert [record["step"] for record in evaluations] == [6, 12, 18, 24]
    for record in evaluations:
        assert record["held_out/static/loss"] > 0
        assert record["held_out/aligned/loss"] != record["held_out/static/loss"]
        assert record["stories/quick/T-T/accuracy"] in (0, 1)
    best = min(evaluations, key=lambda record: record["held_out/static/loss"])["step"]
    left = {int(path.name) for path in (workdir / "checkpoints").iterdir()}
    assert left == {best, NUM_STEPS}
    (trace,) = (workdir / "profile").rglob("*.xplane.pb")
    # The parts of the model are named in it.
    names = trace.read_bytes()
    for part in (b"encoder", b"global", b"decoder", b"loss", b"optimizer"):
        assert part in names


def test_a_second_run_in_a_workdir_is_refused_with_its_own_exit_code(
    corpus, uninterrupted, tmp_path
):
    process = start(*training_flags(corpus, tmp_path))
    for line in process.stdout:
        if line.startswith("step 3/"):
            break
    process.send_signal(signal.SIGSTOP)
    try:
        second = start(*training_flags(corpus, tmp_path))
        output = second.communicate(timeout=120)[0]
    finally:
        process.send_signal(signal.SIGCONT)
    assert second.returncode == 75, output
    assert f"is in use by process {process.pid} on host " in output.strip().splitlines()[-1]
    assert process.communicate(timeout=120) and process.returncode == 0
    check_same_run(tmp_path, uninterrupted)


def test_a_killed_data_worker_ends_a_run_in_one_line(corpus, tmp_path):
    process = start(*training_flags(corpus, tmp_path, NUM_WORKERS=1, NUM_STEPS=5000))
    lines = iter(process.stdout)
    while not next(lines).startswith("step 8/"):
        pass
    tasks = pathlib.Path(f"/proc/{process.pid}/task").glob("*/children")
    for child in " ".join(task.read_text() for task in tasks).split():
        if b"spawn_main" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 1, output  # no setting or file can mend it
    error = output.splitlines()[-1]
    assert error.startswith("error: no batch after step ")
    assert f"the last good checkpoint is {tmp_path}/checkpoints/" in error
    assert "Traceback" not in output


def test_a_full_disk_ends_a_run_in_one_line_while_a_checkpoint_is_written(corpus, tmp_path):
    # Kept programs would have no room, either, and JAX warns of that.
    flags = [x for x in training_flags(corpus, tmp_path / "run") if "cache_dir" not in x]
    done = run_binary(
        "experiments.train", *flags, "--gin.WRITERS=('console',)", largest_file=16_000
    )
    assert done.returncode == 2
    expected = f"error: a checkpoint in {tmp_path}/run/checkpoints cannot be saved: "
    assert done.stderr.startswith(expected) and done.stderr.count("\n") == 1
    assert not list((tmp_path / "run").rglob("*checkpoint*"))


def test_a_change_on_the_way_is_said_and_kept(corpus, tmp_path):
    first = start(*training_flags(corpus, tmp_path))
    signal_at(first, 5, signal.SIGTERM)
    output = train(corpus, tmp_path, LOG_EVERY=2)
    assert "changed: TrainingConfig.log_every is 2, was 1\n" in output
    assert output.count("changed: ") == 1
    starts = read_starts(tmp_path)
    assert len(starts) == 2
    assert "LOG_EVERY = 1" in starts[0]["config"]
    assert "LOG_EVERY = 2" in starts[1]["config"]


def test_data_that_end_early_are_said_in_one_line_and_the_last_state_is_saved(corpus, tmp_path):
    arguments = training_flags(corpus, tmp_path, NUM_STEPS=5000, CHECKPOINT_EVERY=5000)
    process = start(*arguments, "--gin.DataConfig.num_epochs=1")
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 2, output
    last = read_records(tmp_path)[-1]["step"]
    told = re.search(r"the data give about (\d+) steps, fewer than the 5000 of the run", output)
    assert abs(int(told[1]) - last) <= 2 + last / 6
    error = output.strip().splitlines()[-1]
    assert error.startswith(f"error: the data ended after {last} steps, expected 5000; ")
    assert (tmp_path / "checkpoints" / str(last)).is_dir()


def test_a_console_that_vanishes_does_not_end_a_run(corpus, uninterrupted, tmp_path):
    process = start(*training_flags(corpus, tmp_path))
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=240) == 0
    check_same_run(tmp_path, uninterrupted)


def test_the_workdir_tells_how_the_run_was_made(uninterrupted):
    config = (uninterrupted / "config.gin").read_text()
    assert "train.model = @LSTConfig" in config
    assert f"NUM_STEPS = {NUM_STEPS}" in config
    description = read_description(uninterrupted)
    assert description.model.dim_global == 32
    assert description.vocabulary.unit_count == 502
    assert description.data.patching.strategy == "curriculum"
    assert any((uninterrupted / "events").iterdir())


def test_the_curriculum_of_a_run_is_in_its_records(uninterrupted):
    fractions = [record["aligned_fraction"] for record in read_records(uninterrupted)]
    third = NUM_STEPS // 3
    assert set(fractions[:third]) == {1.0}
    assert set(fractions[2 * third :]) == {0.0}
    assert any(0 < fraction < 1 for fraction in fractions[third : 2 * third])


def mistakes(corpus, uninterrupted):
    """Arguments, and what the one line must say."""
    records = [corpus[0], f"--gin.SPEECH_RECORDS={ROOT / 'tests'}"]
    return {
        "no workdir": (FILES, "workdir"),
        "no file": (
            ["--gin_file=none.gin", "--workdir=unused"],
            "error: Gin file none.gin: no such file",
        ),
        "name": ([*FILES, *corpus, "--gin.NUM_STEP=3", "--workdir=unused"], "--gin.NUM_STEP: no"),
        "unset": (
            [*FILES, "--workdir=unused"],
            "error: required and not set: --gin.TOKENIZER=VALUE, --gin.SPEECH_RECORDS=VALUE",
        ),
        "no tokenizer": (
            [*FILES, *corpus, "--gin.TOKENIZER=none.model", "--workdir=unused"],
            "tokenizer model none.model: no such file",
        ),
        "no records": ([*FILES, *records, "--workdir=unused"], "tests"),
        "other model": (
            training_flags(corpus, uninterrupted, DIM_LOCAL=24),
            f"{uninterrupted} holds a run of another model: model.dim_local is 16 there and 24",
        ),
        "longer": (  # its curriculum would end later, and NUM_STEPS says so of both
            training_flags(corpus, uninterrupted, NUM_STEPS=NUM_STEPS + 6),
            "the run's data are others: patching.curriculum_start is 8 in the checkpoint and 10",
        ),
        "shorter": (
            training_flags(corpus, uninterrupted, NUM_STEPS=NUM_STEPS - 6),
            f"TrainingConfig.num_steps is {NUM_STEPS - 6}, expected at least {NUM_STEPS}, which",
        ),
        "seed": (
            [*training_flags(corpus, uninterrupted), "--gin.TrainingConfig.seed=3"],
            "TrainingConfig.seed is 3, expected 0, with which the run",
        ),
        "start": (
            [
                *training_flags(corpus, uninterrupted),
                "--gin.TrainingConfig.initial_checkpoint=elsewhere",
            ],
            "TrainingConfig.initial_checkpoint is 'elsewhere', expected None",
        ),
        "warm-up": (
            training_flags(corpus, uninterrupted, WARMUP_STEPS=NUM_STEPS),
            "warmup_steps is 24, expected fewer than num_steps = 24",
        ),
        "rows": (
            [*training_flags(corpus, "unused"), "--gin.ACCUMULATION_STEPS=3"],
            "the batch has 4 rows, expected a multiple of 3",
        ),
        "profile": (
            [*training_flags(corpus, "unused"), "--profile_steps=3"],
            "profile_steps is '3', expected FIRST:LAST",
        ),
        "metric": (
            training_flags(corpus, "unused", BEST_METRIC="loss"),
            "best_metric is 'loss', expected a metric of the run: none",
        ),
        "writer": (
            [*training_flags(corpus, "unused"), "--gin.WRITERS=('console','disk')"],
            "Experiment.writers is ['disk'], expected names of console, jsonl",
        ),
        "argument": ([*FILES, *corpus, "--workdir=unused", "extra"], "unexpected argument 'extra'"),
    }


@pytest.mark.parametrize("mistake", [*mistakes(["", ""], pathlib.Path())])
def test_mistakes_end_with_one_clear_line(corpus, uninterrupted, mistake):
    arguments, message = mistakes(corpus, uninterrupted)[mistake]
    described = [(uninterrupted / name).read_text() for name in ("model.json", "config.gin")]
    result = run_binary("experiments.train", *arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (ROOT / "unused").exists()
    after = [(uninterrupted / name).read_text() for name in ("model.json", "config.gin")]
    assert after == described


def test_a_loss_that_is_not_finite_has_its_own_exit_code(corpus, tmp_path):
    arguments = training_flags(corpus, tmp_path, PEAK_LEARNING_RATE="1e30", WARMUP_STEPS=0)
    process = start(*arguments)
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 3
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: text_nll is nan at step 2; there is no checkpoint before it")
