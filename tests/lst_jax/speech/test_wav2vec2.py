"""wav2vec 2.0 and HuBERT: products equal convolutions, and a batch equals each row alone."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lst_jax.sharding import DEFAULT_RULES, MeshConfig, make_mesh, mesh_context, shard_batch
from lst_jax.speech import wav2vec2
from lst_jax.speech.wav2vec2 import Wav2Vec2, apply_model
from lst_jax.speech.wav2vec2_config import (
    Wav2Vec2Config,
    config_from_json,
    frame_count,
    receptive_field,
    samples_per_frame,
)
from tests.marks import quick

SMALL = Wav2Vec2Config(
    vocab_size=7,
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=20,
    conv_dim=(6, 5),
    conv_kernel=(10, 3),
    conv_stride=(5, 2),
    num_conv_pos_embeddings=6,
    num_conv_pos_embedding_groups=2,
)
VARIANTS = {
    "group norm": SMALL,
    "layer norm, stable, biases": dataclasses.replace(
        SMALL, feat_extract_norm="layer", do_stable_layer_norm=True, conv_bias=True
    ),
    "batch norm, no projection norm": dataclasses.replace(
        SMALL, conv_pos_batch_norm=True, feat_proj_layer_norm=False
    ),
}
LENGTHS = np.array([300, 171, 95, 10], np.int32)  # the last has no frame


@functools.cache
def made(name):
    """Returns a variant's model with all parameters drawn, those that begin as 0 and 1, too."""
    model = Wav2Vec2(VARIANTS[name], head=True)
    params = nn.meta.unbox(jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 100))))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(
        lambda x: np.asarray(x) + rng.normal(0, 0.1, x.shape).astype(np.float32), params
    )


def run(model, params, waveforms, lengths=None, **options):
    return jax.jit(functools.partial(apply_model, model, **options))(params, waveforms, lengths)


def waveforms(rng, padding=0.0):
    x = rng.normal(0, 1, (4, 300)).astype(np.float32)
    return np.where(np.arange(300) < LENGTHS[:, None], x, np.float32(padding))


@pytest.mark.parametrize("name", quick(VARIANTS, "group norm"))
@pytest.mark.parametrize("padding", quick([0.0, 1e30, np.nan], np.nan))
def test_a_batch_equals_each_row_alone_whatever_its_padding_holds(name, padding):
    model, params = made(name)
    batch = waveforms(np.random.default_rng(1), padding)
    together = run(model, params, batch, LENGTHS)
    np.testing.assert_array_equal(together.frames, frame_count(model.config, LENGTHS))
    assert together.frames.tolist()[-1] == 0
    for row, length in enumerate(LENGTHS[:3]):
        alone = run(model, params, batch[row : row + 1, :length])
        ours = (*together.hidden, together.last, together.logits)
        for x, y in zip(ours, (*alone.hidden, alone.last, alone.logits), strict=True):
            np.testing.assert_allclose(x[row, : y.shape[1]], y[0], rtol=0, atol=1e-5)
    assert all(np.isfinite(x).all() for x in together.hidden)  # a row without frames is no NaN


@pytest.mark.parametrize("name", quick(VARIANTS, "group norm"))
def test_published_padding_leaks_where_statistics_or_shifts_do(name):
    model, params = made(name)
    batch = waveforms(np.random.default_rng(1))
    exact = run(model, params, batch, LENGTHS, layer=0)
    published = run(model.clone(padding="published"), params, batch, LENGTHS, layer=0)
    difference = np.abs(exact.hidden[0] - published.hidden[0])[1, : exact.frames[1]].max()
    assert (difference > 1e-3) == (name != "layer norm, stable, biases")


def test_layer_k_is_what_all_layers_give_and_computes_no_more():
    model, params = made("layer norm, stable, biases")
    batch = waveforms(np.random.default_rng(1))
    whole = run(model, params, batch, LENGTHS)
    part = run(model, params, batch, LENGTHS, layer=1)
    assert part.last is None and part.logits is None and len(part.hidden) == 2
    for x, y in zip(part.hidden, whole.hidden, strict=False):
        np.testing.assert_allclose(x, y, atol=1e-6)
    # The last layer's own output is before the final norm, which the head's input has passed.
    assert np.abs(whole.hidden[2] - whole.last).max() > 0.1
    names = str(jax.make_jaxpr(functools.partial(model.apply, layer=1))(params, batch)).count
    everything = str(jax.make_jaxpr(model.apply)(params, batch)).count
    assert names("dot_general") + 8 + 1 == everything("dot_general")  # a layer and the head
    with pytest.raises(ValueError, match=r"^layer is 3, expected 0 … 2, or None"):
        model.apply(params, batch, layer=3)


