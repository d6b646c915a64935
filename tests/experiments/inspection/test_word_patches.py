"""Words drawn from records: each with its own patch, balanced, and the same for a seed."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.records.storage import make_utterance, open_records, write_records
from experiments.inspection.word_patches import NO_WORD, SampleConfig, sample_words
from lst_jax.patching import PatchingConfig
from lst_jax.vocabulary import TextTokenizer
from tests.test_version1 import VERSION1

SILENCE = "[SIL]"


@pytest.fixture(scope="module")
def tokenizer():
    return TextTokenizer(VERSION1 / "tokenizer.model")


@pytest.fixture(scope="module")
def source(tmp_path_factory, tokenizer):
    """Utterances whose unit at every frame is the number of its word."""
    rng = np.random.default_rng(0)
    words = ["a", "the", "of", "rare"]
    utterances = []
    for index in range(12):
        said = [*rng.permutation(words[:3]), *(["rare"] if index == 0 else [])]
        entries = [SILENCE, *(x for word in said for x in (word, SILENCE))]
        counts = rng.integers(0, 4, len(entries))
        counts[1::2] += 1  # words; some silences have no unit
        numbers = [words.index(entry) if entry in words else 9 for entry in entries]
        units = np.repeat(numbers, counts)
        utterances.append(make_utterance(str(index), entries, units, counts, tokenizer))
    folder = tmp_path_factory.mktemp("words") / "records"
    write_records(folder, "speech", utterances, tokenizer, unit_count=10)
    return open_records(folder)


def draw(source, tokenizer, silence="separate", patches=64, **changes):
    config = SampleConfig(**{"words": 3, "occurrences": 4, **changes})
    patching = PatchingConfig("curriculum", silence=silence, join_speech_mode=True)
    return sample_words(source, config, patching, tokenizer.vocabulary(10), patches)


@pytest.mark.parametrize("silence", ["separate", "merged"])
def test_each_word_has_its_own_units(source, tokenizer, silence):
    sample = draw(source, tokenizer, silence)
    assert sample.names == ("a", "of", "the")
    assert np.bincount(sample.words).tolist() == [4, 4, 4]
    numbers = {"a": 0, "the": 1, "of": 2}
    chosen = sample.chosen
    for word, own, index, patch in zip(
        sample.words, sample.first_pieces, chosen.document, chosen.patch, strict=True
    ):
        document = chosen.documents[index]
        start = document.patch_lengths[:patch].sum()
        ids = document.tokens[start : start + document.patch_lengths[patch]]
        units = set((ids - tokenizer.vocabulary(10).first_unit_id).tolist())
        assert units - ({9} if silence == "merged" else set()) == {numbers[sample.names[word]]}
        assert own == tokenizer.encode(sample.names[word])[0]


def test_the_next_word_is_the_one_said_next(source, tokenizer):
    sample = draw(source, tokenizer, occurrences=11)
    last = sample.next_pieces == NO_WORD
    assert 0 < last.sum() <= 12
    pieces = {tokenizer.encode(word)[0] for word in ("a", "the", "of", "rare")}
    assert set(sample.next_pieces[~last].tolist()) <= pieces


def test_a_seed_decides_what_is_drawn(source, tokenizer):
    def values(seed):
        sample = draw(source, tokenizer, seed=seed, max_records=10)
        return [*sample.chosen.patch, *sample.next_pieces]

    assert values(1) == values(1) != values(2)


def test_what_does_not_fit_into_a_row_is_left_out(source, tokenizer):
    sample = draw(source, tokenizer, patches=5, occurrences=2)
    assert all(document.num_patches <= 5 for document in sample.chosen.documents)
    assert sample.chosen.patch.max() < 5


def test_too_few_words_are_refused_in_one_line(source, tokenizer):
    with pytest.raises(ValueError, match=r"^0 words occur 13 times in 12 records, expected"):
        draw(source, tokenizer, occurrences=13)
    with pytest.raises(ValueError, match=r"SampleConfig\.words is 1, expected an integer, 2"):
        dataclasses.replace(SampleConfig(), words=1)
