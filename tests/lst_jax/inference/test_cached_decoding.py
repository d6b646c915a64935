"""Cached decoding computes what the full forward pass does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.lst_jax.batches import stack_rows
from tests.lst_jax.inference.forcing import read, repeat_rows, say
from tests.lst_jax.inference.models import (
    CASES,
    ROWS,
    SLOTS,
    decoder_of,
    full_logits,
    random_stream,
)
from tests.marks import quick


@pytest.mark.parametrize("case", quick(CASES, "lst", "baseline"))
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_logits_equal_those_of_the_full_forward_pass(case, seed):
    """From any split into prompt and continuation, rows of any phase and modality in one batch."""
    rng = np.random.default_rng(seed)
    streams = [random_stream(rng) for _ in range(rng.integers(1, ROWS + 1))]
    splits = [int(rng.integers(1, len(tokens))) for tokens in streams]
    expected = full_logits(case, streams)
    state = read(case, [tokens[:split] for tokens, split in zip(streams, splits, strict=True)])
    rest = [tokens[split:] for tokens, split in zip(streams, splits, strict=True)]
    _, log_probs, logits = say(case, state, rest)
    for row, tokens in enumerate(streams):
        wanted = expected[row][splits[row] - 1 : -1]
        np.testing.assert_allclose(logits[row], wanted, atol=1e-4)
        normalizer = np.log(np.exp(wanted.astype(np.float64)).sum(-1))
        chosen = wanted[np.arange(len(wanted)), tokens[splits[row] :]]
        np.testing.assert_allclose(log_probs[row], chosen - normalizer, atol=1e-4)


@pytest.mark.parametrize("case", quick(CASES, "lst", "baseline"))
def test_every_ring_wraps_and_every_way_to_complete_a_patch_occurs(case):
    """The streams of the property above are worth their name: one token at a time from bos."""
    rng = np.random.default_rng(0)
    streams = [random_stream(rng) for _ in range(ROWS)]
    expected = full_logits(case, streams)
    _, _, logits = say(case, read(case, [t[:1] for t in streams]), [t[1:] for t in streams])
    for row in range(ROWS):
        np.testing.assert_allclose(logits[row], expected[row][:-1], atol=1e-4)
    documents = [decoder_of(case).document(tokens) for tokens in streams]
    if case != "baseline":
        config = CASES[case][0]
        longest = max(document.num_patches for document in documents)
        assert longest > 3 * max(config.encoder_cross_window, config.decoder_cross_window)
        assert max(map(len, streams)) > 3 * config.local_window
        assert any((~document.provable).any() for document in documents)
        batch = stack_rows([[document] for document in documents], SLOTS, SLOTS)
        assert np.diff(batch.visible_patch, axis=1).max() == 2


def test_continuing_in_pieces_is_continuing_at_once():
    rng = np.random.default_rng(1)
    streams = [random_stream(rng) for _ in range(ROWS)]
    prompts = [tokens[:1] for tokens in streams]
    _, whole, _ = say("lst", read("lst", prompts), [tokens[1:] for tokens in streams])
    cuts = [int(rng.integers(1, len(tokens))) for tokens in streams]
    state = read("lst", prompts)
    first = [tokens[1:cut] for tokens, cut in zip(streams, cuts, strict=True)]
    second = [tokens[cut:] for tokens, cut in zip(streams, cuts, strict=True)]
    state, before, _ = say("lst", state, first)
    _, after, _ = say("lst", state, second)
    for row in range(ROWS):
        pieces = np.concatenate([before[row], after[row]])
        np.testing.assert_allclose(pieces, whole[row], atol=1e-5)


@pytest.mark.parametrize("case", ["lst", "baseline"])
def test_one_prompt_serves_several_endings(case):
    rng = np.random.default_rng(2)
    prompts = [random_stream(rng)[:17], random_stream(rng)[:11]]
    owners = [1, 0, 1, 1]
    endings = [random_stream(rng)[:9] for _ in owners]
    _, together, _ = say(case, repeat_rows(read(case, prompts), owners), endings)
    _, apart, _ = say(case, read(case, [prompts[owner] for owner in owners]), endings)
    for ours, theirs in zip(together, apart, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
