"""Properties of quantizers, against plain NumPy in float64."""

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

from lst_jax.speech.quantizers import KMeans, LinearQuantizer, fill_blanks, linear_sizes

RANDOM = np.random.default_rng(0)


def test_a_unit_is_the_nearest_centroid():
    features = RANDOM.normal(size=(3, 50, 16)).astype(np.float32)
    centroids = RANDOM.normal(size=(40, 16)).astype(np.float32)
    wide = features.astype(np.float64)[:, :, None] - centroids.astype(np.float64)
    distances = np.square(wide).sum(-1)
    quantizer = KMeans(centroids)
    classes = np.asarray(jax.jit(lambda q, x: q.classes(x))(quantizer, features))
    assert np.array_equal(classes, distances.argmin(-1)) and classes.dtype == np.int32
    assert np.array_equal(quantizer.units(classes[0]), classes[0])
    assert (quantizer.width, quantizer.unit_count) == (16, 40)


def test_of_equal_distances_the_lowest_unit_is_taken():
    centroids = np.array([[3, 0], [0, 1], [1, 0], [0, 1]], np.float32)
    features = np.array([[0, 0], [0, 1], [0.5, 0.5]], np.float32)
    assert KMeans(centroids).classes(features).tolist() == [1, 1, 1]


def test_the_linear_quantizer_is_its_network():
    sizes = linear_sizes(24, 30, 9)
    assert sizes == [(24, 19), (19, 14), (14, 10)]  # 10 classes, 20 between: 24 − 5, 24 − 10
    assert linear_sizes(768, 768, 500) == [(768, 702), (702, 635), (635, 501)]
    kernels = [RANDOM.normal(size=size).astype(np.float32) for size in sizes]
    biases = [RANDOM.normal(size=size[1]).astype(np.float32) for size in sizes]
    x = RANDOM.normal(size=(2, 60, 24)).astype(np.float32)
    quantizer = LinearQuantizer(tuple(kernels), tuple(biases))
    classes = quantizer.classes(x)
    x = x.astype(np.float64)
    for index, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
        x = np.where(x < 0, 0.01 * x, x) if index else x
        x = (
            x.astype(np.float32).astype(np.float64) @ kernel + bias
            if not index
            else x @ kernel + bias
        )
    assert np.array_equal(classes, x.argmax(-1))
    assert (quantizer.width, quantizer.unit_count) == (24, 10)
    assert len(set(classes.reshape(-1).tolist())) > 5
    assert quantizer.units(np.array([9, 3, 9, 0])).tolist() == [3, 3, 3, 0]


@pytest.mark.parametrize(("other", "unit"), [(-0.015, 0), (-0.005, 1)])
def test_below_0_a_hundredth_is_left(other, unit):
    kernels = (np.ones((1, 1), np.float32), np.array([[1, 0]], np.float32))
    quantizer = LinearQuantizer(kernels, (np.zeros(1, np.float32), np.float32([0, other])))
    assert quantizer.classes(np.float32([[-1]])).tolist() == [unit]


@hypothesis.given(st.lists(st.integers(0, 4), max_size=30))
def test_a_blank_takes_the_unit_to_its_left_and_the_first_ones_that_to_their_right(classes):
    expected = list(classes)
    for i, value in enumerate(expected):
        if value == 4 and i:
            expected[i] = expected[i - 1]
    first = next((value for value in expected if value != 4), None)
    expected = [] if first is None else [first if value == 4 else value for value in expected]
    units = fill_blanks(np.array(classes, np.int64), 4)
    assert units.tolist() == expected and units.dtype == np.int32


@pytest.mark.parametrize(("classes", "units"), [([4, 4, 2, 4, 1], [2, 2, 2, 2, 1]), ([4, 4], [])])
def test_a_leading_run_of_blanks_does_not_wrap_around(classes, units):
    assert fill_blanks(np.array(classes), 4).tolist() == units
