from __future__ import annotations

import io
import struct
import wave

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from data_pipelines.speech.audio import float_samples, read_wav, write_wav

_RATE = 16_000


def _wav(data: bytes, *, channels: int = 1, width: int = 2, rate: int = _RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(data)
    return buffer.getvalue()


def _tone(rate: int, hz: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(rate // 2) / rate)


@settings(max_examples=30, deadline=None)
@given(arrays.arrays(np.int16, st.integers(1, 50)))
def test_int16_survives_a_file_exactly(tmp_path_factory, samples):
    path = tmp_path_factory.getbasetemp() / "exact.wav"
    write_wav(path, samples, _RATE)
    read = read_wav(path, _RATE)
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, float_samples(samples))
    np.testing.assert_array_equal(read * 32768, samples)


def test_floats_survive_to_half_a_step_and_are_cut_off_at_full_scale(tmp_path):
    samples = np.array([0.1, -0.7, 1.0, 1.5, -1.0, -1.5, 1e-9])
    write_wav(tmp_path / "a.wav", samples, _RATE)
    read = read_wav(tmp_path / "a.wav", _RATE)
    np.testing.assert_allclose(read[:2], samples[:2], atol=0.5 / 32768)
    np.testing.assert_array_equal(read[2:], [*[32767 / 32768] * 2, -1, -1, 0])


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_every_width_gives_the_same_samples(tmp_path, width):
    values = [-1.0, -0.5, 0.0, 0.25, 0.5]
    full = 1 << (8 * width - 1)
    offset = full if width == 1 else 0
    data = b"".join(
        int(x * full + offset).to_bytes(width, "little", signed=width > 1) for x in values
    )
    (tmp_path / "a.wav").write_bytes(_wav(data, width=width))
    np.testing.assert_array_equal(read_wav(tmp_path / "a.wav", _RATE), values)


def test_channels_are_averaged(tmp_path):
    data = np.array([[100, 300], [-20, 20], [7, 7]], "<i2").tobytes()
    (tmp_path / "a.wav").write_bytes(_wav(data, channels=2))
    np.testing.assert_array_equal(
        read_wav(tmp_path / "a.wav", _RATE) * 32768, np.array([200, 0, 7])
    )


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000])
def test_a_tone_of_another_rate_stays_that_tone(tmp_path, rate):
    write_wav(tmp_path / "a.wav", _tone(rate), rate)
    read = read_wav(tmp_path / "a.wav", _RATE)
    expected = _tone(_RATE)
    assert read.size == expected.size
    middle = slice(500, -500)  # the filter reaches beyond the ends
    np.testing.assert_allclose(read[middle], expected[middle], atol=3e-3)


def test_what_the_lower_rate_cannot_hold_is_removed(tmp_path):
    write_wav(tmp_path / "a.wav", _tone(44_100, hz=12_000), 44_100)
    assert np.abs(read_wav(tmp_path / "a.wav", _RATE)[500:-500]).max() < 0.01


_GOOD = _wav(np.arange(40, dtype="<i2").tobytes())


def _with(offset: int, format_: str, value: int) -> bytes:
    data = bytearray(_GOOD)
    struct.pack_into(format_, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not a PCM wav file: it ends too early"),
        (b"ID3\x04 no sound in here", "is not a PCM wav file: .*RIFF"),
        (b"RIFF\x04\x00\x00\x00AVI ", "is not a PCM wav file: not a WAVE"),
        (_GOOD[:30], "is not a PCM wav file"),
        (_GOOD[:-7], "ends early: it holds 73 bytes of samples, expected 80"),
        (_wav(b""), "holds no samples"),
        (_with(20, "<H", 3), "is not a PCM wav file: unknown format: 3"),
        (_with(22, "<H", 0), "is not a PCM wav file: bad # of channels"),
        (_with(24, "<I", 0), r"has 0 samples a second, expected 1000…384000"),
        (_with(24, "<I", 2**32 - 1), "has 4294967295 samples a second"),
        (_with(34, "<H", 64), "has samples of 64 bits, expected 8, 16, 24 or 32"),
    ],
)
def test_a_file_that_is_no_recording_is_named_with_what_is_wrong(tmp_path, data, message):
    (tmp_path / "odd.wav").write_bytes(data)
    with pytest.raises(ValueError, match=f"odd.wav {message}"):
        read_wav(tmp_path / "odd.wav", _RATE)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.wav"):
        read_wav(tmp_path / "none.wav", _RATE)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 43), st.integers(0, 255)), max_size=4))
def test_a_damaged_header_gives_samples_or_one_clear_error(tmp_path_factory, changes):
    data = bytearray(_GOOD)
    for place, value in changes:
        data[place] = value
    path = tmp_path_factory.getbasetemp() / "damaged.wav"
    path.write_bytes(data)
    try:
        samples = read_wav(path, _RATE)
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
