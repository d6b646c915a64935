"""Samples and wav files: what speech front ends take and vocoders give."""

from __future__ import annotations

import io
import math
import pathlib
import wave

import numpy as np

from lst_jax.files import check_regular, write_file

_FULL_SCALE = 32768  # of int16
_SAMPLE_RATES = (1_000, 384_000)  # that a file may have; the lowest and the highest in use


def float_samples(samples: np.ndarray) -> np.ndarray:
    """Checks the samples of an utterance and brings them to one type.

    Args:
      samples: (S,) int16, or floating point with full scale at ±1; mono.

    Returns:
      float32 (S,), full scale at ±1.

    Raises:
      ValueError: empty, not finite, of another shape or type, or far beyond full scale.
    """
    samples = np.asarray(samples)
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"samples has shape {samples.shape}, expected (S,) with S at least 1")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(_FULL_SCALE)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"samples has dtype {samples.dtype}, expected int16 or floating point")
    if not np.isfinite(samples).all():
        raise ValueError("samples holds NaN or infinity, expected finite numbers")
    loudest = float(np.abs(samples).max())
    if loudest > 2:
        raise ValueError(f"samples reach {loudest:g}, expected floating point within ±1")
    return samples.astype(np.float32)


def write_wav(path: str | pathlib.Path, samples: np.ndarray, sample_rate: int) -> None:
    """Writes a mono wav file of 16 bits, which appears whole.

    Args:
      path: the file.
      samples: see `float_samples`; int16 is written as it is, and what exceeds ±1 is cut off.
      sample_rate: samples per second.

    Raises:
      ValueError: see `float_samples`.
    """
    whole = np.rint(float_samples(samples) * _FULL_SCALE)
    data = np.clip(whole, -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2").tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(sample_rate)
        wav.writeframes(data)
    write_file(path, file.getvalue())


def read_wav(path: str | pathlib.Path, sample_rate: int) -> np.ndarray:
    """Reads a wav file as mono at a given rate.

    Args:
      path: a PCM file of 8, 16, 24 or 32 bits and any number of channels, which are averaged.
      sample_rate: samples per second to return; a file of another rate is resampled with a
        polyphase filter.

    Returns:
      float32 (S,), full scale at ±1, S at least 1.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not such a wav file, ends early, holds no samples or has a rate that no
        recording has.
    """
    check_regular(pathlib.Path(path))
    with pathlib.Path(path).open("rb") as file:
        try:
            with wave.open(file, "rb") as wav:
                channels, width, rate, frames = wav.getparams()[:4]
                data = wav.readframes(frames)
        # A chunk that claims to be longer than the file is a RuntimeError.
        except (wave.Error, EOFError, RuntimeError) as error:
            reason = str(error) or "it ends too early"
            raise ValueError(f"{path} is not a PCM wav file: {reason}") from error
    if not frames:
        raise ValueError(f"{path} holds no samples, expected at least one")
    if len(data) != frames * channels * width:
        raise ValueError(
            f"{path} ends early: it holds {len(data)} bytes of samples, "
            f"expected {frames * channels * width}"
        )
    if not _SAMPLE_RATES[0] <= rate <= _SAMPLE_RATES[1]:
        raise ValueError(
            f"{path} has {rate} samples a second, expected {_SAMPLE_RATES[0]}…{_SAMPLE_RATES[1]}"
        )
    if not 1 <= width <= 4:
        raise ValueError(f"{path} has samples of {8 * width} bits, expected 8, 16, 24 or 32")
    mono = _from_pcm(data, width).reshape(-1, channels).mean(axis=1, dtype=np.float64)
    return _resample(mono, rate, sample_rate).astype(np.float32)


def _from_pcm(data: bytes, width: int) -> np.ndarray:
    """Returns little-endian integers of `width` bytes as float64 (S,), full scale at ±1."""
    parts = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:  # the only width without a sign
        return (parts[:, 0] - 128.0) / 128
    high_first = np.zeros((len(parts), 4), np.uint8)
    high_first[:, 4 - width :] = parts
    return high_first.view("<i4")[:, 0] / 2.0**31


def _resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return samples
    from scipy import signal  # slow to import, and most files need no resampling

    common = math.gcd(rate, wanted)
    return signal.resample_poly(samples, wanted // common, rate // common)
