"""Properties of rows with shared items, all in NumPy."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.inference.shared_prefix import (
    RowSize,
    count_common_patches,
    fill_shared_row,
    measure_row,
)
from lst_jax.patching import PatchingConfig, patch_document
from tests.lst_jax.batches import VOCABULARY, random_tokens

STATIC = PatchingConfig("static", patch_size=3)
SPEECH = [VOCABULARY.bos_id, VOCABULARY.speech_mode_id]


def make_documents(seed, patching=STATIC):
    """Documents of which some begin alike, for any number of tokens."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(rng.integers(1, 4)):
        stem = random_tokens(rng)
        for _ in range(rng.integers(1, 4)):
            cut = rng.integers(1, len(stem) + 1)
            tokens = np.concatenate([stem[:cut], random_tokens(rng, 1)[1:]])
            documents.append(patch_document(tokens, patching, VOCABULARY))
    return documents


def speech(*units, patching=STATIC):
    tokens = np.concatenate([SPEECH, VOCABULARY.units_to_ids(np.array(units))])
    return patch_document(tokens, patching, VOCABULARY)


patchings = st.sampled_from(
    [
        STATIC,
        PatchingConfig("static", patch_size=3, join_speech_mode=True),
        PatchingConfig("none"),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), patchings, st.integers(0, 5))
def test_every_place_has_the_token_and_the_patch_of_its_document(seed, patching, spare):
    documents = make_documents(seed, patching)
    size = RowSize(*(need + spare for need in measure_row(documents)))
    row = fill_shared_row(documents, size)
    used = row.places.document_ids > 0
    items = row.token_items[used]
    np.testing.assert_array_equal(row.item_tokens[items], row.places.tokens[used])
    patches = row.places.patch_ids[used]
    np.testing.assert_array_equal(row.item_patch_ids[items], row.patch_items[patches])
    # Items of a patch are its tokens, all of them, in order.
    lengths = np.concatenate([document.patch_lengths for document in documents])
    counts = np.bincount(row.item_patch_ids, minlength=size.item_patches)[: size.item_patches]
    np.testing.assert_array_equal(counts[row.patch_items[: len(lengths)]], lengths)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), patchings, st.integers(0, 5))
def test_items_stand_in_the_order_of_their_first_places(seed, patching, spare):
    documents = make_documents(seed, patching)
    needed = measure_row(documents)
    size = RowSize(*(need + spare for need in needed))
    row = fill_shared_row(documents, size)
    for kind, places, count, slots in (
        ("token", size.place_tokens, needed.item_tokens, needed.place_tokens),
        ("patch", size.place_patches, needed.item_patches, needed.place_patches),
    ):
        items, first = getattr(row, f"{kind}_items"), getattr(row, f"{kind}_places")
        assert items.shape == (places,)
        assert first.shape == (count + spare,)
        assert (np.diff(first[:count]) > 0).all()
        assert (first[count:] == places).all()
        for item in range(count):
            assert first[item] == np.flatnonzero(items[:slots] == item)[0]
    assert (np.diff(row.item_patch_ids) >= 0).all()
    assert (row.item_patch_ids[needed.item_tokens :] == size.item_patches).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), patchings)
def test_a_token_is_predicted_by_the_item_before_it_in_every_document(seed, patching):
    documents = make_documents(seed, patching)
    row = fill_shared_row(documents, measure_row(documents))
    for place in range(1, len(row.places.document_ids)):
        if row.places.document_ids[place] == row.places.document_ids[place - 1]:
            previous = row.previous_items[row.token_items[place]]
            assert previous == row.token_items[place - 1]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), patchings)
def test_common_patches_are_those_of_equal_tokens_that_have_ended_alike(seed, patching):
    documents = make_documents(seed, patching)
    for first in documents:
        for second in documents:
            common = 0
            parts = [
                np.split(document.tokens, np.cumsum(document.patch_lengths)[:-1])
                for document in (first, second)
            ]
            for one, other, *proofs in zip(*parts, first.provable, second.provable, strict=False):
                if one.tolist() != other.tolist() or proofs[0] != proofs[1]:
                    break
                common += 1
            assert count_common_patches(first, second) == common


def test_a_prompt_that_stops_inside_a_patch_shares_all_but_this_patch():
    documents = [speech(1, 2, 3, 4, 5, *ending) for ending in ([6, 7], [8], [6, 9])]
    # bos, <s>, 1 2 3 are shared; 4 5 6 of the third is no patch of the second.
    assert [document.patch_lengths.tolist() for document in documents] == [
        [1, 1, 3, 3, 1],
        [1, 1, 3, 3],
        [1, 1, 3, 3, 1],
    ]
    row = fill_shared_row(documents, measure_row(documents))
    units = VOCABULARY.units_to_ids(np.array([1, 2, 3, 4, 5, 6, 7, 4, 5, 8, 4, 5, 6, 9]))
    assert row.item_tokens.tolist() == SPEECH + units.tolist()
    assert row.patch_items.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 0, 1, 2, 6, 7]


def test_a_short_patch_is_not_shared_with_one_that_goes_on():
    assert count_common_patches(speech(1, 2), speech(1, 2, 3)) == 2
    assert count_common_patches(speech(1, 2), speech(1, 2)) == 3


def test_a_mode_token_that_units_join_is_shared_only_with_its_patch():
    joined = dataclasses.replace(STATIC, join_speech_mode=True)
    documents = [speech(*units, patching=joined) for units in ([1, 2], [1, 3], [1, 3, 4])]
    assert count_common_patches(documents[0], documents[1]) == 1
    assert count_common_patches(documents[1], documents[2]) == 2


def test_endings_of_a_prompt_add_only_their_own_tokens():
    patching = PatchingConfig("none")
    prompt = random_tokens(np.random.default_rng(0))[:-1]
    documents = [
        patch_document(np.concatenate([prompt, [3 + index, 3]]), patching, VOCABULARY)
        for index in range(10)
    ]
    need = measure_row(documents)
    assert need.item_tokens == need.item_patches == len(prompt) + 20
    assert need.place_tokens == 10 * (len(prompt) + 2)


def test_a_row_without_documents_is_padding():
    assert measure_row([]) == RowSize(0, 0, 0, 0)
    row = fill_shared_row([], RowSize(4, 6, 3, 5))
    assert not row.places.document_ids.any()
    assert row.token_places.tolist() == [6] * 5
    assert row.patch_places.tolist() == [4] * 3
    assert row.item_patch_ids.tolist() == [3] * 5


@pytest.mark.parametrize("name", RowSize._fields)
def test_documents_that_do_not_fit_are_named(name):
    documents = make_documents(1)
    needed = measure_row(documents)
    size = needed._replace(**{name: getattr(needed, name) - 1})
    with pytest.raises(ValueError, match=f"documents need .*{name}"):
        fill_shared_row(documents, size)
