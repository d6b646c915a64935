"""Hugging Face directories of wav2vec 2.0, HuBERT and mHuBERT, read and written.

    model = read_model("hubert-base-ls960")
    states = apply_model(Wav2Vec2(model.config), model.params, waveforms, lengths, layer=6)

A directory has

    config.json                 what `config_from_json` takes
    model.safetensors           or shards with `model.safetensors.index.json`, or
                                `pytorch_model.bin`, of which nothing is executed; float32, float16
                                or bfloat16
    preprocessor_config.json    rate, and whether waveforms are normalized; or
                                `processor_config.json`, of transformers 5
    vocab.json                  labels of a CTC head

Names may begin with `wav2vec2.` or `hubert.`, as they do where there is a head. Weight norm may
have its old or its new names, and is computed once, here. What only training uses is passed over.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np

from data_pipelines.speech.weights import read_torch
from lst_jax.files import new_directory, refuse_to_replace, write_json
from lst_jax.porting.safetensors_folder import (
    SafetensorsFolder,
    is_safetensors_folder,
    write_safetensors,
)
from lst_jax.porting.tensors import TensorSpec
from lst_jax.settings import list_names, quote, require
from lst_jax.speech.wav2vec2 import CONVOLUTION_EPSILON, positional_kernel_shape
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config, config_from_json
from lst_jax.strict_json import read_json_object

SAMPLE_RATE = 16_000

_TORCH_FILE = "pytorch_model.bin"
_PREFIXES = ("wav2vec2.", "hubert.")
_TRAINING = ("masked_spec_embed", "quantizer.", "project_q.", "project_hid.", "dropout_features.")
_POSITIONAL = "encoder.pos_conv_embed"
# Magnitude and direction of weight norm, by the new and the old names.
_NORMED = (
    ("conv.parametrizations.weight.original0", "conv.parametrizations.weight.original1"),
    ("conv.weight_g", "conv.weight_v"),
)
_FLOATS = ("float32", "float16", "bfloat16")
_BLOCK = 2**20  # samples of which there are wide copies
_LARGEST_SHARD = 5 * 10**9  # bytes
_Arrays = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class SpeechModel:
    """A model of a directory.

    Attributes:
      config: its shape.
      params: variables of `Wav2Vec2(config, head)`, float32.
      head: whether there is a CTC head.
      sample_rate: of its waveforms.
      normalize: whether waveforms are normalized (`normalize_waveform`). None: no file says so.
      labels: ids of the head's labels by their spelling. None: no file has them.
    """

    config: Wav2Vec2Config
    params: dict[str, Any]
    head: bool
    sample_rate: int = SAMPLE_RATE
    normalize: bool | None = None
    labels: Mapping[str, int] | None = None


def normalize_waveform(waveform: np.ndarray) -> np.ndarray:
    """Returns a waveform (S,) float32 of mean 0 and variance 1, as feature extractors make it."""
    mean, deviation = mean_and_deviation(waveform)
    normal = np.empty(len(waveform), np.float32)
    for i in range(0, len(waveform), _BLOCK):
        normal[i : i + _BLOCK] = (waveform[i : i + _BLOCK].astype(np.float64) - mean) / deviation
    return normal


def mean_and_deviation(waveform: np.ndarray) -> tuple[float, float]:
    """Returns those of a recording, of any length, in float64."""
    blocks = range(0, len(waveform), _BLOCK)
    mean = sum(waveform[i : i + _BLOCK].sum(dtype=np.float64) for i in blocks) / len(waveform)
    wide = (waveform[i : i + _BLOCK].astype(np.float64) - mean for i in blocks)
    return mean, math.sqrt(sum(np.square(part).sum() for part in wide) / len(waveform) + 1e-7)


def read_model(directory: str | pathlib.Path) -> SpeechModel:
    """Reads a directory.

    Raises:
      OSError: a file is missing or cannot be read.
      ValueError: naming the file, what is not as expected; tensors that are missing, left over, of
        another shape or not finite are all named.
    """
    directory = pathlib.Path(directory)
    config = config_from_json(
        read_json_object(directory / "config.json"), directory / "config.json"
    )
    rate, normalize = _read_preprocessor(directory)
    file, tensors = _read_tensors(directory)
    body = [name for name in tensors if name.startswith(_PREFIXES)]
    named = {name.partition(".")[2] if name in body else name: x for name, x in tensors.items()}
    if len(named) < len(tensors):
        raise ValueError(
            f"{file} has {list_names(body)} with and without the prefix, expected once"
        )
    head = any(name.startswith("lm_head.") for name in named)
    params = _params_of(config, head, named, file)
    labels = _read_labels(directory, config) if head else None
    return SpeechModel(config, params, head, rate, normalize, labels)


def write_model(directory: str | pathlib.Path, model: SpeechModel) -> None:
    """Writes a directory that this module and transformers read; it appears whole.

    Args:
      directory: that does not exist or is empty.
      model: what to write; parameters as arrays of any kind, Flax's boxes removed.

    Raises:
      OSError: it exists and is not empty, or cannot be written.
    """
    config, head = model.config, model.head
    family = {"wav2vec2": "Wav2Vec2", "hubert": "Hubert"}[config.model_type]
    settings = dataclasses.asdict(config)
    if config.model_type == "wav2vec2":
        del settings["feat_proj_layer_norm"], settings["conv_pos_batch_norm"]
    settings |= {"architectures": [family + ("ForCTC" if head else "Model")]}
    # Else readers look for the vector that takes masked frames' places in training.
    settings |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0, "apply_spec_augment": False}
    tensors = _tensors_of(config, head, model.params)
    if head:
        prefix = f"{config.model_type}."
        body = {n: x for n, x in tensors.items() if not n.startswith("lm_head.")}
        rest = {n: x for n, x in tensors.items() if n.startswith("lm_head.")}
        tensors = {prefix + name: x for name, x in body.items()} | rest
    specs = {name: TensorSpec(x.shape, "float32") for name, x in sorted(tensors.items())}
    with new_directory(directory, refuse_to_replace) as partial:
        write_json(partial / "config.json", settings)
        write_safetensors(partial, specs, tensors.__getitem__, _LARGEST_SHARD)
        extractor = {
            "feature_extractor_type": "Wav2Vec2FeatureExtractor",
            "feature_size": 1,
            "sampling_rate": model.sample_rate,
            "padding_side": "right",
            "padding_value": 0.0,
            "do_normalize": bool(model.normalize),
            "return_attention_mask": config.feat_extract_norm == "layer",
        }
        write_json(partial / "preprocessor_config.json", extractor)
        if model.labels is not None:
            write_json(partial / "vocab.json", dict(model.labels))


def check_tensors(
    tensors: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int, ...]],
    file: pathlib.Path,
    passed_over: tuple[str, ...] = (),
) -> _Arrays:
    """Returns tensors in float32 that are all there, of the right shapes, and finite.

    Args:
      tensors: of the file.
      shapes: of those that a configuration wants.
      file: its path, for messages.
      passed_over: beginnings of names of others that may be there.

    Raises:
      ValueError: naming the file, what is not as expected.
    """
    missing = [name for name in shapes if name not in tensors]
    if missing:
        raise ValueError(f"{file} is without {list_names(missing)}, which its config.json has")
    others = [name for name in tensors if name not in shapes and not name.startswith(passed_over)]
    if others:
        raise ValueError(f"{file} has {list_names(others)}, which its config.json does not have")
    wrong = [name for name, shape in shapes.items() if tensors[name].shape != shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{file}: {name} has shape {tensors[name].shape}, expected {shapes[name]} by its "
            f"config.json; not as expected are {list_names(wrong)}"
        )
    with np.errstate(over="ignore"):  # what is too large is not finite then
        wide = {name: tensors[name].astype(np.float32) for name in shapes}
    broken = [name for name, x in wide.items() if not np.isfinite(x).all()]
    if broken:
        raise ValueError(f"{file} has numbers that are not finite in {list_names(broken)}")
    return wide


def read_torch_tensors(file: pathlib.Path, key: str | None = None) -> _Arrays:
    """Returns the tensors of a file of PyTorch's, counts left out; see `read_torch`.

    Args:
      file: its path.
      key: of a mapping of them in the file, if it has such a key.

    Raises:
      ValueError: it holds something else, or tensors that are not of floating-point numbers.
    """
    found: Any = read_torch(file)
    if key is not None and key in found:
        found = found[key]
        require(isinstance(found, dict), f"{file}: {key}", type(found).__name__, "tensors by name")
    strange = [name for name, x in found.items() if not isinstance(x, np.ndarray)]
    if strange:
        raise ValueError(f"{file} has {list_names(strange)}, which are no tensors")
    _check_floats(file, {name: x.dtype.name for name, x in found.items()})
    return {name: x for name, x in found.items() if not _is_count(name)}


def read_safetensors(directory: pathlib.Path) -> _Arrays:
    """Returns the tensors of a directory's safetensors; see `read_torch_tensors`."""
    folder = SafetensorsFolder(directory)
    kinds = {name: spec.dtype for name, spec in folder.specs.items()}
    _check_floats(directory, kinds)
    return {name: folder.read(name) for name in kinds if not _is_count(name)}


