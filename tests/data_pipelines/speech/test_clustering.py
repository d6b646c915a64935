"""Properties of k-means on a mesh, against plain NumPy in float64."""

import itertools

import jax
import numpy as np
import pytest

from data_pipelines.speech import clustering
from data_pipelines.speech.clustering import fit_k_means
from lst_jax.sharding import make_mesh

RANDOM = np.random.default_rng(0)
CENTERS = 4 * RANDOM.normal(size=(7, 5))
FRAMES = (CENTERS[RANDOM.integers(7, size=900)] + 0.3 * RANDOM.normal(size=(900, 5))).astype(
    np.float32
)


def fit(frames=FRAMES, count=7, devices=1, **options):
    return fit_k_means(frames, count, make_mesh(devices=jax.devices()[:devices]), **options)


def test_clusters_that_are_apart_are_found():
    found = fit()
    distances = np.square(found[:, None] - CENTERS[None]).sum(-1)
    assert sorted(distances.argmin(1)) == list(range(7)) and distances.min(1).max() < 0.05
    assert found.dtype == np.float32


def test_a_pass_is_lloyds(monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK", 64)  # several blocks, and a part of one
    start = fit(most_passes=0)
    wide, centers = FRAMES.astype(np.float64), start.astype(np.float64)
    nearest = np.square(wide[:, None] - centers[None]).sum(-1).argmin(1)
    expected = np.stack([wide[nearest == k].mean(0) for k in range(7)])
    assert np.abs(fit(most_passes=1) - expected).max() < 1e-6


def test_the_mean_distance_falls_until_it_changes_little():
    means = []
    fit(count=20, report=lambda number, mean: means.append(mean))
    assert 2 < len(means) < 100 and all(x >= y for x, y in itertools.pairwise(means))


def test_centroids_are_those_of_the_seed_whatever_the_mesh(monkeypatch):
    monkeypatch.setattr(clustering, "_BLOCK", 64)
    one = fit(count=12, seed=3, most_passes=3)
    assert np.array_equal(one, fit(count=12, seed=3, most_passes=3, devices=8))
    assert not np.array_equal(one, fit(count=12, seed=4, most_passes=3))


def test_every_centroid_has_frames_where_enough_differ():
    frames = np.repeat(np.eye(5, dtype=np.float32) * 3, [500, 1, 1, 1, 1], axis=0)
    assert sorted(map(tuple, fit(frames, 5))) == sorted(map(tuple, np.eye(5) * 3))


def test_a_centroid_without_frames_takes_the_one_that_is_worst_off(monkeypatch):
    start = np.array([[1.0], [100.0]], np.float32)
    monkeypatch.setattr(clustering, "_first_centroids", lambda *_: start)
    frames = np.array([[0.0], [1.0], [10.0], [2.0]], np.float32)
    assert fit(frames, 2, most_passes=1).tolist() == [[3.25], [10.0]]


def test_the_last_pass_is_the_one_that_lowers_the_distance_by_less_than_its_share(monkeypatch):
    said, distances = [], iter([2.0, 1.0, 0.9998, 0.99975, 0.5])

    def nearest(block, centroids, mesh):
        return np.arange(len(block)) % 2, np.full(len(block), next(distances), np.float32)

    monkeypatch.setattr(clustering, "_nearest", nearest)
    fit(FRAMES[:4], 2, report=lambda number, mean: said.append(number))
    assert said == [1, 2, 3, 4]
    monkeypatch.setattr(
        clustering, "_nearest", lambda block, *_: (np.zeros(len(block), int), np.ones(len(block)))
    )
    fit(FRAMES[:4], 2, most_passes=6, report=lambda number, mean: said.append(number))
    assert said[4:] == [1, 2, 3, 4, 5, 6]  # a centroid has no frames yet


def test_fewer_frames_than_centroids_are_refused():
    with pytest.raises(ValueError, match="number of frames is 3, expected at least 7"):
        fit(FRAMES[:3])
    with pytest.raises(ValueError, match="number of different frames is 1, expected at least 7"):
        fit(np.ones((50, 5), np.float32))
