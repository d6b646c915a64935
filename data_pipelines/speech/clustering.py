"""K-means over many frames: k-means++ on a sample, then Lloyd's passes over all, on a mesh.

Devices find the nearest centroid of each frame, the host adds up in float64, block by block in the
frames' order. So the same frames and seed give the same centroids, whatever the mesh.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lst_jax.settings import require
from lst_jax.sharding import batch_mesh_size, mesh_context, replicated, shard_batch
from lst_jax.speech.quantizers import squared_distances

_BLOCK = 4096  # frames of a device at a time
_SAMPLE = 20  # frames a centroid, and
_LEAST_SAMPLE = 20_000  # at least, among which the first centroids are chosen
_TOLERANCE = 1e-4  # share by which a pass must lower the mean distance, or it is the last


def fit_k_means(
    frames: np.ndarray,
    count: int,
    mesh: jax.sharding.Mesh,
    *,
    seed: int = 0,
    most_passes: int = 100,
    report: Callable[[int, float], None] = lambda number, distance: None,
) -> np.ndarray:
    """Fits centroids.

    Args:
      frames: float32 (N, D); may lie in a mapped file, which is read in order, pass by pass.
      count: centroids C.
      mesh: whose devices share the frames.
      seed: of the first centroids.
      most_passes: over the frames; fewer where the last one changed little.
      report: is called after each pass with its number and the mean squared distance.

    Returns:
      float32 (C, D).

    Raises:
      ValueError: there are fewer frames than centroids, or fewer that differ.
    """
    require(
        len(frames) >= count, "the number of frames", len(frames), f"at least {count} centroids"
    )
    centroids = _first_centroids(frames, count, seed)
    distances = np.empty(len(frames), np.float32)
    before = np.inf
    for number in range(1, most_passes + 1):
        sums, sizes = np.zeros((count, frames.shape[1])), np.zeros(count, np.int64)
        step = _BLOCK * batch_mesh_size(mesh)
        for start in range(0, len(frames), step):
            block = np.asarray(frames[start : start + step], np.float32)
            classes, distances[start : start + step] = _nearest(block, centroids, mesh)
            _add(sums, sizes, block, classes)
        mean = float(distances.mean(dtype=np.float64))
        report(number, mean)
        moved = np.where(sizes[:, None] > 0, sums / np.maximum(sizes, 1)[:, None], centroids)
        empty = np.flatnonzero(sizes == 0)
        if len(empty):  # they take the frames that are worst off
            farthest = np.argsort(-distances, kind="stable")[: len(empty)]
            moved[empty] = frames[farthest]
        centroids = moved.astype(np.float32)
        if not len(empty) and mean >= before * (1 - _TOLERANCE):
            break
        before = mean
    return centroids


def _first_centroids(frames: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Returns frames far from each other: k-means++ on a sample."""
    random = np.random.default_rng(seed)
    size = min(len(frames), max(_LEAST_SAMPLE, _SAMPLE * count))
    rows = np.sort(random.choice(len(frames), size, replace=False))
    sample = np.asarray(frames[rows], np.float32)
    squares = np.square(sample, dtype=np.float64).sum(1)
    candidates = [int(random.integers(size))]
    distances, chosen = np.full(size, np.inf), []
    while True:
        products = (sample @ sample[candidates].T).astype(np.float64)
        found = squares[:, None] - 2 * products + squares[candidates]
        # What rounding leaves between equal frames is no distance.
        found[found < 1e-6 * (squares[:, None] + squares[candidates])] = 0
        found = np.minimum(found, distances[:, None])
        best = int(found.sum(0).argmin())  # of several candidates the one that helps most
        chosen.append(candidates[best])
        if len(chosen) == count:
            return sample[chosen]
        distances = found[:, best]
        distances[chosen[-1]] = 0
        total = distances.sum()
        require(total > 0, "the number of different frames", len(chosen), f"at least {count}")
        draws = random.random(2 + int(np.log(count))) * total
        places = np.searchsorted(np.cumsum(distances), draws, side="right")
        candidates = np.minimum(places, np.flatnonzero(distances)[-1]).tolist()


def _nearest(
    block: np.ndarray, centroids: np.ndarray, mesh: jax.sharding.Mesh
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the nearest centroid of each frame and its squared distance."""
    size = _BLOCK * batch_mesh_size(mesh)  # devices run one program, however many there are
    padded = np.zeros((size, block.shape[1]), np.float32)
    padded[: len(block)] = block
    with mesh_context(mesh):
        classes, distances = _assign(
            shard_batch(padded, mesh), jax.device_put(centroids, replicated(mesh))
        )
    return np.asarray(classes)[: len(block)], np.asarray(distances)[: len(block)]


@jax.jit
def _assign(block: jax.Array, centroids: jax.Array) -> tuple[jax.Array, jax.Array]:
    distances = squared_distances(block, centroids)
    return jnp.argmin(distances, -1), jnp.maximum(jnp.min(distances, -1), 0)


def _add(sums: np.ndarray, sizes: np.ndarray, block: np.ndarray, classes: np.ndarray) -> None:
    """Adds the frames of every class to its sum, in their order."""
    for start in range(0, len(block), _BLOCK):  # the same parts whatever the mesh
        rows, part = block[start : start + _BLOCK], classes[start : start + _BLOCK]
        order = np.argsort(part, kind="stable")
        present, starts = np.unique(part[order], return_index=True)
        sums[present] += np.add.reduceat(rows[order].astype(np.float64), starts, axis=0)
        sizes += np.bincount(part, minlength=len(sizes))
