"""Data of format version 1 (tests/testdata/version1) open with the same contents, always."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from data_pipelines.records.storage import open_records, write_records
from data_pipelines.training.dataset import DataConfig, SourceConfig, make_training_dataset
from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.params import restore_params
from lst_jax.config import LSTConfig, TokenTransformerConfig
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.patching import PatchingConfig
from lst_jax.porting.port import open_checkpoint
from lst_jax.sharding import make_mesh
from lst_jax.vocabulary import TextTokenizer, Vocabulary
from tests.binaries import run_binary

VERSION1 = pathlib.Path(__file__).parent / "testdata" / "version1"
VOCABULARY = Vocabulary(text_size=64, unit_count=20)
SOURCES = (
    SourceConfig(str(VERSION1 / "speech_records"), "speech"),
    SourceConfig(str(VERSION1 / "text_records"), "text"),
)
BASELINE = {
    "dim_global": 16,
    "num_layers_global": 1,
    "num_heads_global": 2,
    "multiple_of": 8,
    "dtype": "float32",
    "attention": "dense",
}


@functools.cache
def expected():
    """What the code that wrote the data reads from them."""
    return json.loads((VERSION1 / "expected.json").read_text(encoding="utf-8"))


def digest(array):
    """SHA-256 of an array's type, shape and values."""
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


@pytest.mark.parametrize("name", ["speech_records", "text_records"])
def test_records_hold_what_they_held(name):
    source = open_records(VERSION1 / name)
    assert len(source) == len(expected()[name])
    for record, values in zip(source, expected()[name], strict=True):
        for field, value in values.items():
            found = getattr(record, field)
            if isinstance(found, np.ndarray):
                assert found.dtype == np.int32
                assert found.tolist() == value
            else:
                assert found == (tuple(value) if isinstance(value, list) else value)


def check_batches(sources):
    """Holds the first batches of these records to those of version 1."""
    config = DataConfig(
        sources,
        batch_size=2,
        patches_per_row=32,
        tokens_per_row=64,
        patching=PatchingConfig("mixed"),
    )
    batches = iter(make_training_dataset(config, VOCABULARY))
    for values in expected()["batches"]:
        batch = next(batches)
        assert {name: digest(getattr(batch, name)) for name in values} == values
    batches.close()


def test_batches_are_bitwise_what_they_were():
    check_batches(SOURCES)


def test_batches_do_not_depend_on_the_version_nor_on_what_else_is_known(tmp_path):
    known = {"license": "CC0-1.0", "source": "tests"}
    tokenizer = TextTokenizer(VERSION1 / "tokenizer.model")
    for source in SOURCES:
        old = open_records(source.path)
        assert old.metadata.encoder_fingerprint is None
        write_records(
            tmp_path / source.kind,
            source.kind,
            (dataclasses.replace(record, **known) for record in old),
            tokenizer,
            unit_count=20,
            encoder_fingerprint="e" * 64,
        )
    new = [SourceConfig(str(tmp_path / source.kind), source.kind) for source in SOURCES]
    assert open_records(new[0].path)[0].source == "tests"
    check_batches(tuple(new))


@pytest.mark.parametrize("name", ["lst_run", "baseline_run"])
def test_parameters_are_bitwise_what_they_were(name):
    leaves = jax.tree_util.tree_leaves_with_path(restore_params(VERSION1 / name, make_mesh()))
    found = {jax.tree_util.keystr(path): digest(np.asarray(leaf)) for path, leaf in leaves}
    assert found == expected()[name]


def test_a_run_describes_its_model_as_it_did():
    lst, baseline = (read_description(VERSION1 / name) for name in ("lst_run", "baseline_run"))
    local = {"dim_local": 8, "num_heads_local": 2, "num_layers_encoder": 1, "num_layers_decoder": 1}
    assert lst.model == LSTConfig(VOCABULARY.size, **local, **BASELINE)
    assert baseline.model == TokenTransformerConfig(VOCABULARY.size, **BASELINE)
    for description in (lst, baseline):
        assert description.vocabulary == VOCABULARY
        tokenizer = TextTokenizer(VERSION1 / "tokenizer.model")
        assert description.tokenizer_fingerprint == tokenizer.fingerprint


def test_a_run_loads_with_its_patching():
    loaded = load_trained_model(VERSION1 / "lst_run", VERSION1 / "tokenizer.model")
    assert loaded.step == 2
    assert loaded.patching == PatchingConfig("curriculum", curriculum_start=1, curriculum_end=1)
    assert loaded.visibility == "causal"
    assert loaded.context_patches == 32


def test_ported_tensors_are_those_of_the_run():
    ported = open_checkpoint(VERSION1 / "lst_safetensors")
    run = open_checkpoint(VERSION1 / "lst_run")
    assert ported.step == run.step == 2
    assert ported.description == run.description
    stored = safetensors.numpy.load_file(VERSION1 / "lst_safetensors" / "model.safetensors")
    assert stored.keys() == ported.specs.keys() == run.specs.keys()
    for name, values in stored.items():
        for checkpoint in (ported, run):
            np.testing.assert_array_equal(checkpoint.read(name), values, strict=True)


@pytest.mark.multiprocess
def test_a_run_goes_on_where_it_was(tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(VERSION1 / "baseline_run", workdir)
    files = ("models/tiny", "data/speech_text", "runs/tiny", "runs/baseline")
    settings = {
        "DIM_LOCAL": 8,
        "DIM_GLOBAL": 16,
        "NUM_LAYERS_GLOBAL": 1,
        "NUM_HEADS_GLOBAL": 2,
        "MULTIPLE_OF": 8,
        "ATTENTION": "dense",
        "UNIT_COUNT": 20,
        "BATCH_ROWS": 2,
        "NUM_PATCHES": 32,
        "NUM_TOKENS": 32,
        "CURRICULUM_START": 1,
        "CURRICULUM_END": 1,
        "WARMUP_STEPS": 1,
        "NUM_STEPS": 3,
        "TOKENIZER": VERSION1 / "tokenizer.model",
        "SPEECH_RECORDS": VERSION1 / "speech_records",
        "TEXT_RECORDS": VERSION1 / "text_records",
    }
    done = run_binary(
        "experiments.train",
        *(f"--gin_file=experiments/configs/{name}.gin" for name in files),
        *(f"--gin.{name}={value}" for name, value in settings.items()),
        f"--workdir={workdir}",
    )
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2" in done.stdout
    assert sorted(path.name for path in (workdir / "checkpoints").glob("[0-9]*")) == ["2", "3"]
