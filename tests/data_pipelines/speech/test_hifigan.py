"""Directories of HiFi-GAN vocoders against PyTorch, their refusals, and speech in pieces."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from data_pipelines.speech import hifigan_checkpoints, hifigan_vocoder
from data_pipelines.speech.hifigan_checkpoints import HiFiGANWeights, read_vocoder, write_vocoder
from data_pipelines.speech.hifigan_vocoder import HiFiGANVocoder
from data_pipelines.speech.registry import open_vocoder
from experiments.inspection.speech_cases import verify_case
from lst_jax.speech.hifigan_config import HiFiGANConfig, context_units
from lst_jax.speech.interfaces import Vocoder
from tests.lst_jax.speech.test_hifigan import TINY

PLAIN = dataclasses.replace(
    TINY, multispkr=False, multistyle=False, model_in_dim=4, dur_predictor_params=None
)


def random_params(config: HiFiGANConfig):
    """Parameters of a scale that makes speech audible and durations vary."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.normal(0, 0.4, place.shape).astype(np.float32)
        for name, place in hifigan_checkpoints._places(config).items()
    }
    if config.dur_predictor_params is not None:
        tensors["dur_predictor.proj.bias"] += 1.5
    return hifigan_checkpoints._params_of(config, tensors, pathlib.Path("f")), tensors


@pytest.fixture
def directory(tmp_path):
    params, _ = random_params(TINY)
    vocoder = HiFiGANWeights(TINY, params, ("ann", "bob", "cy"), None, "0" * 64)
    write_vocoder(tmp_path / "vocoder", vocoder)
    return tmp_path / "vocoder"


@pytest.fixture(scope="module")
def vocoder():
    return HiFiGANVocoder(HiFiGANWeights(PLAIN, random_params(PLAIN)[0]))


