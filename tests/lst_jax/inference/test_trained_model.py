"""A run's model: opened, then loaded."""

import pathlib

import jax
import numpy as np
import pytest

from lst_jax.checkpoints import description
from lst_jax.inference.trained_model import TrainedModel, open_trained_model
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import make_mesh

SAVED = pathlib.Path(__file__).parents[2] / "testdata" / "version1"


def test_a_description_is_read_once(monkeypatch):
    read = []

    def from_file(file):
        read.append(file)
        return read_file(file)

    read_file = description.description_from_file
    monkeypatch.setattr(description, "description_from_file", from_file)
    saved = open_trained_model(SAVED / "lst_run", SAVED / "tokenizer.model")
    mesh = make_mesh(devices=jax.devices()[:1])
    trained = saved.load(mesh)
    assert read == [SAVED / "lst_run" / "model.json"]
    assert trained.mesh is mesh and trained.step == int(saved.checkpoint.name)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(trained.params))
    assert trained.vocabulary == saved.description.vocabulary


def test_what_a_model_made_in_memory_lacks_is_named():
    trained = TrainedModel(None, None, None, None, PatchingConfig("none"))
    with pytest.raises(ValueError, match="tokenizer is None, expected the model's text tokenizer"):
        _ = trained.text_tokenizer
    with pytest.raises(ValueError, match="checkpoint is None, expected"):
        _ = trained.step
