"""Rows for training a vocoder: pieces of recordings, their units, and how long units last."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import numpy as np

from data_pipelines.speech.random_rows import RandomRows
from lst_jax.settings import BatchRows, Bounds, Seed32, configuration, require

_TRIES = 16  # of clips for a row
_Units = Annotated[int, Bounds(least=1, most=2**12)]


@configuration
class VocoderDataConfig:
    """Rows.

    Attributes:
      batch_size: rows of a batch.
      row_units: units of a row's speech; a shorter recording is a row with an end.
      row_runs: units without their repeats of a row, for the duration predictor.
      seed: of the pieces that are drawn.
    """

    batch_size: BatchRows = 16
    row_units: _Units = 32
    row_runs: _Units = 64
    seed: Seed32 = 0


@dataclasses.dataclass(frozen=True, eq=False)
class VoiceClip:
    """A recording and its units.

    Attributes:
      samples: float32 (U · samples a unit,).
      units: int32 (U,).
      speaker: id.
    """

    samples: np.ndarray
    units: np.ndarray
    speaker: int = 0


class VoiceRow(NamedTuple):
    """A row of `lst_jax.training.vocoder_task.VocoderBatch`."""

    units: np.ndarray
    lengths: np.ndarray
    waveforms: np.ndarray
    speakers: np.ndarray
    runs: np.ndarray
    durations: np.ndarray


def fit_samples(samples: np.ndarray, units: np.ndarray, hop: int) -> np.ndarray:
    """Returns the samples that units stand for, `hop` each; zeros where the last have too few."""
    wanted = hop * len(units)
    return np.pad(samples[:wanted], (0, max(wanted - len(samples), 0))).astype(np.float32)


class VocoderBatches(RandomRows):
    """Pieces of recordings, at the same places of units and samples."""

    def __init__(
        self,
        clips: Callable[[int], VoiceClip | None],
        num_clips: int,
        hop: int,
        config: VocoderDataConfig,
    ) -> None:
        """Takes what batches are made of.

        Args:
          clips: returns the clip of a number below `num_clips`; None where there is none.
          num_clips: clips that there are.
          hop: samples a unit.
          config: of the rows.
        """
        super().__init__(config.batch_size, config.seed)
        self._clips, self._num_clips, self._hop, self._config = clips, num_clips, hop, config

    def draw(self, rng: np.random.Generator) -> VoiceRow:
        """Returns a piece of a recording.

        Raises:
          ValueError: there is no clip after many tries.
        """
        config = self._config
        clip = None
        for _ in range(_TRIES):
            clip = self._clips(int(rng.integers(self._num_clips)))
            if clip is not None:
                break
        require(clip is not None, "recordings", f"{_TRIES} in a row unfit", "some that can be used")
        assert clip is not None
        first = int(rng.integers(max(len(clip.units) - config.row_units, 0) + 1))
        units = clip.units[first : first + config.row_units]
        samples = clip.samples[first * self._hop : (first + len(units)) * self._hop]
        starts = np.flatnonzero(np.diff(clip.units, prepend=-1))
        durations = np.diff(starts, append=len(clip.units))
        chosen = int(rng.integers(max(len(starts) - config.row_runs, 0) + 1))
        part = slice(chosen, chosen + config.row_runs)

        def padded(values: np.ndarray, size: int, dtype: Any) -> np.ndarray:
            return np.pad(values, (0, size - len(values))).astype(dtype)

        return VoiceRow(
            padded(units, config.row_units, np.int32),
            np.array(len(units), np.int32),
            padded(samples, config.row_units * self._hop, np.float32),
            np.array(clip.speaker, np.int32),
            padded(clip.units[starts[part]], config.row_runs, np.int32),
            padded(durations[part], config.row_runs, np.int32),
        )