def published(config, tensors, units, speaker=None, style=None):
    """What PyTorch computes of tensors by their published names: (waveform, frames of units)."""
    import torch
    import torch.nn.functional as F

    w = {name: torch.tensor(x) for name, x in tensors.items()}
    x = w["dict.weight"][torch.tensor(units)].T[None]
    frames = None
    if config.dur_predictor_params is not None:
        y = x
        for i in (1, 2):
            name = f"dur_predictor.conv{i}.0"
            y = F.relu(F.conv1d(y, w[f"{name}.weight"], w[f"{name}.bias"], padding=1))
            scale, bias = w[f"dur_predictor.ln{i}.weight"], w[f"dur_predictor.ln{i}.bias"]
            y = F.layer_norm(y.transpose(1, 2), scale.shape, scale, bias).transpose(1, 2)
        scale, bias = (w[f"dur_predictor.proj.{kind}"] for kind in ("weight", "bias"))
        y = F.linear(y.transpose(1, 2), scale, bias)
        frames = torch.clamp(torch.round(torch.exp(y[0, :, 0]) - 1).long(), min=1)
        x = torch.repeat_interleave(x, frames, dim=2)
    for name, value in (("spkr", speaker), ("style", style)):
        if value is not None:
            own = w[f"{name}.weight"][value][None, :, None].expand(-1, -1, x.shape[2])
            x = torch.cat([x, own], dim=1)

    def convolve(x, name, dilation=1):
        kernel = w[f"{name}.weight"]
        padding = dilation * (kernel.shape[2] // 2)
        return F.conv1d(x, kernel, w[f"{name}.bias"], padding=padding, dilation=dilation)

    x = convolve(x, "conv_pre")
    number = 0
    sizes = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
    for i, (rate, taps) in enumerate(sizes):
        x = F.conv_transpose1d(
            F.leaky_relu(x, 0.1), w[f"ups.{i}.weight"], w[f"ups.{i}.bias"], rate, (taps - rate) // 2
        )
        total = 0
        for dilations in config.resblock_dilation_sizes:
            y = x
            for k, dilation in enumerate(dilations):
                name = f"resblocks.{number}.convs"
                z = F.leaky_relu(y, 0.1)
                if config.resblock == "1":
                    z = F.leaky_relu(convolve(z, f"{name}1.{k}", dilation), 0.1)
                    z = convolve(z, f"{name}2.{k}")
                else:
                    z = convolve(z, f"{name}.{k}", dilation)
                y = y + z
            total, number = total + y, number + 1
        x = total / len(config.resblock_dilation_sizes)
    return torch.tanh(convolve(F.leaky_relu(x, 0.01), "conv_post"))[0, 0].numpy(), frames


@pytest.mark.slow
@pytest.mark.torch
@pytest.mark.parametrize("kind, naming", [("1", "old"), ("1", "new"), ("2", "removed")])
def test_a_checkpoint_speaks_as_pytorch_does_and_altered_ones_are_told_apart(
    tmp_path, kind, naming
):
    import torch

    config = dataclasses.replace(TINY, resblock=kind)
    _, tensors = random_params(config)
    units, dedup = np.array([1, 1, 4, 8, 0, 3, 3, 3]), np.array([5, 2, 7, 0, 8])
    io = {"dedup_units": dedup, "speaker": np.array(2), "style": np.array(1)}
    waveform, frames = published(config, tensors, dedup, 2, 1)
    assert len(set(frames.tolist())) > 1 and np.std(waveform) > 0.05
    io |= {"dedup_waveform": waveform, "durations": frames.numpy()}
    parts = {}
    a, b = {
        "old": ("weight_g", "weight_v"),
        "new": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
        "removed": ("", ""),
    }[naming]
    for name, x in tensors.items():
        stem = name.removesuffix("weight")
        if x.ndim == 3 and not name.startswith("dur") and naming != "removed":
            parts[stem + a] = torch.tensor(np.sqrt((x**2).sum((1, 2), keepdims=True)))
            parts[stem + b] = torch.tensor(3 * x)
        else:
            parts[name] = torch.tensor(x)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    torch.save({"generator": parts}, tmp_path / "generator.pt")
    np.savez(tmp_path / "io.npz", **io)
    found = verify_case(tmp_path)
    assert found.equal and found.compared == 2 and found.results["durations_equal"] == 1
    assert 0 < found.results["waveform"] < 2e-5

    speech = HiFiGANVocoder(read_vocoder(tmp_path), speaker=2, style=1)
    config = dataclasses.replace(config, dur_predictor_params=None)
    expected, _ = published(config, tensors, units, 2, 1)
    np.testing.assert_allclose(speech.decode([units])[0], expected, atol=2e-5)
    for change in (
        {"style": np.array(0)},
        {"durations": io["durations"] + np.eye(5, dtype=int)[3]},
        {"dedup_waveform": waveform + 2e-4 * (np.arange(len(waveform)) == 7)},
        {"dedup_waveform": waveform[:-6]},
        {"dedup_units": dedup[::-1].copy()},
    ):
        np.savez(tmp_path / "io.npz", **io | change)
        assert not verify_case(tmp_path).equal, change
    np.savez(tmp_path / "io.npz", **io | {"speaker": np.array(3)})
    with pytest.raises(ValueError, match=r"io.npz: speaker is 3, expected 0 … 2"):
        verify_case(tmp_path)


@pytest.mark.parametrize("naming", hifigan_checkpoints._NORMED)
def test_weight_norm_is_folded_by_either_names(naming):
    params, tensors = random_params(TINY)
    parts = {}
    for name, x in tensors.items():
        stem = name.removesuffix("weight")
        if x.ndim == 3 and not name.startswith("dur"):
            norm = np.sqrt(np.square(x).sum((1, 2), keepdims=True))
            parts |= zip((stem + naming[0], stem + naming[1]), (norm, 3 * x), strict=True)
        else:
            parts[name] = x
    found = hifigan_checkpoints._params_of(TINY, parts, pathlib.Path("f"))
    for one, other in zip(*map(jax.tree.leaves, (found, params)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5)
    parts[f"conv_pre.{naming[1]}"][0] = 0
    with pytest.raises(ValueError, match=r"f: 'conv_pre.*norms is 0, expected no slice of norm 0"):
        hifigan_checkpoints._params_of(TINY, parts, pathlib.Path("f"))


def test_blocks_have_the_published_numbers():
    places = hifigan_checkpoints._places(TINY)
    for name, path in {
        "resblocks.1.convs1.0.weight": "block_0_1/dilated_0/kernel",
        "resblocks.2.convs2.1.bias": "block_1_0/plain_1/bias",
        "ups.1.weight": "upsampling_1/kernel",
        "dur_predictor.conv2.0.weight": "duration_predictor/convolution_1/kernel",
    }.items():
        assert places[name].path == path


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("ann\nbob\nann\n", "speakers.txt is 'ann, bob, ann', expected each name once"),
        ("a\nb\nc\nd\n", "speakers.txt is '4 names', expected 3 at most, by config.json"),
    ],
)
def test_names_of_speakers_are_each_once_and_no_more_than_there_are(directory, names, message):
    (directory / "speakers.txt").write_text(names)
    with pytest.raises(ValueError, match=message):
        read_vocoder(directory)


def test_a_directory_is_read_as_it_was_written(directory):
    read = read_vocoder(directory)
    params, _ = random_params(TINY)
    assert jax.tree.all(jax.tree.map(np.array_equal, read.params, params))
    assert (read.config, read.speakers, read.styles) == (TINY, ("ann", "bob", "cy"), None)
    assert read.encoder_fingerprint == "0" * 64