def _read_preprocessor(directory: pathlib.Path) -> tuple[int, bool | None]:
    """Returns the sample rate, and whether waveforms are normalized where a file says so."""
    file = directory / "preprocessor_config.json"
    if file.is_file():
        values = read_json_object(file)
    elif (file := directory / "processor_config.json").is_file():
        values = read_json_object(file).get("feature_extractor")
        require(isinstance(values, dict), f"{file}: feature_extractor", values, "an object")
        assert values is not None
    else:
        return SAMPLE_RATE, None
    rate, normalize = values.get("sampling_rate", SAMPLE_RATE), values.get("do_normalize", True)
    whole = type(rate) is int and 1000 <= rate <= 10**6
    require(whole, f"{file}: sampling_rate", rate, "an integer, 1000 … 1000000")
    require(isinstance(normalize, bool), f"{file}: do_normalize", normalize, "true or false")
    return rate, normalize


def _read_labels(directory: pathlib.Path, config: Wav2Vec2Config) -> dict[str, int] | None:
    file = directory / "vocab.json"
    if not file.is_file():
        return None
    labels = read_json_object(file)
    for name, number in labels.items():
        inside = type(number) is int and 0 <= number < config.vocab_size
        expected = f"an integer, 0 … {config.vocab_size - 1}, as vocab_size in config.json"
        require(inside, f"{file}: {quote(name)}", number, expected)
    same = len(set(labels.values())) == len(labels)
    require(same, f"{file}: ids", sorted(labels.values()), "each once")
    return labels


