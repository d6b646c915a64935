"""Properties of segmentation, visibility and row layout."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lst_jax.patching import (
    PatchingConfig,
    aligned_probability,
    aligned_run_lengths,
    fill_row,
    largest_head,
    move_boundaries,
    patch_document,
    static_patches,
    visible_patches,
)
from lst_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=20, unit_count=9)
TEXT, SPEECH, UNIT = (
    VOCABULARY.text_mode_id,
    VOCABULARY.speech_mode_id,
    VOCABULARY.first_unit_id,
)
BOS, EOS = VOCABULARY.bos_id, VOCABULARY.eos_id


@st.composite
def documents(draw):
    """Tokens of a document and its patch lengths by words."""
    tokens, lengths = [BOS], [1]
    for speech in draw(st.lists(st.booleans(), max_size=4)):
        if speech:
            words = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
            tokens += [SPEECH] + [UNIT + i % 9 for i in range(sum(words))]
            lengths += [1, *words]
        else:
            size = draw(st.integers(1, 8))
            tokens += [TEXT] + [3 + i % 5 for i in range(size)]
            lengths += [1] * (size + 1)
    return np.array([*tokens, EOS], np.int32), np.array([*lengths, 1], np.int32)


def visible_by_definition(tokens, lengths, size):
    """For every t, the last patch that tokens ≤ t prove complete, patch by patch."""
    visible = np.full(len(tokens), -1)
    end = 0
    for patch, length in enumerate(lengths):
        end += length
        single = length == 1 and tokens[end - 1] < UNIT
        shown_from = end - 1 if single or (size and length == size) else end
        visible[shown_from:] = patch
    return visible


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(1, 6))
def test_static_patches_group_only_speech_and_cover_every_token(document, size):
    tokens, _ = document
    lengths, provable = static_patches(tokens, VOCABULARY, size)
    assert lengths.sum() == len(tokens)
    starts = np.cumsum(lengths) - lengths
    for start, length, proven in zip(starts, lengths, provable, strict=True):
        units = VOCABULARY.is_unit(tokens[start : start + length])
        assert units.all() or length == 1
        assert length <= size
        assert proven == (length == size or not units[0])
        if units[0] and length < size:  # short only where its run ends
            assert not VOCABULARY.is_unit(tokens[start + length])


@settings(max_examples=50, deadline=None)
@given(documents(), st.integers(1, 6))
def test_visibility_follows_its_definition_token_by_token(document, size):
    tokens, words = document
    static = patch_document(tokens, PatchingConfig("static", size), VOCABULARY)
    got = visible_patches(static.patch_lengths, static.provable)
    np.testing.assert_array_equal(got, visible_by_definition(tokens, static.patch_lengths, size))
    aligned = patch_document(tokens, PatchingConfig("aligned"), VOCABULARY, words)
    got = visible_patches(aligned.patch_lengths, aligned.provable)
    np.testing.assert_array_equal(got, visible_by_definition(tokens, words, 0))


@settings(max_examples=50, deadline=None)
@given(documents(), st.integers(1, 6), st.booleans(), st.data())
def test_causal_visibility_does_not_depend_on_later_tokens(document, size, join, data):
    tokens, _ = document
    rest = data.draw(st.lists(st.sampled_from([3, TEXT, SPEECH, UNIT, EOS]), max_size=8))
    visible = visible_patches(*static_patches(tokens, VOCABULARY, size, join))
    for cut in range(1, len(tokens) + 1):
        changed = np.concatenate([tokens[:cut], rest]).astype(np.int32)
        np.testing.assert_array_equal(
            visible[:cut], visible_patches(*static_patches(changed, VOCABULARY, size, join))[:cut]
        )


def test_reference_visibility_is_the_patch_of_the_next_token_minus_one():
    tokens = np.array([BOS, SPEECH, *[UNIT] * 6, TEXT, 5, EOS], np.int32)
    document = patch_document(tokens, PatchingConfig("static", 4), VOCABULARY)
    row = fill_row([document, document], 20, 30, "reference")
    used = 2 * len(tokens)
    following = np.append(row.patch_ids[1:used], row.patch_ids[used - 1] + 1)
    np.testing.assert_array_equal(row.visible_patch[:used], following - 1)
    assert (row.visible_patch[used:] == -1).all()


def test_speech_mode_joins_the_first_static_patch_as_in_published_checkpoints():
    tokens = np.array([BOS, SPEECH, *[UNIT] * 9, TEXT, 5, SPEECH, UNIT, EOS], np.int32)
    lengths, provable = static_patches(tokens, VOCABULARY, 4, join_speech_mode=True)
    assert lengths.tolist() == [1, 4, 4, 2, 1, 1, 2, 1]
    assert provable.tolist() == [True, True, True, False, True, True, False, True]
    apart, _ = static_patches(tokens, VOCABULARY, 4)
    assert apart.tolist() == [1, 1, 4, 4, 1, 1, 1, 1, 1, 1]


def test_silence_is_a_patch_or_joins_the_word_before_or_the_first_word():
    counts = np.array([2, 5, 3, 1, 4, 6])
    silent = np.array([True, False, True, True, False, True])
    assert aligned_run_lengths(counts, silent, "separate").tolist() == [2, 5, 3, 1, 4, 6]
    assert aligned_run_lengths(counts, silent, "merged").tolist() == [11, 10]
    assert aligned_run_lengths(counts[:1], silent[:1], "merged").tolist() == [2]
    assert aligned_run_lengths(counts[1:3], silent[1:3], "merged").tolist() == [8]
    assert aligned_run_lengths(counts[:0], silent[:0], "merged").tolist() == []


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=20),
    st.floats(0, 3) | st.just(1e6),
    st.integers(0, 99),
)
def test_boundaries_that_move_keep_order_and_cover_the_run(lengths, noise, seed):
    lengths = np.array(lengths, np.int32)
    moved = move_boundaries(lengths, noise, np.random.default_rng(seed))
    assert moved.dtype == np.int32 and len(moved) == len(lengths)
    assert moved.min() >= 1 and moved.sum() == lengths.sum()
    again = move_boundaries(lengths, noise, np.random.default_rng(seed))
    assert again.tolist() == moved.tolist()
    if noise == 0:
        assert moved.tolist() == lengths.tolist()


@pytest.mark.parametrize(("noise", "share"), [(0.5, 0.25), (1.0, 0.5)])
def test_boundaries_move_as_often_as_noise_takes_them_out_of_their_unit(noise, share):
    """A place in its unit and a shift, both uniform: their sum leaves ±0.5 so often."""
    lengths = np.full(20_000, 9, np.int32)
    moved = move_boundaries(lengths, noise, np.random.default_rng(0))
    shifts = np.cumsum(moved) - np.cumsum(lengths)
    assert abs((shifts != 0).mean() - share) < 0.02
    assert abs(shifts.mean()) < 0.02 and np.abs(shifts).max() <= np.ceil(noise)


def test_curriculum_probability_falls_linearly_between_its_two_steps():
    config = PatchingConfig("curriculum", curriculum_start=10, curriculum_end=30)
    got = [aligned_probability(config, step) for step in (0, 9, 10, 15, 20, 29, 30, 99)]
    np.testing.assert_allclose(got, [1, 1, 1, 0.75, 0.5, 0.05, 0, 0])
    for strategy, expected in [("none", 0), ("static", 0), ("aligned", 1), ("mixed", 0.3)]:
        config = PatchingConfig(strategy, mixed_aligned_probability=0.3)
        assert aligned_probability(config, 7) == expected


def test_curriculum_without_a_ramp_is_a_step():
    config = PatchingConfig("curriculum", curriculum_start=5, curriculum_end=5)
    assert [aligned_probability(config, step) for step in (4, 5)] == [1, 0]


def test_every_token_of_the_baseline_is_a_patch():
    tokens = np.array([BOS, SPEECH, *[UNIT] * 6, EOS], np.int32)
    config = PatchingConfig("none", join_speech_mode=True)
    document = patch_document(tokens, config, VOCABULARY)
    assert document.patch_lengths.tolist() == [1] * 9
    assert document.provable.all()


@settings(max_examples=100, deadline=None)
@given(documents(), st.booleans(), st.integers(4, 20), st.integers(12, 40))
def test_pieces_of_a_document_predict_every_token_once(document, aligned, patches, tokens_left):
    tokens, words = document
    config = PatchingConfig("aligned" if aligned else "static")
    lengths = words if aligned else None
    begin, predicted, groups = 0, [], []
    while begin < len(tokens) - 1:
        rest = patch_document(tokens, config, VOCABULARY, lengths, begin)
        prefix = rest.num_tokens - (len(tokens) - begin)
        count = largest_head(rest, patches, tokens_left)
        end = begin + int(rest.patch_lengths[:count].sum()) - prefix
        piece = patch_document(tokens, config, VOCABULARY, lengths, begin, end)
        assert piece.num_patches <= patches
        assert piece.num_tokens <= tokens_left
        assert piece.tokens[0] == BOS
        assert (piece.final_target is None) == (end == len(tokens))
        row = fill_row([piece], patches, tokens_left)
        predicted += row.targets[row.loss_weights > 0].tolist()
        groups += piece.patch_lengths[prefix:].tolist()
        begin = end
    assert predicted == tokens[1:].tolist()
    whole = patch_document(tokens, config, VOCABULARY, lengths)
    assert groups == whole.patch_lengths[: len(groups)].tolist()


def test_a_continuation_opens_with_the_mode_of_its_segment():
    tokens = np.array([BOS, TEXT, 5, 6, SPEECH, *[UNIT] * 8, EOS], np.int32)
    config = PatchingConfig("static", 4)
    speech = patch_document(tokens, config, VOCABULARY, begin=9)
    assert speech.tokens.tolist() == [BOS, SPEECH, *[UNIT] * 4, EOS]
    assert speech.loss_weights.tolist() == [0, 0, 1, 1, 1, 1, 0]
    text = patch_document(tokens, config, VOCABULARY, begin=3, end=4)
    assert text.tokens.tolist() == [BOS, TEXT, 6]
    assert text.loss_weights.tolist() == [0, 0, 1]
    assert text.final_target == SPEECH
    assert not text.speech
    mode = patch_document(tokens, config, VOCABULARY, begin=4)
    assert mode.tokens.tolist()[:3] == [BOS, SPEECH, UNIT]
    assert mode.loss_weights.tolist()[:2] == [0, 1]


@settings(max_examples=50, deadline=None)
@given(st.lists(documents(), max_size=4), st.booleans())
def test_a_row_holds_its_documents_and_padding_behind_them(contents, aligned):
    config = PatchingConfig("aligned" if aligned else "static")
    pieces = [
        patch_document(tokens, config, VOCABULARY, words if aligned else None)
        for tokens, words in contents
    ]
    num_patches = sum(piece.num_patches for piece in pieces) + 3
    num_tokens = sum(piece.num_tokens for piece in pieces) + 5
    row = fill_row(pieces, num_patches, num_tokens)
    used = num_tokens - 5
    for name, padding in [("tokens", 0), ("targets", 0), ("loss_weights", 0)]:
        assert (getattr(row, name)[used:] == padding).all()
    assert (row.document_ids[used:] == 0).all()
    assert (row.patch_ids[used:] == num_patches).all()
    assert (row.visible_patch[used:] == -1).all()
    assert (np.diff(row.patch_ids) >= 0).all()
    first_patch = 0
    for number, piece in enumerate(pieces, 1):
        inside = row.document_ids == number
        np.testing.assert_array_equal(row.tokens[inside], piece.tokens)
        np.testing.assert_array_equal(row.targets[inside][:-1], piece.tokens[1:])
        assert row.loss_weights[inside][-1] == 0
        lengths = np.bincount(row.patch_ids[inside] - first_patch)
        np.testing.assert_array_equal(lengths, piece.patch_lengths)
        local = row.visible_patch[inside] - first_patch
        np.testing.assert_array_equal(local, visible_patches(piece.patch_lengths, piece.provable))
        first_patch += piece.num_patches
    with_speech = sum(bool(VOCABULARY.is_unit(tokens).any()) for tokens, _ in contents)
    assert row.speech_examples == with_speech
    assert row.aligned_examples == (with_speech if aligned else 0)
    dtypes = {name: array.dtype for name, array in vars(row).items() if name != "num_patches"}
    assert dtypes.pop("loss_weights") == np.float32
    assert set(dtypes.values()) == {np.dtype(np.int32)}


@settings(max_examples=100, deadline=None)
@given(documents(), st.integers(-1, 30), st.integers(0, 60))
def test_the_largest_head_is_all_that_fits_and_no_patch_more(content, num_patches, num_tokens):
    document = patch_document(content[0], PatchingConfig("static", 3), VOCABULARY)
    lengths = document.patch_lengths.tolist()
    fits = [
        count
        for count in range(len(lengths) + 1)
        if count <= max(num_patches, 0) and sum(lengths[:count]) <= num_tokens
    ]
    assert largest_head(document, num_patches, num_tokens) == max(fits)
    for count in range(1, len(lengths) + 1):
        tokens = sum(lengths[:count])
        assert largest_head(document, len(lengths), tokens) == count
        assert largest_head(document, len(lengths), tokens - 1) == count - 1
        assert largest_head(document, count, len(document.tokens)) == count


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        # `<s>` is the first token; or the run is, and `<s>` only the last token.
        ([SPEECH, UNIT, UNIT, UNIT, EOS], [3, 1, 1]),
        ([SPEECH, UNIT, UNIT, EOS], [3, 1]),
        ([SPEECH, UNIT, EOS], [2, 1]),
        ([UNIT, UNIT, UNIT, TEXT, SPEECH], [3, 1, 1]),
        ([UNIT, SPEECH], [1, 1]),
        ([SPEECH, SPEECH, UNIT], [1, 2]),
        ([BOS, SPEECH, UNIT, 5, UNIT], [1, 2, 1, 1]),
        ([], []),
    ],
)
def test_a_speech_mode_joins_the_run_that_it_opens_and_no_other(tokens, expected):
    tokens = np.array(tokens, np.int32)
    lengths, _ = static_patches(tokens, VOCABULARY, 3, join_speech_mode=True)
    assert lengths[lengths > 0].tolist() == expected


def test_bad_arguments_are_named():
    tokens = np.array([BOS, SPEECH, UNIT, UNIT, EOS], np.int32)
    for arguments, name in [
        ({"strategy": "words"}, "strategy"),
        ({"silence": "dropped"}, "silence"),
        ({"patch_size": 0}, "patch_size"),
        ({"mixed_aligned_probability": 1.5}, "mixed_aligned_probability"),
        ({"curriculum_start": 5, "curriculum_end": 4}, "curriculum_start"),
    ]:
        with pytest.raises(ValueError, match=name):
            PatchingConfig(**arguments)
    config = PatchingConfig()
    for bad in ([1, 1, 3], [1, 1, 2, 2], [1, 0, 3, 1], []):
        with pytest.raises(ValueError, match="aligned_lengths"):
            patch_document(tokens, config, VOCABULARY, np.array(bad, np.int32))
    words = np.array([1, 1, 2, 1], np.int32)
    with pytest.raises(ValueError, match="boundaries"):
        patch_document(tokens, config, VOCABULARY, words, begin=3)
    with pytest.raises(ValueError, match="boundaries"):
        patch_document(tokens, config, VOCABULARY, words, end=3)
    for begin, end in [(-1, None), (5, None), (2, 2), (0, 6)]:
        with pytest.raises(ValueError, match="begin"):
            patch_document(tokens, config, VOCABULARY, None, begin, end)
    with pytest.raises(ValueError, match="patch_size"):
        static_patches(tokens, VOCABULARY, 0)
    document = patch_document(tokens, config, VOCABULARY)
    with pytest.raises(ValueError, match="expected at most 4"):
        fill_row([document], 4, 4)
    with pytest.raises(ValueError, match="visibility"):
        fill_row([document], 9, 9, "future")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.patch_size = 3
