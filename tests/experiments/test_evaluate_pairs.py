"""The binary for minimal pairs, end to end on an untrained model."""

import json
import pathlib

import numpy as np
import pytest

from lst_jax.evaluation.minimal_pairs import evaluate_minimal_pairs, read_speech_pairs
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import load_trained_model
from tests.binaries import run_binary
from tests.experiments.test_evaluate import STEPS, UNIT_COUNT, write_run, write_tokenizer

pytestmark = pytest.mark.slow


def write_pairs(path):
    rng = np.random.default_rng(0)
    lines = [
        {
            "id": str(index),
            "set": "sBLIMP" if index % 2 else "sWUGGY",
            "category": "oov" if index % 4 == 0 else None,
            "members": [{"units": rng.integers(0, UNIT_COUNT, n).tolist()} for n in (7, 9)],
            "correct": int(rng.integers(2)),
        }
        for index in range(8)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("pairs")
    tokenizer = write_tokenizer(folder / "words.model", "ann lost her key she found it a bed")
    write_run(folder / "lst", "lst", tokenizer)
    write_pairs(folder / "pairs.jsonl")
    (folder / "bad.jsonl").write_text('{"id": "1", "set": "a", "members": [], "correct": 0}\n')
    return folder


def evaluate(folder, *arguments):
    return run_binary("experiments.evaluate_pairs", *arguments, cwd=folder)


@pytest.mark.multiprocess
def test_binary_prints_and_writes_what_the_library_computes(folder):
    done = evaluate(
        folder,
        *("--checkpoint=lst", "--data=pairs.jsonl", "--output=out/pairs.json"),
        *("--example_scores", "--patches_per_row=128"),
    )
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "out" / "pairs.json").read_text())
    trained = load_trained_model(folder / "lst")
    expected = evaluate_minimal_pairs(
        trained,
        read_speech_pairs([folder / "pairs.jsonl"], UNIT_COUNT),
        shape=ScoringShape(patches_per_row=64),
    )
    rows = [line.split()[:2] for line in done.stdout.splitlines()]
    names = [["set", "category"], ["sWUGGY", "all"], ["sWUGGY", "oov"], ["sBLIMP", "all"]]
    assert rows == names
    assert (written["step"], written["data"]) == (STEPS[-1], ["pairs.jsonl"])
    assert [entry["n"] for entry in written["results"]] == [4, 2, 4]
    for found, entry in zip(written["scores"], expected.scores, strict=True):
        assert (found["example_id"], found["correct"]) == (entry.example_id, entry.label)
        assert found["token_counts"] == [7, 9]
        assert found["log_probabilities"] == pytest.approx(entry.log_probabilities, abs=1e-4)


@pytest.mark.multiprocess
def test_a_submission_is_whole_or_not_there_and_its_full_disk_takes_no_results_away(folder):
    lines = [
        {
            "id": name,
            "set": "s",
            "members": [{"units": [1, 2 + n], "file": f"{name}/{n}"} for n in (0, 1)],
            "correct": 0,
        }
        for name in ("lexical/dev", "syntactic/dev")
    ]
    lines[1]["members"][0]["file"] += "x" * 5000
    (folder / "named.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = run_binary(
        "experiments.evaluate_pairs",
        *("--checkpoint=lst", "--data=named.jsonl", "--submission=sent/dev"),
        *("--output=named.json", "--patches_per_row=128"),
        cwd=folder,
        largest_file=4000,
    )
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith("dev.txt: File too large")
    assert "sent/dev/syntactic/" in error and not list((folder / "sent").iterdir())
    assert json.loads((folder / "named.json").read_text())["results"][0]["n"] == 2
    assert "set" in done.stdout


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--checkpoint=lst", "--data=none.jsonl"], "none.jsonl: No such file"),
        (["--checkpoint=lst", "--data=bad.jsonl"], "bad.jsonl:1: members has 0 entries"),
        (["--checkpoint=lst", "--data=pairs.jsonl", "--patches_per_row=3"], "expected at least"),
    ],
)
def test_mistakes_end_with_one_clear_line(folder, arguments, named):
    done = evaluate(folder, *arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
