"""Properties of the evaluation binary and of loading what a run wrote."""

import dataclasses
import json
import pathlib

import grain
import jax
import numpy as np
import optax
import pytest
import sentencepiece

from lst_jax.checkpoints.checkpointer import Checkpointer
from lst_jax.checkpoints.description import DataDescription, ModelDescription, write_description
from lst_jax.checkpoints.layout import find_checkpoint
from lst_jax.checkpoints.train_state import init_state
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.evaluation.story_completion import (
    DIRECTIONS,
    evaluate_story_completion,
    read_story_examples,
)
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.vocabulary import TextTokenizer
from tests.binaries import run_binary

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).resolve().parents[2]
UNIT_COUNT = 9
STEPS = (5, 12)


def write_tokenizer(path, words):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([words] * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=40,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return TextTokenizer(path)


def model_config(kind, vocab_size):
    config = LSTConfig(
        vocab_size=vocab_size,
        dim_local=16,
        dim_global=32,
        num_layers_encoder=1,
        num_layers_global=1,
        num_layers_decoder=1,
        num_heads_local=2,
        num_heads_global=2,
        multiple_of=16,
        dtype="float32",
        attention="dense",
    )
    return config if kind == "lst" else baseline_of(config)


def write_run(workdir, kind, tokenizer):
    """A workdir with checkpoints of two steps, as a run leaves it; returns their states."""
    vocabulary = tokenizer.vocabulary(UNIT_COUNT)
    config = model_config(kind, vocabulary.size)
    patching = PatchingConfig("curriculum" if kind == "lst" else "none", patch_size=3)
    data = DataDescription(patching, "causal", str(tokenizer.model_path), patches_per_row=128)
    write_description(workdir, ModelDescription(config, vocabulary, tokenizer.fingerprint, data))
    checkpointer = Checkpointer(workdir)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    start = init_state(config, optax.sgd(0.1), 0, mesh)
    states = {}
    for step in STEPS:
        params = jax.tree.map(lambda leaf, factor=1 + step / 100: leaf * factor, start.params)
        states[step] = start.replace(step=start.step + step, params=params)
        iterator = iter(grain.MapDataset.range(3).to_iter_dataset())
        checkpointer.save(states[step], iterator, {})
        checkpointer.wait()
    checkpointer.close()
    return states


def write_examples(path):
    rng = np.random.default_rng(0)

    def passage(text):
        return {"text": text, "units": rng.integers(0, UNIT_COUNT, 7).tolist()}

    lines = [
        {
            "id": str(index),
            "set": "StoryCloze" if index % 2 else "HellaSwag",
            "prompt": passage("ann lost her key"),
            "endings": [passage("she found it")] * 2 + [passage("a bed")] * (2 - index % 2 * 2),
            "label": 1,
        }
        for index in range(6)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of both models, example files and a tokenizer of somebody else."""
    folder = tmp_path_factory.mktemp("evaluate")
    tokenizer = write_tokenizer(folder / "words.model", "ann lost her key she found it a bed")
    write_tokenizer(folder / "other.model", "quite some other words were seen there")
    states = {kind: write_run(folder / kind, kind, tokenizer) for kind in ("lst", "baseline")}
    write_examples(folder / "examples.jsonl")
    return folder, states


def evaluate(folder, *arguments):
    return run_binary("experiments.evaluate", *arguments, cwd=folder)


@pytest.mark.multiprocess
@pytest.mark.parametrize("kind", ["lst", "baseline"])
def test_binary_prints_and_writes_what_the_library_computes(place, kind):
    folder, _ = place
    arguments = (f"--checkpoint={kind}", "--data=examples.jsonl", "--output=out/accuracy.json")
    arguments += ("--patch_size=2",) if kind == "lst" else ()  # it was trained with 3
    done = evaluate(folder, *arguments, "--example_scores", "--patches_per_row=128")
    assert done.returncode == 0, done.stderr
    written = json.loads((folder / "out" / "accuracy.json").read_text())
    trained = load_trained_model(folder / kind)
    patching = dataclasses.replace(trained.patching, patch_size=2)
    trained = dataclasses.replace(trained, patching=patching)
    assert written["patch_size"] == (2 if kind == "lst" else 1)
    expected = evaluate_story_completion(
        trained,
        read_story_examples([folder / "examples.jsonl"], UNIT_COUNT),
        shape=ScoringShape(patches_per_row=64),
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1 + 2 * len(DIRECTIONS)
    assert lines[0].split()[:2] == ["set", "direction"]
    assert written["step"] == STEPS[-1]
    assert pathlib.Path(written["checkpoint"]) == folder / kind / "checkpoints" / "12"
    assert len(written["results"]) == len(expected.table)
    for found, score in zip(written["scores"], expected.scores, strict=True):
        assert (found["example_id"], found["direction"]) == (score.example_id, score.group)
        assert found["log_probabilities"] == pytest.approx(score.log_probabilities, abs=1e-4)


@pytest.mark.parametrize("kind", ["lst", "baseline"])
def test_loaded_parameters_are_those_of_the_step(place, kind):
    folder, states = place
    for step, path in ((12, folder / kind), (5, folder / kind / "5")):
        trained = load_trained_model(path)
        assert trained.step == step
        assert trained.model == build_model(model_config(kind, trained.vocabulary.size))
        assert trained.patching.strategy == ("curriculum" if kind == "lst" else "none")
        jax.tree.map(np.testing.assert_array_equal, trained.params, states[kind][step].params)


def test_a_step_may_be_named_below_the_workdir_or_in_full(place):
    workdir = place[0] / "lst"
    expected = workdir / "checkpoints" / "5"
    assert find_checkpoint(workdir / "5") == expected
    assert find_checkpoint(f"{workdir}/checkpoints/5/") == expected
    assert find_checkpoint(workdir) == workdir / "checkpoints" / "12"


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("lst/7", "lst/7: no such checkpoint; steps of the run: 5, 12"),
        ("nowhere", "nowhere: no run there"),
        ("nowhere/7", "nowhere/7: no run there"),
        ("lst/checkpoints", "no run there"),
        ("unstarted", "unstarted: no such checkpoint; steps of the run: none yet"),
    ],
)
def test_checkpoints_that_are_not_there_are_named(place, path, named):
    folder, _ = place
    (folder / "unstarted").mkdir(exist_ok=True)
    (folder / "unstarted" / "model.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=named):
        find_checkpoint(folder / path)


def test_another_tokenizer_is_refused_and_a_moved_one_accepted(place, tmp_path):
    folder, _ = place
    with pytest.raises(ValueError, match=r"other.model has SHA-256"):
        load_trained_model(folder / "lst", folder / "other.model")
    moved = tmp_path / "moved.model"
    moved.write_bytes((folder / "words.model").read_bytes())
    assert load_trained_model(folder / "lst", moved).tokenizer.model_path == moved


def test_a_description_without_the_patching_is_named(place, tmp_path):
    folder, _ = place
    (tmp_path / "checkpoints" / "5").mkdir(parents=True)
    fields = json.loads((folder / "lst" / "model.json").read_text())
    del fields["data"]["patching"]
    (tmp_path / "model.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="no patching under data"):
        load_trained_model(tmp_path)


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--checkpoint=lst"], "--data"),
        (["--checkpoint=lst", "--data=missing.jsonl"], "missing.jsonl: No such file"),
        (["--checkpoint=lst", "--data=examples.jsonl", "--directions=S-X"], "direction is 'S-X'"),
        (["--checkpoint=lst", "--data=examples.jsonl", "--patches_per_row=3"], "expected at least"),
        (["--checkpoint=baseline", "--data=examples.jsonl", "--patch_size=3"], "has no patches"),
    ],
)
def test_mistakes_end_with_one_clear_line(place, arguments, named):
    done = evaluate(place[0], *arguments)
    assert done.returncode == 2
    assert not done.stdout
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
