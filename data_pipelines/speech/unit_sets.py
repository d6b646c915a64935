"""Named unit sets: what a set of units is made of, and how the tools that have it treat it.

A set is a JSON file, here for those in use (`sets/`), or beside the centroids that
`python -m experiments.fit_units` writes. The model's and the quantizer's files are the user's.
"""

from __future__ import annotations

import pathlib
from typing import Annotated, Any, Literal

import numpy as np

from data_pipelines.speech.pickles import Record, describe
from data_pipelines.speech.weights import read_weights
from lst_jax.settings import (
    Bounds,
    Name,
    NaturalInt,
    PositiveFloat,
    UnitCount,
    configuration,
    list_names,
    quote,
    require,
    validate_fields,
)
from lst_jax.speech.quantizers import KMeans, LinearQuantizer, Quantizer, linear_sizes
from lst_jax.strict_json import read_json_object

_FOLDER = pathlib.Path(__file__).parent / "sets"

PadSamples = Annotated[int, Bounds(least=0, most=2**16)]


@configuration
class UnitSet:
    """What the units of a set are.

    Attributes:
      model: whose hidden states are quantized.
      frame_rate: units a second.
      layer: of the hidden states, counted as `lst_jax.speech.wav2vec2` does. None: what follows
        the last one's norm.
      normalize: whether the waveform is normalized, whatever the model's files say.
      quantizer: of which kind it is.
      unit_count: ids of units; a linear quantizer's blank has the last one.
      pad_samples: zeros that its tools put before and behind a recording. Without them there is a
        frame or so less than the length by the rate.
      deduplicated: whether its tools merge equal neighbors, which the LST does not.
      spelling: of unit {} in text.
      note: what else is to know.
      quantizer_file: name of the quantizer's file beside the set's. None: the user names one.
      model_sha256: of the parameters that the quantizer was fitted on. None: not known.
    """

    model: Name
    frame_rate: PositiveFloat
    layer: NaturalInt | None
    normalize: bool | None
    quantizer: Literal["k-means", "linear"]
    unit_count: UnitCount
    pad_samples: PadSamples
    deduplicated: bool
    spelling: Name
    note: str = ""
    quantizer_file: Name | None = None
    model_sha256: Name | None = None

    def __post_init__(self) -> None:
        file = self.quantizer_file
        inside = file is None or pathlib.PurePath(file).name == file
        require(inside, "UnitSet.quantizer_file", file, "the name of a file beside the set's")


def unit_set_names() -> list[str]:
    """Returns the names of the sets that come along."""
    return sorted(file.stem for file in _FOLDER.glob("*.json"))


def read_unit_set(name: str) -> UnitSet:
    """Reads a set that comes along, by its name, or any by the path of its `.json` file.

    Raises:
      OSError: the file cannot be read.
      ValueError: there is no such set, or the file holds something else.
    """
    is_file = name.endswith(".json")
    if not is_file and name not in unit_set_names():
        known = ", ".join(unit_set_names())
        raise ValueError(f"set is {quote(name)}, expected a .json file, or one of {known}")
    file = pathlib.Path(name) if is_file else _FOLDER / f"{name}.json"
    return validate_fields(UnitSet, read_json_object(file), file)


def read_quantizer(path: str | pathlib.Path) -> Quantizer:
    """Reads a quantizer from what its users have; see `weights.read_weights`.

    Args:
      path: centroids (C, D), alone or as `cluster_centers`, `cluster_centers_` or `centroids`, in
        a file of NumPy, joblib (scikit-learn's k-means) or PyTorch; or SpiritLM's
        `{"model_cfg", "model_weight"}`.

    Raises:
      OSError: the file cannot be read.
      ValueError: naming the file, that it holds something else, or would run code.
    """
    found = read_weights(path)
    if isinstance(found, dict) and "model_weight" in found:
        return _linear(path, found)
    centers = found
    if isinstance(found, Record):
        centers = found.attribute("cluster_centers_")
    elif isinstance(found, dict):
        named = [found[name] for name in _CENTERS if name in found]
        arrays = named or [x for x in found.values() if isinstance(x, np.ndarray) and x.ndim == 2]
        centers = arrays[0] if len(arrays) == 1 else None
        count = found.get("n_clusters")
        if isinstance(count, int) and isinstance(centers, np.ndarray):
            expected = f"{len(centers)}, as it has centroids"
            require(count == len(centers), f"{path}: n_clusters", count, expected)
    if not isinstance(centers, np.ndarray) or centers.ndim != 2:
        raise ValueError(f"{path} holds {describe(found)}, expected centroids (units, width)")
    return KMeans(_real(path, "the centroids", centers))


_CENTERS = ("centroids", "cluster_centers", "cluster_centers_")


def _linear(path: str | pathlib.Path, found: dict[str, Any]) -> LinearQuantizer:
    """Returns SpiritLM's quantizer."""
    settings, weights = found.get("model_cfg"), found["model_weight"]
    names = ("dim", "upstream_dim", "vocab_size")
    values: list[Any] = [
        settings.get(name) if isinstance(settings, dict) else None for name in names
    ]
    if not all(type(x) is int and 0 < x < 2**16 for x in values) or not isinstance(weights, dict):
        raise ValueError(
            f"{path} has model_cfg with {', '.join(names)} = {quote(values)}, and model_weight, "
            f"{describe(weights)}; expected positive integers and a mapping of tensors"
        )
    kernels, biases = [], []
    for index, (inputs, outputs) in zip((0, 2, 4), linear_sizes(*values), strict=True):
        kernel, bias = (weights.get(f"{index}.{kind}") for kind in ("weight", "bias"))
        shapes = [x.shape if isinstance(x, np.ndarray) else None for x in (kernel, bias)]
        expected = [(outputs, inputs), (outputs,)]
        if shapes != expected:
            raise ValueError(
                f"{path} has {index}.weight and {index}.bias of shapes {shapes}, expected "
                f"{expected} by its model_cfg; its tensors are {list_names(map(str, weights))}"
            )
        kernels.append(_real(path, f"{index}.weight", kernel).T)
        biases.append(_real(path, f"{index}.bias", bias))
    return LinearQuantizer(tuple(kernels), tuple(biases))


def _real(path: str | pathlib.Path, name: str, values: Any) -> np.ndarray:
    """Returns numbers as float32, which must be finite, and some."""
    real = values.dtype.kind in "fiu" or values.dtype.name == "bfloat16"
    if not real or not values.size:
        raise ValueError(f"{path}: {name} is {describe(values)}, expected real numbers")
    with np.errstate(over="ignore"):  # what is too large is not finite then
        values = values.astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: {name} has numbers that are not finite in float32")
    return values
