"""What layers start as."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lst_jax.checkpoints.train_state import init_state
from lst_jax.config import LSTConfig, baseline_of, hidden_width
from lst_jax.model.layers import truncated_normal
from lst_jax.sharding import make_mesh
from lst_jax.training.optimizers import OptimizerConfig, make_optimizer

CONFIG = LSTConfig(
    vocab_size=500,
    dim_local=64,
    dim_global=96,
    num_layers_encoder=2,
    num_layers_global=4,
    num_layers_decoder=3,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=16,
    attention="dense",
)


def marks(key, lower, upper, shape, dtype):
    """In place of random numbers: one near 1 that tells their key."""
    assert (lower, upper) == (-3, 3)
    share = jax.random.key_data(key)[-1].astype(dtype) / 2.0**32
    return jnp.full(shape, 1 + share / 1000, dtype)


def leaves(config):
    mesh = make_mesh(devices=jax.devices()[:1])
    state = init_state(config, make_optimizer(OptimizerConfig(), 3000), 0, mesh)
    paths = jax.tree_util.tree_leaves_with_path(jax.device_get(state.params))
    return {"/".join(entry.key for entry in path): leaf for path, leaf in paths}


def block(depth, width):
    """Documented deviations of a block at a depth: (2 (depth + 1) inputs)^-1/2."""
    hidden = hidden_width(width, CONFIG.multiple_of)
    inputs = {f"attention/{name}": width for name in ("query", "key", "value", "out")}
    inputs |= {"feed_forward/gate": width, "feed_forward/up": width, "feed_forward/down": hidden}
    return {name: (2 * (depth + 1) * size) ** -0.5 for name, size in inputs.items()}


def expected(config):
    """Deviation of every matrix of the model; scanned layers in a list."""
    wide = config.dim_global

    def stacked(name, layers, width):
        tables = [block(depth, width) for depth in range(layers)]
        return {f"{name}/{key}/kernel": [table[key] for table in tables] for key in tables[0]}

    if not isinstance(config, LSTConfig):
        table = stacked("transformer/layers/block", config.num_layers_global, wide)
        return table | {"embedding/table": wide**-0.5, "output_kernel": wide**-0.5}
    local = config.dim_local
    table = {
        "encoder/embedding/table": local**-0.5,
        "encoder/patch_projection/kernel": local**-0.5,
        "global/patch_projection/kernel": (config.latent_vectors_per_patch * local) ** -0.5,
        "decoder/patch_projection/kernel": wide**-0.5,
        "output_kernel": local**-0.5,
    }
    for depth in range(config.num_layers_encoder):
        for key, deviation in block(depth, local).items():
            table[f"encoder/layer_{depth}/{key}/kernel"] = deviation
            if key.startswith("attention"):
                table[f"encoder/cross_attention_{depth}/{key}/kernel"] = deviation
    table |= stacked("global/transformer/layers/block", config.num_layers_global, wide)
    table |= stacked("decoder/transformer/layers/block", config.num_layers_decoder, local)
    cross = stacked("decoder/transformer/layers/cross_attention", config.num_layers_decoder, local)
    return table | {name: x for name, x in cross.items() if "feed_forward" not in name}


@pytest.mark.parametrize(
    "config",
    [CONFIG, pytest.param(baseline_of(CONFIG), marks=pytest.mark.slow)],
    ids=["lst", "baseline"],
)
def test_every_matrix_starts_with_the_deviation_of_its_width_and_depth(config, monkeypatch):
    monkeypatch.setattr(jax.random, "truncated_normal", marks)
    found, table = leaves(config), expected(config)
    scales = {name for name in found if name.endswith("scale")}
    assert found.keys() == table.keys() | scales
    for name in scales:
        assert np.all(found[name] == 1)
    keys = []
    for name, deviations in table.items():
        values = found[name]
        if name.endswith("embedding/table"):
            values = values[: config.vocab_size]
        elif name == "output_kernel":
            values = values[:, : config.vocab_size]
        layers = values if isinstance(deviations, list) else [values]
        for layer, deviation in zip(layers, np.atleast_1d(deviations), strict=True):
            assert np.all(layer == layer.flat[0])
            keys.append(layer.flat[0] / deviation)
            assert 1 <= keys[-1] <= 1.001, name
    # No two layers start alike.
    assert len(set(np.round(keys, 7))) > 0.95 * len(keys)


def test_initial_values_are_normal_up_to_three_deviations():
    values = np.asarray(truncated_normal(0.5)(jax.random.key(0), (200, 500)))
    assert stats.kstest(values.ravel() / 0.5, stats.truncnorm(-3, 3).cdf).pvalue > 1e-3
    assert 1.45 < np.abs(values).max() <= 1.5
