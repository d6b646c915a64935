from __future__ import annotations

import io
import struct
import tracemalloc
import wave

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_pipelines.speech.audio import float_samples, read_audio, write_wav

_RATE = 16_000


def _wav(data: bytes, *, channels: int = 1, width: int = 2, rate: int = _RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return buffer.getvalue()


def _encode(samples: np.ndarray, rate: int = _RATE, **kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, **kind)
    return buffer.getvalue()


def _tone(rate: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(rate // 2) / rate)


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.int16, st.integers(1, 50)))
def test_int16_survives_a_file_exactly(tmp_path_factory, samples):
    path = tmp_path_factory.getbasetemp() / "exact.wav"
    write_wav(path, samples, _RATE)
    read = read_audio(path, _RATE)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, float_samples(samples))
    np.testing.assert_array_equal(read * 32768, samples)


def test_floats_survive_to_half_a_step_and_are_cut_off_at_full_scale(tmp_path):
    samples = np.array([0.1, -0.7, 1.0, 1.5, -1.0, -1.5, 1e-9])
    write_wav(tmp_path / "a.wav", samples, _RATE)
    read = read_audio(tmp_path / "a.wav", _RATE)
    np.testing.assert_allclose(read[:2], samples[:2], atol=0.5 / 32768)
    np.testing.assert_array_equal(read[2:], [*[32767 / 32768] * 2, -1, -1, 0])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_gives_the_same_samples(width):
    values = [-1.0, -0.5, 0.0, 0.25, 0.5]
    full = 1 << (8 * width - 1)
    offset = full if width == 1 else 0
    data = b"".join(
        int(x * full + offset).to_bytes(width, "little", signed=width > 1) for x in values
    )
    np.testing.assert_array_equal(read_audio(_wav(data, width=width), _RATE), values)


