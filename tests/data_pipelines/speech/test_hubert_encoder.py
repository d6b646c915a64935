"""Properties of units of hidden states: they are the recording's own, whatever it runs with."""

import dataclasses

import flax.linen as nn
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipelines.speech.hubert_encoder import (
    EncoderOptions,
    FrameModel,
    HubertEncoder,
    cut,
    open_frames,
    open_hubert,
)
from data_pipelines.speech.hugging_face import SpeechModel, write_model
from lst_jax.sharding import make_mesh
from lst_jax.speech.interfaces import Rejection, UnitEncoder
from lst_jax.speech.quantizers import KMeans, LinearQuantizer
from lst_jax.speech.wav2vec2 import Wav2Vec2
from lst_jax.speech.wav2vec2_config import (
    Wav2Vec2Config,
    frame_count,
    receptive_field,
    samples_per_frame,
)

RATE = 2000  # a second is 100 frames, which costs little
CONFIG = Wav2Vec2Config(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    conv_dim=(8, 8),
    conv_kernel=(10, 5),
    conv_stride=(5, 4),
    num_conv_pos_embeddings=8,
    num_conv_pos_embedding_groups=2,
)
RANDOM = np.random.default_rng(0)
CENTROIDS = RANDOM.normal(size=(12, 16)).astype(np.float32)


def make_model(config=CONFIG, normalize=False):
    params = Wav2Vec2(config).init(jax.random.key(1), np.zeros((1, 400), np.float32))
    wide = jax.tree.map(lambda x: np.asarray(x) * 8, nn.meta.unbox(params))
    return SpeechModel(config, wide, False, RATE, normalize)


MODEL = make_model()


def make_encoder(devices=1, **options):
    options = {"layer": 2, "cut_s": 4.0, "overlap_s": 0.5, **options}
    mesh = make_mesh(devices=jax.devices()[:devices])
    return HubertEncoder(FrameModel(MODEL, EncoderOptions(**options), mesh), KMeans(CENTROIDS))


def speech(seconds):
    random = np.random.default_rng(round(seconds * 1000))
    return (0.3 * random.normal(size=round(seconds * RATE))).astype(np.float32)


@pytest.mark.slow
def test_units_depend_on_nobody_who_shares_the_batch():
    waveforms = [speech(s) for s in (1.3, 2.9, 1.31, 9.7, 1.33)]
    encoder = make_encoder(batch_s=8.0)
    assert isinstance(encoder, UnitEncoder)
    units = encoder.encode(waveforms)
    for waveform, found in zip(waveforms, units, strict=True):
        assert found.dtype == np.int32 and len(found) == frame_count(CONFIG, len(waveform))
        assert len(set(found.tolist())) > 3
    others = [
        encoder.encode(waveforms[::-1])[::-1],
        [encoder.encode([waveform])[0] for waveform in waveforms[:3]],
        make_encoder(devices=8, batch_s=8.0).encode(waveforms),
        make_encoder(batch_s=0.0).encode(waveforms),
    ]
    for found in others:
        assert all(np.array_equal(x, y) for x, y in zip(units, found, strict=False))


@pytest.mark.slow
def test_a_row_is_what_the_model_alone_computes():
    waveform = speech(1.37)
    states = jax.jit(Wav2Vec2(CONFIG).apply)(MODEL.params, waveform[None])
    for layer in (0, 2):
        frames = FrameModel(MODEL, EncoderOptions(layer=layer))
        ((_, found),) = frames.run([waveform], lambda _, hidden: hidden)
        assert np.abs(found - np.asarray(states.hidden[layer])[0]).max() < 1e-4


@pytest.mark.slow
def test_the_last_layer_may_be_asked_for_before_its_norm_and_behind_it():
    model = make_model(dataclasses.replace(CONFIG, do_stable_layer_norm=True))
    states = jax.jit(Wav2Vec2(model.config).apply)(model.params, speech(1.0)[None])
    found = {}
    for layer, expected in ((2, states.hidden[2]), (None, states.last)):
        frames = FrameModel(model, EncoderOptions(layer=layer))
        ((_, found[layer]),) = frames.run([speech(1.0)], lambda _, hidden: hidden)
        assert np.abs(found[layer] - np.asarray(expected)[0]).max() < 1e-4
    assert np.abs(found[2] - found[None]).max() > 0.1


