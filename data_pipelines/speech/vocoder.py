"""Units to speech without training: envelopes of units and the algorithm of Griffin and Lim.

It makes audible what the units of `MelKMeansEncoder` tell apart. A unit knows the mean log-mel
frame of the audio that it stood for, not its pitch, so the speech has one pitch throughout. A
spectral envelope that holds through runs of a unit and glides between units is laid over a voice's
source, pulses where a unit sounds voiced and noise where it does not; a few rounds of the algorithm
of Griffin and Lim (1984) then make a signal that has this envelope. Starting from pulses, not from
random phases, is what keeps vowels voiced.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data_pipelines.speech.registry import check_options, number_option
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder, open_mel
from lst_jax.speech.interfaces import Vocoder

_PERIODS = 2.5  # of the pitch in a window: too few to tell harmonics, which envelopes lack
_OVERLAP = 5  # windows over each sample
_ROUNDS = 8  # more bring the envelope no closer and blur the pulses
_ENVELOPE_UPDATES = 10
_NOISE_SEED = 0
_FRAMES_AT_A_TIME = 512
_TINY = np.float32(1e-12)  # keeps divisions finite


def decode_known(vocoder: Vocoder, units: np.ndarray) -> np.ndarray:
    """Returns the audio of those units of an utterance that a vocoder has.

    A model's vocabulary may have more units than the encoder: no speech has taught it those, and it
    hardly ever makes one.

    Args:
      vocoder: of the encoder's units.
      units: (U,) integers, at least 0.

    Returns:
      float32 (S,), see `Vocoder.decode`; (0,) where no unit is left.
    """
    known = units[units < vocoder.unit_count]
    return vocoder.decode([known])[0] if known.size else np.zeros(0, np.float32)


class MelVocoder:
    """An untrained vocoder: a source under the envelopes of the units' mean log-mel frames."""

    def __init__(
        self, features: MelFeatures, unit_log_mels: np.ndarray, *, pitch_hz: float = 100.0
    ) -> None:
        """Makes a vocoder; see `from_encoder` and `load`.

        Args:
          features: what the log-mel frames are of.
          unit_log_mels: float32 (C, M), a frame for every unit.
          pitch_hz: pulses per second of voiced speech.

        Raises:
          ValueError: frames of another shape or not finite, or a pitch that is none.
        """
        unit_log_mels = np.atleast_1d(np.asarray(unit_log_mels, np.float32))
        shape = (max(1, len(unit_log_mels)), features.mel_count)
        if unit_log_mels.shape != shape or not np.isfinite(unit_log_mels).all():
            raise ValueError(
                f"unit_log_mels has shape {unit_log_mels.shape}, expected finite {shape}"
            )
        if not 50 <= pitch_hz <= 200:
            raise ValueError(f"pitch_hz is {pitch_hz}, expected 50…200")
        self.features = features
        self.encoder_fingerprint: str | None = None
        self._period = features.sample_rate / pitch_hz
        self._step = max(1, round(_PERIODS * self._period / _OVERLAP))
        self._window = np.hanning(_OVERLAP * self._step + 1)[:-1].astype(np.float32)
        self._fft_size = 1 << (self._window.size - 1).bit_length()
        self._log_envelopes = self._invert_mels(unit_log_mels)
        self._voicing = _voicing(unit_log_mels)

    @classmethod
    def from_encoder(cls, encoder: MelKMeansEncoder, *, pitch_hz: float = 100.0) -> MelVocoder:
        """Returns the vocoder of an encoder's units."""
        vocoder = cls(encoder.features, encoder.unit_log_mels, pitch_hz=pitch_hz)
        vocoder.encoder_fingerprint = encoder.fingerprint
        return vocoder

    @classmethod
    def load(cls, path: str | pathlib.Path) -> MelVocoder:
        """Returns the vocoder of an encoder's file; raises what `MelKMeansEncoder.load` does."""
        return cls.from_encoder(MelKMeansEncoder.load(path))

    @property
    def unit_count(self) -> int:
        """Returns the number of units C."""
        return len(self._log_envelopes)

    @property
    def frame_rate(self) -> float:
        """Returns the units per second."""
        return float(self.features.frame_rate)

    @property
    def sample_rate(self) -> int:
        """Returns the audio samples per second that `decode` returns."""
        return self.features.sample_rate

    def decode(self, units: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the waveform of each sequence, exactly S = U · sample_rate / frame_rate.

        The same units always give the same samples. An utterance that would exceed full scale is
        made quieter as a whole.
        """
        return [self._decode(check_units(sequence, self.unit_count)) for sequence in units]

    def _decode(self, units: np.ndarray) -> np.ndarray:
        signal = self._excitation(units)
        envelopes = list(self._envelopes(units))
        for _ in range(1 + _ROUNDS):
            signal = self._impose(envelopes, signal)
        return signal / max(np.float32(1), np.abs(signal).max())

    def _invert_mels(self, log_mels: np.ndarray) -> np.ndarray:
        """Returns smooth log magnitudes (C, bins) whose power in mel bands is that of the frames.

        A band's power is first spread evenly; multiplicative updates (Lee and Seung, 1999, for
        the divergence of Kullback and Leibler) then make the bands right. They keep the spectrum
        positive and, started from a smooth one, smooth.
        """
        features = self.features
        bank = features.mel_bank(self._fft_size)
        # A band sums over bins, of which the spectrum of `log_mels` has more.
        bands = np.exp(log_mels) * (self._fft_size / features.fft_size)
        reached = bank.sum(axis=1) > 0
        bank = bank[reached]
        spread = bank.T / bank.sum(axis=1)
        power = (bands / np.maximum(bank.sum(axis=0), _TINY)) @ spread
        for _ in range(_ENVELOPE_UPDATES):
            power *= (bands / np.maximum(power @ bank, _TINY)) @ spread
        # Beyond the bands nothing is known; the quietest bin is quiet enough.
        whole = np.repeat(power.min(axis=1, keepdims=True), reached.size, axis=1)
        whole[:, reached] = power
        # `log_mels` divides by its window's length; a window's power grows as its length.
        return (0.5 * np.log(np.maximum(whole * self._window.size, _TINY))).astype(np.float32)

    def _excitation(self, units: np.ndarray) -> np.ndarray:
        """Returns pulses where units are voiced, else noise, each of unit power, float32 (S,)."""
        hop = self.features.hop
        size = units.size * hop
        centers = (np.arange(units.size) + 0.5) * hop
        voicing = np.interp(np.arange(size), centers, self._voicing[units])
        pulses = np.zeros(size)
        pulses[np.arange(0, size, self._period).astype(np.int64)] = np.sqrt(self._period)
        noise = np.random.default_rng(_NOISE_SEED).standard_normal(size)
        return (voicing * pulses + (1 - voicing) * noise).astype(np.float32)

    def _envelopes(self, units: np.ndarray) -> Iterator[np.ndarray]:
        """Yields magnitudes (F, bins) of consecutive windows, linear in the logarithm of units."""
        hop = self.features.hop
        frames = -(-units.size * hop // self._step) + _OVERLAP - 1
        # Windows begin `_OVERLAP` − 1 steps before the signal, so each sample is under them all.
        starts = (np.arange(frames) - (_OVERLAP - 1)) * self._step
        places = np.clip((starts + self._window.size / 2) / hop - 0.5, 0, units.size - 1)
        for block in np.split(places, range(_FRAMES_AT_A_TIME, frames, _FRAMES_AT_A_TIME)):
            left = block.astype(np.int64)
            right = np.minimum(left + 1, units.size - 1)
            share = (block - left).astype(np.float32)[:, None]
            envelopes = self._log_envelopes
            yield np.exp(envelopes[units[left]] * (1 - share) + envelopes[units[right]] * share)

    def _impose(self, envelopes: list[np.ndarray], signal: np.ndarray) -> np.ndarray:
        """Gives a signal the magnitudes of `envelopes`, keeping its phases as far as they fit.

        One round of Griffin and Lim's algorithm: the signal whose short-time spectrum is nearest.
        """
        step, size = self._step, self._window.size
        lead = (_OVERLAP - 1) * step
        frames = sum(map(len, envelopes))
        padded = np.zeros((frames + _OVERLAP - 1) * step, np.float32)
        padded[lead : lead + signal.size] = signal
        result = np.zeros((frames + _OVERLAP - 1, step), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(padded, size)[::step]
        first = 0
        for magnitudes in envelopes:
            count = len(magnitudes)
            spectrum = np.fft.rfft(windows[first : first + count] * self._window, self._fft_size)
            spectrum *= magnitudes / np.maximum(np.abs(spectrum), _TINY)
            pieces = np.fft.irfft(spectrum, self._fft_size)[:, :size] * self._window
            pieces = pieces.reshape(count, _OVERLAP, step)
            for i in range(_OVERLAP):
                result[first + i : first + i + count] += pieces[:, i]
            first += count
        weight = (self._window.reshape(_OVERLAP, step) ** 2).sum(axis=0)
        return (result / weight).reshape(-1)[lead : lead + signal.size]


def open_mel_vocoder(argument: str, options: Mapping[str, str]) -> MelVocoder:
    """Opens `mel:FILE[,pitch=HZ]`, see `data_pipelines.speech.registry`."""
    check_options("mel", options, ("pitch",))
    pitch_hz = number_option("mel", options, "pitch", 100.0)
    return MelVocoder.from_encoder(open_mel(argument, {}), pitch_hz=pitch_hz)


def _voicing(log_mels: np.ndarray) -> np.ndarray:
    """Returns how far units are voiced, 0 … 1, (C,): whether low bands are the stronger ones."""
    third = max(1, log_mels.shape[1] // 3)
    power = np.exp(log_mels.astype(np.float64))
    low, high = power[:, :third].mean(axis=1), power[:, -third:].mean(axis=1)
    return low / (low + high)


def check_units(units: np.ndarray, unit_count: int) -> np.ndarray:
    units = np.asarray(units)
    if units.ndim != 1 or units.size == 0:
        raise ValueError(f"units has shape {units.shape}, expected (U,) with U at least 1")
    if not np.issubdtype(units.dtype, np.integer):
        raise ValueError(f"units has dtype {units.dtype}, expected integers")
    outside = (units < 0) | (units >= unit_count)
    if outside.any():
        raise ValueError(f"units holds {units[outside][0]}, expected 0…{unit_count - 1}")
    return units.astype(np.int64)
