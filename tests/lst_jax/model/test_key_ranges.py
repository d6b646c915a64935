"""Key ranges against the masks that design and paper state, written out as double loops."""

import dataclasses

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.batch import padding_rows
from lst_jax.batch import stack_rows as stack_batches
from lst_jax.inference.shared_prefix import RowSize, fill_shared_row
from lst_jax.model.key_ranges import lst_key_ranges, shared_lst_key_ranges, token_key_range
from lst_jax.patching import PatchingConfig, patch_document
from tests.lst_jax.batches import VOCABULARY, random_document, random_tokens, stack_rows
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


both_ranges = jax.jit(
    lambda batch, config: (
        shared_lst_key_ranges(batch, config),
        lst_key_ranges(batch.places, config),
    ),
    static_argnums=1,
)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_items_that_documents_share_read_what_their_first_places_read(seed):
    rng = np.random.default_rng(seed)
    tokens = random_tokens(rng)
    cut = int(rng.integers(1, len(tokens)))
    endings = [random_tokens(rng)[1:9] for _ in range(3)]
    whole = [np.concatenate([tokens[:cut], ending]) for ending in endings]
    config = PatchingConfig("static", 3)
    documents = [patch_document(tokens, config, VOCABULARY) for tokens in whole]
    batch = stack_batches([fill_shared_row(documents, RowSize(P, N, P, N))])
    k = LST.latent_vectors_per_patch
    shared, plain = jax.device_get(both_ranges(batch, LST))

    def vectors(patches):
        return np.array([k * patch + j for patch in patches for j in range(k)])

    token_items, patch_items = batch.token_items[0], batch.patch_items[0]
    token_places, patch_places = batch.token_places[0], batch.patch_places[0]
    assert np.count_nonzero(token_places < N) < sum(map(len, (x.tokens for x in documents)))
    for name, places, items in (
        ("token_self", token_places, token_items),
        ("encoder_cross", vectors(patch_places), token_items),
        ("global_self", patch_places, patch_items),
        ("decoder_cross", token_places, vectors(patch_items)),
    ):
        ours, theirs = getattr(shared, name), getattr(plain, name)
        used = places < theirs.start.shape[1]
        for bound in ("start", "end"):
            np.testing.assert_array_equal(
                getattr(ours, bound)[0, used], getattr(theirs, bound)[0, places[used]], name
            )
        assert np.all(ours.start[0, ~used] == ours.end[0, ~used])
        np.testing.assert_array_equal(np.ravel(ours.items), items, name)


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