@pytest.mark.parametrize(
    ("format", "subtype", "error"),
    [
        ("WAV", "PCM_U8", 0.009),
        ("WAV", "FLOAT", 1e-7),
        ("WAV", "DOUBLE", 1e-7),
        ("WAV", "ULAW", 0.02),
        ("WAV", "ALAW", 0.02),
        ("WAVEX", "PCM_24", 1e-6),
        ("RF64", "PCM_16", 1e-4),
        ("AIFF", "PCM_16", 1e-4),
        ("FLAC", "PCM_16", 1e-4),
        ("OGG", "VORBIS", 0.05),
        ("OGG", "OPUS", 0.05),
        ("MP3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_every_kind_of_file_gives_its_samples_also_in_parts(tmp_path, format, subtype, error):
    tone = _tone(_RATE) * np.linspace(0.2, 1, _RATE // 2)
    (tmp_path / "a.wav").write_bytes(_encode(tone, format=format, subtype=subtype))
    read = read_audio(tmp_path / "a.wav", _RATE)  # its contents, not its name, say what it is
    assert read.size == tone.size
    np.testing.assert_allclose(read[:7000], tone[:7000], atol=error)  # Opus fades at its end
    part = read_audio(tmp_path / "a.wav", _RATE, start_s=0.2, end_s=0.3)
    np.testing.assert_array_equal(part, read[3200:4800])


@pytest.mark.parametrize("claimed", [0, 2**31 - 1, 2**32 - 1, 0x7FFFF000])
@pytest.mark.parametrize("from_file", [False, True])
def test_a_streamed_wav_that_does_not_know_its_length_is_read_to_its_end(
    tmp_path, claimed, from_file
):
    data = bytearray(_wav(np.arange(40, dtype="<i2").tobytes()))
    struct.pack_into("<I", data, 4, claimed)
    struct.pack_into("<I", data, 40, claimed)
    (tmp_path / "a.wav").write_bytes(data)
    source = tmp_path / "a.wav" if from_file else bytes(data)
    np.testing.assert_array_equal(read_audio(source, _RATE) * 32768, np.arange(40))
    assert (tmp_path / "a.wav").read_bytes() == data


def test_channels_are_averaged_or_one_is_chosen():
    data = np.array([[100, 300], [-20, 20], [7, 7]], "<i2").tobytes()
    stereo = _wav(data, channels=2)
    np.testing.assert_array_equal(read_audio(stereo, _RATE) * 32768, [200, 0, 7])
    np.testing.assert_array_equal(read_audio(stereo, _RATE, channel=1) * 32768, [300, 20, 7])
    with pytest.raises(ValueError, match="has 2 channels, expected one of number 2"):
        read_audio(stereo, _RATE, channel=2)


def test_channels_that_cancel_out_are_warned_of(caplog):
    tone = _tone(_RATE)
    opposite = read_audio(_encode(np.stack([tone, -tone], 1), format="WAV"), _RATE)
    assert np.abs(opposite).max() < 1e-4
    assert "cancel out" in caplog.text
    caplog.clear()
    read_audio(_encode(np.stack([tone, 0 * tone], 1), format="WAV"), _RATE)
    read_audio(_encode(np.zeros((100, 2)), format="WAV"), _RATE)
    assert not caplog.text


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_tone_of_another_rate_stays_that_tone(rate):
    read = read_audio(_encode(_tone(rate), rate, format="WAV", subtype="FLOAT"), _RATE)
    expected = _tone(_RATE)
    assert abs(read.size - expected.size) <= 1
    middle = slice(500, 7500)  # the filter reaches beyond the ends
    np.testing.assert_allclose(read[middle], expected[middle], atol=1e-4)


def test_blocks_are_resampled_without_seams():
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 300_000)
    read = read_audio(_encode(noise, 44_100, format="WAV", subtype="DOUBLE"), _RATE)
    expected = soxr.resample(noise, 44_100, _RATE, quality="VHQ")
    np.testing.assert_allclose(read, expected, atol=1e-7)


def test_what_the_lower_rate_cannot_hold_is_removed():
    data = _encode(_tone(44_100, hz=12_000), 44_100, format="WAV")
    assert np.abs(read_audio(data, _RATE)[500:-500]).max() < 1e-4


@pytest.mark.slow
def test_six_hours_take_little_more_memory_than_their_samples(tmp_path):
    with soundfile.SoundFile(tmp_path / "a.flac", "w", 2000, 1, "PCM_16") as file:
        for _ in range(6):
            file.write(np.zeros(3600 * 2000, np.int16))
    tracemalloc.start()
    read = read_audio(tmp_path / "a.flac", 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read.size == 6 * 3600 * 1000
    assert peak < 1.3 * read.nbytes + 10e6


_GOOD = _wav(np.arange(40, dtype="<i2").tobytes())
_FLAC = _encode(np.random.default_rng(0).uniform(-0.5, 0.5, 9000), format="FLAC")
_MP3 = _encode(_tone(_RATE), format="MP3", subtype="MPEG_LAYER_III")


def _with(offset: int, format_: str, value: int) -> bytes:
    data = bytearray(_GOOD)
    struct.pack_into(format_, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read: .* Expected a whole file: WAV"),
        (b"ID3\x04 no sound in here", "cannot be read"),
        (b"RIFF\x04\x00\x00\x00AVI ", "cannot be read: "),
        (_GOOD[:30], "cannot be read"),
        (_GOOD[:-7], "ends early: it holds 73 bytes of samples, expected 80"),
        (_FLAC[: len(_FLAC) // 2], "cannot be read: .*lost sync"),
        (_MP3[: len(_MP3) // 2], "it ends early and holds .* samples, expected 8000"),
        (_wav(b""), "holds no samples, expected at least one"),
        (_wav(b"") + b"LIST\4\0\0\0INFO", "holds no samples"),
        (_with(22, "<H", 0), "cannot be read"),
        (_with(24, "<I", 0), "cannot be read|has 0 samples a second"),
        (_with(24, "<I", 2**31 - 1), r"has 2147483647 samples a second, expected 1000…384000"),
        (_encode(np.array([0.0, np.nan]), format="WAV", subtype="FLOAT"), ".*NaN"),
        (_encode(np.array([0.0, 9.0]), format="WAV", subtype="FLOAT"), ".*expected .* within ±1"),
    ],
)
def test_a_file_that_is_no_recording_is_named_with_what_is_wrong(tmp_path, data, message):
    (tmp_path / "odd.wav").write_bytes(data)
    with pytest.raises(ValueError, match=f"odd.wav:? {message}") as error:
        read_audio(tmp_path / "odd.wav", _RATE)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"^member 3:? "):
        read_audio(data, _RATE, name="member 3")


def test_raw_samples_and_parts_beyond_the_end_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(_GOOD)
    with pytest.raises(ValueError, match=r"a.raw cannot be read"):
        read_audio(tmp_path / "a.raw", _RATE)
    with pytest.raises(ValueError, match=r"holds no samples in 1.0 … 2.0 s"):
        read_audio(_GOOD, _RATE, start_s=1.0, end_s=2.0)
    with pytest.raises(ValueError, match="expected 0 ≤ start < end"):
        read_audio(_GOOD, _RATE, start_s=1.0, end_s=1.0)


def test_limits_of_recordings_are_met_and_not_passed():
    assert float_samples(np.full(3, -2.0)).tolist() == [-2] * 3
    with pytest.raises(ValueError, match=r"reach 2\.001"):
        float_samples(np.array([0, -2.001]))
    for rate in (1000, 384_000):
        assert len(read_audio(_encode(np.zeros(50), rate, format="WAV"), rate)) == 50
    for rate in (999, 384_001):
        with pytest.raises(ValueError, match=f"has {rate} samples a second, expected 1000…384000"):
            read_audio(_encode(np.zeros(50), rate, format="WAV"), _RATE)
    assert len(read_audio(_encode(np.zeros((50, 64)), format="WAV"), _RATE)) == 50
    with pytest.raises(ValueError, match="has 65 channels, expected at most 64"):
        read_audio(_encode(np.zeros((50, 65)), format="WAV"), _RATE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.wav"):
        read_audio(tmp_path / "none.wav", _RATE)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 43), st.integers(0, 255)), max_size=4))
def test_a_damaged_header_gives_samples_or_one_clear_error(changes):
    data = bytearray(_GOOD)
    for place, value in changes:
        data[place] = value
    try:
        samples = read_audio(bytes(data), _RATE, name="damaged.wav")
    except ValueError as error:
        assert "damaged.wav" in str(error)
    else:
        assert samples.size and np.isfinite(samples).all()


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(0, np.int16), "shape"),
        (np.zeros((4, 2)), "shape"),
        (np.zeros(4, np.int32), "dtype"),
        (np.array([0.0, np.nan]), "NaN"),
        (np.full(4, 8000.0), "within"),
    ],
)
def test_samples_that_are_none_leave_no_file(tmp_path, samples, message):
    with pytest.raises(ValueError, match=message):
        write_wav(tmp_path / "a.wav", samples, _RATE)
    assert not (tmp_path / "a.wav").exists()
