from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.microworld.corpus import speech_story, story_text, story_voice
from data_pipelines.microworld.speech import TimedSpeech, synthesize
from data_pipelines.speech import vocoder as vocoder_module
from data_pipelines.speech.alignment import label_frames
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from data_pipelines.speech.vocoder import MelVocoder, decode_known
from lst_jax.speech.interfaces import Vocoder

_FEATURES = MelFeatures()
_RATE = _FEATURES.sample_rate
_FITTED = 12  # stories that the units are fitted on; the next ones are heard for the first time


def _story(index: int) -> TimedSpeech:
    story = speech_story(0, index)
    return synthesize(story_text(story), story_voice(0, story.story_id))


@pytest.fixture(scope="module")
def encoder() -> MelKMeansEncoder:
    spoken = [_story(i) for i in range(_FITTED)]
    log_mels = [_FEATURES.log_mels(speech.samples, _RATE) for speech in spoken]
    labels = [
        label_frames(speech.words, len(frames), 25.0)
        for speech, frames in zip(spoken, log_mels, strict=True)
    ]
    return MelKMeansEncoder.fit(_FEATURES, log_mels, labels, unit_count=80, width=16)


@pytest.fixture(scope="module")
def vocoder(encoder) -> MelVocoder:
    return MelVocoder.from_encoder(encoder)


@pytest.fixture(scope="module")
def heard(encoder) -> list[np.ndarray]:
    """Units of stories that the encoder was not fitted on."""
    return [encoder.encode([_story(_FITTED + i).samples])[0] for i in range(4)]


def _periodicity(samples: np.ndarray, hz: float) -> float:
    """Correlation of a signal with itself one period later, −1…1."""
    period = round(_RATE / hz)
    return float(np.corrcoef(samples[:-period], samples[period:])[0, 1])


def _rms(samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean(samples**2)))


def _typical(encoder: MelKMeansEncoder, frames: slice) -> tuple[int, int]:
    """The units that are the quietest and the loudest in some of the mel bands."""
    loudness = encoder.unit_log_mels[:, frames].mean(axis=1)
    return int(loudness.argmin()), int(loudness.argmax())


def test_the_vocoder_is_the_way_back_of_its_encoder(encoder, vocoder):
    assert isinstance(vocoder, Vocoder)
    for name in ("unit_count", "frame_rate", "sample_rate"):
        assert getattr(vocoder, name) == getattr(encoder, name)


def test_decoded_units_are_heard_as_the_same_units(encoder, vocoder, heard):
    # Measured: 0.75 of the units come back, 0.02 in the control; even the mean frames themselves,
    # without any audio, are assigned to their own units in 0.76 of the places only.
    right, control, ceiling = [], [], []
    for units in heard:
        right += (encoder.encode(vocoder.decode([units]))[0] == units).tolist()
        shuffled = np.random.default_rng(0).permutation(units)
        control += (encoder.encode(vocoder.decode([shuffled]))[0] == units).tolist()
        ceiling += (encoder.assign(encoder.unit_log_mels[units]) == units).tolist()
    assert np.mean(right) > 0.65
    assert np.mean(right) > 0.9 * np.mean(ceiling)
    assert np.mean(control) < 0.1


def test_decoded_frames_have_the_mean_log_mels_of_their_units(encoder, vocoder, heard):
    # Measured: 0.4 nats apart; 3.4 for the same frames in another order.
    for units in heard:
        expected = encoder.unit_log_mels[units]
        found = _FEATURES.log_mels(vocoder.decode([units])[0], _RATE)
        shuffled = np.random.default_rng(0).permutation(expected)
        assert np.abs(found - expected).mean() < 0.6
        assert np.abs(found - shuffled).mean() > 2


def test_a_held_unit_keeps_its_envelope(encoder, vocoder):
    for unit in (0, 17, 42, 79):
        log_mels = _FEATURES.log_mels(vocoder.decode([np.full(30, unit)])[0], _RATE)
        inside = log_mels[3:-3]
        assert np.abs(inside.mean(axis=0) - encoder.unit_log_mels[unit]).mean() < 0.6
        assert np.abs(inside - inside.mean(axis=0)).mean() < 0.5


def test_envelopes_glide_between_units(encoder, vocoder):
    quiet, loud = _typical(encoder, slice(None))
    samples = vocoder.decode([np.repeat([quiet, loud, quiet], 5)])[0]
    edge = 5 * _FEATURES.hop  # halfway between the centers of two frames
    step = _FEATURES.hop // 3
    # Between the two centers the level rises all the time.
    levels = [_rms(samples[edge + i * step : edge + (i + 1) * step]) for i in range(-2, 2)]
    assert levels == sorted(levels)
    assert levels[-1] > 20 * levels[0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 79), min_size=1, max_size=40))
