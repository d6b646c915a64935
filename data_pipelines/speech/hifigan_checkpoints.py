"""Directories of HiFi-GAN unit vocoders, as textless-lib and fairseq have them, read and written.

    vocoder = read_vocoder("vocoders/mhubert-base-25hz")
    speech = HiFiGAN(vocoder.config).apply(vocoder.params, units)

A directory has

    config.json          what `hifigan_config.config_from_json` takes
    generator.pt         or one `g_…` of training's: what `torch.save({"generator": state})` wrote,
                         of which nothing is executed; or `model.safetensors` with the same names
    speakers.txt         names of speakers, one a line, where there are speakers
    styles.txt           names of styles

Weight norm may have its old or its new names, or have been removed; it is computed once, here.
Vocoders that this project trains add `encoder_fingerprint` to `config.json`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.traverse_util
import numpy as np

from data_pipelines.records.metadata import check_fingerprint
from data_pipelines.speech.hugging_face import check_tensors, read_safetensors, read_torch_tensors
from lst_jax.files import (
    new_directory,
    read_numbered_lines,
    refuse_to_replace,
    write_file,
    write_json,
)
from lst_jax.porting.safetensors_folder import is_safetensors_folder, write_safetensors
from lst_jax.porting.tensors import TensorSpec
from lst_jax.settings import list_names, quote, require
from lst_jax.speech.hifigan_config import END_TAPS, HiFiGANConfig, config_from_json
from lst_jax.strict_json import read_json_object

_GENERATOR = "generator.pt"
_FINGERPRINT = "encoder_fingerprint"
# Magnitude and direction of weight norm, by the new and the old names.
_NORMED = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)
_LARGEST_SHARD = 5 * 10**9  # bytes
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class HiFiGANWeights:
    """A vocoder of a directory.

    Attributes:
      config: its shape.
      params: variables of `HiFiGAN(config)`, float32.
      speakers, styles: their names in the order of their ids; None: no file has them.
      encoder_fingerprint: of the encoder whose units it takes. None: not known.
    """

    config: HiFiGANConfig
    params: dict[str, Any]
    speakers: tuple[str, ...] | None = None
    styles: tuple[str, ...] | None = None
    encoder_fingerprint: str | None = None


def read_vocoder(directory: str | pathlib.Path) -> HiFiGANWeights:
    """Reads a directory.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: naming the file, what is not as expected.
    """
    directory = pathlib.Path(directory)
    file = directory / "config.json"
    values = read_json_object(file)
    config = config_from_json(values, file)
    fingerprint = values.get(_FINGERPRINT)
    if fingerprint is not None:
        require(isinstance(fingerprint, str), f"{file}: {_FINGERPRINT}", fingerprint, "text")
        check_fingerprint(f"{file}: {_FINGERPRINT}", fingerprint)
    if is_safetensors_folder(directory):
        file, tensors = directory, read_safetensors(directory)
    else:
        file = _find_generator(directory)
        tensors = read_torch_tensors(file, "generator")
    return HiFiGANWeights(
        config,
        _params_of(config, tensors, file),
        _read_names(directory / "speakers.txt", config.num_speakers) if config.multispkr else None,
        _read_names(directory / "styles.txt", config.num_styles) if config.multistyle else None,
        fingerprint,
    )


def write_vocoder(directory: str | pathlib.Path, vocoder: HiFiGANWeights) -> None:
    """Writes a directory that `read_vocoder` reads; it appears whole.

    Args:
      directory: that does not exist or is empty.
      vocoder: what to write; its parameters have no weight norm.

    Raises:
      OSError: it exists and is not empty, or cannot be written.
    """
    tensors = torch_tensors(vocoder)
    specs = {name: TensorSpec(x.shape, "float32") for name, x in sorted(tensors.items())}
    settings = dataclasses.asdict(vocoder.config)
    if vocoder.encoder_fingerprint is not None:
        settings[_FINGERPRINT] = vocoder.encoder_fingerprint
    with new_directory(directory, refuse_to_replace) as partial:
        write_json(partial / "config.json", settings)
        write_safetensors(partial, specs, tensors.__getitem__, _LARGEST_SHARD)
        for name in ("speakers", "styles"):
            names: Sequence[str] | None = getattr(vocoder, name)
            if names is not None:
                write_file(partial / f"{name}.txt", "".join(f"{line}\n" for line in names))


def torch_tensors(vocoder: HiFiGANWeights) -> _Arrays:
    """Returns a vocoder's parameters by their published names, without weight norm."""
    flat = flax.traverse_util.flatten_dict(vocoder.params["params"], sep="/")
    return {
        name: np.ascontiguousarray(place.to_torch(np.asarray(flat[place.path], np.float32)))
        for name, place in _places(vocoder.config).items()
    }


def _find_generator(directory: pathlib.Path) -> pathlib.Path:
    file = directory / _GENERATOR
    if file.is_file():
        return file
    found = sorted(path.name for path in directory.glob("g_*") if path.is_file())
    if not found:
        raise FileNotFoundError(f"{directory}: expected {_GENERATOR}, g_… or model.safetensors")
    require(len(found) == 1, f"{directory}", list_names(found), f"one of them, or {_GENERATOR}")
    return directory / found[0]


