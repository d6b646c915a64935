"""Key ranges against the masks that design and paper state, written out as double loops."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.batch import padding_rows
from lst_jax.model.key_ranges import lst_key_ranges, token_key_range
from tests.lst_jax.batches import random_document, stack_rows
from tests.lst_jax.model.test_models import LST

P, N = 110, 120


def masks(key_range, keys):
    """Boolean (Q, keys) of a range of one row."""
    start, end = (np.asarray(x)[0, :, None] for x in key_range)
    return (start <= np.arange(keys)) & (np.arange(keys) < end)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), aligned=st.booleans(), masked=st.booleans())
def test_ranges_are_the_stated_masks_and_never_decrease(seed, aligned, masked):
    rng = np.random.default_rng(seed)
    documents = [random_document(rng, aligned) for _ in range(3)]
    batch = stack_rows([documents], P, N)
    config = dataclasses.replace(LST, document_cross_masking=masked)
    ranges = lst_key_ranges(batch, config)
    k = config.latent_vectors_per_patch
    doc, patch, visible = (x[0] for x in (batch.document_ids, batch.patch_ids, batch.visible_patch))
    real = doc > 0
    t = np.arange(N)
    same = real[:, None] & (doc[:, None] == doc)
    causal = same & (t <= t[:, None])
    np.testing.assert_array_equal(
        masks(ranges.token_self, N), causal & (t[:, None] - t < config.local_window)
    )
    np.testing.assert_array_equal(masks(token_key_range(batch.document_ids, None), N), causal)

    patch_doc = np.zeros(P, int)
    patch_doc[patch[real]] = doc[real]
    p = np.arange(P)
    used = patch_doc > 0
    causal = used[:, None] & (patch_doc[:, None] == patch_doc) & (p <= p[:, None])
    np.testing.assert_array_equal(masks(ranges.global_self, P), causal)

    reads = used[:, None] & (patch <= p[:, None]) & (p[:, None] < patch + 3) & real
    if masked:
        reads &= patch_doc[:, None] == doc
    np.testing.assert_array_equal(masks(ranges.encoder_cross, N), np.repeat(reads, k, axis=0))

    sees = real[:, None] & (p <= visible[:, None]) & (visible[:, None] < p + 4)
    if masked:
        sees &= doc[:, None] == patch_doc
    np.testing.assert_array_equal(masks(ranges.decoder_cross, P * k), np.repeat(sees, k, axis=1))
    for key_range in ranges[:4]:
        for bound in key_range:
            assert np.all(np.diff(np.asarray(bound)[0]) >= 0)


def test_a_patch_belongs_to_the_document_of_its_first_token():
    """Published batches may hold an eos inside a patch; the patch after it starts a document."""
    document_ids = np.array([[1, 1, 1, 2, 2, 2, 3, 4]], np.int32)
    patch_ids = np.array([[0, 1, 1, 1, 2, 3, 3, 3]], np.int32)
    batch = dataclasses.replace(
        padding_rows(4, 8, rows=(1,)),
        document_ids=document_ids,
        patch_ids=patch_ids,
        visible_patch=patch_ids - 1,
    )
    start, end = lst_key_ranges(batch, LST).global_self
    np.testing.assert_array_equal(start, [[0, 0, 2, 2]])
    np.testing.assert_array_equal(end, [[1, 2, 3, 4]])


def test_a_row_of_padding_reads_nothing():
    ranges = lst_key_ranges(stack_rows([[]], P, N), LST)
    for start, end in ranges[:4]:
        np.testing.assert_array_equal(start, end)
