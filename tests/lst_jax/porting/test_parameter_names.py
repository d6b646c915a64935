"""The table between published tensors and the parameter tree."""

import dataclasses
import pathlib

import hypothesis
import jax
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import strategies as st

from lst_jax.config import LSTConfig, baseline_of
from lst_jax.porting.parameter_names import (
    parameter_shapes,
    published_from_tree,
    published_tensors,
    tree_from_published,
)
from lst_jax.porting.reference_case import read_case
from tests.lst_jax.porting.checkpoints_of_all_kinds import LST, assert_same_bits, random_bits

GOLDEN = pathlib.Path(__file__).parents[2] / "testdata" / "golden_static"


@st.composite
def configs(draw):
    layers = st.integers(1, 3)
    k = draw(st.integers(1, 4))
    dim_local = draw(st.sampled_from([8, 12]))
    dim_global = draw(st.sampled_from([k * dim_local, 20]))
    config = LSTConfig(
        vocab_size=draw(st.sampled_from([100, 128, 130])),
        dim_local=dim_local,
        dim_global=dim_global,
        num_layers_encoder=draw(layers),
        num_layers_global=draw(layers),
        num_layers_decoder=draw(layers),
        num_heads_local=2,
        num_heads_global=2,
        latent_vectors_per_patch=1 if dim_global == dim_local else k,
        encoder_cross_layers=draw(st.sampled_from(["all", "last"])),
        multiple_of=8,
    )
    return baseline_of(config) if draw(st.booleans()) else config


@hypothesis.given(configs(), st.integers(0, 2**32 - 1))
@hypothesis.settings(deadline=None, max_examples=10)
def test_every_parameter_has_one_place_and_keeps_its_bits(config, seed):
    rng = np.random.default_rng(seed)
    tensors = {t.name: random_bits(rng, t.shape, "float32") for t in published_tensors(config)}
    assert len(tensors) == len(published_tensors(config))
    tree = tree_from_published(config, tensors)
    shapes = {
        tuple(key.key for key in path): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    assert shapes == dict(parameter_shapes(config))
    assert_same_bits(published_from_tree(config, tree), tensors)


def test_names_and_shapes_are_those_of_a_published_checkpoint():
    config = read_case(GOLDEN).config
    published = safetensors.numpy.load_file(GOLDEN / "model.safetensors")
    expected = {name: values.shape for name, values in published.items()}
    assert {t.name: t.shape for t in published_tensors(config)} == expected


def test_projections_are_absent_where_widths_agree():
    """Where k d = D the global transformer has none, where d = D the decoder has none."""

    def projections(**changes):
        config = dataclasses.replace(LST, **changes)
        names = {t.name for t in published_tensors(config)}
        return (
            "global_transformer.token_embedding_projection.weight" in names,
            "local_decoder.patch_embedding_projection.weight" in names,
        )

    assert projections(dim_global=24, latent_vectors_per_patch=2) == (True, True)
    assert projections(dim_global=24, latent_vectors_per_patch=3) == (False, True)
    assert projections(dim_global=8, latent_vectors_per_patch=1) == (False, False)


def test_a_model_with_n_grams_is_refused_by_name():
    with pytest.raises(ValueError, match="hash_ngram_sizes"):
        published_tensors(dataclasses.replace(LST, hash_ngram_sizes=(3,)))


def test_what_pads_the_vocabulary_is_zero():
    rng = np.random.default_rng(0)
    tensors = {t.name: random_bits(rng, t.shape, "float32") for t in published_tensors(LST)}
    tree = tree_from_published(LST, tensors)
    assert not tree["encoder"]["embedding"]["table"][LST.vocab_size :].any()
    assert not tree["output_kernel"][:, LST.vocab_size :].any()