@hypothesis.settings(deadline=None)
@hypothesis.given(st.integers(1, 20_000), st.integers(600, 3000), st.integers(0, 8))
def test_pieces_have_every_frame_once_and_see_what_is_around_it(samples, longest, overlap):
    frames, stride = frame_count(CONFIG, samples), samples_per_frame(CONFIG)
    hypothesis.assume(frames > 0)
    taken = []
    for piece in cut(CONFIG, samples, longest, overlap):
        first = piece.start // stride
        count = frame_count(CONFIG, piece.stop - piece.start)
        assert piece.start % stride == 0 and piece.stop <= samples
        assert piece.stop - piece.start <= longest and 0 <= piece.keep < piece.end <= count
        assert piece.keep >= overlap or first == 0
        assert piece.end <= count - overlap or first + count == frames
        taken += range(first + piece.keep, first + piece.end)
    assert taken == list(range(frames))


@pytest.mark.slow
def test_pieces_give_what_the_whole_gives_but_for_attention_and_statistics_over_time():
    model = make_model(dataclasses.replace(CONFIG, feat_extract_norm="layer"))
    waveform = speech(21.3)
    run = {}
    for seconds in (60.0, 4.0):
        options = EncoderOptions(
            layer=0, cut_s=seconds, overlap_s=0.2, normalize=True, pad_samples=7
        )
        ((_, run[seconds]),) = FrameModel(model, options).run([waveform], lambda _, h: h)
    assert np.abs(run[60.0] - run[4.0]).max() < 1e-4


@pytest.mark.slow
def test_waveforms_are_normalized_over_the_recording_and_padded_then():
    waveform = speech(1.0) * 0.1 + np.float32(0.2)
    wide = waveform.astype(np.float64)
    normal = ((wide - wide.mean()) / np.sqrt(wide.var() + 1e-7)).astype(np.float32)
    by_hand = FrameModel(MODEL, EncoderOptions(layer=2))
    made = FrameModel(MODEL, EncoderOptions(layer=2, normalize=True, pad_samples=13))
    ((_, expected),) = by_hand.run([np.pad(normal, 13)], lambda _, hidden: hidden)
    ((_, found),) = made.run([waveform], lambda _, hidden: hidden)
    assert np.abs(found - expected).max() < 1e-5


def test_devices_are_given_pieces_of_the_padded_normalized_recording(monkeypatch):
    options = EncoderOptions(2, normalize=True, pad_samples=13, cut_s=4.0, overlap_s=0.5)
    frames, given = FrameModel(MODEL, options), []

    def compute(_, rows, length, *others):
        given.extend(rows)
        return np.zeros((len(rows), frame_count(CONFIG, length), 1))

    monkeypatch.setattr(FrameModel, "_compute", compute)
    waveform = speech(9.0) * 0.1 + np.float32(0.2)
    ((_, found),) = frames.run([waveform], None)
    assert len(found) == frames.count_frames(len(waveform))
    padded = np.pad((waveform - waveform.mean()) / np.sqrt(waveform.var() + 1e-7), 13)
    pieces = cut(CONFIG, len(padded), frames._longest, frames._overlap)
    assert len(pieces) == len(given) > 2
    for piece in pieces:
        expected = padded[piece.start : piece.stop]
        same = [x for x in given if len(x) == len(expected) and np.allclose(x, expected, atol=1e-4)]
        assert len(same) == 1


def test_padding_by_half_of_what_a_frame_sees_more_than_its_stride_gives_exact_counts():
    pad = (receptive_field(CONFIG) - samples_per_frame(CONFIG)) // 2
    frames = FrameModel(MODEL, EncoderOptions(layer=1, pad_samples=pad))
    assert [frames.count_frames(20 * n) for n in (1, 2, 77)] == [1, 2, 77]


def test_what_has_no_unit_is_rejected_and_what_is_no_waveform_refused():
    encoder = make_encoder()
    found = encoder.encode([speech(0.01), speech(0.4)])
    least = receptive_field(CONFIG)
    assert found[0] == Rejection(
        "too-short", f"20 samples give no frame, expected at least {least}"
    )
    assert len(found[1]) == frame_count(CONFIG, 800)
    for bad in (np.zeros(0, np.float32), np.full(800, np.nan, np.float32), np.zeros((2, 400))):
        with pytest.raises(ValueError, match="samples"):
            encoder.encode([bad])