def test_any_units_give_finite_audio_of_exact_length_within_full_scale(vocoder, units):
    samples = vocoder.decode([np.array(units)])[0]
    assert samples.dtype == np.float32 and samples.shape == (len(units) * 882,)
    assert np.isfinite(samples).all() and np.abs(samples).max() <= 1


def test_decoding_is_deterministic_whatever_the_integer_type_and_after_loading(
    encoder, vocoder, heard, tmp_path
):
    units = heard[0][:50]
    encoder.save(tmp_path / "encoder.npz")
    expected = vocoder.decode([units])[0]
    np.testing.assert_array_equal(vocoder.decode([units.astype(np.uint16)])[0], expected)
    np.testing.assert_array_equal(
        MelVocoder.load(tmp_path / "encoder.npz").decode([units.tolist()])[0], expected
    )


def test_silence_is_quiet_and_speech_is_as_loud_as_it_was(encoder, vocoder, heard):
    quietest, _ = _typical(encoder, slice(None))
    assert _rms(vocoder.decode([np.full(25, quietest)])[0]) < 1e-3
    original = _story(_FITTED).samples / 32768
    assert 0.5 < _rms(vocoder.decode([heard[0]])[0]) / _rms(original) < 1.5


def test_vowels_have_the_pitch_and_fricatives_have_none(encoder):
    tilt = encoder.unit_log_mels[:, :13].mean(axis=1) - encoder.unit_log_mels[:, -13:].mean(axis=1)
    _, vowel = _typical(encoder, slice(0, 13))
    hiss = int(tilt.argmin())
    for pitch_hz in (80.0, 100.0, 150.0):
        speaker = MelVocoder(_FEATURES, encoder.unit_log_mels, pitch_hz=pitch_hz)
        assert _periodicity(speaker.decode([np.full(25, vowel)])[0], pitch_hz) > 0.7
        assert abs(_periodicity(speaker.decode([np.full(25, hiss)])[0], pitch_hz)) < 0.3


def test_a_unit_is_as_voiced_as_its_low_bands_are_the_stronger():
    frames = np.zeros((3, 7), np.float32)  # a third is two bands
    frames[0, :2] = np.log([2, 4])
    frames[1, -2:] = np.log([5, 13])
    frames[2, 2:5] = 9
    np.testing.assert_allclose(vocoder_module._voicing(frames), [3 / 4, 1 / 10, 1 / 2], rtol=1e-6)
    assert vocoder_module._voicing(frames[:, :1]).tolist() == [0.5] * 3


def test_pulses_and_noise_have_unit_power_and_glide_into_each_other():
    features = MelFeatures(sample_rate=8000, mel_count=12, max_hz=4000, cepstrum_count=6)
    frames = np.zeros((2, 12), np.float32)
    frames[0, :4], frames[1, -4:] = 40, 40  # all voiced, not at all
    vocoder = MelVocoder(features, frames, pitch_hz=200)
    pulses = vocoder._excitation(np.zeros(20, np.int64))
    assert np.flatnonzero(pulses).tolist() == list(range(0, 6400, 40))
    assert np.mean(pulses**2) == pytest.approx(1, rel=1e-5)
    noise = vocoder._excitation(np.ones(100, np.int64))
    assert np.mean(noise**2) == pytest.approx(1, rel=0.05) and abs(noise.mean()) < 0.02
    # Between the centers of two frames, 320 samples each, a pulse's height falls in a line.
    both = vocoder._excitation(np.array([0, 1])) - vocoder._excitation(np.array([1, 1]))
    share = np.interp(np.arange(0, 640, 40), [160, 480], [1, 0])
    place = np.arange(0, 640, 40)
    alone = vocoder._excitation(np.array([1, 1]))[place]
    np.testing.assert_allclose(both[place], share * (np.sqrt(40) - alone), atol=1e-4)


@pytest.mark.parametrize("pitch_hz", [50, 200])
def test_the_lowest_and_the_highest_pitch_are_heard(pitch_hz):
    frames = np.zeros((1, _FEATURES.mel_count), np.float32)
    MelVocoder(_FEATURES, frames, pitch_hz=pitch_hz)
    with pytest.raises(ValueError, match="expected 50"):
        MelVocoder(_FEATURES, frames, pitch_hz=np.nextafter(pitch_hz, np.sign(pitch_hz - 99) * 999))


def test_envelopes_are_linear_between_the_centers_of_units_and_hold_beyond():
    """A window's place is its middle; the first begins four steps before the signal."""
    features = MelFeatures(sample_rate=8000, mel_count=12, max_hz=4000, cepstrum_count=6)
    vocoder = MelVocoder(features, np.random.default_rng(0).normal(size=(3, 12)))
    units = np.array([2, 0, 1, 1])
    found = np.log(np.concatenate([*vocoder._envelopes(units)]))
    step = round(2.5 * 8000 / 100 / 5)
    middles = (np.arange(len(found)) - 4) * step + 5 * step / 2
    assert middles[-1] - 5 * step / 2 < 4 * 320 <= middles[-1] + 3.5 * step
    known = vocoder._log_envelopes[units]
    centers = (np.arange(4) + 0.5) * 320
    for number in (0, 7, known.shape[1] - 1):
        expected = np.interp(middles, centers, known[:, number])
        np.testing.assert_allclose(found[:, number], expected, atol=1e-4)