def _read_tensors(directory: pathlib.Path) -> tuple[pathlib.Path, _Arrays]:
    """Returns the file that is named where something is wrong, and its tensors."""
    if is_safetensors_folder(directory):
        return directory, read_safetensors(directory)
    file = directory / _TORCH_FILE
    if not file.is_file():
        raise FileNotFoundError(f"{directory}: expected model.safetensors or {_TORCH_FILE}")
    return file, read_torch_tensors(file)


def _is_count(name: str) -> bool:
    return name.endswith(".num_batches_tracked")


def _check_floats(file: pathlib.Path, kinds: Mapping[str, str]) -> None:
    for name, kind in kinds.items():
        if kind not in _FLOATS and not _is_count(name):
            raise ValueError(f"{file}: {name} is {kind}, expected one of {', '.join(_FLOATS)}")


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor lives in the parameter tree.

    Attributes:
      path: of the leaf.
      shape: of the tensor.
      turn: reverses the axes: of a Linear (out, in) and a convolution (out, in, taps).
    """

    path: str
    shape: tuple[int, ...]
    turn: bool = False


def _places(config: Wav2Vec2Config, head: bool) -> dict[str, _Place]:
    """Returns the places of all tensors but the positional convolution's."""
    places: dict[str, _Place] = {}

    def linear(name: str, path: str, outputs: int, inputs: int) -> None:
        places[f"{name}.weight"] = _Place(f"{path}/kernel", (outputs, inputs), turn=True)
        places[f"{name}.bias"] = _Place(f"{path}/bias", (outputs,))

    def norm(name: str, path: str, width: int) -> None:
        places[f"{name}.weight"] = _Place(f"{path}/scale", (width,))
        places[f"{name}.bias"] = _Place(f"{path}/bias", (width,))

    inputs = 1
    for i, (channels, taps) in enumerate(zip(config.conv_dim, config.conv_kernel, strict=True)):
        name, path = f"feature_extractor.conv_layers.{i}", "feature_extractor"
        kernel = _Place(f"{path}/convolution_{i}/kernel", (channels, inputs, taps), turn=True)
        places[f"{name}.conv.weight"] = kernel
        if config.conv_bias:
            places[f"{name}.conv.bias"] = _Place(f"{path}/convolution_{i}/bias", (channels,))
        if config.feat_extract_norm == "layer" or i == 0:
            norm(f"{name}.layer_norm", f"{path}/norm_{i}", channels)
        inputs = channels
    width, inner = config.hidden_size, config.intermediate_size
    if config.feat_proj_layer_norm:
        norm("feature_projection.layer_norm", "projection_norm", inputs)
    linear("feature_projection.projection", "projection", width, inputs)
    norm("encoder.layer_norm", "encoder_norm", width)
    for i in range(config.num_hidden_layers):
        name, path = f"encoder.layers.{i}", f"layer_{i}"
        for theirs, ours in _ATTENTION.items():
            linear(f"{name}.attention.{theirs}", f"{path}/attention/{ours}", width, width)
        norm(f"{name}.layer_norm", f"{path}/attention_norm", width)
        feed = f"{name}.feed_forward"
        linear(f"{feed}.intermediate_dense", f"{path}/feed_forward/intermediate", inner, width)
        linear(f"{feed}.output_dense", f"{path}/feed_forward/output", width, inner)
        norm(f"{name}.final_layer_norm", f"{path}/final_norm", width)
    if head:
        linear("lm_head", "head", config.vocab_size, width)
    return places


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}


