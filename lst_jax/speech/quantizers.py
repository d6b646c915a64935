"""Quantizers: features of frames to units.

A quantizer has a part that runs on the device, `classes`, frame by frame, and one on the host,
`units`, which sees the whole utterance. Products are of full float32 everywhere: in the fewer bits
that accelerators multiply in by default, units change.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from lst_jax.shapes import Float, Int32, check_shapes

_SLOPE = 0.01  # of leaky rectifiers below 0
_HIGHEST = jax.lax.Precision.HIGHEST


@check_shapes
def squared_distances(
    features: Float[Array, "*b D"], centroids: Float[Array, "n D"]
) -> Float[Array, "*b n"]:
    """Returns ‖x‖² − 2 x·c + ‖c‖² of every frame x and centroid c, in float32."""
    x = features.astype(jnp.float32)
    products = jnp.einsum("...d,cd->...c", x, centroids, precision=_HIGHEST)
    return (x * x).sum(-1, keepdims=True) - 2 * products + (centroids * centroids).sum(-1)


class KMeans(NamedTuple):
    """The nearest centroid.

    Attributes:
      centroids: float32 (C, D), one for every unit.
    """

    centroids: Array | np.ndarray

    @property
    def width(self) -> int:
        """Returns the width D of the features."""
        return self.centroids.shape[1]

    @property
    def unit_count(self) -> int:
        """Returns the number of units C."""
        return len(self.centroids)

    def classes(self, features: Float[Array, "*b D"]) -> Int32[Array, "*b"]:
        """Returns the unit of each frame; of two that are as near the lower one."""
        distances = squared_distances(features, jnp.asarray(self.centroids))
        return jnp.argmin(distances, axis=-1).astype(jnp.int32)

    def units(self, classes: np.ndarray) -> np.ndarray:
        """Returns the units, int32 (U,), of an utterance's classes (U,): the same."""
        return np.asarray(classes, np.int32)


class LinearQuantizer(NamedTuple):
    """SpiritLM's: a network that was trained by CTC, whose last class is the blank.

    Attributes:
      kernels: float32 (D, …), …, (…, C + 1).
      biases: float32, of as many.
    """

    kernels: tuple[Array | np.ndarray, ...]
    biases: tuple[Array | np.ndarray, ...]

    @property
    def width(self) -> int:
        """Returns the width D of the features."""
        return self.kernels[0].shape[0]

    @property
    def unit_count(self) -> int:
        """Returns the number of classes C + 1: the blank has an id, which no frame gets."""
        return self.kernels[-1].shape[1]

    def classes(self, features: Float[Array, "*b D"]) -> Int32[Array, "*b"]:
        """Returns the class of each frame, C for the blank; of two that are as high the lower."""
        x = features.astype(jnp.float32)
        for index, (kernel, bias) in enumerate(zip(self.kernels, self.biases, strict=True)):
            x = jax.nn.leaky_relu(x, _SLOPE) if index else x
            x = jnp.matmul(x, kernel, precision=_HIGHEST) + bias
        return jnp.argmax(x, axis=-1).astype(jnp.int32)

    def units(self, classes: np.ndarray) -> np.ndarray:
        """Returns the units, int32 (U,), of an utterance's classes; none if all are blank."""
        return fill_blanks(classes, self.unit_count - 1)


Quantizer = KMeans | LinearQuantizer


def fill_blanks(classes: np.ndarray, blank: int) -> np.ndarray:
    """Gives every blank frame the unit to its left; those before the first unit get that one.

    SpiritLM's own code lets the first frames have the utterance's last unit, by an index of −1.

    Args:
      classes: (U,) integers.
      blank: the class that is no unit.

    Returns:
      int32 (U,), or (0,) where every frame is blank.
    """
    classes = np.asarray(classes, np.int32)
    (real,) = np.nonzero(classes != blank)
    if not real.size:
        return np.zeros(0, np.int32)
    before = np.searchsorted(real, np.arange(len(classes)), side="right") - 1
    return classes[real[np.maximum(before, 0)]]


def linear_sizes(width: int, upstream: int, vocab_size: int) -> list[tuple[int, int]]:
    """Returns inputs and outputs of the layers of SpiritLM's quantizer.

    Args:
      width: of the features ("dim").
      upstream: "upstream_dim", from which the layers between are sized.
      vocab_size: units; the blank is one class more.
    """
    classes = vocab_size + 1
    middle = upstream - classes
    sizes = [width, width - middle // 4, width - middle // 2, classes]
    return list(itertools.pairwise(sizes))
