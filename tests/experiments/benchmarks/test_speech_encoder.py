"""The benchmark of the speech encoder counts and clusters rightly."""

import numpy as np

from experiments.benchmarks.speech_encoder import count_flops, fit_centroids, make_sounds, nearest
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config, frame_count


def test_products_are_what_the_shape_says_and_most_of_what_xla_counts():
    config = Wav2Vec2Config(
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        conv_dim=(32, 32),
        conv_kernel=(10, 8),
        conv_stride=(40, 8),
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    counts = {x["part"]: x for x in count_flops(config)}
    frames, first = frame_count(config, 160_000), (160_000 - 10) // 40 + 1
    convolutions = 2 * (first * 10 * 32 + frames * 8 * 32 * 32)
    assert counts["convolutions"]["products"] * 10 == convolutions
    layer = 2 * frames * (4 * 64 * 64 + 2 * 64 * 128) + 4 * frames**2 * 64
    assert counts["layers"]["products"] * 10 == layer
    whole = sum(counts[part]["products"] for part in counts if part != "everything")
    projection = 2 * frames * 32 * 64 / 10
    assert np.isclose(counts["everything"]["products"], whole + projection)
    for count in counts.values():
        assert count["products"] <= count["xla"] < 1.5 * count["products"]


def test_centroids_are_the_means_of_clusters():
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(4, 3))
    features = (centers[:, None] + 0.1 * rng.normal(size=(4, 50, 3))).reshape(-1, 3)
    centroids = fit_centroids(features, 4, seed=3)
    units = nearest(features, centroids)
    for unit in range(4):
        if (units == unit).any():
            np.testing.assert_allclose(centroids[unit], features[units == unit].mean(0))


def test_sounds_are_as_long_as_asked_for_and_change():
    sounds = make_sounds(2, 3, seed=0)
    assert sounds.shape == (2, 48_000) and sounds.dtype == np.float32
    assert sounds.reshape(60, -1).std(1).std() > 0.01
