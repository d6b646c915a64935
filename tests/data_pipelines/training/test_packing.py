"""Properties of the packer of one stream."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.training.interleaving import Draft
from data_pipelines.training.packing import (
    OpenRow,
    PackingConfig,
    RowPacker,
    choose_head,
    choose_row,
)
from lst_jax.patching import PatchingConfig, aligned_probability, patch_document
from lst_jax.vocabulary import Vocabulary
from tests.lst_jax.batches import assert_same

VOCABULARY = Vocabulary(text_size=20_000, unit_count=50)


class ListedDrafts:
    """Documents made from a list of (text tokens, words of units, draw), unlike each other."""

    def __init__(self, contents):
        self.contents = contents
        self.loads = 0

    def __len__(self):
        return len(self.contents)

    def load(self, index, probability):
        self.loads += 1
        text, words, draw = self.contents[index]
        tokens = [VOCABULARY.bos_id]
        lengths = [1]
        if text:
            # The ids tell the document and the place in it.
            tokens += [VOCABULARY.text_mode_id, *range(3 + 100 * index, 3 + 100 * index + text)]
            lengths += [1] * (1 + text)
        if words:
            units = [VOCABULARY.first_unit_id + index] * sum(words)  # and so do the units
            tokens += [VOCABULARY.speech_mode_id, *units]
            lengths += [1, *words]
        tokens.append(VOCABULARY.eos_id)
        aligned = np.array([*lengths, 1], np.int32) if draw < probability else None
        return Draft(np.array(tokens, np.int32), aligned, draw=draw)


def pack(contents, **settings_):
    options = {"num_patches": 24, "num_tokens": 40, "open_rows": 4} | settings_
    return RowPacker(ListedDrafts(contents), PackingConfig(**options), VOCABULARY)


CONTENTS = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.lists(st.integers(1, 12), max_size=8),
        st.floats(0, 1, exclude_max=True),
    ),
    min_size=1,
    max_size=40,
)
CURRICULUM = PatchingConfig("curriculum", curriculum_start=2, curriculum_end=12)


def predicted_tokens(rows):
    """All that is predicted, sorted."""
    return sorted(target for row in rows for target in row.targets[row.loss_weights > 0].tolist())


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.sampled_from([0.0, 0.05, 1.0]), st.sampled_from(["none", "static", "ramp"]))
def test_every_token_of_every_document_is_predicted_once(contents, largest_gap, strategy):
    patching = CURRICULUM if strategy == "ramp" else PatchingConfig(strategy)
    rows = list(pack(contents, patching=patching, largest_gap=largest_gap))
    drafts = ListedDrafts(contents)
    expected = sorted(
        token
        for index in range(len(contents))
        for token in drafts.load(index, 0.0).tokens[1:].tolist()
    )
    assert predicted_tokens(rows) == expected


@settings(max_examples=60, deadline=None)
@given(CONTENTS, st.integers(0, 30))
def test_a_restored_packer_goes_on_bitwise_the_same(contents, step):
    packer = pack(contents, patching=CURRICULUM)
    rows = list(packer)
    first = pack(contents, patching=CURRICULUM)
    done = sum(1 for _, _ in zip(range(min(step, len(rows))), first, strict=False))
    state = first.get_state()
    assert json.loads(state)["step"] == done
    second = pack(contents, patching=CURRICULUM)
    second.set_state(state)
    assert second.get_state() == state
    rest = list(second)
    assert len(rest) == len(rows) - done
    for got, expected in zip(rest, rows[done:], strict=True):
        assert_same(got, expected)


@settings(max_examples=60, deadline=None)
@given(CONTENTS)
def test_examples_are_aligned_where_their_draw_is_below_the_probability_of_the_step(contents):
    rows = list(pack(contents, patching=CURRICULUM))
    for step, row in enumerate(rows):
        probability = aligned_probability(CURRICULUM, step)
        speakers = [
            np.unique(units) - VOCABULARY.first_unit_id
            for document in range(1, row.document_ids.max() + 1)
            if len(units := row.tokens[select_units(row, document)])
        ]
        draws = [contents[int(speaker)][2] for (speaker,) in speakers]
        assert row.speech_examples == len(draws)
        assert row.aligned_examples == sum(draw < probability for draw in draws)


def select_units(row, document):
    return (row.document_ids == document) & VOCABULARY.is_unit(row.tokens)


def test_a_document_that_fits_a_row_is_split_only_to_fill_the_row_to_be_emitted():
    whole = list(pack([(20, [], 0.5)] * 3 + [(12, [], 0.5)] * 3, num_patches=40, open_rows=3))
    assert [int(row.document_ids.max()) for row in whole] == [2, 2, 2]
    pair = [(20, [], 0.5)] * 2
    whole = list(pack(pair, num_patches=40, open_rows=1, largest_gap=0.5))
    assert [int((row.document_ids > 0).sum()) for row in whole] == [23, 23]
    filled = list(pack(pair, num_patches=40, open_rows=1, largest_gap=0.1))
    assert [int((row.document_ids > 0).sum()) for row in filled] == [40, 8]


def test_a_long_document_continues_in_later_rows_with_its_own_bos():
    rows = list(pack([(90, [], 0.5)], num_patches=30, num_tokens=30, open_rows=2))
    assert [row.tokens[0] for row in rows] == [1, 1, 1, 1]
    assert [row.tokens[1] for row in rows] == [VOCABULARY.text_mode_id] * 4
    assert [int((row.document_ids > 0).sum()) for row in rows[:-1]] == [30, 30, 30]
    for before, after in itertools.pairwise(rows):
        assert before.targets[29] == after.tokens[2]
        assert after.loss_weights[:2].tolist() == [0, 0]


def test_rows_are_filled_in_the_order_of_steps_first_fit():
    contents = [(10, [], 0.5), (25, [], 0.5), (10, [], 0.5), (30, [], 0.5)]
    rows = list(pack(contents, num_patches=34, num_tokens=34, open_rows=3, largest_gap=1.0))
    firsts = [row.tokens[row.tokens > 2] // 100 for row in rows]
    assert [sorted(set(found.tolist()) - {200}) for found in firsts] == [[0, 2], [1], [3]]


def test_a_patch_larger_than_a_row_is_refused():
    packer = pack([(0, [60], 0.0)], patching=PatchingConfig("aligned"))
    with pytest.raises(ValueError, match="patch of 60 tokens"):
        list(packer)


def text_piece(size):
    """A document of text: as many patches as tokens."""
    tokens = np.array([VOCABULARY.bos_id, *range(3, size + 1), VOCABULARY.eos_id], np.int32)
    return lambda row: patch_document(tokens, PatchingConfig(), VOCABULARY)


def open_row(step, patches, tokens=100, pieces=(0,)):
    return OpenRow(step, 0.0, patches, tokens, list(pieces))


@pytest.mark.parametrize(("free", "place"), [(9, 2), (10, 1), (11, 1)])
def test_a_piece_goes_to_the_first_row_that_its_patches_and_tokens_fit(free, place):
    """At the size of the piece, under and over, of either budget."""
    for budgets in ((free, 100), (100, free)):
        rows = [open_row(0, 3), open_row(1, *budgets), open_row(2, 50)]
        assert choose_row(rows, text_piece(10)) is rows[place]
    assert choose_row([open_row(0, 9), open_row(1, 100, 9)], text_piece(10)) is None


@pytest.mark.parametrize(("free", "split"), [(4, False), (5, False), (6, True)])
def test_a_row_is_filled_with_a_head_where_its_gap_is_larger_than_may_stay(free, split):
    config = PackingConfig(num_patches=20, num_tokens=20, largest_gap=0.25)
    for budgets in ((free, 20), (20, free)):
        rows = [open_row(3, *budgets), open_row(4, 9, 9)]
        found = choose_head(rows, text_piece(10), config, oldest_step=3)
        assert found == ((rows[0], free) if split else None)
        empty = [open_row(3, *budgets, pieces=()), open_row(4, 9, 9)]
        assert choose_head(empty, text_piece(10), config, oldest_step=3) == (empty[0], free)


@pytest.mark.parametrize(("free", "split"), [(2, False), (3, True)])
def test_a_head_is_longer_than_the_prefix_of_a_continuation(free, split):
    config = PackingConfig(num_patches=20, num_tokens=20, largest_gap=0)
    rows = [open_row(0, free)]
    found = choose_head(rows, text_piece(10), config, oldest_step=0)
    assert found == ((rows[0], free) if split else None)


@pytest.mark.parametrize(("size", "row"), [(20, None), (21, 1)])
def test_only_a_piece_larger_than_a_row_is_split_in_a_row_that_stays(size, row):
    config = PackingConfig(num_patches=20, num_tokens=20, largest_gap=0.05)
    rows = [open_row(0, 1, 1), open_row(1, 12, 12)]
    found = choose_head(rows, text_piece(size), config, oldest_step=0)
    assert found == (None if row is None else (rows[row], 12))


def test_bad_configurations_are_named():
    for arguments, name in [
        ({"num_patches": 3}, "num_patches"),
        ({"num_tokens": 0}, "num_tokens"),
        ({"open_rows": 0}, "open_rows"),
        ({"largest_gap": -0.1}, "largest_gap"),
    ]:
        with pytest.raises(ValueError, match=name):
            PackingConfig(**{"num_patches": 20, "num_tokens": 20} | arguments)


def test_a_state_for_another_window_is_refused():
    state = pack([(5, [], 0.5)]).get_state()
    with pytest.raises(ValueError, match="open rows"):
        pack([(5, [], 0.5)], open_rows=2).set_state(state)


def test_restoring_reads_documents_only_when_their_row_is_emitted():
    packer = pack([(9, [], 0.5)] * 30)
    next(packer)
    drafts = ListedDrafts([(9, [], 0.5)] * 30)
    config = PackingConfig(num_patches=24, num_tokens=40, open_rows=4)
    restored = RowPacker(drafts, config, VOCABULARY)
    restored.set_state(packer.get_state())
    assert drafts.loads == 0
