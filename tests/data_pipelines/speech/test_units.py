from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from scipy.fft import dct

from data_pipelines.records.storage import SILENCE
from data_pipelines.speech import units as units_module
from data_pipelines.speech.alignment import align_units, label_frames
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from lst_jax.speech.interfaces import TimedText, UnitEncoder

_RATE = 8000
_FEATURES = MelFeatures(sample_rate=_RATE, mel_count=12, max_hz=4000, cepstrum_count=6, context=1)


def _tone(hz: float, seconds: float) -> np.ndarray:
    time = np.arange(round(seconds * _RATE)) / _RATE
    return (np.sin(2 * np.pi * hz * time) * 8000).astype(np.int16)


def _utterance(order: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Tones of 0.2 s and which tone sounds in each frame."""
    pitches = (300, 700, 1500, 2500)
    audio = np.concatenate([_tone(pitches[i], 0.2) for i in order])
    noise = np.random.default_rng(sum(order)).integers(-200, 200, audio.size)
    return audio + noise.astype(np.int16), np.repeat([str(i) for i in order], 5)


@pytest.fixture(scope="module")
def encoder() -> MelKMeansEncoder:
    orders = [np.random.default_rng(i).permutation(4).tolist() for i in range(12)]
    audio, labels = zip(*map(_utterance, orders), strict=True)
    log_mels = [_FEATURES.log_mels(samples, _RATE) for samples in audio]
    return MelKMeansEncoder.fit(_FEATURES, log_mels, labels, unit_count=8, width=4)


def test_the_encoder_offers_the_interface_of_every_front_end(encoder):
    assert isinstance(encoder, UnitEncoder)
    assert (encoder.unit_count, encoder.frame_rate, encoder.sample_rate) == (8, 25.0, _RATE)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5000))
def test_there_is_one_unit_for_every_40_ms_begun(encoder, size):
    units = encoder.encode([np.ones(size, np.int16)])[0]
    assert units.dtype == np.int32 and units.shape == (-(-size // 320),)
    assert units.min() >= 0 and units.max() < encoder.unit_count


def test_different_sounds_get_different_units_wherever_they_stand(encoder):
    orders = [np.random.default_rng(i).permutation(4).tolist() for i in range(100, 110)]
    heard: dict[int, set[int]] = {}
    for order in orders:
        units = encoder.encode([_utterance(order)[0]])[0]
        for place, tone in enumerate(order):
            heard.setdefault(tone, set()).add(int(units[5 * place + 2]))  # middle of the tone
    for one, other in itertools.combinations(heard.values(), 2):
        assert one.isdisjoint(other)


def test_the_mean_that_is_taken_off_is_that_of_speech_alone():
    """However long the silence around an utterance is, its speech keeps its vectors."""
    speech = np.random.default_rng(0).normal(0, 1, (12, _FEATURES.mel_count)).astype(np.float32)
    silence = np.full((7, _FEATURES.mel_count), speech.min() - 30, np.float32)
    alone = _FEATURES.vectors(speech)
    inside = slice(1, -1)  # frames whose neighbors are speech, too
    around = _FEATURES.vectors(np.concatenate([silence, speech, silence, silence]))
    np.testing.assert_allclose(around[7:19][inside], alone[inside], atol=1e-4)
    louder = _FEATURES.vectors(speech + 3)
    np.testing.assert_allclose(louder, alone, atol=1e-4)


def test_units_do_not_depend_on_loudness_or_sample_type(encoder):
    samples = _utterance([2, 0, 3, 1])[0]
    units, *others = encoder.encode([samples, samples // 2 * 2 / 32768, samples // 3])
    for other in others:
        np.testing.assert_array_equal(other, units)


def test_a_fingerprint_tells_encoders_apart_by_what_their_units_depend_on(encoder, tmp_path):
    encoder.save(tmp_path / "encoder.npz")
    assert MelKMeansEncoder.load(tmp_path / "encoder.npz").fingerprint == encoder.fingerprint
    parts = [encoder.mean, encoder.projection, encoder.centroids, encoder.unit_log_mels]
    for number in range(4):
        changed = [part + (number == place) for place, part in enumerate(parts)]
        other = MelKMeansEncoder(encoder.features, *changed)
        # The last only says how a unit sounds.
        assert (other.fingerprint == encoder.fingerprint) == (number == 3)
    features = dataclasses.replace(encoder.features, mel_count=encoder.features.mel_count)
    assert MelKMeansEncoder(features, *parts).fingerprint == encoder.fingerprint


@pytest.mark.parametrize(
    "features", ["[" * 10_000, "3", '{"mel_count": NaN}', '{"mel_count": 2.5}', '{"colour": 1}']
)
def test_features_that_are_none_are_refused_with_the_file(encoder, tmp_path, features):
    path = tmp_path / "encoder.npz"
    encoder.save(path)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"features": np.array(features)})
    with pytest.raises(ValueError, match=r"encoder\.npz is not a lst-jax-mel") as error:
        MelKMeansEncoder.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["mean", "projection", "centroids", "unit_log_mels"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda array: array.astype(np.complex64),
        lambda array: array > 0,
        lambda array: array.astype("U4"),
        lambda array: array[:0],
        lambda array: array[..., 0],
        lambda array: array[None],
        lambda array: np.float32(1),
        lambda array: array * np.nan,
        lambda array: array.astype(np.float64) + 1e39,
    ],
)
def test_arrays_that_are_no_real_numbers_of_their_shape_are_refused(encoder, tmp_path, name, spoil):
    path = tmp_path / "encoder.npz"
    encoder.save(path)
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {name: spoil(arrays[name])})
    with pytest.raises(ValueError, match=r"encoder\.npz is not a lst-jax-mel") as error:
        MelKMeansEncoder.load(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_cepstra_are_relative_to_the_mean_of_speech_without_silence():
    """A frame exactly 6 nats under the loudest is speech, one any quieter is silence."""
    features = dataclasses.replace(_FEATURES, context=0)
    ripple = np.tile([0.5, -0.5], 6).astype(np.float32)  # no change of a frame's mean
    under = np.nextafter(np.float32(-6), np.float32(-7)) - np.float32(1e-5)
    loudness = np.array([0, -6, under, -7.5, -0.25], np.float32)[:, None]
    frames = loudness + ripple * np.array([1, 0, 2, 3, -1], np.float32)[:, None]
    cepstra = dct(frames.astype(np.float64), norm="ortho")[:, :6]
    expected = cepstra - cepstra[[0, 1, 4]].mean(axis=0)
    expected[:, 0] *= 0.5 * np.sqrt(2)  # the transform here does not damp its mean
    np.testing.assert_allclose(features.vectors(frames), expected, atol=1e-4)


def test_features_tell_apart_only_ten_nats_below_the_loudest_band():
    features = dataclasses.replace(_FEATURES, context=0)
    frames = np.zeros((2, 12), np.float32)
    vectors = {}
    for depth in (9.0, 10.0, 11.0, 30.0):
        frames[0, 3] = -depth
        vectors[depth] = features.vectors(frames)
    np.testing.assert_array_equal(vectors[10.0], vectors[11.0])
    np.testing.assert_array_equal(vectors[10.0], vectors[30.0])
    assert np.abs(vectors[9.0] - vectors[10.0]).max() > 0.1


@pytest.mark.parametrize("size", [1, 319, 320, 321, 5000])
def test_log_mels_are_those_of_a_plain_transform_around_the_middle_of_each_frame(size):
    """With double precision and a sum for every bin; samples before and behind are zero."""
    samples = np.random.default_rng(size).normal(0, 0.1, size)
    window, bins, hop = 480, 512, 320  # 60 and 40 ms, and the next power of two
    mels = np.linspace(2595 * np.log10(1 + 60 / 700), 2595 * np.log10(1 + 4000 / 700), 14)
    edges = 700 * (10 ** (mels / 2595) - 1)
    hertz = np.arange(bins // 2 + 1) * _RATE / bins
    bank = np.stack([np.interp(hertz, edges[i : i + 3], [0, 1, 0], 0, 0) for i in range(12)])
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    waves = np.exp(-2j * np.pi * np.outer(np.arange(bins // 2 + 1), np.arange(window)) / bins)
    found = _FEATURES.log_mels(samples, _RATE)
    assert found.shape == (-(-size // hop), 12)
    for number, frame in enumerate(found):
        begin = number * hop + hop // 2 - window // 2
        places = np.arange(begin, begin + window)
        inside = (places >= 0) & (places < size)
        piece = np.where(inside, samples[np.clip(places, 0, size - 1)], 0) * hann
        power = np.abs(waves @ piece) ** 2 / window
        np.testing.assert_allclose(frame, np.log(bank @ power + 1e-7), atol=1e-3)


def test_the_projection_is_that_of_discriminant_analysis():
    """Labels' spreads are whitened; directions come by the ratio in which labels differ."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 4000)
    centers = rng.normal(0, 1, (5, 6)) * [3, 2, 1.5, 1, 0.3, 0.1]
    mixing = np.diag([1, 2, 1, 0.7, 1, 1]) + 0.2 * rng.normal(0, 1, (6, 6))
    points = (centers[labels] + rng.normal(0, 1, (4000, 6)) @ mixing).astype(np.float32)
    points -= points.mean(axis=0)
    projected = points @ units_module._discriminant_projection(points, labels.astype(str), 3)
    means = np.stack([projected[labels == i].mean(axis=0) for i in range(5)])
    within = np.cov((projected - means[labels]).T)
    np.testing.assert_allclose(within, np.eye(3), atol=0.02)
    total = np.cov(points.T)
    inner = np.cov((points - np.stack([points[labels == i].mean(0) for i in range(5)])[labels]).T)
    ratios = linalg.eigh(total - inner, inner, eigvals_only=True)[::-1]
    np.testing.assert_allclose(np.cov(projected.T).diagonal() - 1, ratios[:3], rtol=0.03)


def test_units_are_the_nearest_centroids_and_an_empty_cluster_has_the_mean_of_all(encoder):
    log_mels = _FEATURES.log_mels(_utterance([3, 1])[0], _RATE)
    points = (_FEATURES.vectors(log_mels) - encoder.mean) @ encoder.projection
    distances = np.linalg.norm(points[:, None] - encoder.centroids, axis=2)
    np.testing.assert_array_equal(encoder.assign(log_mels), distances.argmin(axis=1))
    rows = np.array([[1.0, 0], [3, 0], [8, 4]])
    means = units_module._cluster_means(rows, np.array([2, 2, 0]), 4)
    np.testing.assert_allclose(means, [[8, 4], [4, 4 / 3], [2, 0], [4, 4 / 3]], rtol=1e-6)


def test_fitting_is_deterministic_and_survives_a_file(encoder, tmp_path):
    encoder.save(tmp_path / "encoder.npz")
    loaded = MelKMeansEncoder.load(tmp_path / "encoder.npz")
    assert loaded.features == encoder.features
    for name in ("mean", "projection", "centroids", "unit_log_mels"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(encoder, name))
    samples = _utterance([1, 0, 2])[0]
    np.testing.assert_array_equal(loaded.encode([samples]), encoder.encode([samples]))


def test_mean_log_mels_of_a_unit_are_those_of_its_frames(encoder):
    samples, _ = _utterance([0, 1, 2, 3])
    log_mels = _FEATURES.log_mels(samples, _RATE)
    (units,) = encoder.encode([samples])
    for frame in (2, 7, 12, 17):
        distances = np.abs(encoder.unit_log_mels - log_mels[frame]).mean(axis=1)
        assert distances[units[frame]] < distances.min() + 1


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.zeros(0, np.int16), _RATE, "shape"),
        (np.zeros((4, 2), np.int16), _RATE, "shape"),
        (np.zeros(100, np.int32), _RATE, "dtype"),
        (np.zeros(100, np.uint8), _RATE, "dtype"),
        (np.zeros(100, np.complex64), _RATE, "dtype"),
        (np.array([0.0, np.nan]), _RATE, "NaN"),
        (np.array([0.0, np.inf]), _RATE, "NaN or infinity"),
        (np.full(100, 8000.0), _RATE, "within"),
        (np.zeros(100, np.int16), 16000, "resample"),
    ],
)
def test_bad_audio_is_refused(encoder, samples, rate, message):
    with pytest.raises(ValueError, match=message):
        encoder.features.log_mels(samples, rate)


