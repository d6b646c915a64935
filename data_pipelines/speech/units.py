"""The built-in encoder of speech as units, by k-means.

A unit is the id of one frame of speech, 25 a second in the paper, not deduplicated. The paper's
units are k-means clusters of HuBERT states. The built-in encoder needs no network: it clusters
cepstra of log-mel frames in their context, after a linear map (linear discriminant analysis)
that keeps what distinguishes the parts of words and drops what distinguishes speakers. Like
HuBERT's states, a unit therefore depends on about 0.3 s of audio around its frame.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np

from data_pipelines.speech.audio import float_samples
from data_pipelines.speech.registry import check_no_argument, check_options, path_argument
from lst_jax.extras import import_extra
from lst_jax.files import read_arrays, write_file
from lst_jax.settings import (
    Bounds,
    NaturalFloat,
    configuration,
    quote,
    require,
    validate_fields,
)
from lst_jax.speech.interfaces import Rejection
from lst_jax.strict_json import parse_json

BUILT_IN = pathlib.Path(__file__).with_name("built_in")  # an encoder and a voice for its units
_FORMAT = "lst-jax-mel-kmeans-1"
_LOG_FLOOR = 1e-7  # power below which a mel band counts as silent
_DYNAMIC_RANGE = 10.0  # nats below an utterance's loudest band that features still tell apart
_SPEECH_RANGE = 6.0  # nats below an utterance's loudest frame that count as speech
_ENERGY_WEIGHT = 0.5  # of the 0th cepstrum, whose spread is the widest
_KMEANS_BATCH = 4096
_KMEANS_EPOCHS = 30

Rate = Annotated[int, Bounds(least=1, most=2**20)]  # a second
Bands = Annotated[int, Bounds(least=1, most=2**12)]


@configuration
class MelFeatures:
    """Log-mel frames of an utterance and the vectors that are clustered.

    Attributes:
      sample_rate: audio samples per second, a multiple of `frame_rate`.
      frame_rate: frames per second.
      window_s: length of the Hann window around a frame's center.
      mel_count: mel bands M between `min_hz` and `max_hz`.
      cepstrum_count: cepstra kept of a frame, at most M.
      context: frames on either side whose cepstra join a frame's vector.
    """

    sample_rate: Rate = 22050
    frame_rate: Rate = 25
    window_s: Annotated[float, Bounds(above=0, most=1)] = 0.06
    mel_count: Bands = 40
    min_hz: NaturalFloat = 60.0
    max_hz: NaturalFloat = 8000.0
    cepstrum_count: Bands = 16
    context: Annotated[int, Bounds(least=0, most=1000)] = 3

    def __post_init__(self) -> None:
        name, rate, half = "MelFeatures", self.frame_rate, self.sample_rate / 2
        multiple = self.sample_rate % rate == 0
        expected = f"a multiple of frame_rate = {rate}"
        require(multiple, f"{name}.sample_rate", self.sample_rate, expected)
        require(self.max_hz <= half, f"{name}.max_hz", self.max_hz, f"at most {half}")
        lower = self.min_hz < self.max_hz
        require(lower, f"{name}.min_hz", self.min_hz, f"less than max_hz = {self.max_hz}")
        kept, bands = self.cepstrum_count, self.mel_count
        require(kept <= bands, f"{name}.cepstrum_count", kept, f"at most mel_count = {bands}")
        covers = self.window_s >= 1 / rate
        require(covers, f"{name}.window_s", self.window_s, f"{1 / rate} … 1 seconds")

    @property
    def hop(self) -> int:
        """Returns the samples from one frame to the next."""
        return self.sample_rate // self.frame_rate

    @property
    def window(self) -> int:
        """Returns the samples of a frame's window."""
        return round(self.window_s * self.sample_rate)

    @property
    def fft_size(self) -> int:
        """Returns the samples of a frame with the zeros after it that make it a power of two."""
        return 1 << (self.window - 1).bit_length()

    @property
    def vector_size(self) -> int:
        """Returns the width D of the vectors that `vectors` returns."""
        return (2 * self.context + 1) * self.cepstrum_count

    def log_mels(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        """Returns log power in mel bands.

        Args:
          samples: (S,) int16, or floating point with full scale at ±1.
          sample_rate: of the samples.

        Returns:
          float32 (U, M), natural logarithm, U = ⌈S / hop⌉; frame u is centered on the middle of
          samples u·hop … (u+1)·hop, with zeros beyond the ends.

        Raises:
          ValueError: see `UnitEncoder.encode`.
        """
        if sample_rate != self.sample_rate:
            raise ValueError(
                f"sample_rate is {sample_rate}, expected {self.sample_rate}; resample first"
            )
        samples = float_samples(samples)
        frames = -(-samples.size // self.hop)
        lead = (self.window - self.hop) // 2
        padded = np.zeros(frames * self.hop + self.window, np.float32)
        padded[lead : lead + samples.size] = samples
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.window)[:: self.hop]
        hann, bank = _spectrum_tables(self)
        spectrum = np.fft.rfft(windows[:frames] * hann, self.fft_size)
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32) / self.window
        return np.log(power @ bank + np.float32(_LOG_FLOOR))

    def mel_bank(self, fft_size: int) -> np.ndarray:
        """Returns triangular filters of height 1 from bins to bands, (fft_size // 2 + 1, M)."""

        def mel(hz: float) -> float:
            return 2595 * np.log10(1 + hz / 700)

        points = np.linspace(mel(self.min_hz), mel(self.max_hz), self.mel_count + 2)
        edges = 700 * (10 ** (points / 2595) - 1)
        bins = np.arange(fft_size // 2 + 1)[:, None] * (self.sample_rate / fft_size)
        rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
        falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
        return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)

    def vectors(self, log_mels: np.ndarray) -> np.ndarray:
        """Returns cepstra of every frame and its neighbors, whatever the loudness and the channel.

        Cepstra of one utterance are taken relative to their mean over its speech, which removes
        the gain, the channel and some of the speaker.

        Args:
          log_mels: float32 (U, M) of one utterance.

        Returns:
          float32 (U, D).
        """
        bounded = np.maximum(log_mels, log_mels.max() - _DYNAMIC_RANGE)
        loudness = log_mels.mean(axis=1)
        speech = loudness >= loudness.max() - _SPEECH_RANGE
        cepstra = bounded @ _cosines(self.mel_count, self.cepstrum_count)
        cepstra = cepstra - cepstra[speech].mean(axis=0)
        cepstra[:, 0] *= _ENERGY_WEIGHT
        padded = np.pad(cepstra, ((self.context, self.context), (0, 0)), mode="edge")
        neighbors = np.lib.stride_tricks.sliding_window_view(padded, 2 * self.context + 1, axis=0)
        return np.ascontiguousarray(neighbors.swapaxes(1, 2)).reshape(len(cepstra), -1)


