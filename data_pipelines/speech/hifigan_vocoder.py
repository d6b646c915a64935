"""`hifigan:DIR`: HiFi-GAN unit vocoders, of which `hifigan_checkpoints` reads the directory.

    hifigan:vocoders/lj-25hz
    hifigan:vocoders/expresso,speaker=ex01,style=default,durations=predicted

Options:

* speaker, style: a name in `speakers.txt` or `styles.txt`, or a number; needed where the vocoder
  has several.
* durations: `given` (default), one unit a frame; or `predicted`, where equal neighbors count as one
  unit, which lasts as long as the vocoder's own predictor says.

Speech is made in pieces of a few static lengths, so that XLA compiles a handful of programs and
memory does not grow. A piece sees, on either side, as many units more as its samples depend on:
pieces put together are the whole, and `stream` gives samples while units are still coming.
"""

from __future__ import annotations

import functools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.speech.hifigan_checkpoints import HiFiGANWeights, read_vocoder
from data_pipelines.speech.registry import check_no_argument, check_options, path_argument
from data_pipelines.speech.units import BUILT_IN
from data_pipelines.speech.vocoder import check_units
from lst_jax.settings import list_names, require
from lst_jax.speech.hifigan import HiFiGAN, Speech, frames_of
from lst_jax.speech.hifigan_config import context_units

_LEAST_UNITS = 64  # of a piece
_MOST_UNITS = 256  # where their context is at most a quarter of them


