"""Properties of named unit sets and of the files of quantizers."""

import dataclasses
import json

import joblib
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans

from data_pipelines.speech.unit_sets import (
    read_quantizer,
    read_unit_set,
    unit_set_names,
)
from lst_jax.speech.quantizers import KMeans, LinearQuantizer, linear_sizes

RANDOM = np.random.default_rng(0)
CENTROIDS = RANDOM.normal(size=(6, 5)).astype(np.float32)


def test_the_sets_in_use_are_known_by_name():
    found = {name: read_unit_set(name) for name in unit_set_names()}
    facts = {
        name: (units.frame_rate, units.layer, units.unit_count, units.pad_samples)
        for name, units in found.items()
    }
    assert facts == {
        "spiritlm-base-25hz": (25.0, 11, 501, 0),
        "mhubert-base-25hz": (25.0, 11, 500, 40),
        "hubert-base-ls960-50": (50.0, 6, 50, 0),
        "hubert-base-ls960-100": (50.0, 6, 100, 0),
        "hubert-base-ls960-200": (50.0, 6, 200, 0),
        "hubert-base-ls960-500": (50.0, 6, 500, 0),
        "hubert-base-ls960-layer9-500": (50.0, 9, 500, 0),
        "hubert-base-ls960-layer9-2000": (50.0, 9, 2000, 0),
        "mhubert-base-vp_en_es_fr": (50.0, 11, 1000, 0),
        "mhubert-base-vp_mls_cv_8lang": (50.0, 12, 2000, 0),
    }
    assert all("{}" in units.spelling and not units.normalize for units in found.values())
    assert "blank" in found["spiritlm-base-25hz"].note


def test_an_unknown_set_names_those_that_there_are(tmp_path):
    with pytest.raises(ValueError, match=r"set is 'hubert', expected a \.json.*mhubert-base-25hz"):
        read_unit_set("hubert")
    values = dataclasses.asdict(read_unit_set("mhubert-base-25hz"))
    file = tmp_path / "a.json"
    file.write_text(json.dumps(values))
    assert dataclasses.asdict(read_unit_set(str(file))) == values
    for name, value in [("quantizer_file", "../km.npy"), ("layer", "11"), ("unit_count", 0)]:
        file.write_text(json.dumps({**values, name: value}))
        with pytest.raises(ValueError, match=rf"a\.json: UnitSet\.{name} is"):
            read_unit_set(str(file))


@pytest.mark.torch
def test_centroids_are_read_from_whatever_holds_them(tmp_path):
    import torch

    model = MiniBatchKMeans(6, n_init=1)
    model.cluster_centers_, model.n_clusters = CENTROIDS, 6
    writers = {
        "a.npy": lambda p: np.save(p, CENTROIDS),
        "b.npz": lambda p: np.savez(p, centroids=CENTROIDS, other=np.zeros(3)),
        "c.npz": lambda p: np.savez(p, CENTROIDS),
        "km.bin": lambda p: joblib.dump(model, p),
        "d.pt": lambda p: torch.save({"cluster_centers": CENTROIDS, "n_clusters": 6}, p),
        "e.pt": lambda p: torch.save(torch.from_numpy(CENTROIDS), p),
        "f.pt": lambda p: torch.save({"centroids": torch.from_numpy(CENTROIDS).double()}, p),
    }
    for name, write in writers.items():
        write(tmp_path / name)
        quantizer = read_quantizer(tmp_path / name)
        assert isinstance(quantizer, KMeans) and quantizer.centroids.dtype == np.float32
        assert np.array_equal(quantizer.centroids, CENTROIDS), name


def linear_file(path, dim=24, upstream=30, count=9, **changes):
    import torch

    weights = {}
    for index, (inputs, outputs) in zip((0, 2, 4), linear_sizes(dim, upstream, count), strict=True):
        weights[f"{index}.weight"] = torch.randn(outputs, inputs)
        weights[f"{index}.bias"] = torch.randn(outputs)
    settings = {"vocab_size": count, "dim": dim, "upstream_dim": upstream}
    content = {"model_cfg": settings, "model_weight": weights} | changes
    torch.save(content, path)
    return weights


@pytest.mark.torch
def test_the_linear_quantizer_is_read(tmp_path):
    import torch

    weights = linear_file(tmp_path / "q.pt")
    quantizer = read_quantizer(tmp_path / "q.pt")
    assert isinstance(quantizer, LinearQuantizer)
    network = torch.nn.Sequential(
        *[
            module
            for inputs, outputs in linear_sizes(24, 30, 9)
            for module in (torch.nn.Linear(inputs, outputs), torch.nn.LeakyReLU())
        ][:-1]
    )
    network.load_state_dict(weights)
    x = torch.randn(70, 24)
    assert np.array_equal(quantizer.classes(x.numpy()), network(x).argmax(-1).numpy())


@pytest.mark.torch
def test_what_is_no_quantizer_is_named(tmp_path):
    import torch

    file = tmp_path / "q"
    for content, reason in [
        ({"model_cfg": {}, "model_weight": {}}, "model_cfg with dim"),
        ({"cluster_centers": CENTROIDS, "n_clusters": 7}, "n_clusters is 7, expected 6"),
        ({"a": CENTROIDS, "b": CENTROIDS}, "a mapping of a, b, expected centroids"),
        (np.zeros((2, 3, 4)), r"float64 \(2, 3, 4\), expected centroids"),
        (np.array([[1.0, np.nan]]), "not finite"),
        (np.array([["a"]]), "expected real numbers"),
        (np.zeros((0, 4)), "expected real numbers"),
    ]:
        torch.save(content, file)
        with pytest.raises(ValueError, match=rf"{file}.*{reason}"):
            read_quantizer(file)
    linear_file(file, model_cfg={"vocab_size": 8, "dim": 24, "upstream_dim": 30})
    with pytest.raises(ValueError, match=r"4\.weight|0\.weight"):
        read_quantizer(file)