class MelKMeansEncoder:
    """The built-in unit front end: nearest centroid of projected cepstra.

    Attributes:
      features: how audio becomes vectors.
      mean: float32 (D,), subtracted from the vectors.
      projection: float32 (D, E), applied after that.
      centroids: float32 (C, E), one for every unit.
      unit_log_mels: float32 (C, M), mean log-mel frame of every unit in the fitting data: what
        `MelVocoder` starts from.
    """

    def __init__(
        self,
        features: MelFeatures,
        mean: np.ndarray,
        projection: np.ndarray,
        centroids: np.ndarray,
        unit_log_mels: np.ndarray,
    ) -> None:
        """Assembles an encoder; see `fit` and `load`.

        Raises:
          ValueError: shapes do not fit each other, or a number is not finite.
        """
        self.features = features
        count, width = max(1, len(np.atleast_1d(centroids))), np.shape(projection)[-1:]
        self.mean = _real("mean", mean, (features.vector_size,))
        self.projection = _real("projection", projection, (features.vector_size, *width))
        self.centroids = _real("centroids", centroids, (count, *width))
        self.unit_log_mels = _real("unit_log_mels", unit_log_mels, (count, features.mel_count))
        self._half_norms = 0.5 * (self.centroids**2).sum(axis=1)

    @property
    def unit_count(self) -> int:
        """Returns the number of units C."""
        return len(self.centroids)

    @property
    def frame_rate(self) -> float:
        """Returns the units per second."""
        return float(self.features.frame_rate)

    @property
    def fingerprint(self) -> str:
        """Returns the SHA-256, hexadecimal, of all that its units depend on."""
        digest = hashlib.sha256(_FORMAT.encode())
        digest.update(json.dumps(dataclasses.asdict(self.features), sort_keys=True).encode())
        for array in (self.mean, self.projection, self.centroids):
            digest.update(f"{array.shape}".encode())
            digest.update(array.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def sample_rate(self) -> int:
        """Returns the audio samples per second that `encode` takes."""
        return self.features.sample_rate

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray | Rejection]:
        """Returns ⌈S · frame_rate / sample_rate⌉ units of each; see `UnitEncoder.encode`."""
        return [self.assign(self.features.log_mels(x, self.sample_rate)) for x in waveforms]

    def assign(self, log_mels: np.ndarray) -> np.ndarray:
        """Returns the units, int32 (U,), of the log-mel frames (U, M) of one utterance."""
        points = (self.features.vectors(log_mels) - self.mean) @ self.projection
        return np.argmax(points @ self.centroids.T - self._half_norms, axis=1).astype(np.int32)

    @classmethod
    def fit(
        cls,
        features: MelFeatures,
        log_mels: Sequence[np.ndarray],
        labels: Sequence[np.ndarray],
        *,
        unit_count: int = 501,
        width: int = 32,
        seed: int = 0,
    ) -> MelKMeansEncoder:
        """Fits the projection, then the clusters.

        Args:
          features: how audio becomes vectors.
          log_mels: float32 (U, M) of every utterance.
          labels: strings (U,) of every utterance, what is spoken in each frame
            (`alignment.label_frames`). They choose the projection only; clusters see no labels.
          unit_count: clusters C.
          width: dimensions E kept by the projection.
          seed: of the clustering.

        Raises:
          ValueError: frames and labels differ in number, frames are fewer than clusters, or
            `width` exceeds the vectors'.
          ImportError: scikit-learn is missing.
        """
        if not log_mels or [len(x) for x in log_mels] != [len(x) for x in labels]:
            raise ValueError(
                f"labels is of {sum(map(len, labels))} frames in {len(labels)} utterances, "
                f"expected those of log_mels: {sum(map(len, log_mels))} in {len(log_mels)}"
            )
        vectors = np.concatenate([features.vectors(frames) for frames in log_mels])
        if not 1 <= unit_count <= len(vectors):
            raise ValueError(f"unit_count is {unit_count}, expected 1…{len(vectors)}, the frames")
        if not 1 <= width <= features.vector_size:
            raise ValueError(f"width is {width}, expected 1…{features.vector_size}")
        mean = vectors.mean(axis=0)
        projection = _discriminant_projection(vectors - mean, np.concatenate(labels), width)
        centroids = _cluster((vectors - mean) @ projection, unit_count, seed)
        blank = np.zeros((unit_count, features.mel_count), np.float32)
        encoder = cls(features, mean, projection, centroids, blank)
        units = np.concatenate([encoder.assign(frames) for frames in log_mels])
        encoder.unit_log_mels = _cluster_means(np.concatenate(log_mels), units, unit_count)
        return encoder

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the encoder to one .npz file, which appears whole."""
        file = io.BytesIO()
        np.savez(
            file,
            format=np.array(_FORMAT),
            features=np.array(json.dumps(dataclasses.asdict(self.features))),
            mean=self.mean,
            projection=self.projection,
            centroids=self.centroids,
            unit_log_mels=self.unit_log_mels,
        )
        write_file(path, file.getvalue())

    @classmethod
    def load(cls, path: str | pathlib.Path) -> MelKMeansEncoder:
        """Reads what `save` wrote.

        Raises:
          OSError: the file cannot be read.
          ValueError: the file holds something else.
        """
        try:
            texts = read_arrays(path, ("format", "features"))
            if str(texts["format"]) != _FORMAT:
                raise ValueError(f"its format is {quote(str(texts['format']))}")
            features = parse_json(str(texts["features"]))
            return cls(
                validate_fields(MelFeatures, features, "features"),
                **read_arrays(path, ("mean", "projection", "centroids", "unit_log_mels")),
            )
        except ValueError as error:
            raise ValueError(f"{path} is not a {_FORMAT} file: {error}") from error


def open_mel(argument: str, options: Mapping[str, str]) -> MelKMeansEncoder:
    """Opens `mel:FILE`, see `data_pipelines.speech.registry`."""
    check_options("mel", options, ())
    return MelKMeansEncoder.load(path_argument("mel", argument, "an encoder's file"))


def load_built_in() -> MelKMeansEncoder:
    """Returns the encoder that comes with the project: the one of the built-in corpus.

    The corpus' fit is not the same to the bit on every processor; units of this encoder are those
    of its voice and of checkpoints that others have trained.
    """
    return MelKMeansEncoder.load(BUILT_IN / "encoder.npz")


def open_built_in(argument: str, options: Mapping[str, str]) -> MelKMeansEncoder:
    """Opens `built_in`, see `data_pipelines.speech.registry`."""
    check_no_argument("built_in", argument)
    check_options("built_in", options, ())
    return load_built_in()


def _real(name: str, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns float32 values of a shape; raises a `ValueError` for others, or complex ones."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu" or array.shape != shape or not array.size:
        raise ValueError(
            f"{name} has dtype {array.dtype} and shape {array.shape}, expected real numbers {shape}"
        )
    with np.errstate(over="ignore"):  # what is too large is not finite then
        array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} has numbers that float32 cannot hold, expected finite ones")
    return array


@functools.lru_cache(maxsize=4)
def _spectrum_tables(features: MelFeatures) -> tuple[np.ndarray, np.ndarray]:
    """Returns the window (window,) and the mel filters (bins, M), float32."""
    hann = np.hanning(features.window).astype(np.float32)
    return hann, features.mel_bank(features.fft_size)


@functools.lru_cache(maxsize=4)
def _cosines(mel_count: int, cepstrum_count: int) -> np.ndarray:
    """Returns the orthonormal type-2 cosine transform, float32 (M, cepstra)."""
    angles = np.outer(np.arange(mel_count) + 0.5, np.arange(cepstrum_count)) * (np.pi / mel_count)
    return (np.cos(angles) * np.sqrt(2 / mel_count)).astype(np.float32)


def _discriminant_projection(vectors: np.ndarray, labels: np.ndarray, width: int) -> np.ndarray:
    """Finds the directions in which labels differ most: linear discriminant analysis.

    Args:
      vectors: float32 (F, D), mean 0.
      labels: (F,).
      width: directions E.

    Returns:
      float32 (D, E), by falling ratio of between-label to within-label variance; within a label
      the projected vectors have unit covariance.
    """
    classes, index = np.unique(labels, return_inverse=True)
    means = _cluster_means(vectors, index, len(classes)).astype(np.float64)
    total = vectors.T.astype(np.float64) @ vectors / len(vectors)
    weights = np.bincount(index, minlength=len(classes)) / len(vectors)
    between = (means * weights[:, None]).T @ means
    within = total - between
    # A direction that does not vary within labels must not be stretched without bound.
    within += np.eye(len(within)) * (1e-3 * np.trace(total) / len(total) + 1e-6)
    values, basis = np.linalg.eigh(within)
    whitening = basis / np.sqrt(values)
    _, directions = np.linalg.eigh(whitening.T @ between @ whitening)
    return (whitening @ directions[:, ::-1][:, :width]).astype(np.float32)


def _cluster(points: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns centroids, float32 (count, E), of points (F, E) by mini-batch k-means."""
    kmeans = import_extra("demo", "sklearn.cluster").MiniBatchKMeans(
        count,
        random_state=seed,
        batch_size=_KMEANS_BATCH,
        max_iter=_KMEANS_EPOCHS,
        n_init=1,
    )
    return np.asarray(kmeans.fit(points).cluster_centers_, np.float32)


def _cluster_means(rows: np.ndarray, index: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean row of every cluster, float32 (count, …); an empty one has that of all."""
    sums = np.zeros((count, rows.shape[1]))
    order = np.argsort(index, kind="stable")
    present, starts = np.unique(index[order], return_index=True)
    sums[present] = np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
    sizes = np.bincount(index, minlength=count)[:, None]
    means = np.where(sizes > 0, sums / np.maximum(sizes, 1), rows.mean(axis=0))
    return means.astype(np.float32)