@pytest.mark.parametrize(
    "change",
    [
        {"sample_rate": 22051},
        {"max_hz": 20000.0},
        {"cepstrum_count": 41},
        {"context": -1},
        {"window_s": 0.0},
        {"window_s": 0.0399},
        {"max_hz": 11025.5},
        {"min_hz": 8000.0},
    ],
)
def test_features_that_make_no_sense_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        dataclasses.replace(MelFeatures(), **change)


def test_features_may_be_as_large_as_audio_allows():
    MelFeatures(window_s=0.04, max_hz=11025, min_hz=11024.0, cepstrum_count=40, context=0)


def test_fitting_on_too_little_is_refused():
    log_mels = [_FEATURES.log_mels(_tone(300, 0.2), _RATE)]
    labels = [np.array(["a"] * 5)]
    with pytest.raises(ValueError, match="unit_count"):
        MelKMeansEncoder.fit(_FEATURES, log_mels, labels, unit_count=6, width=2)
    with pytest.raises(ValueError, match="labels"):
        MelKMeansEncoder.fit(_FEATURES, log_mels, [labels[0][:4]], unit_count=2, width=2)
    with pytest.raises(ValueError, match="width"):
        MelKMeansEncoder.fit(_FEATURES, log_mels, labels, unit_count=2, width=99)