def test_a_vocoder_is_opened_by_names_or_numbers(directory):
    found = open_vocoder(f"hifigan:{directory},speaker=bob,style=1")
    assert isinstance(found, Vocoder) and found.encoder_fingerprint == "0" * 64
    assert (found.sample_rate, found.unit_count, found.frame_rate) == (16_000, 9, 16_000 / 6)


@pytest.mark.parametrize(
    "options, message",
    [
        ("", "speaker of {} is None, expected one of ann, bob, cy, or a number, 0 … 2"),
        (",speaker=dan", "speaker of {} is 'dan', expected one of ann, bob, cy"),
        (",speaker=3", "speaker of {} is '3', expected one of ann"),
        (",speaker=1,style=calm", "style of {} is 'calm', expected a number, 0 … 1"),
        (",speaker=1,style=1,durations=long", "durations of hifigan is 'long', expected given or"),
        (",pitch=3", "an option of hifigan is 'pitch', expected speaker, style, durations"),
    ],
)
def test_voices_that_a_vocoder_does_not_have_are_refused_by_name(directory, options, message):
    with pytest.raises(ValueError) as error:
        open_vocoder(f"hifigan:{directory}{options}")
    assert message.format(directory) in str(error.value)


def test_a_vocoder_of_one_voice_has_no_speakers_and_no_durations(tmp_path):
    write_vocoder(tmp_path / "v", HiFiGANWeights(PLAIN, random_params(PLAIN)[0]))
    for option, message in (
        ("speaker=0", "speaker of .* is '0', expected none: the vocoder has one voice alone"),
        ("durations=predicted", "expected given: it has no duration predictor"),
    ):
        with pytest.raises(ValueError, match=message):
            open_vocoder(f"hifigan:{tmp_path / 'v'},{option}")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_embeddings": 10}, "dict.weight has shape (9, 4), expected (10, 4) by its config"),
        ({"resblock": "2"}, "is without resblocks.0.convs.0.weight"),
        ({"multispkr": False, "model_in_dim": 8}, "has spkr.weight, which its config.json"),
        ({"encoder_fingerprint": 3}, "config.json: encoder_fingerprint is 3, expected text"),
        ({"num_speakers": 2}, "spkr.weight has shape (3, 4), expected (2, 4)"),
    ],
)
def test_weights_that_do_not_fit_their_configuration_are_refused_by_name(
    directory, changes, message
):
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(ValueError) as error:
        read_vocoder(directory)
    assert message in str(error.value) and str(directory) in str(error.value)


def test_a_directory_without_weights_or_with_several_is_refused(directory):
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected generator\.pt, g_… or model"):
        read_vocoder(directory)
    for number in (1, 2):
        (directory / f"g_0000000{number}").touch()
    with pytest.raises(ValueError, match="is 'g_00000001, g_00000002', expected one of them"):
        read_vocoder(directory)


def test_speech_in_pieces_is_the_whole(vocoder, monkeypatch):
    context = context_units(PLAIN)
    monkeypatch.setattr(hifigan_vocoder, "_LEAST_UNITS", 8)
    units = np.random.default_rng(0).integers(0, 9, 18 * context)
    whole = vocoder.speak(units)
    assert len(units) < vocoder._longest
    vocoder._longest = 4 * context
    try:
        np.testing.assert_allclose(vocoder.speak(units), whole, atol=1e-5)
        for cuts in ([1], [3, 3, 50], [2 * context, 2 * context + 1, 17 * context]):
            blocks = [block for block in np.split(units, cuts) if len(block)]
            pieces = [*vocoder.stream(blocks)]
            np.testing.assert_allclose(np.concatenate(pieces), whole, atol=1e-5)
            assert len(pieces) > 1
        stream = vocoder.stream(iter([units[: 2 * context]]))
        first = next(stream)  # it comes before its utterance is over
        np.testing.assert_allclose(first, whole[: len(first)], atol=1e-5)
        assert len(first) == context * PLAIN.code_hop_size
    finally:
        vocoder._longest = 256


def test_predicted_durations_are_of_runs_of_units():
    params, _ = random_params(TINY)
    trained = HiFiGANWeights(TINY, params)
    predicted = HiFiGANVocoder(trained, speaker=0, style=0, predict_durations=True)
    found, same = predicted.decode([np.array([2, 2, 2, 5, 5, 0]), np.array([2, 5, 0])])
    np.testing.assert_array_equal(found, same)
    assert len(found) == predicted.durations(np.array([2, 5, 0])).sum() * TINY.code_hop_size


def test_what_is_no_sequence_of_units_is_refused(vocoder):
    with pytest.raises(ValueError, match="units holds 9, expected 0…8"):
        vocoder.decode([np.array([1, 9])])
