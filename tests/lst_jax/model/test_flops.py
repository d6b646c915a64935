"""Analytic FLOPs against XLA's count, and against the intervals of a batch."""

import dataclasses
import math
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.aot.hlo_costs import hlo_costs
from lst_jax.config import LSTConfig, baseline_of
from lst_jax.model.flops import forward_flops, training_flops
from lst_jax.model.losses import token_nll
from lst_jax.model.models import abstract_params, build_model, output_kernel
from lst_jax.patching import Document, PatchingConfig, patch_document
from tests.lst_jax.batches import VOCABULARY, random_document, stack_rows
from tests.lst_jax.jaxprs import trace
from tests.marks import quick

CONFIG = LSTConfig(
    vocab_size=VOCABULARY.size,
    dim_local=128,
    dim_global=256,
    num_layers_encoder=1,
    num_layers_global=3,
    num_layers_decoder=2,
    num_heads_local=2,
    num_heads_global=2,
    multiple_of=128,
    dtype="float32",
    attention="dense",
)


def document_of_units(length):
    """bos, units, and a mode token, so that the row is one document without padding."""
    units = VOCABULARY.first_unit_id + np.arange(length - 1) % VOCABULARY.unit_count
    tokens = np.concatenate([[VOCABULARY.bos_id], units]).astype(np.int32)
    return patch_document(tokens, PatchingConfig("static"), VOCABULARY)


def whole_squares(config, document, batch):
    """Forward FLOPs of the pairs that dense attention computes beyond the intervals, by module."""
    length, slots = len(document.tokens), document.num_patches
    half = length * (length - 1) / 2
    if not isinstance(config, LSTConfig):
        return {"global": config.num_layers_global * half * 4 * config.dim_global}
    d, k = config.dim_local, config.latent_vectors_per_patch
    square = k * slots * length
    read = square - k * sum(np.cumsum(document.patch_lengths))
    reads = config.num_layers_encoder if config.encoder_cross_layers == "all" else 1
    unseen = half + square - k * sum(batch.visible_patch[0] + 1)
    return {
        "encoder": 4 * d * (config.num_layers_encoder * half + reads * read),
        "decoder": config.num_layers_decoder * 4 * d * unseen,
        "global": config.num_layers_global * 4 * config.dim_global * slots * (slots - 1) / 2,
    }


@pytest.mark.parametrize("name", quick(["lst", "baseline"], "lst"))
@pytest.mark.parametrize("training", quick([False, True], True))
def test_products_are_counted_as_xla_counts_them(name, training):
    """On a dense batch XLA counts whole score squares; those are exchanged for our intervals."""
    length = 257
    config = CONFIG if name == "lst" else baseline_of(CONFIG)
    # The vocabulary is padded inside; a multiple of 128 has no padding to count.
    config = dataclasses.replace(config, vocab_size=128)
    document: Document = document_of_units(length)
    if name == "baseline":
        document = patch_document(document.tokens, PatchingConfig("none"), VOCABULARY)
    slots = document.num_patches
    batch = stack_rows([[document]], slots, length)
    model = build_model(config)
    params = nn.unbox(jax.eval_shape(lambda: model.init(jax.random.key(0), batch)))["params"]

    def loss(p, b):
        hidden = model.apply({"params": p}, b)["hidden"]
        nll = token_nll(hidden, output_kernel(p), b.tokens, config.vocab_size, length)
        return nll.sum()

    function = jax.grad(loss) if training else loss
    text = jax.jit(function).lower(params, batch).compile().as_text()
    ours = {k: float(v) for k, v in forward_flops(config, batch).items()}
    expected = sum(ours.values()) + sum(whole_squares(config, document, batch).values())
    if training:
        assert float(training_flops(config, batch)) == pytest.approx(3 * sum(ours.values()))
        # The backward pass computes the logits again.
        expected = 3 * expected + ours["output"]
    assert hlo_costs(text).matrix_flops == pytest.approx(expected, rel=0.03)