def _positional_shapes(
    config: Wav2Vec2Config, names: tuple[str, str]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the positional convolution's tensors, by their names behind its own."""
    width, taps = config.hidden_size, config.num_conv_pos_embeddings
    kernel = width, width // config.num_conv_pos_embedding_groups, taps
    if config.conv_pos_batch_norm:
        norm = ("weight", "bias", "running_mean", "running_var")
        shapes = {"conv.weight": kernel} | {f"batch_norm.{name}": (width,) for name in norm}
    else:
        shapes = dict(zip(names, ((1, 1, taps), kernel), strict=True))
    return {"conv.bias": (width,)} | shapes


def _params_of(
    config: Wav2Vec2Config, head: bool, tensors: _Arrays, file: pathlib.Path
) -> dict[str, Any]:
    """Returns the parameter tree of tensors without prefix, after checks of all of them."""
    places = _places(config, head)
    old = f"{_POSITIONAL}.{_NORMED[1][0]}" in tensors
    positional = _positional_shapes(config, _NORMED[1] if old else _NORMED[0])
    shapes = {name: place.shape for name, place in places.items()}
    shapes |= {f"{_POSITIONAL}.{name}": shape for name, shape in positional.items()}
    wide = check_tensors(tensors, shapes, file, _TRAINING)
    flat = {p.path: wide[name].T if p.turn else wide[name] for name, p in places.items()}
    found = {name: wide[f"{_POSITIONAL}.{name}"] for name in positional}
    flat["positional/bias"] = found["conv.bias"]
    if config.conv_pos_batch_norm:
        kernel = found["conv.weight"]
        deviation = np.sqrt(
            found["batch_norm.running_var"].astype(np.float64) + CONVOLUTION_EPSILON
        )
        scale = found["batch_norm.weight"] / deviation
        shift = found["batch_norm.bias"] - found["batch_norm.running_mean"] * scale
        flat["positional/scale"] = scale.astype(np.float32)
        flat["positional/shift"] = shift.astype(np.float32)
    else:
        magnitude, direction = (found[name] for name in _NORMED[1 if old else 0])
        norm = np.sqrt(np.sum(np.square(direction, dtype=np.float64), (0, 1), keepdims=True))
        if not (norm > 0).all():
            raise ValueError(f"{file}: {_POSITIONAL} has a tap of norm 0, expected a direction")
        kernel = (direction * (magnitude / norm)).astype(np.float32)
    flat["positional/kernel"] = _split_kernel(config, kernel)
    flat = {path: np.ascontiguousarray(x) for path, x in flat.items()}
    return {"params": flax.traverse_util.unflatten_dict(flat, sep="/")}


def _split_kernel(config: Wav2Vec2Config, kernel: np.ndarray) -> np.ndarray:
    """Maps (out, in / groups, K) to `positional_kernel_shape`."""
    groups, inner, inputs, outer, outputs = positional_kernel_shape(config)
    split = kernel.reshape(groups, outputs, inputs, outer, inner)
    return split.transpose(0, 4, 2, 3, 1)


def _join_kernel(kernel: np.ndarray) -> np.ndarray:
    """Undoes `_split_kernel`."""
    groups, inner, inputs, outer, outputs = kernel.shape
    return kernel.transpose(0, 4, 2, 3, 1).reshape(groups * outputs, inputs, outer * inner)


def _tensors_of(config: Wav2Vec2Config, head: bool, params: Mapping[str, Any]) -> _Arrays:
    """Returns the tensors of a parameter tree, without prefix."""
    flat = flax.traverse_util.flatten_dict(params["params"], sep="/")
    flat = {path: np.asarray(x, np.float32) for path, x in flat.items()}
    tensors = {
        name: flat[place.path].T if place.turn else flat[place.path]
        for name, place in _places(config, head).items()
    }
    kernel = _join_kernel(flat["positional/kernel"])
    found = {"conv.bias": flat["positional/bias"]}
    if config.conv_pos_batch_norm:
        width = (config.hidden_size,)
        found["conv.weight"] = kernel
        found["batch_norm.weight"] = flat["positional/scale"]
        found["batch_norm.bias"] = flat["positional/shift"]
        found["batch_norm.running_mean"] = np.zeros(width, np.float32)
        found["batch_norm.running_var"] = np.full(width, 1 - CONVOLUTION_EPSILON, np.float32)
    else:
        magnitude, direction = _NORMED[0]
        norm = np.sqrt(np.sum(np.square(kernel, dtype=np.float64), (0, 1), keepdims=True))
        found |= {magnitude: norm.astype(np.float32), direction: kernel}
    return tensors | {f"{_POSITIONAL}.{name}": x for name, x in found.items()}
