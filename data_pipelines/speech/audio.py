"""Recordings: files of any kind to mono samples at a given rate, and samples to wav files."""

from __future__ import annotations

import contextlib
import io
import logging
import mmap
import pathlib
import re
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np

from lst_jax.files import check_regular, write_file
from lst_jax.settings import one_line, quote

_FULL_SCALE = 32768  # of int16
_LOUDEST = 2  # where full scale is 1; what is beyond has another scale
_SAMPLE_RATES = (1_000, 384_000)  # that a file may have; the lowest and the highest in use
_BLOCK = 1 << 17  # samples a channel that are in memory at a time, besides the result
_MOST_CHANNELS = 64
# What writers of WAV say in place of a length that they do not know yet, and larger ones.
_UNKNOWN_LENGTH = 0x7FFFF000
# libsndfile's words about a chunk of samples that claims to be longer than the file is.
_CUT_CHUNK = re.compile(r"^ *(?:data|SSND) *: (\d+) \(should be (\d+)\)", re.MULTILINE)
_CANCELED = 1e-3  # share of the channels' power that their mean has where they cancel out
_KINDS = "WAV, AIFF, FLAC, OGG, Opus or MP3"

_log = logging.getLogger(__name__)


def float_samples(samples: np.ndarray) -> np.ndarray:
    """Checks the samples of an utterance and brings them to one type.

    Args:
      samples: (S,) int16, or floating point with full scale at ±1; mono.

    Returns:
      float32 (S,), full scale at ±1; float32 samples themselves.

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
    loudest = loudest_of(samples)
    if not np.isfinite(loudest):
        raise ValueError("samples holds NaN or infinity, expected finite numbers")
    if loudest > _LOUDEST:
        raise ValueError(f"samples reach {loudest:g}, expected floating point within ±1")
    return samples.astype(np.float32, copy=False)


def loudest_of(samples: np.ndarray) -> float:
    """Returns the largest absolute sample, without a copy of hours; NaN where there is one."""
    return abs(float(np.maximum(samples.max(), -samples.min())))  # -0.0 is no number to read


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


def read_audio(
    source: str | pathlib.Path | bytes,
    sample_rate: int,
    *,
    name: str | None = None,
    start_s: float = 0.0,
    end_s: float | None = None,
    channel: int | None = None,
) -> np.ndarray:
    """Reads a recording, or a part of one, as mono at a given rate.

    It is decoded and resampled in blocks, so that beside the result no more than a few megabytes
    are in memory, however long it is. Silence is a recording like any other.

    Args:
      source: a file, or the bytes of one: WAV of any kind (also streamed ones, whose header does
        not know how long they are), AIFF, FLAC, OGG, Opus or MP3.
      sample_rate: samples per second to return; a file of another rate is resampled by soxr at its
        very high quality.
      name: what messages call bytes.
      start_s, end_s: the part, in seconds; None ends with the recording.
      channel: the one to return; None averages all. Where channels cancel out so, a warning says
        it.

    Returns:
      float32 (S,), full scale at ±1, S at least 1.

    Raises:
      OSError: the file cannot be read.
      ValueError: in one line that names it, that it is no recording, is damaged or ends early,
        holds no samples in the part, has samples that are not finite or beyond ±2, lacks the
        channel, or has a rate that no recording has.
    """
    name = name or (str(source) if not isinstance(source, bytes) else "the recording")
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(f"{name}: the part is {start_s} … {end_s} s, expected 0 ≤ start < end")
    import soundfile  # with soxr a tenth of a second, which most programs need not wait

    try:
        with _open(source) as file:
            return _read(file, name, sample_rate, start_s, end_s, channel)
    except (soundfile.LibsndfileError, TypeError) as error:  # TypeError: the name says raw samples
        reason = re.sub(r"Error opening .*?: ", "", str(error))
        message = f"{name} cannot be read: {reason} Expected a whole file: {_KINDS}"
        raise ValueError(one_line(message)) from error


def _read(
    file: Any, name: str, sample_rate: int, start_s: float, end_s: float | None, channel: int | None
) -> np.ndarray:
    """See `read_audio`; `file` is an open SoundFile."""
    import soxr

    rate = file.samplerate
    if not _SAMPLE_RATES[0] <= rate <= _SAMPLE_RATES[1]:
        expected = f"{_SAMPLE_RATES[0]}…{_SAMPLE_RATES[1]}"
        raise ValueError(f"{name} has {rate} samples a second, expected {expected}")
    if channel is not None and not 0 <= channel < file.channels:
        raise ValueError(
            f"{name} has {file.channels} channels, expected one of number {quote(channel)}"
        )
    if file.channels > _MOST_CHANNELS:
        raise ValueError(f"{name} has {file.channels} channels, expected at most {_MOST_CHANNELS}")
    cut = _CUT_CHUNK.search(file.extra_info)
    if cut and int(cut[1]) < _UNKNOWN_LENGTH:
        raise ValueError(
            f"{name} ends early: it holds {cut[2]} bytes of samples, expected {cut[1]}"
        )
    resampler = None
    if rate != sample_rate:
        resampler = soxr.ResampleStream(rate, sample_rate, 1, dtype="float64", quality="VHQ")
    samples = bytearray()  # grows in place, where a list of parts is twice in memory at its end
    power = channel_power = 0.0
    start, end = round(start_s * rate), None if end_s is None else round(end_s * rate)
    try:
        for block in _blocks(file, start, end):
            mono = block.mean(axis=1) if channel is None else block[:, channel]
            mono = float_samples(mono).astype(np.float64)
            if channel is None and file.channels > 1:
                power += float(np.square(mono).sum())
                channel_power += float(np.square(block).mean(axis=1).sum())
            samples += _to_bytes(mono if resampler is None else resampler.resample_chunk(mono))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if resampler is not None:
        samples += _to_bytes(resampler.resample_chunk(np.zeros(0), last=True))
    if not samples:
        part = f" in {start_s} … {end_s} s" if start_s or end_s is not None else ""
        raise ValueError(f"{name} holds no samples{part}, expected at least one")
    if power < _CANCELED * channel_power:
        _log.warning("%s: its channels cancel out, as of opposite phase; choose one of them", name)
    return np.frombuffer(samples, np.float32)


def _to_bytes(samples: np.ndarray) -> bytes:
    # Resampling may overshoot what `float_samples` allows.
    return samples.clip(-_LOUDEST, _LOUDEST).astype(np.float32).tobytes()


def _blocks(file: Any, start: int, end: int | None) -> Iterator[np.ndarray]:
    """Yields the samples start … end, float64 (S, C) at a time."""
    # In an MP3 libsndfile finds places only roughly, so it is read from its beginning.
    position = 0 if file.format == "MP3" else file.seek(min(start, file.frames))
    while end is None or position < end:
        size = _BLOCK if end is None else min(_BLOCK, end - position)
        block = file.read(size, dtype="float64", always_2d=True)
        first, position = max(0, start - position), position + len(block)
        if first < len(block):
            yield block[first:]
        if len(block) < size:
            break
    expected = file.frames if end is None else min(end, file.frames)
    if position < expected:
        raise ValueError(f"it ends early and holds {position} samples, expected {expected}")


@contextlib.contextmanager
def _open(source: str | pathlib.Path | bytes) -> Iterator[Any]:
    """Yields a SoundFile; of a WAV that says 0 bytes of samples, one of what follows."""
    import soundfile

    stream: Any  # a BytesIO, an open file or a mapped one
    with contextlib.ExitStack() as stack:
        if isinstance(source, bytes):
            stream = io.BytesIO(source)
        else:
            check_regular(pathlib.Path(source))
            stream = stack.enter_context(pathlib.Path(source).open("rb"))
        file = stack.enter_context(soundfile.SoundFile(stream))
        if file.frames == 0 and file.format in ("WAV", "WAVEX"):
            # What is written to stays in memory, and is one page of it.
            data = (
                bytearray(source)
                if isinstance(source, bytes)
                else mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
            )
            place = _find_samples(data)
            if place is not None:
                size = min(len(data) - place, 2**32 - 1)
                data[place - 4 : place] = size.to_bytes(4, "little")
                stream = io.BytesIO(data) if isinstance(data, bytearray) else data
                file = stack.enter_context(soundfile.SoundFile(stream))
        yield file


def _find_samples(data: mmap.mmap | bytearray) -> int | None:
    """Returns where the samples of a WAV begin that says that there are none, if there are some."""
    chunks = list(_chunks(data, 12))
    for place, kind, size in chunks:
        if kind == b"data":
            last, _, last_size = chunks[-1]
            whole = last + last_size + last_size % 2
            # Where all that follows is chunks, there are no samples.
            return place if size == 0 and len(data) > place and whole != len(data) else None
    return None


def _chunks(data: mmap.mmap | bytearray, place: int) -> Iterator[tuple[int, bytes, int]]:
    """Yields where the contents of a RIFF file's chunks begin, their kinds and sizes."""
    while place + 8 <= len(data):
        size = int.from_bytes(data[place + 4 : place + 8], "little")
        yield place + 8, bytes(data[place : place + 4]), size
        place += 8 + size + size % 2


def resample(samples: np.ndarray, sample_rate: int, wanted: int) -> np.ndarray:
    """Returns float32 samples (S,) at another rate, as `read_audio` resamples."""
    if sample_rate == wanted:
        return samples
    import soxr

    return soxr.resample(samples, sample_rate, wanted, quality="VHQ").astype(np.float32)
