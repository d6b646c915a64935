"""Units of HuBERT, mHuBERT and wav2vec 2.0: hidden states of a layer, quantized.

    hubert:DIR,set=mhubert-base-25hz,quantizer=FILE
    hubert:DIR,layer=6,quantizer=FILE
    hubert:DIR,set=FILE.json

DIR is a Hugging Face directory, FILE what `unit_sets.read_quantizer` reads, FILE.json what
`python -m experiments.fit_units` writes. Options:

* set: a named unit set, or a set's file; sets layer, normalization and padding samples, and holds
  model and quantizer to its rate and count.
* layer: a number as `lst_jax.speech.wav2vec2` counts, or `last`, which is behind the final norm.
* quantizer: its file.
* padding: `exact` (default) or `published`; `published` lets group norms see a batch's padding.
* dtype: `float32` (default) or `bfloat16`, of the model's products; the quantizer's are float32.
* normalize: `true` or `false`: waveforms of mean 0 and variance 1. Default: what the set, else the
  model's files say; if none does, only models with layer norms after each convolution.
* pad: zeros before and behind a recording, in samples; 40 make S samples give S / stride frames.
* cut: seconds (default 40) beyond which a recording is cut.
* overlap: seconds (default 3) that a piece sees at either side beside what it is for.
* batch: seconds of audio a device takes at once. Default: one recording on a CPU, else 240.

Recordings run in a few static lengths, so that XLA compiles a handful of programs. The length is
chosen by the recording's own, and a device takes as many rows of it at once however many there are:
units do not depend on the batch, the order or the number of devices.

Attention and group norms see the whole recording. A recording of up to `cut` seconds is never cut.
Pieces of a longer one overlap, and beyond the positional convolution's reach only attention and a
group norm's statistics tell a piece from the whole.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from data_pipelines.speech.audio import float_samples
from data_pipelines.speech.hugging_face import SpeechModel, mean_and_deviation, read_model
from data_pipelines.speech.registry import check_options, path_argument
from data_pipelines.speech.unit_sets import (
    PadSamples,
    UnitSet,
    read_quantizer,
    read_unit_set,
)
from lst_jax.local_paths import local_path
from lst_jax.settings import Bounds, NaturalFloat, NaturalInt, configuration, require
from lst_jax.sharding import batch_mesh_size, make_mesh, mesh_context, replicated, shard_batch
from lst_jax.speech.interfaces import Rejection
from lst_jax.speech.quantizers import KMeans, Quantizer
from lst_jax.speech.wav2vec2 import Wav2Vec2
from lst_jax.speech.wav2vec2_config import (
    Padding,
    Wav2Vec2Config,
    frame_count,
    receptive_field,
    samples_per_frame,
)

_FORMAT = "lst-jax-hubert-units-1"
_NUMBERS = {"pad": "pad_samples", "cut": "cut_s", "overlap": "overlap_s", "batch": "batch_s"}
_OPTIONS = ("layer", "padding", "dtype", "normalize", *_NUMBERS)
_SHORTEST = 1.0  # seconds of the shortest static length
_RATIO = 2**0.5  # from one to the next
_BATCH = 240.0  # seconds of audio that an accelerator takes at once


@configuration
class EncoderOptions:
    """How hidden states are made; see the module.

    Attributes:
      layer: whose hidden states. None: what follows the last one's norm.
      padding: of rows in a batch.
      dtype: of the model's products.
      normalize: whether waveforms have mean 0 and variance 1.
      pad_samples: zeros before and behind a recording.
      cut_s: seconds of the longest piece.
      overlap_s: seconds that a piece sees beyond its part, on either side.
      batch_s: seconds of audio that a device takes at once. 0: one recording on a CPU.
    """

    layer: NaturalInt | None
    padding: Padding = "exact"
    dtype: Literal["float32", "bfloat16"] = "float32"
    normalize: bool = False
    pad_samples: PadSamples = 0
    cut_s: Annotated[float, Bounds(least=2, most=3600)] = 40.0
    overlap_s: NaturalFloat = 3.0
    batch_s: NaturalFloat = 0.0

    def __post_init__(self) -> None:
        fits = 3 * self.overlap_s <= self.cut_s
        require(
            fits, "EncoderOptions.overlap_s", self.overlap_s, f"a third of {self.cut_s} or less"
        )


class Window(NamedTuple):
    """A part of a recording that is computed at once.

    Attributes:
      start, stop: its samples in the padded recording.
      keep, end: of its frames, counted in it, those that are taken.
    """

    start: int
    stop: int
    keep: int
    end: int


def cut(config: Wav2Vec2Config, samples: int, longest: int, overlap: int) -> list[Window]:
    """Cuts a recording into pieces whose frames, one after the other, are its own.

    Args:
      config: of the model.
      samples: of the recording.
      longest: samples of a piece, enough for three times `overlap` frames and one.
      overlap: frames that a piece has on either side for nothing but their influence.
    """
    frames, stride = frame_count(config, samples), samples_per_frame(config)
    if samples <= longest:
        return [Window(0, samples, 0, frames)]
    whole = frame_count(config, longest)
    pieces, done = [], 0
    while done < frames:
        first = min(max(done - overlap, 0), frames - whole)
        end = frames if first == frames - whole else first + whole - overlap
        start = first * stride
        stop = start + (whole - 1) * stride + receptive_field(config)
        pieces.append(Window(start, stop, done - first, end - first))
        done = end
    return pieces


class FrameModel:
    """Waveforms to hidden states of their frames, in static shapes over a mesh.

    Attributes:
      model: the model of a directory.
      options: how.
      mesh: whose devices share the rows of a batch; by default this process's.
    """

    def __init__(
        self, model: SpeechModel, options: EncoderOptions, mesh: jax.sharding.Mesh | None = None
    ) -> None:
        """Puts the parameters on the devices.

        Raises:
          ValueError: the model has no such layer.
        """
        self.model, self.options = model, options
        self.mesh = make_mesh(devices=jax.local_devices()) if mesh is None else mesh
        config, rate = model.config, model.sample_rate
        depth = config.num_hidden_layers
        layer = options.layer
        require(layer is None or layer <= depth, "layer", layer, f"0 … {depth}, or last")
        self._parameters = jax.device_put(model.params, replicated(self.mesh))
        # Both sides of the overlap at least as wide as the positional convolution reaches.
        reach = config.num_conv_pos_embeddings // 2
        per_frame = samples_per_frame(config)
        self._overlap = max(math.ceil(options.overlap_s * rate / per_frame), reach)
        least = (3 * self._overlap + 1) * per_frame + receptive_field(config)
        self._longest = max(round(options.cut_s * rate), least)
        lengths, length = [], self._longest
        while length > _SHORTEST * rate:
            lengths.append(length)
            length = math.ceil(length / _RATIO)
        self._lengths = sorted([*lengths, max(length, receptive_field(config))])
        self._programs: dict[Any, Callable[..., Any]] = {}

    @property
    def frame_rate(self) -> float:
        """Returns the frames a second."""
        return self.model.sample_rate / samples_per_frame(self.model.config)

    @functools.cached_property
    def model_sha256(self) -> str:
        """Returns that of the model's configuration and parameters."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.model.config)).encode())
        for path, array in jax.tree_util.tree_leaves_with_path(self.model.params):
            digest.update(f"{jax.tree_util.keystr(path)} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()

    def count_frames(self, samples: int) -> int:
        """Returns the frames of a recording of so many samples."""
        return frame_count(self.model.config, samples + 2 * self.options.pad_samples)

    def run(
        self,
        waveforms: Sequence[np.ndarray],
        finish: Callable[[Any, jax.Array], jax.Array],
        arguments: Any = (),
    ) -> Iterator[tuple[int, np.ndarray | Rejection]]:
        """Computes something of the hidden states of every waveform, in no particular order.

        Args:
          waveforms: float32 (S,) at the model's rate.
          finish: maps `arguments` and hidden states (B, L, D) to (B, L, …); one function for all
            calls, as a program is kept for it.
          arguments: tree of arrays.

        Yields:
          The number of a waveform and its (U, …), or why there is none.
        """
        config, pad = self.model.config, self.options.pad_samples
        pieces: list[tuple[int, int, Window]] = []
        means: dict[int, tuple[float, float]] = {}
        for number, waveform in enumerate(waveforms):
            if not self.count_frames(len(waveform)):
                least = receptive_field(config) - 2 * pad
                reason = f"{len(waveform)} samples give no frame, expected at least {least}"
                yield number, Rejection("too-short", reason)
                continue
            if self.options.normalize:
                means[number] = mean_and_deviation(waveform)
            parts = cut(config, len(waveform) + 2 * pad, self._longest, self._overlap)
            pieces += [(number, place, piece) for place, piece in enumerate(parts)]
        found: dict[int, dict[int, np.ndarray]] = collections.defaultdict(dict)
        waiting = collections.Counter(number for number, _, _ in pieces)

        def piece_of(number: int, piece: Window) -> np.ndarray:
            samples = _cut_padded(waveforms[number], pad, piece.start, piece.stop)
            if not self.options.normalize:
                return samples
            mean, deviation = means[number]
            samples = ((samples - mean) / deviation).astype(np.float32)
            # The padding stays zero: it is put on the normalized recording.
            outside = np.arange(piece.start, piece.stop)
            outside = (outside < pad) | (outside >= pad + len(waveforms[number]))
            return np.where(outside, np.float32(0), samples)

        def results() -> Iterator[tuple[tuple[int, int, Window], np.ndarray]]:
            before: tuple[Any, jax.Array] | None = None
            for length, group in self._group(pieces):
                rows = [piece_of(number, piece) for number, _, piece in group]
                values = self._compute(rows, length, finish, arguments)
                if before is not None:  # the device works on, meanwhile
                    yield from zip(before[0], np.asarray(before[1]), strict=False)
                before = group, values
            if before is not None:
                yield from zip(before[0], np.asarray(before[1]), strict=False)

        for (number, place, piece), values in results():
            found[number][place] = values[piece.keep : piece.end].copy()
            if len(found[number]) == waiting[number]:
                parts = found.pop(number)
                yield number, np.concatenate([parts[place] for place in sorted(parts)])

    def _group(
        self, pieces: Sequence[tuple[int, int, Window]]
    ) -> Iterator[tuple[int, list[tuple[int, int, Window]]]]:
        """Returns batches of pieces of one static length each, the longest first."""
        by_length: dict[int, list[Any]] = collections.defaultdict(list)
        for item in pieces:
            size = item[2].stop - item[2].start
            by_length[min(x for x in self._lengths if x >= size)].append(item)
        for length in sorted(by_length, reverse=True):
            group, rows = by_length[length], self._rows(length)
            for start in range(0, len(group), rows):
                yield length, group[start : start + rows]

    def _rows(self, length: int) -> int:
        """Returns the rows of a batch of a static length; those of a device do not change."""
        alone = self.mesh.devices.flat[0].platform == "cpu" and not self.options.batch_s
        seconds = 0.0 if alone else self.options.batch_s or _BATCH
        rows = max(1, int(seconds * self.model.sample_rate / length))
        return rows * batch_mesh_size(self.mesh)

    def _compute(
        self,
        rows: Sequence[np.ndarray],
        length: int,
        finish: Callable[[Any, jax.Array], jax.Array],
        arguments: Any,
    ) -> jax.Array:
        waveforms = np.zeros((self._rows(length), length), np.float32)
        lengths = np.full(len(waveforms), receptive_field(self.model.config), np.int32)
        for row, samples in enumerate(rows):
            waveforms[row, : len(samples)] = samples
            lengths[row] = len(samples)
        if finish not in self._programs:
            self._programs[finish] = jax.jit(functools.partial(self._hidden, finish))
        with mesh_context(self.mesh):
            batch = shard_batch((waveforms, lengths), self.mesh)
            return self._programs[finish](self._parameters, arguments, *batch)

    def _hidden(
        self, finish: Any, parameters: Any, arguments: Any, waveforms: Any, lengths: Any
    ) -> jax.Array:
        options = self.options
        module = Wav2Vec2(
            self.model.config, head=self.model.head, padding=options.padding, dtype=options.dtype
        )
        states: Any = module.apply(parameters, waveforms, lengths, layer=options.layer)
        hidden = states.last if options.layer is None else states.hidden[options.layer]
        return finish(arguments, hidden)


class HubertEncoder:
    """A `UnitEncoder` of hidden states and a quantizer."""

    def __init__(self, frames: FrameModel, quantizer: Quantizer) -> None:
        """Assembles an encoder.

        Raises:
          ValueError: the quantizer is for features of another width.
        """
        width = frames.model.config.hidden_size
        expected = f"{width}, that of the model's hidden states"
        require(quantizer.width == width, "the quantizer's width", quantizer.width, expected)
        self._frames, self._quantizer = frames, quantizer
        self._arrays = jax.device_put(quantizer, replicated(frames.mesh))

    @property
    def sample_rate(self) -> int:
        """Returns that of the model's waveforms."""
        return self._frames.model.sample_rate

    @property
    def frame_rate(self) -> float:
        """Returns the units a second."""
        return self._frames.frame_rate

    @property
    def unit_count(self) -> int:
        """Returns the number of units, a linear quantizer's blank among them."""
        return self._quantizer.unit_count

    @functools.cached_property
    def fingerprint(self) -> str:
        """Returns the SHA-256 of parameters, configuration, quantizer and options."""
        options = dataclasses.asdict(self._frames.options)
        del options["batch_s"]  # no unit depends on it
        kind = type(self._quantizer).__name__
        digest = hashlib.sha256(f"{_FORMAT} {self._frames.model_sha256} {kind}".encode())
        digest.update(json.dumps([self.sample_rate, options], sort_keys=True).encode())
        for array in jax.tree.leaves(self._quantizer):
            digest.update(f"{array.shape}".encode())
            digest.update(np.ascontiguousarray(array, "<f4").data)
        return digest.hexdigest()

    def encode(self, waveforms: Sequence[np.ndarray]) -> list[np.ndarray | Rejection]:
        """Returns the units of each waveform; see `UnitEncoder.encode`."""
        waveforms = [float_samples(waveform) for waveform in waveforms]
        results: list[Any] = [None] * len(waveforms)
        for number, classes in self._frames.run(waveforms, _classify, self._arrays):
            if not isinstance(classes, Rejection):
                classes = self._quantizer.units(classes)
                if not len(classes):
                    classes = Rejection("no-units", "every frame is blank, expected a unit")
            results[number] = classes
        return results


def open_hubert(argument: str, options: Mapping[str, str]) -> HubertEncoder:
    """Opens the encoder of a specification; see the module."""
    options = dict(options)
    set_name, file = options.pop("set", None), options.pop("quantizer", None)
    units = None if set_name is None else read_unit_set(set_name)
    if file is None and set_name is not None and units is not None and units.quantizer_file:
        file = str(pathlib.Path(set_name).parent / units.quantizer_file)
    require(file is not None, "quantizer of hubert", file, "its file, such as quantizer=km.npy")
    path = local_path(file or "", "quantizer")
    quantizer = read_quantizer(path)
    frames = open_frames(argument, options, units)
    width = frames.model.config.hidden_size
    if quantizer.width != width:
        raise ValueError(
            f"{path} is for features of width {quantizer.width}, expected {width}, those of "
            f"{argument}"
        )
    if units is not None:
        kind = "k-means" if isinstance(quantizer, KMeans) else "linear"
        found: dict[str, tuple[Any, Any]] = {
            "frame_rate": (argument, frames.frame_rate),
            "quantizer": (path, kind),
            "unit_count": (path, quantizer.unit_count),
        }
        if units.model_sha256 is not None:
            found["model_sha256"] = argument, frames.model_sha256
        for name, (source, value) in found.items():
            expected = f"{getattr(units, name)} for the set {set_name}"
            require(value == getattr(units, name), f"{source}: {name}", value, expected)
    return HubertEncoder(frames, quantizer)


def open_frames(
    argument: str, options: Mapping[str, str], units: UnitSet | None = None
) -> FrameModel:
    """Opens what a specification says of hidden states; see the module.

    Args:
      argument: the model's directory.
      options: those of the module but for the set and the quantizer.
      units: what sets what they leave open.
    """
    check_options("hubert", options, ("set", "quantizer", *_OPTIONS))
    model = read_model(path_argument("hubert", argument, "a model's directory"))
    depth = model.config.num_hidden_layers
    layer = None
    if units is not None:
        layer = "last" if units.layer is None else str(units.layer)
    layer = options.get("layer", layer)
    number = int(layer[:9]) if layer is not None and layer.isdecimal() else depth + 1
    good = layer == "last" or number <= depth
    require(good, "layer of hubert", layer, f"0 … {depth}, or last")
    normalize = model.normalize
    if normalize is None:
        normalize = model.config.feat_extract_norm == "layer"
    if units is not None and units.normalize is not None:
        normalize = units.normalize
    if "normalize" in options:
        value = options["normalize"]
        require(value in ("true", "false"), "normalize of hubert", value, "true or false")
        normalize = value == "true"
    given: dict[str, Any] = {
        name: options[name] for name in ("padding", "dtype") if name in options
    }
    if units is not None:
        given["pad_samples"] = units.pad_samples
    for name, field in _NUMBERS.items():
        if name in options:
            given[field] = _number(options[name])
    layer_number = None if layer == "last" else int(layer or 0)
    return FrameModel(model, EncoderOptions(layer=layer_number, normalize=normalize, **given))


def _number(text: str) -> float | int | str:
    """Returns the number that text is, else the text, which `EncoderOptions` refuses."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def _classify(quantizer: Any, hidden: jax.Array) -> jax.Array:
    return quantizer.classes(hidden)


def _cut_padded(waveform: np.ndarray, pad: int, start: int, stop: int) -> np.ndarray:
    """Returns samples of a recording with zeros at both ends."""
    inner = waveform[max(start - pad, 0) : max(stop - pad, 0)]
    before = min(max(pad - start, 0), stop - start)
    return np.pad(inner, (before, stop - start - before - len(inner)))
