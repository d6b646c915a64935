"""Tests of the id space and of the text tokenizer."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.tokenizers import train_tokenizer
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import TextTokenizer, Vocabulary

TEXT = [
    "the little river ran by the pleasant path and the anglers waded in the stream",
    "they followed the path to the river in 1999 and sang about the little stream",
    "a pleasant time of singing by the path was had by all who waded there",
] * 3


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return train_tokenizer(TEXT, tmp_path_factory.mktemp("tokenizer") / "bpe", 340)


@pytest.fixture(scope="module")
def tokenizer(model_path):
    return TextTokenizer(model_path)


@pytest.mark.parametrize("words", [True, False])
def test_text_that_cannot_be_spelled_is_said_once(tmp_path, caplog, words):
    path = train_tokenizer(["a b c d e"] * 9, tmp_path / "t", 11, byte_fallback=False)
    tokenizer = TextTokenizer(path)

    def encode(text):
        return tokenizer.encode_words([text])[0] if words else tokenizer.encode(text)

    assert tokenizer.count_unknown(encode("a")) == 0 and not caplog.records
    assert tokenizer.count_unknown(encode("ж")) == 1
    encode("я")
    (record,) = caplog.records
    assert record.name == "lst_jax.vocabulary" and "cannot spell all of 'ж'" in record.message


def test_layout_is_the_published_one():
    vocabulary = Vocabulary(32_000)
    assert (vocabulary.bos_id, vocabulary.eos_id) == (1, 2)
    assert (vocabulary.text_mode_id, vocabulary.speech_mode_id) == (32_004, 32_005)
    assert vocabulary.first_unit_id == 32_006
    assert vocabulary.size == 32_508


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 50), st.integers(1, 20), st.data())
def test_units_survive_ids(text_size, unit_count, data):
    vocabulary = Vocabulary(text_size, 0, 1, unit_count)
    units = data.draw(st.lists(st.integers(0, unit_count - 1), max_size=20))
    ids = vocabulary.units_to_ids(units)
    assert ids.dtype == np.int32
    assert vocabulary.is_unit(ids).all()
    assert not vocabulary.is_text(ids).any()
    assert vocabulary.ids_to_units(ids).tolist() == units


@pytest.mark.parametrize("units", [[-1], [0, 502], [0.5]])
def test_units_out_of_range_are_errors(units):
    with pytest.raises(ValueError, match="units"):
        Vocabulary(10).units_to_ids(units)


@pytest.mark.parametrize("name", ["text_mode_id", "speech_mode_id", "size"])
def test_ids_of_no_unit_are_errors(name):
    vocabulary = Vocabulary(10)
    with pytest.raises(ValueError, match="ids holds"):
        vocabulary.ids_to_units([getattr(vocabulary, name)])


@pytest.mark.parametrize(
    "arguments",
    [
        {"text_size": 1},
        {"text_size": 10, "bos_id": 10},
        {"text_size": 10, "bos_id": -1},
        {"text_size": 10, "eos_id": 1},
        {"text_size": 10, "unit_count": 0},
    ],
)
def test_impossible_vocabularies_are_errors(arguments):
    with pytest.raises(ValueError, match="expected"):
        Vocabulary(**arguments)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 19), max_size=30))
def test_runs_are_all_units_and_only_they(ids):
    vocabulary = Vocabulary(4, 1, 2, unit_count=10)  # units are ids 10 … 19
    starts, ends = vocabulary.split_runs(np.array(ids, np.int32))
    inside = np.zeros(len(ids), bool)
    for start, end in zip(starts, ends, strict=True):
        assert start < end
        inside[start:end] = True
    assert (starts[1:] > ends[:-1]).all()
    assert inside.tolist() == [token >= 10 for token in ids]


def test_special_ids_are_llamas(tokenizer):
    vocabulary = tokenizer.vocabulary(7)
    assert vocabulary == Vocabulary(340, 1, 2, 7)
    assert tokenizer.size == 340


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=8))
def test_words_encode_as_they_do_in_running_text(tokenizer, texts):
    words = [word for text in texts for word in text.replace("\u2581", "").split()]
    words += ["river", "anglers", "1999"]
    pieces, counts = tokenizer.encode_words(words)
    assert pieces.dtype == counts.dtype == np.int32
    assert (counts > 0).all()
    assert counts.sum() == len(pieces)
    assert pieces.tolist() == tokenizer.encode(" ".join(words)).tolist()
    assert tokenizer.decode(pieces) == " ".join(words)


def test_a_word_has_the_same_pieces_everywhere(tokenizer):
    pieces, counts = tokenizer.encode_words(["stream", "the", "stream"])
    assert pieces[: counts[0]].tolist() == pieces[-counts[2] :].tolist()


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_models_without_the_space_before_a_text_encode_words_after_a_space(tmp_path, model_type):
    prefix = tmp_path / "bare"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT),
        model_prefix=str(prefix),
        vocab_size=300,
        model_type=model_type,
        byte_fallback=True,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = TextTokenizer(f"{prefix}.model")
    pieces, _ = tokenizer.encode_words(["the", "river"])
    assert pieces.tolist() == tokenizer.encode("the river").tolist()
    assert tokenizer.piece(pieces[0]).startswith("\u2581")


@pytest.mark.parametrize(
    "word", ["", " ", "two words", "tab\tbed", "nb\u00a0sp", "\u2581x", "\ud800"]
)
def test_words_that_are_none_are_errors(tokenizer, word):
    with pytest.raises(ValueError, match="words holds"):
        tokenizer.encode_words(["the", word])


def test_no_words_have_no_pieces(tokenizer):
    pieces, counts = tokenizer.encode_words([])
    assert (pieces.shape, counts.shape) == ((0,), (0,))
    assert tokenizer.encode("").shape == (0,)


@pytest.mark.parametrize("ids", [[-1], [340], [10**9], [1.5]])
def test_ids_of_no_piece_do_not_decode(tokenizer, ids):
    with pytest.raises(ValueError, match="ids"):
        tokenizer.decode(ids)


def test_tokenizers_pickle_into_workers(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode("the stream").tolist() == tokenizer.encode("the stream").tolist()


def test_a_missing_or_foreign_model_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.model"):
        TextTokenizer(tmp_path / "nowhere.model")
    for contents in (b"", b"not a model", b"\0" * 1000):
        path = tmp_path / "foreign.model"
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"foreign\.model is not a SentencePiece model"):
            TextTokenizer(path)


def test_fingerprints_tell_models_apart(tmp_path, tokenizer, model_path):
    other = TextTokenizer(train_tokenizer(TEXT, tmp_path / "other", 341))
    assert other.fingerprint != tokenizer.fingerprint
    assert TextTokenizer(model_path).fingerprint == tokenizer.fingerprint


def test_pieces_stand_for_the_bytes_of_their_text(tokenizer):
    """Of letters that the model has, and of others, which it spells byte by byte."""
    text = "the stream naïve 語"
    units = UnitEncoding(True, 1.5, ((3, 4), (3, 4, 3)))
    vocabulary = tokenizer.vocabulary(9, units)
    sizes = tokenizer.token_sizes(vocabulary)
    assert sizes[tokenizer.encode(text)].sum() == len(f" {text}".encode())
    assert (
        sizes[[vocabulary.bos_id, vocabulary.eos_id, vocabulary.text_mode_id]].tolist() == [0] * 3
    )
    assert sizes[vocabulary.first_unit_id :].tolist() == [1.5] * 9 + [3.0, 4.5]