@pytest.mark.parametrize("taps, stride", [(10, 5), (3, 2), (2, 2), (1, 3), (7, 3), (4, 1)])
def test_products_of_patches_are_the_strided_convolution(taps, stride):
    rng = np.random.default_rng(taps)
    kernel = rng.normal(size=(taps, 3, 4)).astype(np.float32)
    for length in (taps, taps + stride, taps + stride + 1):
        x = rng.normal(size=(2, length, 3)).astype(np.float32)
        ours = wav2vec2.patches(jnp.asarray(x), taps, stride) @ kernel.reshape(-1, 4)
        theirs = jax.lax.conv_general_dilated(
            x, kernel, (stride,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("taps", [1, 2, 5, 6, 12])
def test_products_of_taps_are_the_grouped_positional_convolution(taps):
    config = dataclasses.replace(SMALL, num_conv_pos_embeddings=taps)
    rng = np.random.default_rng(taps)
    x = rng.normal(size=(2, 9, 12)).astype(np.float32)
    shape = wav2vec2.positional_kernel_shape(config)
    kernel = rng.normal(size=shape).astype(np.float32)
    params = {"kernel": kernel, "bias": rng.normal(size=12).astype(np.float32)}
    module = wav2vec2.PositionalConvolution(config)
    ours = module.apply({"params": params}, x, None)
    plain = kernel.transpose(3, 1, 2, 0, 4).reshape(taps, 6, 12)  # tap, input, group and output
    theirs = jax.lax.conv_general_dilated(
        x,
        plain,
        (1,),
        [(taps // 2, taps - 1 - taps // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=2,
    )
    theirs = jax.nn.gelu(theirs + params["bias"], approximate=False)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_queries_that_take_turns_attend_to_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 11, 2, 4)).astype(np.float32)
    q, k, v, real = map(jnp.asarray, (q, k, v, np.arange(11) < np.array([[11], [6]])))
    at_once = wav2vec2.attend_to_all(q, k, v, real)
    monkeypatch.setattr(wav2vec2, "_MOST_SCORES", 4 * 11 * 2 * 2)
    monkeypatch.setattr(wav2vec2, "_LEAST_QUERIES", 2)
    np.testing.assert_allclose(wav2vec2.attend_to_all(q, k, v, real), at_once, atol=1e-6)


def test_every_parameter_has_a_finite_gradient_also_beside_rows_without_frames():
    model, params = made("layer norm, stable, biases")
    batch = waveforms(np.random.default_rng(1))
    labels = np.array([[1, 2], [2, 2], [3, 1], [4, 4]], np.int32)

    def loss(params):
        states = apply_model(model, params, jnp.asarray(batch), jnp.asarray(LENGTHS))
        padding = jnp.arange(states.logits.shape[1]) >= states.frames[:, None]
        losses = optax.ctc_loss(states.logits, padding, labels, jnp.zeros(labels.shape))
        return jnp.sum(losses[:3])

    gradients = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(params))
    for path, x in gradients:
        name = jax.tree_util.keystr(path)
        assert np.isfinite(x).all(), name
        # Keys' bias shifts all scores of a query alike.
        assert np.abs(x).max() > 1e-7 or "['key']['bias']" in name, name


def test_initial_states_have_scales_that_training_can_start_from():
    model = Wav2Vec2(VARIANTS["layer norm, stable, biases"], head=True)
    batch = waveforms(np.random.default_rng(1))
    params = jax.jit(model.init)(jax.random.key(1), batch)
    states = run(model, params, batch, LENGTHS)
    assert np.abs(states.logits[0]).max() < 1 < np.std(states.last[0]) * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_are_of_full_float32_unless_bfloat16_is_asked_for(dtype):
    model, params = made("group norm")
    model = model.clone(dtype=dtype)
    jaxpr = str(jax.make_jaxpr(model.apply)(params, np.ones((1, 300), np.float32)))
    highest = jaxpr.count("precision=(Precision.HIGHEST, Precision.HIGHEST)")
    assert highest == (jaxpr.count("dot_general[") if dtype == "float32" else 0)
    states = run(model, params, waveforms(np.random.default_rng(1)), LENGTHS)
    assert states.hidden[1].dtype == dtype and states.logits.dtype == np.float32


def test_bfloat16_is_near():
    model, params = made("group norm")
    batch = waveforms(np.random.default_rng(1))
    exact = run(model, params, batch, LENGTHS).hidden[2][0]
    near = run(model.clone(dtype="bfloat16"), params, batch, LENGTHS).hidden[2][0]
    assert 0 < np.abs(exact - near).mean() < 0.03 * np.abs(exact).mean()


def test_rows_over_a_mesh_give_what_one_device_gives():
    model, params = made("group norm")
    batch, lengths = waveforms(np.random.default_rng(1)), LENGTHS
    one = run(model, params, batch, lengths).logits
    mesh = make_mesh(MeshConfig(data=2, fsdp=2), jax.devices()[:4])
    with mesh_context(mesh):
        rows, lengths = shard_batch((batch, lengths), mesh)
        states = jax.jit(model.apply)(params, rows, lengths)
        text = jax.jit(model.apply).lower(params, rows, lengths).compile().as_text()
    np.testing.assert_allclose(states.logits, one, atol=1e-5)
    assert states.last.sharding.spec[0] == ("data", "fsdp")
    assert (
        text and "all-gather" not in text and "all-reduce" not in text
    )  # parameters are whole here


def test_parameters_have_names_that_the_rules_know():
    model = Wav2Vec2(SMALL, head=True)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 300)))
    known = {name for name, _ in DEFAULT_RULES}
    for leaf in jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, nn.Partitioned)):
        assert isinstance(leaf, nn.LogicallyPartitioned) and {*leaf.names} <= known | {None}