def _read_names(file: pathlib.Path, count: int) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    lines = [(f"{file}:{number}", line) for number, line in read_numbered_lines(file)]
    names = []
    for place, line in lines:
        try:
            names.append(line.decode().strip())
        except UnicodeDecodeError:
            raise ValueError(f"{place} is no UTF-8, expected a name") from None
    require(
        len(names) <= count, str(file), f"{len(names)} names", f"{count} at most, by config.json"
    )
    require(len(set(names)) == len(names), str(file), list_names(names), "each name once")
    return tuple(names)


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lives in the parameter tree.

    Attributes:
      path: of the leaf.
      shape: of the tensor.
      axes: the tensor's, in the leaf's order.
      normed: whether it may be in two parts, of weight norm.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[int, ...]
    normed: bool = False

    def to_torch(self, leaf: np.ndarray) -> np.ndarray:
        """Returns the tensor of a leaf."""
        return leaf.transpose(np.argsort(self.axes))


def _places(config: HiFiGANConfig) -> dict[str, _Place]:
    """Returns the places of all tensors, those of weight norm joined."""
    places: dict[str, _Place] = {}

    def vector(name: str, path: str, width: int) -> None:
        places[name] = _Place(path, (width,), (0,))

    def convolution(
        name: str, path: str, outputs: int, inputs: int, taps: int, normed: bool = True
    ) -> None:
        kernel = _Place(f"{path}/kernel", (outputs, inputs, taps), (2, 1, 0), normed)
        places[f"{name}.weight"] = kernel
        vector(f"{name}.bias", f"{path}/bias", outputs)

    def embedding(name: str, path: str, count: int) -> None:
        places[f"{name}.weight"] = _Place(path, (count, config.embedding_dim), (0, 1))

    embedding("dict", "unit_embedding", config.num_embeddings)
    if config.multispkr:
        embedding("spkr", "speaker_embedding", config.num_speakers)
    if config.multistyle:
        embedding("style", "style_embedding", config.num_styles)
    channels = config.upsample_initial_channel
    convolution("conv_pre", "first", channels, config.model_in_dim, END_TAPS)
    blocks = len(config.resblock_kernel_sizes)
    kinds = {"dilated": "convs1", "plain": "convs2"}
    if config.resblock == "2":
        kinds = {"dilated": "convs"}
    for i, taps in enumerate(config.upsample_kernel_sizes):
        shape, inputs = (channels, channels // 2, taps), channels
        channels = inputs // 2
        kernel = _Place(f"upsampling_{i}/kernel", shape, (2, 0, 1), normed=True)
        places[f"ups.{i}.weight"] = kernel
        vector(f"ups.{i}.bias", f"upsampling_{i}/bias", channels)
        sizes = zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
        for j, (taps, dilations) in enumerate(sizes):
            for ours, theirs in kinds.items():
                for k in range(len(dilations)):
                    name = f"resblocks.{i * blocks + j}.{theirs}.{k}"
                    convolution(name, f"block_{i}_{j}/{ours}_{k}", channels, channels, taps)
    convolution("conv_post", "last", 1, channels, END_TAPS)
    predictor = config.dur_predictor_params
    if predictor is not None:
        inputs, width = predictor.encoder_embed_dim, predictor.var_pred_hidden_dim
        for i in range(2):
            name, path = f"dur_predictor.conv{i + 1}.0", f"duration_predictor/convolution_{i}"
            taps = predictor.var_pred_kernel_size
            convolution(name, path, width, inputs, taps, normed=False)
            vector(f"dur_predictor.ln{i + 1}.weight", f"duration_predictor/norm_{i}/scale", width)
            vector(f"dur_predictor.ln{i + 1}.bias", f"duration_predictor/norm_{i}/bias", width)
            inputs = width
        path = "duration_predictor/projection"
        places["dur_predictor.proj.weight"] = _Place(f"{path}/kernel", (1, width), (1, 0))
        vector("dur_predictor.proj.bias", f"{path}/bias", 1)
    return places


def _params_of(
    config: HiFiGANConfig, tensors: Mapping[str, np.ndarray], file: pathlib.Path
) -> dict[str, Any]:
    """Returns the parameter tree of tensors, after checks of all of them."""
    places = _places(config)
    shapes: dict[str, tuple[int, ...]] = {}
    parts: dict[str, tuple[str, str]] = {}
    for name, place in places.items():
        stem = name.removesuffix("weight")
        pairs = [(stem + a, stem + b) for a, b in _NORMED]
        pair = next((pair for pair in pairs if set(pair) & set(tensors)), None)
        if not place.normed or pair is None:
            shapes[name] = place.shape
            continue
        parts[name] = pair
        shapes |= zip(pair, ((place.shape[0], 1, 1), place.shape), strict=True)
    wide = check_tensors(tensors, shapes, file)
    for name, (magnitude, direction) in parts.items():
        wide[name] = _fold(wide[magnitude], wide[direction], f"{file}: {quote(direction)}")
    flat = {
        place.path: np.ascontiguousarray(wide[name].transpose(place.axes))
        for name, place in places.items()
    }
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def _fold(magnitude: np.ndarray, direction: np.ndarray, source: str) -> np.ndarray:
    norm = np.sqrt(np.sum(np.square(direction, dtype=np.float64), (1, 2), keepdims=True))
    require(bool((norm > 0).all()), f"{source}: norms", 0, "no slice of norm 0")
    with np.errstate(over="ignore"):  # what is too large is not finite then
        kernel = (direction * (magnitude / norm)).astype(np.float32)
    finite = bool(np.isfinite(kernel).all())
    require(finite, f"{source}: by its norms", "not finite", "finite numbers")
    return kernel
