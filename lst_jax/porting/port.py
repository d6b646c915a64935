"""Checkpoints from one format to another, one tensor at a time.

| kind        | what it is                                                                       |
|-------------|----------------------------------------------------------------------------------|
| orbax       | a run's workdir (`model.json`, `checkpoints/<step>/params`), or one of its steps |
| safetensors | `model.safetensors` or shards with an index, `config.json`, `SHA256SUMS`         |
| pytorch     | `consolidated.pth`, `params.json` (the published format) and `config.json`       |

`config.json` holds what `model.json` does, and the step, so nothing is lost on the way; a folder
without one is described by its `params.json`. Only parameters travel: no optimizer state.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

from lst_jax.checkpoints.description import (
    ModelDescription,
    check_tokenizer,
    description_to_json,
    exported_from_file,
    write_description,
)
from lst_jax.checkpoints.layout import step_directory
from lst_jax.files import new_directory, write_json
from lst_jax.local_paths import local_path
from lst_jax.porting.orbax_step import OrbaxStep, is_orbax_run, write_orbax
from lst_jax.porting.parameter_names import published_tensors
from lst_jax.porting.published_config import make_params_json, read_params_json
from lst_jax.porting.pytorch_folder import PyTorchFolder, is_pytorch_folder, write_pytorch
from lst_jax.porting.safetensors_folder import (
    SafetensorsFolder,
    is_safetensors_folder,
    write_safetensors,
)
from lst_jax.porting.tensors import DTYPES, TensorSpec, check_tensors
from lst_jax.settings import quote
from lst_jax.vocabulary import TextTokenizer

Kind = Literal["orbax", "safetensors", "pytorch"]
KINDS: tuple[Kind, ...] = ("orbax", "safetensors", "pytorch")

MAX_SHARD_BYTES = 512 * 10**6

_CONFIG = "config.json"
_PARAMS = "params.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of any kind, open for reading.

    Attributes:
      path: of the checkpoint.
      description: of the model.
      step: optimizer updates that made it; 0 where unknown.
      specs: shape and dtype of every tensor, by published name, in the order that is cheapest to
        read.
      read: gives one tensor, a NumPy array of its spec; raises a `ValueError` that names the file
        where that is damaged.
      check_still_there: looks at the checkpoint after the last read; raises a `StepDeletedError`
        where a run has deleted it meanwhile.
    """

    path: pathlib.Path
    description: ModelDescription
    step: int
    specs: Mapping[str, TensorSpec]
    read: Callable[[str], np.ndarray]
    check_still_there: Callable[[], None] = lambda: None

    @property
    def num_bytes(self) -> int:
        """Returns the size of all values."""
        return sum(spec.num_bytes for spec in self.specs.values())

    def cast(self, dtype: str) -> Checkpoint:
        """Returns the same checkpoint in another of `DTYPES`, converted as it is read.

        Raises:
          ValueError: the dtype is not one of them.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {quote(dtype)}, expected one of {', '.join(DTYPES)}")
        specs = {name: TensorSpec(spec.shape, dtype) for name, spec in self.specs.items()}

        def read(name: str) -> np.ndarray:
            with np.errstate(invalid="ignore", over="ignore"):  # NaNs and infinities stay such
                return self.read(name).astype(DTYPES[dtype], copy=False)

        return dataclasses.replace(self, specs=specs, read=read)

    def with_tokenizer(self, path: str | pathlib.Path) -> Checkpoint:
        """Returns the same checkpoint, its description naming a tokenizer.

        Raises:
          OSError: there is no such file.
          ValueError: it is not the model's tokenizer.
        """
        tokenizer = TextTokenizer(path)
        check_tokenizer(tokenizer, self.description)
        description = dataclasses.replace(
            self.description,
            tokenizer_fingerprint=tokenizer.fingerprint,
            data=dataclasses.replace(
                self.description.data, tokenizer=str(pathlib.Path(path).absolute())
            ),
        )
        return dataclasses.replace(self, description=description)


def open_checkpoint(path: str | pathlib.Path) -> Checkpoint:
    """Opens a checkpoint and checks that its tensors are those of its model.

    Args:
      path: a folder of one of the three kinds; of a workdir, the last step is read.

    Raises:
      FileNotFoundError: there is nothing of these kinds, or a file is missing.
      ValueError: a file is damaged or refused, or tensors and configuration do not fit; all
        tensors that do not are listed.
    """
    path = local_path(path, "input")
    if is_safetensors_folder(path) and is_pytorch_folder(path):
        raise ValueError(f"{path} holds safetensors and a .pth file, expected one of them")
    if is_safetensors_folder(path):
        reader = SafetensorsFolder(path)
        description, step = _read_config(path)
    elif is_pytorch_folder(path):
        reader = PyTorchFolder(path)
        description, step = _read_config(path)
    elif is_orbax_run(path):
        reader = OrbaxStep(path)
        description, step = reader.description, reader.step
    else:
        raise FileNotFoundError(
            f"{path}: no checkpoint there; expected model.safetensors (or its index),"
            " consolidated.pth, or a run with model.json and checkpoints"
        )
    expected = published_tensors(description.model)
    check_tensors(path, reader.specs, expected)
    specs = {tensor.name: reader.specs[tensor.name] for tensor in expected}
    check = reader.check_still_there if isinstance(reader, OrbaxStep) else lambda: None
    return Checkpoint(path, description, step, specs, reader.read, check)


def write_checkpoint(
    checkpoint: Checkpoint,
    output: str | pathlib.Path,
    kind: Kind,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    on_tensor: Callable[[TensorSpec], None] = lambda spec: None,
) -> None:
    """Writes a checkpoint; the output appears whole, or not at all.

    Args:
      checkpoint: to write.
      output: folder to make.
      kind: of the output.
      max_shard_bytes: of a shard of safetensors; the largest that is in memory at once.
      on_tensor: called with every tensor that has been read.

    Raises:
      FileExistsError: there is something at `output`.
      ValueError: the kind is unknown or cannot hold this model, or reading found damage.
      OSError: the disk is full, say.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {quote(kind)}, expected one of {', '.join(KINDS)}")
    if max_shard_bytes < 1:
        raise ValueError(f"max_shard_bytes is {max_shard_bytes}, expected a positive size")

    def read(name: str) -> np.ndarray:
        values = checkpoint.read(name)
        on_tensor(checkpoint.specs[name])
        return values

    description, step = checkpoint.description, checkpoint.step
    params = make_params_json(description) if kind == "pytorch" else None
    output = local_path(output, "output")
    if output.is_symlink():
        _refuse(output)
    with new_directory(output, _refuse) as folder:
        if kind == "orbax":
            write_description(folder, description)
            write_orbax(step_directory(folder, step), description.model, checkpoint.specs, read)
        else:
            write_json(folder / _CONFIG, {**description_to_json(description), "step": step})
        if kind == "safetensors":
            write_safetensors(folder, checkpoint.specs, read, max_shard_bytes)
        elif kind == "pytorch":
            write_json(folder / _PARAMS, params)
            write_pytorch(folder, checkpoint.specs, read)
        checkpoint.check_still_there()


def _read_config(folder: pathlib.Path) -> tuple[ModelDescription, int]:
    """Returns the description and the step of a folder."""
    if (folder / _CONFIG).is_file():
        return exported_from_file(folder / _CONFIG)
    if (folder / _PARAMS).is_file():
        return read_params_json(folder / _PARAMS), 0
    raise FileNotFoundError(f"{folder}: neither {_CONFIG} nor {_PARAMS} is there")


def _refuse(output: pathlib.Path) -> None:
    raise FileExistsError(f"{output} is already there; expected a new folder")
