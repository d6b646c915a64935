"""Properties of the documents made of records."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
from data_pipelines.records.storage import SILENCE, TextDocument, Utterance
from data_pipelines.records.types import check_record
from data_pipelines.training.interleaving import choose_blocks, speech_draft, text_draft
from lst_jax.patching import PatchingConfig, patch_document
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import Vocabulary
from tests.data_pipelines.small_corpus import SAMPLE, make_tokenizer

VOCABULARY = Vocabulary(text_size=50, unit_count=40)


def read_sample():
    """The ten utterances and their vocabulary."""
    tokenizer = make_tokenizer()
    return list(read_reference_jsonl([SAMPLE], tokenizer)), tokenizer.vocabulary(502)


def make_utterance(entries):
    """An utterance of (pieces, units) entries; no pieces make a silence. Ids tell positions."""
    piece_counts = np.array([pieces for pieces, _ in entries], np.int32)
    unit_counts = np.array([units for _, units in entries], np.int32)
    return Utterance(
        "u",
        tuple("w" if pieces else SILENCE for pieces, _ in entries),
        3 + np.arange(piece_counts.sum(), dtype=np.int32) % 47,
        piece_counts,
        np.arange(unit_counts.sum(), dtype=np.int32) % 40,
        unit_counts,
    )


def test_an_utterance_without_words_is_one_block_in_static_patches():
    utterance = make_utterance([(0, 30)])
    patching = PatchingConfig("aligned")
    for units in (None, UnitEncoding(pieces=((1, 2),))):
        vocabulary = VOCABULARY if units is None else dataclasses.replace(VOCABULARY, units=units)
        draft = speech_draft(
            utterance,
            vocabulary,
            np.random.default_rng(0),
            patching,
            True,
            np.random.default_rng(1),
        )
        assert draft.aligned_lengths is None
        document = patch_document(draft.tokens, patching, vocabulary, draft.aligned_lengths)
        assert document.speech and not document.aligned
        assert document.patch_lengths.max() == patching.patch_size


ENTRIES = st.lists(
    st.one_of(
        st.tuples(st.just(0), st.integers(1, 6)), st.tuples(st.integers(1, 3), st.integers(0, 8))
    ),
    min_size=1,
    max_size=90,
).filter(lambda entries: all(map(any, zip(*entries, strict=True))))  # a word, and a unit


def split_segments(tokens, vocabulary=VOCABULARY):
    """(is speech, contents) of each segment of a document."""
    assert tokens[0] == vocabulary.bos_id
    assert tokens[-1] == vocabulary.eos_id
    modes = [vocabulary.text_mode_id, vocabulary.speech_mode_id]
    starts = np.flatnonzero(np.isin(tokens, modes))
    assert starts[0] == 1
    return [
        (bool(tokens[start] == vocabulary.speech_mode_id), tokens[start + 1 : end])
        for start, end in zip(starts, [*starts[1:], len(tokens) - 1], strict=True)
    ]


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 120), st.integers(0, 2**32))
def test_blocks_have_the_published_sizes(num_words, seed):
    sizes, speech = choose_blocks(num_words, np.random.default_rng(seed))
    assert sum(sizes) == num_words
    assert min(sizes) > 0
    if len(sizes) > 1:
        assert sizes[-1] >= 3
    limit = max(1, min(30, int(0.6 * num_words)))
    text_words = None
    for size in sizes[:-1]:  # the last block has what is left, and may have been added to
        if speech:
            assert text_words is None or size == max(2, text_words // 2)
            assert 2 <= size <= max(2, limit // 2)
        else:
            assert min(5, limit) <= size <= limit
            text_words = size
        speech = not speech


class Draws:
    """A generator that gives the numbers that it is told, and then the last of them."""

    def __init__(self, *numbers):
        self._numbers = list(numbers)

    def random(self):
        return self._numbers.pop(0) if len(self._numbers) > 1 else self._numbers[0]


@pytest.mark.parametrize(
    ("num_words", "speech_first", "share", "expected"),
    [
        # Text blocks of the fewest words, five (or what 3/5 allows), and two spoken after each.
        # What is left last has 1 or 2 words, and joins the block before; or 3, and is a block.
        (8, False, 0.0, [4, 4]),
        (9, False, 0.0, [5, 4]),
        (10, False, 0.0, [5, 2, 3]),
        (11, False, 0.0, [5, 2, 4]),
        (12, False, 0.0, [5, 2, 5]),
        (13, False, 0.0, [5, 2, 6]),
        (14, False, 0.0, [5, 2, 7]),
        (15, False, 0.0, [5, 2, 5, 3]),
        (8, True, 0.0, [2, 6]),
        (9, True, 0.0, [2, 7]),
        (10, True, 0.0, [2, 5, 3]),
        # Of the most words: 3/5 of them all, at most 30.
        (50, False, 1 - 2**-53, [30, 15, 5]),
        (100, False, 1 - 2**-53, [30, 15, 30, 15, 10]),
        (49, False, 1 - 2**-53, [29, 14, 6]),
        (5, False, 1 - 2**-53, [5]),
        (6, False, 1 - 2**-53, [3, 3]),
        # Utterances of less than a block.
        (1, False, 0.5, [1]),
        (2, False, 0.5, [2]),
        (3, False, 0.5, [3]),
        (4, False, 0.5, [4]),
        (4, True, 0.5, [4]),
        (5, True, 0.5, [2, 3]),
    ],
)
def test_blocks_at_the_edges_of_their_sizes(num_words, speech_first, share, expected):
    first = 0.5 - 2**-54 if speech_first else 0.5
    assert choose_blocks(num_words, Draws(first, share)) == (expected, speech_first)


@pytest.mark.parametrize("num_words", [8, 30, 60])
def test_text_blocks_have_every_size_alike(num_words):
    """Chi-square over the sizes of opening text blocks that are not the last one too."""
    longest = min(30, 3 * num_words // 5)
    sizes = range(min(5, longest), longest + 1)
    rng = np.random.default_rng(4)
    counts = dict.fromkeys(sizes, 0)
    for _ in range(6000):
        blocks, speech = choose_blocks(num_words, rng)
        if not speech:
            counts[blocks[0]] += 1
    if len(counts) > 1:
        assert stats.chisquare(list(counts.values())).pvalue > 1e-3
    assert stats.binomtest(sum(counts.values()), 6000).pvalue > 1e-3


def test_either_kind_comes_first_and_a_third_of_the_words_is_spoken():
    rng = np.random.default_rng(0)
    firsts, spoken = [], 0
    for _ in range(2000):
        sizes, speech = choose_blocks(60, rng)
        firsts.append(speech)
        spoken += sum(sizes[not speech :: 2])
    assert 0.45 < np.mean(firsts) < 0.55
    assert 0.3 < spoken / (2000 * 60) < 0.4


@settings(max_examples=200, deadline=None)
@given(ENTRIES, st.integers(0, 2**32), st.sampled_from(["separate", "merged"]))
def test_every_word_is_in_one_block_as_text_or_as_speech(entries, seed, silence):
    utterance = make_utterance(entries)
    spoken = np.flatnonzero(utterance.piece_counts)
    example = speech_draft(
        utterance,
        VOCABULARY,
        np.random.default_rng(seed),
        PatchingConfig(silence=silence),
        align=True,
    )
    segments = split_segments(example.tokens)
    assert example.aligned_lengths.sum() == len(example.tokens)
    if not len(spoken):
        assert [speech for speech, _ in segments] == [True]
        return
    sizes, speech = choose_blocks(len(spoken), np.random.default_rng(seed))
    assert len(segments) == len(sizes)
    starts = [0, *(cut_before(utterance, spoken, word) for word in np.cumsum(sizes[:-1]))]
    ends = [*starts[1:], len(utterance.units)]
    words = np.split(spoken, np.cumsum(sizes[:-1]))
    pieces = np.split(utterance.pieces, np.cumsum(utterance.piece_counts)[:-1])
    for block, (is_speech, contents) in enumerate(segments):
        assert is_speech == speech
        if speech:
            expected = utterance.units[starts[block] : ends[block]]
            np.testing.assert_array_equal(VOCABULARY.ids_to_units(contents), expected)
        else:
            expected = np.concatenate([pieces[word] for word in words[block]])
            np.testing.assert_array_equal(contents, expected)
        speech = not speech


def cut_before(utterance, spoken, word):
    """The middle of the silence before spoken word number `word`."""
    ends = np.cumsum(utterance.unit_counts)
    start = ends[spoken[word - 1]]
    end = ends[spoken[word]] - utterance.unit_counts[spoken[word]]
    return start + (end - start) // 2


def test_silence_between_blocks_is_cut_in_half_and_never_in_text():
    # Ten words of one piece and two units, silences of five units between them.
    utterance = make_utterance([(1, 2), (0, 5)] * 9 + [(1, 2)])
    for seed in range(50):
        rng = np.random.default_rng(seed)
        example = speech_draft(
            utterance, VOCABULARY, rng, PatchingConfig(silence="separate"), align=True
        )
        segments = split_segments(example.tokens)
        words = 0
        for number, (speech, contents) in enumerate(segments):
            if not speech:
                words += len(contents)
                continue
            first, last = number == 0, number == len(segments) - 1
            before = 0 if first else 3  # the later half of an odd silence is the larger
            after = 0 if last else 2
            inner = len(contents) - before - after
            assert (inner + 5) % 7 == 0
            words += (inner + 5) // 7
        assert words == 10


@settings(max_examples=100, deadline=None)
@given(ENTRIES)
def test_without_interleaving_every_unit_of_the_utterance_comes_out(entries):
    utterance = make_utterance(entries)
    for silence in ("separate", "merged"):
        example = speech_draft(
            utterance, VOCABULARY, None, PatchingConfig(silence=silence), align=True
        )
        ((speech, contents),) = split_segments(example.tokens)
        assert speech
        np.testing.assert_array_equal(VOCABULARY.ids_to_units(contents), utterance.units)
        inner = example.aligned_lengths[2:-1]
        if silence == "separate":
            counts = utterance.unit_counts
            np.testing.assert_array_equal(inner, counts[counts > 0])
        assert inner.sum() == len(utterance.units)


@pytest.mark.parametrize("strategy", ["none", "static", "aligned", "mixed", "curriculum"])
@pytest.mark.parametrize("silence", ["separate", "merged"])
def test_units_of_the_sample_survive_every_strategy(strategy, silence):
    utterances, vocabulary = read_sample()
    config = PatchingConfig(strategy, silence=silence)
    may_align = strategy in ("aligned", "mixed", "curriculum")
    total = 0
    for utterance in utterances:
        example = speech_draft(
            utterance, vocabulary, None, PatchingConfig(silence=silence), align=may_align
        )
        for lengths in {None, may_align}:
            aligned = example.aligned_lengths if lengths else None
            document = patch_document(example.tokens, config, vocabulary, aligned)
            units = document.tokens[vocabulary.is_unit(document.tokens)]
            np.testing.assert_array_equal(vocabulary.ids_to_units(units), utterance.units)
            assert document.patch_lengths.sum() == len(example.tokens)
        total += len(utterance.units)
    assert len(utterances) == 10
    assert total == 4108


def test_every_draw_of_the_sample_is_a_document():
    utterances, vocabulary = read_sample()
    for utterance in utterances:
        for seed in range(30):
            rng = np.random.default_rng(seed)
            example = speech_draft(
                utterance, vocabulary, rng, PatchingConfig(silence="merged"), align=True
            )
            document = patch_document(
                example.tokens, PatchingConfig("aligned"), vocabulary, example.aligned_lengths
            )
            assert document.num_tokens == len(example.tokens)


def test_mean_patches_of_the_sample_are_those_of_the_paper():
    utterances, vocabulary = read_sample()
    lengths = {}
    for silence in ("separate", "merged"):
        parts = [
            speech_draft(
                utterance, vocabulary, None, PatchingConfig(silence=silence), align=True
            ).aligned_lengths[2:-1]
            for utterance in utterances
        ]
        lengths[silence] = np.concatenate(parts)
    words = sum((utterance.piece_counts > 0).sum() for utterance in utterances)
    assert 4.5 < lengths["separate"].mean() < 5.1
    assert 9 < lengths["merged"].mean() < 10.2
    assert len(lengths["merged"]) <= words


def test_the_same_generator_gives_the_same_example_aligned_or_not():
    utterance = make_utterance([(0, 3), (2, 5)] * 20)
    plain, aligned = (
        speech_draft(utterance, VOCABULARY, np.random.default_rng(3), align=align)
        for align in (False, True)
    )
    np.testing.assert_array_equal(plain.tokens, aligned.tokens)
    assert plain.aligned_lengths is None


def with_piece_units(utterance, rng):
    """The utterance, the units of its words divided among their pieces."""
    counts = [
        rng.multinomial(units, np.full(pieces, 1 / pieces))
        for units, pieces in zip(utterance.unit_counts, utterance.piece_counts, strict=True)
        if pieces
    ]
    counts = np.concatenate(counts, dtype=np.int32) if counts else np.zeros(0, np.int32)
    return dataclasses.replace(utterance, piece_unit_counts=counts)


@settings(max_examples=50, deadline=None)
@given(ENTRIES, st.integers(0, 2**32), st.sampled_from(["separate", "merged"]))
def test_patches_by_pieces_divide_those_by_words(entries, seed, silence):
    utterance = with_piece_units(make_utterance(entries), np.random.default_rng(seed))
    check_record(utterance, VOCABULARY)
    by_words, by_pieces = (
        speech_draft(
            utterance,
            VOCABULARY,
            np.random.default_rng(seed),
            PatchingConfig("aligned", silence=silence, aligned_by=kind),
            align=True,
        )
        for kind in ("words", "pieces")
    )
    np.testing.assert_array_equal(by_pieces.tokens, by_words.tokens)
    ends = np.cumsum(by_pieces.aligned_lengths)
    assert set(np.cumsum(by_words.aligned_lengths)) <= set(ends)
    whole = speech_draft(
        utterance, VOCABULARY, None, PatchingConfig("aligned", aligned_by="pieces"), align=True
    )
    silent = utterance.unit_counts[utterance.is_silence]
    counts = [*utterance.piece_unit_counts, *silent]
    assert sorted(whole.aligned_lengths[2:-1]) == sorted(c for c in counts if c)


def test_pieces_whose_times_are_not_known_are_refused():
    config = PatchingConfig("aligned", aligned_by="pieces")
    with pytest.raises(ValueError, match=r"'u' has no piece_unit_counts, expected them where"):
        speech_draft(make_utterance([(1, 3)]), VOCABULARY, None, config, align=True)


JOINED = dataclasses.replace(
    VOCABULARY, units=UnitEncoding(True, 1.5, tuple((i, j) for i in range(20) for j in range(9)))
)


@settings(max_examples=50, deadline=None)
@given(ENTRIES, st.integers(0, 2**32), st.sampled_from([0.0, 1.0]))
def test_joined_units_stay_inside_aligned_patches_and_are_the_same_at_every_step(
    entries, seed, noise
):
    utterance = make_utterance(entries)
    config = PatchingConfig("curriculum", boundary_noise=noise)

    def draft(vocabulary, align):
        rng = np.random.default_rng(seed)
        return speech_draft(utterance, vocabulary, rng, config, align, rng)

    static, aligned, plain = draft(JOINED, False), draft(JOINED, True), draft(VOCABULARY, True)
    np.testing.assert_array_equal(static.tokens, aligned.tokens)
    assert len(aligned.aligned_lengths) == len(plain.aligned_lengths)
    ends, plain_ends = np.cumsum(aligned.aligned_lengths), np.cumsum(plain.aligned_lengths)
    for end, length, plain_end, plain_length in zip(
        ends, aligned.aligned_lengths, plain_ends, plain.aligned_lengths, strict=True
    ):
        units = plain.tokens[plain_end - plain_length : plain_end]
        if VOCABULARY.is_unit(units).all():
            units = JOINED.units_to_ids(VOCABULARY.ids_to_units(units))
        np.testing.assert_array_equal(aligned.tokens[end - length : end], units)


def test_without_aligned_examples_whole_runs_are_joined():
    utterance = make_utterance([(1, 3)] * 9)
    for strategy in ("none", "static"):
        example = speech_draft(utterance, JOINED, None, PatchingConfig(strategy))
        np.testing.assert_array_equal(example.tokens[2:-1], JOINED.units_to_ids(utterance.units))


def test_an_utterance_of_silence_alone_is_speech():
    example = speech_draft(make_utterance([(0, 4)]), VOCABULARY, np.random.default_rng(0))
    assert [speech for speech, _ in split_segments(example.tokens)] == [True]


def test_text_is_one_segment():
    example = text_draft(TextDocument("t", np.array([5, 6, 7], np.int32), 2), VOCABULARY)
    assert example.tokens.tolist() == [1, VOCABULARY.text_mode_id, 5, 6, 7, 2]


def test_blocks_of_no_words_are_refused():
    with pytest.raises(ValueError, match="num_words"):
        choose_blocks(0, np.random.default_rng(0))