class HiFiGANVocoder:
    """The `Vocoder`."""

    def __init__(
        self,
        trained: HiFiGANWeights,
        *,
        speaker: int | None = None,
        style: int | None = None,
        predict_durations: bool = False,
    ) -> None:
        """Puts the parameters on a device.

        Args:
          trained: what a directory holds.
          speaker, style: ids, where the vocoder has them.
          predict_durations: whether units are deduplicated and last as predicted.

        Raises:
          ValueError: no such speaker or style, or there is no duration predictor.
        """
        config = trained.config
        sizes = {
            "speaker": (speaker, config.num_speakers if config.multispkr else 0),
            "style": (style, config.num_styles if config.multistyle else 0),
        }
        for name, (value, count) in sizes.items():
            expected = f"0 … {count - 1}" if count else f"None: the vocoder has no {name}s"
            fits = (value is None) if count == 0 else (value is not None and 0 <= value < count)
            require(fits, name, value, expected)
        has = config.dur_predictor_params is not None
        expected = "'given': the vocoder has no duration predictor"
        require(has or not predict_durations, "durations", "predicted", expected)
        self.config = config
        self.encoder_fingerprint = trained.encoder_fingerprint
        self._predict = predict_durations
        self._context = context_units(config)
        self._longest = max(_MOST_UNITS, _static_length(4 * self._context))
        self._params = jax.device_put(trained.params)
        self._ids = [
            None if value is None else jnp.full(1, value, jnp.int32) for value in (speaker, style)
        ]
        model = HiFiGAN(config)

        def run(name: str, params: Any, units: jax.Array, lengths: jax.Array, *ids: Any) -> Any:
            speech = model.apply(params, units, lengths, *ids)
            assert isinstance(speech, Speech)
            return getattr(speech, name)[0]

        self._waveform = jax.jit(functools.partial(run, "waveforms"))
        self._log_durations = jax.jit(functools.partial(run, "log_durations"))

    @property
    def sample_rate(self) -> int:
        """Returns that of the waveforms."""
        return self.config.sampling_rate

    @property
    def frame_rate(self) -> float:
        """Returns the units a second."""
        return self.config.frame_rate

    @property
    def unit_count(self) -> int:
        """Returns the number of units."""
        return self.config.num_embeddings

    def decode(self, units: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the waveform of each sequence, one unit a frame unless durations are predicted.

        The same units always give the same samples.
        """
        checked = [check_units(sequence, self.unit_count) for sequence in units]
        if self._predict:
            checked = [x[np.flatnonzero(np.diff(x, prepend=-1))] for x in checked]
            checked = [np.repeat(x, self.durations(x)) for x in checked]
        return [self.speak(sequence) for sequence in checked]

    def durations(self, units: np.ndarray) -> np.ndarray:
        """Returns how many frames each of some deduplicated units lasts, int32 (U,)."""
        units = check_units(units, self.unit_count)
        padded = _pad(units, _static_length(len(units)))
        log_durations = self._log_durations(self._params, *self._inputs(padded, len(units)))
        return np.asarray(frames_of(log_durations))[: len(units)]

    def speak(self, units: np.ndarray) -> np.ndarray:
        """Returns the waveform (U · `code_hop_size`,) of units, one a frame."""
        return np.concatenate([*self._speak(check_units(units, self.unit_count), 0, 0)])

    def stream(self, units: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields the waveform of units that come by and by, as soon as it can be known.

        Args:
          units: blocks (U,) of one utterance, one unit a frame.

        Yields:
          float32 (S,); together what `decode` returns of all blocks together.
        """
        held, before = np.zeros(0, np.int64), 0  # of the units held, those whose speech is out
        for block in units:
            held = np.concatenate([held, check_units(block, self.unit_count)])
            # The last units wait for those that their speech depends on.
            held, before = yield from self._speak(held, before, self._context)
        yield from self._speak(held, before, 0)

    def _speak(
        self, held: np.ndarray, before: int, kept: int
    ) -> Generator[np.ndarray, None, tuple[np.ndarray, int]]:
        """Yields the waveform of units; returns those that later ones depend on, or must wait.

        Args:
          held: units, of which the first are there for their influence alone.
          before: how many these are.
          kept: of the last units, how many are not spoken yet.
        """
        hop = self.config.code_hop_size
        while (ready := len(held) - before - kept) > 0:
            fits = len(held) <= self._longest
            count = ready if fits else min(ready, self._longest - before - self._context)
            samples = self._piece(held[: before + count + self._context])
            yield samples[before * hop : (before + count) * hop]
            left_out = max(before + count - self._context, 0)
            held, before = held[left_out:], before + count - left_out
        return held, before

    def _piece(self, units: np.ndarray) -> np.ndarray:
        padded = _pad(units, _static_length(len(units)))
        samples = np.asarray(self._waveform(self._params, *self._inputs(padded, len(units))))
        if not np.isfinite(samples).all():
            raise ValueError("the vocoder's samples are not finite, expected weights that speak")
        return samples

    def _inputs(self, padded: np.ndarray, length: int) -> tuple[Any, ...]:
        return (padded[None].astype(np.int32), np.full(1, length, np.int32), *self._ids)


def open_hifigan(argument: str, options: Mapping[str, str]) -> HiFiGANVocoder:
    """Opens the vocoder of a specification; see the module."""
    check_options("hifigan", options, ("speaker", "style", "durations"))
    durations = options.get("durations", "given")
    known = durations in ("given", "predicted")
    require(known, "durations of hifigan", durations, "given or predicted")
    directory = path_argument("hifigan", argument, "a vocoder's directory")
    trained = read_vocoder(directory)
    config, chosen = trained.config, {}
    for name, has, count, names in (
        ("speaker", config.multispkr, config.num_speakers, trained.speakers),
        ("style", config.multistyle, config.num_styles, trained.styles),
    ):
        chosen[name] = _choose(f"{name} of {directory}", options.get(name), has * count, names)
    has = config.dur_predictor_params is not None
    expected = "given: it has no duration predictor"
    require(has or durations == "given", f"durations of {directory}", durations, expected)
    return HiFiGANVocoder(trained, predict_durations=durations == "predicted", **chosen)


def open_built_in(argument: str, options: Mapping[str, str]) -> HiFiGANVocoder:
    """Opens `built_in`: a voice for the units of the built-in encoder."""
    check_no_argument("built_in", argument)
    check_options("built_in", options, ())
    return HiFiGANVocoder(read_vocoder(BUILT_IN / "vocoder"))


def _choose(what: str, given: str | None, count: int, names: Sequence[str] | None) -> int | None:
    """Returns the id that an option names."""
    if count == 0:
        require(given is None, what, given, "none: the vocoder has one voice alone")
        return None
    if given is None and count == 1:
        return 0
    if names and given in names:
        return names.index(given)
    number = int(given) if given is not None and given.isdecimal() and len(given) < 10 else -1
    expected = f"a number, 0 … {count - 1}"
    if names:
        expected = f"one of {list_names(names)}, or {expected}"
    require(0 <= number < count, what, given, expected)
    return number


def _static_length(length: int) -> int:
    """Returns the least of a few lengths that is as long."""
    return max(_LEAST_UNITS, 1 << (length - 1).bit_length())


def _pad(units: np.ndarray, length: int) -> np.ndarray:
    return np.pad(units, (0, length - len(units)))
