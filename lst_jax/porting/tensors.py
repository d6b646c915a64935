"""What checkpoints of every kind are to porting: named tensors of a shape and a type."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import ml_dtypes
import numpy as np

from lst_jax.porting.parameter_names import PublishedTensor

DTYPES: dict[str, np.dtype] = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}


class TensorSpec(NamedTuple):
    """Shape and dtype of a stored tensor; the dtype is a key of `DTYPES` where it can be ported."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def num_bytes(self) -> int:
        """Returns the size of the values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def check_tensors(
    path: str | pathlib.Path,
    specs: Mapping[str, TensorSpec],
    expected: Sequence[PublishedTensor],
) -> None:
    """Checks that a checkpoint holds exactly the expected tensors.

    Args:
      path: of the checkpoint, for the error.
      specs: what it holds.
      expected: what the model has.

    Raises:
      ValueError: tensors are missing, surplus, of another shape or of a type that is not ported;
        all of them are listed.
    """
    shapes = {tensor.name: tensor.shape for tensor in expected}
    problems = [f"{name} is missing" for name in shapes if name not in specs]
    problems += [f"{name} is not a tensor of this model" for name in specs if name not in shapes]
    for name in shapes.keys() & specs.keys():
        shape, dtype = specs[name]
        if shape != shapes[name]:
            problems.append(f"{name} has shape {shape}, expected {shapes[name]}")
        if dtype not in DTYPES:
            problems.append(f"{name} is {dtype}, expected {', '.join(DTYPES)}")
    if problems:
        raise ValueError(
            f"{path} does not fit its configuration in {len(problems)} places: "
            + "; ".join(sorted(problems))
        )