def test_a_file_of_another_kind_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        MelKMeansEncoder.load(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("not an archive")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    for name in ("text.npz", "other.npz"):
        with pytest.raises(ValueError, match=name):
            MelKMeansEncoder.load(tmp_path / name)


@st.composite
def _timings(draw) -> list[TimedText]:
    steps = draw(st.lists(st.floats(0, 0.6), min_size=2, max_size=30))
    edges = np.cumsum(steps[: len(steps) // 2 * 2]).tolist()
    return [TimedText(f"w{i}", edges[2 * i], edges[2 * i + 1]) for i in range(len(edges) // 2)]


@settings(max_examples=200, deadline=None)
@given(_timings(), st.integers(0, 60))
def test_alignment_gives_every_unit_once_and_every_word_some(timings, extra):
    num_units = len(timings) + extra
    words, counts = align_units(timings, num_units, 25.0)
    assert counts.dtype == np.int32 and len(words) == len(counts)
    assert counts.sum() == num_units and counts.min() >= 1
    assert [word for word in words if word != SILENCE] == [timing.text for timing in timings]
    assert (SILENCE, SILENCE) not in set(itertools.pairwise(words))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=20))
def test_alignment_is_exact_where_edges_are_on_frames(lengths):
    """Words of 1 + n frames, after silences of n frames, come back as they are."""
    timings, expected, frame = [], [], 0
    for i, length in enumerate(lengths):
        start, end = frame + length, frame + 2 * length + 1
        timings.append(TimedText(f"w{i}", start / 25, end / 25))
        expected += [(SILENCE, length)] * (length > 0) + [(f"w{i}", length + 1)]
        frame = end
    words, counts = align_units(timings, frame + 2, 25.0)
    assert list(zip(words, counts.tolist(), strict=True)) == [*expected, (SILENCE, 2)]


def test_frames_are_labeled_with_the_part_of_the_word_at_their_center():
    timings = [TimedText("The", 0.04, 0.12), TimedText("dog's.", 0.16, 0.32)]
    labels = label_frames(timings, 9, 25.0)
    expected = [SILENCE, "the/1", "the/3", SILENCE, "dog's/0", "dog's/1", "dog's/2", "dog's/3"]
    assert labels.tolist() == [*expected, SILENCE]


def test_a_frame_a_rounding_before_the_end_of_a_word_is_in_its_last_part():
    end = np.nextafter(0.1, 1)  # right behind the center of frame 2
    assert label_frames([TimedText("a", 0.0, end)], 3, 25.0, parts=3)[2] == "a/2"


def test_labels_keep_the_marks_of_letters():
    """Else words that differ in a vowel or a tone would be one."""
    words = ["कि", "कु,", "ọ̀rọ̀!", "«ไม่»", "_"]
    timings = [TimedText(word, i / 25, (i + 1) / 25) for i, word in enumerate(words)]
    labels = label_frames(timings, 5, 25.0, parts=1)
    assert labels.tolist() == ["कि/0", "कु/0", "ọ̀rọ̀/0", "ไม่/0", "/0"]


@pytest.mark.parametrize(
    "timings",
    [
        [],
        [TimedText("a", 0.2, 0.1)],
        [TimedText("a", 0.0, 0.2), TimedText("b", 0.1, 0.3)],
        [TimedText("a", 0.0, float("nan"))],
        [TimedText("a", -0.1, 0.1)],
    ],
)
def test_timings_that_overlap_or_run_backwards_are_refused(timings):
    with pytest.raises(ValueError, match="timings"):
        align_units(timings, 20, 25.0)
    with pytest.raises(ValueError, match="timings"):
        label_frames(timings, 20, 25.0)


def test_alignment_with_fewer_units_than_words_is_refused():
    timings = [TimedText("a", 0.0, 0.1), TimedText("b", 0.1, 0.2)]
    with pytest.raises(ValueError, match="num_units"):
        align_units(timings, 1, 25.0)
    with pytest.raises(ValueError, match="frame_rate"):
        align_units(timings, 10, 0.0)
