"""The training binary as a user runs it: kills, resumption, mistakes."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from data_pipelines.records import write_records
from data_pipelines.reference_jsonl import read_reference_jsonl
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.checkpoints import read_description, restore_params
from lst_jax.metrics import read_records
from lst_jax.sharding import make_mesh
from lst_jax.vocabulary import TextTokenizer

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "testdata" / "mls_sample.jsonl"
NUM_STEPS = 24
MODEL = ["--gin_file=experiments/configs/models/tiny.gin"]
FILES = [
    *MODEL,
    "--gin_file=experiments/configs/data/speech.gin",
    "--gin_file=experiments/configs/runs/tiny.gin",
]
SETTINGS = {
    "DIM_LOCAL": 16,
    "DIM_GLOBAL": 32,
    "NUM_LAYERS_GLOBAL": 1,
    "NUM_LAYERS_DECODER": 1,
    "NUM_HEADS_LOCAL": 2,
    "NUM_HEADS_GLOBAL": 2,
    "ATTENTION": "dense",
    "MULTIPLE_OF": 16,
    "NUM_STEPS": NUM_STEPS,
    "WARMUP_STEPS": 2,
    "BATCH_ROWS": 4,
    "NUM_PATCHES": 48,
    "NUM_TOKENS": 96,
    "LOG_EVERY": 1,
    "CHECKPOINT_EVERY": 3,
}
# Of a record, what is not a measurement of time.
TIMES = {"units_per_second", "tokens_per_second", "mfu", "step_seconds", "eta_seconds"} | {
    "total_seconds"
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The flags that name a tokenizer, records and the kept programmes."""
    root = tmp_path_factory.mktemp("corpus")
    tokenizer = TextTokenizer(
        train_tokenizer(["the quick brown fox jumps over the lazy dog"], root / "t", 300)
    )
    write_records(root / "speech", "speech", read_reference_jsonl([SAMPLE], tokenizer), tokenizer)
    return [
        f"--gin.TOKENIZER={tokenizer.model_path}",
        f"--gin.SPEECH_RECORDS={root / 'speech'}",
        f"--compilation_cache_dir={root / 'programmes'}",
    ]


def command(*arguments):
    return [sys.executable, "-m", "experiments.train", *arguments]


def environment():
    """One CPU device: what is compared here is a run with itself."""
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONUNBUFFERED": "1"}


def start(*arguments):
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def training_flags(corpus, workdir, **changes):
    bindings = [f"--gin.{name}={value}" for name, value in (SETTINGS | changes).items()]
    return [*FILES, *bindings, *corpus, f"--workdir={workdir}"]


def train(corpus, workdir, **changes):
    """A run to its end."""
    process = start(*training_flags(corpus, workdir, **changes))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    assert f"finished after step {NUM_STEPS}" in output
    return output


def signal_at(step, which, corpus, workdir, **changes):
    """Starts a run and signals it when it reports `step`: exit status and output."""
    process = start(*training_flags(corpus, workdir, **changes))
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            process.send_signal(which)
            break
    lines.append(process.communicate(timeout=120)[0])
    return process.returncode, "".join(lines)


def check_same_run(workdir, expected):
    """Bitwise the same parameters, the same records."""
    mesh = make_mesh(devices=jax.devices()[:1])
    jax.tree.map(
        np.testing.assert_array_equal, restore_params(workdir, mesh), restore_params(expected, mesh)
    )
    untimed = [
        [{k: v for k, v in record.items() if k not in TIMES} for record in read_records(path)]
        for path in (workdir, expected)
    ]
    assert untimed[0] == untimed[1]
    assert len(untimed[0]) == NUM_STEPS


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    train(corpus, workdir)
    return workdir


def test_a_killed_run_ends_with_the_same_parameters(corpus, uninterrupted, tmp_path):
    status, output = signal_at(10, signal.SIGKILL, corpus, tmp_path, NUM_WORKERS=2)
    assert status == -signal.SIGKILL, output
    output = train(corpus, tmp_path, NUM_WORKERS=2)
    assert "resumed at step" in output
    check_same_run(tmp_path, uninterrupted)


def test_a_terminated_run_saves_and_ends_with_the_same_parameters(corpus, uninterrupted, tmp_path):
    status, output = signal_at(10, signal.SIGTERM, corpus, tmp_path)
    assert status == 0, output
    stopped = int(output.rsplit("stopped by SIGTERM after step ", 1)[1].split(";")[0])
    assert 10 <= stopped < NUM_STEPS
    assert (tmp_path / "checkpoints" / str(stopped)).is_dir()
    assert f"resumed at step {stopped}" in train(corpus, tmp_path)
    check_same_run(tmp_path, uninterrupted)


def test_the_workdir_tells_how_the_run_was_made(uninterrupted):
    config = (uninterrupted / "config.gin").read_text()
    assert "train.model = @LSTConfig" in config
    assert f"NUM_STEPS = {NUM_STEPS}" in config
    description = read_description(uninterrupted)
    assert description.model.dim_global == 32
    assert description.vocabulary.unit_count == 502
    assert description.data["patching"]["strategy"] == "curriculum"
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
            "error: required and not set: --gin.SPEECH_RECORDS=VALUE, --gin.TOKENIZER=VALUE",
        ),
        "no tokenizer": (
            [*FILES, *corpus, "--gin.TOKENIZER=none.model", "--workdir=unused"],
            "tokenizer model none.model: no such file",
        ),
        "no records": ([*FILES, *records, "--workdir=unused"], "tests"),
        "other model": (
            training_flags(corpus, uninterrupted, DIM_LOCAL=24),
            f"workdir {uninterrupted} holds a run of another model: dim_local is 16 there and 24",
        ),
        "rows": (
            [*training_flags(corpus, "unused"), "--gin.ACCUMULATION_STEPS=3"],
            "the batch has 4 rows, expected a multiple of 3",
        ),
        "argument": ([*FILES, *corpus, "--workdir=unused", "extra"], "unexpected argument 'extra'"),
    }


@pytest.mark.parametrize("mistake", [*mistakes(["", ""], pathlib.Path())])
def test_mistakes_end_with_one_clear_line(corpus, uninterrupted, mistake):
    arguments, message = mistakes(corpus, uninterrupted)[mistake]
    result = subprocess.run(
        command(*arguments), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (ROOT / "unused").exists()
