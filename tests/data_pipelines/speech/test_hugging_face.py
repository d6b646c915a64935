"""Hugging Face directories: cases of transformers' are reproduced, wrong ones are refused."""

import functools
import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from data_pipelines.speech.hugging_face import (
    SpeechModel,
    normalize_waveform,
    read_model,
    write_model,
)
from lst_jax.speech.wav2vec2 import Wav2Vec2, apply_model

CASES = pathlib.Path(__file__).parents[2] / "testdata" / "speech"
NAMES = ("tiny_hubert", "tiny_wav2vec2_ctc")


@pytest.fixture
def folder(tmp_path):
    """A copy of the HuBERT case that can be changed."""
    return pathlib.Path(shutil.copytree(CASES / "tiny_hubert", tmp_path / "model"))


def tensors_of(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def change_tensors(folder, **changes):
    """Takes names with `__` for the dots; None removes a tensor."""
    tensors = tensors_of(folder)
    for name, value in changes.items():
        name = name.replace("__", ".")
        tensors[name] = value(tensors.get(name))
        if tensors[name] is None:
            del tensors[name]
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")


@functools.cache
def run(name, padding, row=None, masked=True):
    """Returns the states of a case's batch, or of a row alone."""
    model = read_model(CASES / name)
    io = np.load(CASES / name / "io.npz")
    lengths = io["attention_mask"].sum(1).astype(np.int32)
    waveforms = io["input_values"]
    if row is not None:
        waveforms, masked = waveforms[row : row + 1, : lengths[row]], False
    apply = jax.jit(functools.partial(apply_model, Wav2Vec2(model.config, model.head, padding)))
    return io, apply(model.params, waveforms, lengths if masked else None)


def difference(io, place, states, row=slice(None), frames=None):
    """Returns the largest difference of all states from those at a place of the case."""
    ours = {f"hidden_{i}": x for i, x in enumerate(states.hidden)}
    ours |= {"last": states.last, "logits": states.logits}
    kept = {name: x for name, x in ours.items() if f"{place}/{name}" in io}
    assert len(kept) == len(states.hidden) + 1
    mask = np.arange(states.last.shape[1]) < (states.frames if frames is None else frames)[:, None]
    return max(
        np.abs(np.asarray(x)[row] - io[f"{place}/{name}"])[mask[row]].max()
        for name, x in kept.items()
    )


@pytest.mark.parametrize("name", NAMES)
def test_hidden_states_and_logits_are_those_of_transformers(name):
    io, states = run(name, "published")
    np.testing.assert_array_equal(states.frames, io["frames"])
    assert difference(io, "masked", states) < 1e-4
    io, states = run(name, "published", masked=False)
    assert difference(io, "unmasked", states) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_exact_padding_makes_of_a_batch_what_transformers_makes_of_each_row(name):
    io, states = run(name, "exact")
    for row, count in enumerate(io["frames"]):
        rows = jax.tree.map(lambda x, row=row, count=count: x[row : row + 1, :count], states.hidden)
        whole = states._replace(
            hidden=rows, **{k: getattr(states, k)[row : row + 1, :count] for k in ("last",)}
        )
        if states.logits is not None:
            whole = whole._replace(logits=states.logits[row : row + 1, :count])
        assert difference(io, f"alone_{row}", whole, frames=np.array([count])) < 1e-4


def test_units_of_a_case_are_those_of_its_centroids():
    io, _ = run("tiny_hubert", "exact", 0)
    centroids = np.load(CASES / "tiny_hubert" / "centroids.npy")
    for row in range(2):
        _, states = run("tiny_hubert", "exact", row)
        features = np.asarray(states.hidden[int(io["unit_layer"])][0], np.float64)
        distances = np.square(features[:, None] - centroids).sum(-1)
        np.testing.assert_array_equal(distances.argmin(1), io[f"alone_{row}/units"])


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_weights_may_be_of_half_precision(folder, kind):
    tensors = {name: x.astype(kind) for name, x in tensors_of(folder).items()}
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    half = read_model(folder).params["params"]["projection"]
    whole = read_model(CASES / "tiny_hubert").params["params"]["projection"]
    assert half["kernel"].dtype == np.float32
    np.testing.assert_array_equal(half["kernel"], whole["kernel"].astype(kind).astype(np.float32))


def test_prefixes_new_names_of_weight_norm_shards_and_what_training_uses_are_taken(folder):
    tensors = tensors_of(folder)
    conv = "encoder.pos_conv_embed.conv"
    tensors[f"{conv}.parametrizations.weight.original0"] = tensors.pop(f"{conv}.weight_g")
    tensors[f"{conv}.parametrizations.weight.original1"] = tensors.pop(f"{conv}.weight_v")
    tensors = {f"hubert.{name}": x for name, x in tensors.items()}
    tensors["quantizer.codevectors"] = tensors["project_q.bias"] = np.zeros(3, np.float32)
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(files.values()):
        shard = {name: x for name, x in tensors.items() if files[name] == file}
        safetensors.numpy.save_file(shard, folder / file)
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    same = jax.tree.map(
        np.array_equal, read_model(folder).params, read_model(CASES / "tiny_hubert").params
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize(
    "changes, message",
    [
        (
            {"encoder__layer_norm__bias": lambda _: None},
            "is without encoder.layer_norm.bias, which its config.json has",
        ),
        (
            {"encoder__layers__3__layer_norm__bias": lambda _: np.zeros(24, np.float32)},
            "has encoder.layers.3.layer_norm.bias, which its config.json does not have",
        ),
        (
            {"encoder__layer_norm__bias": lambda x: x[:5]},
            "encoder.layer_norm.bias has shape (5,), expected (24,) by its config.json; not as "
            "expected are encoder.layer_norm.bias",
        ),
        (
            {"encoder__layer_norm__bias": lambda x: x * np.nan},
            "has numbers that are not finite in encoder.layer_norm.bias",
        ),
        (
            {"encoder__layer_norm__bias": lambda x: x.astype(np.int8)},
            "encoder.layer_norm.bias is I8, expected one of float32, float16, bfloat16",
        ),
        (
            {"encoder__pos_conv_embed__conv__weight_v": lambda x: x * 0},
            "encoder.pos_conv_embed has a tap of norm 0, expected a direction",
        ),
        (
            {"hubert__encoder__layer_norm__bias": lambda _: np.zeros(24, np.float32)},
            "has hubert.encoder.layer_norm.bias with and without the prefix, expected once",
        ),
        (
            {"lm_head__weight": lambda _: np.zeros((32, 24), np.float32)},
            "is without lm_head.bias, which its config.json has",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(folder, changes, message):
    change_tensors(folder, **changes)
    with pytest.raises(ValueError) as error:
        read_model(folder)
    assert message in str(error.value) and str(folder) in str(error.value)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)


def test_a_directory_without_weights_says_what_it_expects(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"expected model\.safetensors or pytorch_model\.bin"
    ):
        read_model(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_written_directory_is_read_as_the_same_model(tmp_path, name):
    model = read_model(CASES / name)
    labels = {"<pad>": 0, "a": 5} if model.head else None
    model = SpeechModel(model.config, model.params, model.head, 8000, True, labels)
    write_model(tmp_path / "model", model)
    again = read_model(tmp_path / "model")
    assert (again.config, again.head, again.sample_rate) == (model.config, model.head, 8000)
    assert again.normalize is True and again.labels == labels
    for x, y in zip(*map(jax.tree.leaves, (again.params, model.params)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-6, atol=0)
    with pytest.raises(FileExistsError):
        write_model(tmp_path / "model", model)


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("preprocessor_config.json", {"sampling_rate": "16k"}, "sampling_rate is '16k', expected"),
        ("preprocessor_config.json", {"do_normalize": 1}, "do_normalize is 1, expected true or"),
        ("processor_config.json", {}, "feature_extractor is None, expected an object"),
        ("vocab.json", {"a": 32}, "'a' is 32, expected an integer, 0 … 31, as vocab_size in"),
        ("vocab.json", {"a": 3, "b": 3}, "ids is [3, 3], expected each once"),
    ],
)
def test_small_files_that_do_not_fit_are_named(tmp_path, file, content, message):
    folder = pathlib.Path(shutil.copytree(CASES / "tiny_wav2vec2_ctc", tmp_path / "model"))
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ValueError) as error:
        read_model(folder)
    assert f"{folder / file}: {message}" in str(error.value)


@pytest.mark.parametrize(
    ("values", "expected"),
    [({}, (16000, True)), ({"sampling_rate": 1000}, (1000, True)), ({"sampling_rate": 10**6}, None)]
    + [({"sampling_rate": rate}, "refused") for rate in (999, 10**6 + 1)],
)
def test_preprocessors_normalize_unless_they_say_no_and_rates_have_bounds(folder, values, expected):
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    if expected == "refused":
        with pytest.raises(ValueError, match="expected an integer, 1000 … 1000000"):
            read_model(folder)
    else:
        model = read_model(folder)
        assert (model.sample_rate, model.normalize) == (expected or (10**6, True))


def test_a_processor_of_transformers_5_says_how_waveforms_are_prepared(folder):
    assert read_model(folder).normalize is None
    extractor = {"sampling_rate": 16000, "do_normalize": False}
    (folder / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert read_model(folder).normalize is False


def test_normalized_waveforms_have_mean_0_and_variance_1_and_silence_stays():
    x = np.random.default_rng(0).normal(3, 5, 1000).astype(np.float32)
    y = normalize_waveform(x)
    assert y.dtype == np.float32 and abs(y.mean()) < 1e-6 and abs(y.std() - 1) < 1e-6
    np.testing.assert_array_equal(normalize_waveform(np.zeros(5, np.float32)), np.zeros(5))


def test_the_extractor_of_a_model_that_normalizes_layers_gives_masks(tmp_path):
    model = read_model(CASES / "tiny_wav2vec2_ctc")
    assert model.config.feat_extract_norm == "layer"
    write_model(tmp_path / "model", model)
    written = json.loads((tmp_path / "model" / "preprocessor_config.json").read_text())
    assert written["return_attention_mask"] is True