def test_frames_of_a_length_are_those_the_model_gives():
    rng = np.random.default_rng(0)
    assert frame_count(Wav2Vec2Config(), np.array([0, 399, 400, 719, 720, 16000])).tolist() == [
        *(0, 0, 1, 1, 2, 49)
    ]
    assert receptive_field(Wav2Vec2Config()) == 400 and samples_per_frame(Wav2Vec2Config()) == 320
    for trial in range(20):
        kernels, strides = rng.integers(1, 9, (2, 3)).tolist()
        config = dataclasses.replace(
            SMALL, conv_dim=(2, 2, 2), conv_kernel=tuple(kernels), conv_stride=tuple(strides)
        )
        field, hop = receptive_field(config), samples_per_frame(config)
        for samples in range(field - 2, field + 2 * hop + 2):
            assert frame_count(config, samples) == max((samples - field) // hop + 1, 0)
        if trial:
            continue
        model, shape = Wav2Vec2(config), jax.ShapeDtypeStruct((1, field + hop), jnp.float32)
        states, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), shape)
        assert states.hidden[0].shape[1] == 2
    with pytest.raises(ValueError, match=r"^waveforms is 399, expected as many samples as give"):
        Wav2Vec2(Wav2Vec2Config()).init(jax.random.key(0), jnp.ones((1, 399)))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "wavlm"}, "model_type is 'wavlm', expected 'wav2vec2' or 'hubert'"),
        ({"model_type": None}, "model_type is None, expected 'wav2vec2' or 'hubert'"),
        ({"hidden_act": "gelu_new"}, "Wav2Vec2Config.hidden_act is 'gelu_new', expected 'gelu'"),
        (
            {"adapter_attn_dim": 16, "mask_time_prob": 0.05},
            "adapter_attn_dim = 16 is a setting that this model does not have, "
            "expected it off or absent",
        ),
        (
            {"add_adapter": True, "rotary": "yes"},
            "add_adapter, rotary = True is a setting that this model does not have, "
            "expected it off or absent",
        ),
        (
            {"conv_stride": [5]},
            "Wav2Vec2Config.conv_stride is (5,), expected 7, as in conv_dim",
        ),
        (
            {"num_feat_extract_layers": 6},
            "num_feat_extract_layers is 6, expected 7, as in conv_dim",
        ),
        (
            {"conv_kernel": "wide"},
            "Wav2Vec2Config.conv_kernel is 'wide', expected a tuple, each "
            "item an integer, 1 … 4096",
        ),
        (
            {"num_attention_heads": 5},
            "Wav2Vec2Config.num_attention_heads is 5, expected a divisor of hidden_size = 768",
        ),
    ],
)
def test_settings_that_change_the_computation_are_refused_by_name(changes, message):
    values = {"model_type": "hubert", "layerdrop": 0.1, "add_adapter": False, "new_one": None}
    assert config_from_json(values, "c.json") == Wav2Vec2Config()
    with pytest.raises(ValueError) as error:
        config_from_json(values | changes, "c.json")
    assert str(error.value) == f"c.json: {message}"