def test_a_signal_that_has_the_magnitudes_already_stays_what_it_is():
    features = MelFeatures(sample_rate=8000, mel_count=12, max_hz=4000, cepstrum_count=6)
    vocoder = MelVocoder(features, np.zeros((1, 12)))
    size, step = vocoder._window.size, vocoder._step
    signal = np.random.default_rng(0).normal(size=3 * features.hop).astype(np.float32)
    frames = sum(len(x) for x in vocoder._envelopes(np.zeros(3, np.int64)))
    padded = np.zeros(frames * step + size, np.float32)
    padded[4 * step : 4 * step + signal.size] = signal  # the first window has its last step only
    windows = np.stack([padded[i * step : i * step + size] for i in range(frames)])
    magnitudes = np.abs(np.fft.rfft(windows * vocoder._window, vocoder._fft_size))
    imposed = vocoder._impose([magnitudes[:5], magnitudes[5:]], signal)
    np.testing.assert_allclose(imposed, signal, atol=1e-4)
    np.testing.assert_allclose(vocoder._impose([2 * magnitudes], signal), 2 * signal, atol=1e-4)


def test_what_would_exceed_full_scale_is_made_quieter_as_a_whole(encoder, vocoder):
    units = np.arange(80)
    loud = MelVocoder(_FEATURES, encoder.unit_log_mels + 8).decode([units])[0]
    assert np.abs(loud).max() == 1
    assert np.corrcoef(loud, vocoder.decode([units])[0])[0, 1] > 0.999


def test_other_features_work_too():
    rng = np.random.default_rng(0)
    for features in (
        MelFeatures(sample_rate=8000, mel_count=12, max_hz=4000, cepstrum_count=6),
        MelFeatures(sample_rate=16_000, frame_rate=50, window_s=0.02, mel_count=80),
        MelFeatures(mel_count=1, cepstrum_count=1),
    ):
        frames = rng.normal(-4, 2, (5, features.mel_count)).astype(np.float32)
        frames[0] = -200  # no power at all
        samples = MelVocoder(features, frames).decode([np.arange(5)])[0]
        assert samples.shape == (5 * features.hop,)
        assert np.isfinite(samples).all() and 0 < np.abs(samples).max() <= 1


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ([], r"units has shape \(0,\)"),
        (7, r"units has shape \(\)"),
        (np.zeros((2, 3), np.int32), r"units has shape \(2, 3\)"),
        (np.zeros(3), "units has dtype float64, expected integers"),
        (np.ones(3, bool), "units has dtype bool, expected integers"),
        ([0, -1, 3], r"units holds -1, expected 0…79"),
        ([0, 80], r"units holds 80, expected 0…79"),
        (np.array([2**63], np.uint64), "units holds 9223372036854775808, expected"),
    ],
)
def test_what_is_not_a_sequence_of_units_is_refused(vocoder, units, message):
    with pytest.raises(ValueError, match=message):
        vocoder.decode([np.arange(3), units])


@pytest.mark.parametrize(
    ("frames", "pitch_hz", "message"),
    [
        (np.zeros((3, 39)), 100.0, r"unit_log_mels has shape \(3, 39\), expected finite \(3, 40\)"),
        (np.zeros((0, 40)), 100.0, r"unit_log_mels has shape \(0, 40\), expected finite \(1, 40\)"),
        (np.zeros(40), 100.0, r"unit_log_mels has shape \(40,\)"),
        (np.full((3, 40), np.nan), 100.0, "expected finite"),
        (np.zeros((3, 40)), 49.0, "pitch_hz is 49.0, expected 50…200"),
        (np.zeros((3, 40)), float("nan"), "pitch_hz is nan"),
    ],
)
def test_frames_and_pitches_that_make_no_sense_are_refused(frames, pitch_hz, message):
    with pytest.raises(ValueError, match=message):
        MelVocoder(_FEATURES, frames, pitch_hz=pitch_hz)


def test_a_file_that_holds_no_encoder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        MelVocoder.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match=r"other.npz"):
        MelVocoder.load(tmp_path / "other.npz")


def test_units_that_a_vocoder_does_not_have_are_left_out():
    class Echo:
        unit_count = 5

        def decode(self, units):
            assert all(sequence.size for sequence in units)
            return [sequence.astype(np.float32) for sequence in units]

    decoded = decode_known(Echo(), np.array([4, 5, 0, 99, 3]))
    assert decoded.tolist() == [4, 0, 3] and decoded.dtype == np.float32
    none = decode_known(Echo(), np.array([5, 6]))
    assert none.shape == (0,) and none.dtype == np.float32