def traced_flops(function, *arguments):
    """FLOPs of the matrix products of a traced function, by module; "output" is what is in none."""
    totals = {}
    for operation in trace(function, *arguments):
        if operation.name != "dot_general":
            continue
        (contracted, _), _ = operation.equation.params["dimension_numbers"]
        left = operation.equation.invars[0].aval.shape
        size = operation.equation.outvars[0].aval.size * math.prod(left[i] for i in contracted)
        names = re.findall(r"/(encoder|global|decoder|transformer)(?=/|$)", operation.scope)
        module = {"transformer": "global"}.get(names[0], names[0]) if names else "output"
        totals[module] = totals.get(module, 0) + 2 * size * operation.times
    return totals


VARIANTS = {
    "lst": {},
    "deep encoder, one vector": {"num_layers_encoder": 2, "latent_vectors_per_patch": 1},
    "last read, one width": {
        "num_layers_encoder": 3,
        "encoder_cross_layers": "last",
        "latent_vectors_per_patch": 1,
        "dim_global": 128,
    },
    "wide": {"dim_local": 64, "dim_global": 512, "num_layers_decoder": 1, "multiple_of": 64},
    "baseline": None,
}


@pytest.mark.parametrize(
    ("name", "training"),
    [*((name, False) for name in VARIANTS), ("lst", True), ("baseline", True)],
)
def test_the_products_of_each_module_are_those_of_its_trace(name, training):
    """To the last product, but for what dense attention computes beyond the intervals."""
    length = 258  # the last patch is not full
    config = dataclasses.replace(CONFIG, vocab_size=128, **(VARIANTS[name] or {}))
    document = document_of_units(length)
    if name == "baseline":
        config = baseline_of(config)
        document = patch_document(document.tokens, PatchingConfig("none"), VOCABULARY)
    batch = stack_rows([[document]], document.num_patches, length)
    model = build_model(config)

    def loss(params, batch):
        hidden = model.apply({"params": params}, batch)["hidden"]
        kernel = output_kernel(params)
        return token_nll(hidden, kernel, batch.targets, config.vocab_size, length).sum()

    function = jax.grad(loss) if training else loss
    found = traced_flops(function, nn.unbox(abstract_params(config)), batch)
    ours = {key: float(value) for key, value in forward_flops(config, batch).items()}
    squares = whole_squares(config, document, batch)
    assert found.keys() == ours.keys()
    for module, flops in ours.items():
        times = 3 if training else 1
        # The backward pass of the loss computes the logits again.
        recomputed = flops if training and module == "output" else 0
        expected = times * (flops + squares.get(module, 0)) + recomputed
        assert found[module] == pytest.approx(expected, rel=1e-6), module
    if training:
        assert float(training_flops(config, batch)) == pytest.approx(3 * sum(ours.values()))


def test_flops_are_the_sum_over_documents_and_ignore_padding():
    rng = np.random.default_rng(0)
    documents = [random_document(rng, False), random_document(rng, True)]
    together = training_flops(CONFIG, stack_rows([documents], 90, 100))
    apart = [training_flops(CONFIG, stack_rows([[x]], 50, 60)) for x in documents]
    np.testing.assert_allclose(together, sum(apart), rtol=1e-5)
    assert training_flops(CONFIG, stack_rows([[]], 90, 100)) == 0


def test_patching_saves_global_flops():
    document = document_of_units(201)
    lst = forward_flops(CONFIG, stack_rows([[document]], 51, 201))
    flat = patch_document(document.tokens, PatchingConfig("none"), VOCABULARY)
    batch = stack_rows([[flat]], 201, 201)
    baseline = forward_flops(baseline_of(CONFIG), batch)
    assert 3.5 < float(baseline["global"] / lst["global"]) < 4.5
    assert jnp.isfinite(sum(baseline.values()))