def test_a_recording_of_blanks_is_rejected(monkeypatch):
    quantizer = LinearQuantizer((np.zeros((16, 5), np.float32),), (np.zeros(5, np.float32),))
    encoder = HubertEncoder(FrameModel(MODEL, EncoderOptions(layer=2)), quantizer)
    classes = [np.array([4, 4]), np.array([4, 2])]
    monkeypatch.setattr(FrameModel, "run", lambda *_: enumerate(classes))
    blank, units = encoder.encode([speech(0.4), speech(0.4)])
    assert isinstance(blank, Rejection) and blank.kind == "no-units"
    assert encoder.unit_count == 5 and units.tolist() == [2, 2]


def test_the_fingerprint_is_of_all_that_decides_the_units():
    encoder = make_encoder()
    changed = make_model()
    changed.params["params"]["projection"]["bias"][0] += 1
    others = [
        make_encoder(layer=1),
        make_encoder(padding="published"),
        make_encoder(dtype="bfloat16"),
        make_encoder(normalize=True),
        make_encoder(pad_samples=1),
        make_encoder(cut_s=5.0),
        HubertEncoder(encoder._frames, KMeans(CENTROIDS + 1)),
        HubertEncoder(FrameModel(changed, encoder._frames.options), KMeans(CENTROIDS)),
    ]
    assert len({x.fingerprint for x in [encoder, *others]}) == 1 + len(others)
    assert make_encoder(batch_s=3.0, devices=2).fingerprint == encoder.fingerprint
    assert len(encoder.fingerprint) == 64


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hubert")
    write_model(folder / "model", make_model(normalize=True))
    np.save(folder / "km.npy", CENTROIDS)
    np.save(folder / "wide.npy", RANDOM.normal(size=(12, 17)))
    return folder


def test_a_specification_opens_what_it_says(folder):
    encoder = open_hubert(
        str(folder / "model"),
        {"layer": "1", "quantizer": str(folder / "km.npy"), "pad": "3", "dtype": "bfloat16"}
        | {"cut": "12.5", "overlap": "1", "batch": "20", "padding": "published"},
    )
    assert encoder._frames.options == EncoderOptions(
        1, "published", "bfloat16", True, 3, 12.5, 1.0, 20.0
    )
    assert (encoder.sample_rate, encoder.frame_rate, encoder.unit_count) == (RATE, 100.0, 12)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "quantizer of hubert is None"),
        ({"quantizer": "km.npy"}, "layer of hubert is None, expected 0 … 2, or last"),
        ({"quantizer": "km.npy", "layer": "3"}, "layer of hubert is '3', expected 0 … 2"),
        ({"quantizer": "km.npy", "layer": "-1"}, "layer of hubert is '-1'"),
        ({"quantizer": "wide.npy", "layer": "1"}, r"wide\.npy is for .*width 17, expected 16"),
        ({"quantizer": "km.npy", "layer": "1", "cut": "x"}, "cut_s is 'x', expected a finite"),
        ({"quantizer": "km.npy", "layer": "1", "overlap": "20"}, "overlap_s is 20"),
        ({"quantizer": "km.npy", "layer": "1", "dtype": "int8"}, "dtype is 'int8'"),
        ({"quantizer": "km.npy", "layer": "1", "normalize": "1"}, "normalize of hubert is '1'"),
        ({"quantizer": "km.npy", "layer": "1", "shape": "1"}, "an option of hubert is 'shape'"),
        ({"quantizer": "km.npy", "set": "no"}, "set is 'no', expected a .json file, or one of"),
        ({"quantizer": "km.npy", "set": "mhubert-base-25hz"}, "layer of hubert is '11'"),
    ],
)
def test_a_wrong_specification_is_refused_by_name(folder, options, reason):
    options = {k: str(folder / v) if k == "quantizer" else v for k, v in options.items()}
    with pytest.raises(ValueError, match=reason) as raised:
        open_hubert(str(folder / "model"), options)
    assert len(str(raised.value)) < 500


def test_a_set_holds_model_and_quantizer_to_what_it_says(folder):
    options = {"quantizer": str(folder / "km.npy"), "set": "mhubert-base-25hz", "layer": "1"}
    with pytest.raises(ValueError, match=r"frame_rate is 100\.0, expected 25\.0 for the set"):
        open_hubert(str(folder / "model"), options)
    frames = open_frames(str(folder / "model"), {"layer": "last"})
    assert frames.options.layer is None and frames.options.normalize
