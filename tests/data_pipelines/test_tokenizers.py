"""What a trained tokenizer does with text."""

import pytest

from data_pipelines.tokenizers import train_tokenizer
from lst_jax.vocabulary import TextTokenizer
from tests.data_pipelines.small_corpus import sample_texts

# Numbers and spaces that a trainer without Llama's settings would make pieces of.
TEXTS = [*sample_texts(), *["in 1984 and 1984  the ﬁne  Ünit 19 84"] * 50]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "deep" / "name"
    file = train_tokenizer(TEXTS, path, 420)
    assert file == path.with_suffix(".model") and [*path.parent.iterdir()] == [file]
    return TextTokenizer(file)


def test_special_pieces_have_llamas_ids(tokenizer):
    assert [tokenizer.piece(i) for i in range(3)] == ["<unk>", "<s>", "</s>"]
    vocabulary = tokenizer.vocabulary(7)
    assert (vocabulary.bos_id, vocabulary.eos_id, vocabulary.text_size) == (1, 2, 420)
    assert tokenizer.size == 420
    assert [tokenizer.piece(3 + byte) for byte in (0, 255)] == ["<0x00>", "<0xFF>"]


def test_every_digit_is_a_piece_and_no_piece_has_two(tokenizer):
    pieces = [tokenizer.piece(i) for i in tokenizer.encode("in 1984")]
    assert pieces[-4:] == ["1", "9", "8", "4"]
    for i in range(3 + 256, tokenizer.size):
        piece = tokenizer.piece(i).strip("\u2581")
        assert not any(letter.isdigit() for letter in piece) or len(piece) == 1


def test_text_stays_as_it_is(tokenizer):
    """Neither ligatures nor spaces are normalized, and what has no piece becomes bytes."""
    for text in ("the ﬁne  Ünit", "two  spaces", " led and trailed ", "日本 \U0001f600", "e\u0301"):
        ids = tokenizer.encode(text)
        assert 0 not in ids
        assert tokenizer.decode(ids) == text
    ids = tokenizer.encode("日")
    assert [tokenizer.piece(i) for i in ids[-3:]] == ["<0xE6>", "<0x97>", "<0xA5>"]
    assert tokenizer.piece(tokenizer.encode("the")[0]).startswith("\u2581")


def test_the_same_texts_give_the_same_file(tokenizer, tmp_path):
    again = train_tokenizer(iter(TEXTS), tmp_path / "again", 420)
    assert again.read_bytes() == tokenizer.model_path.read_bytes()
    other = train_tokenizer(TEXTS[::2], tmp_path / "other", 420)
    assert other.read_bytes() != again.read_bytes()


def test_settings_reach_the_trainer(tmp_path):
    file = train_tokenizer(TEXTS, tmp_path / "a", 120, model_type="unigram", byte_fallback=False)
    plain = TextTokenizer(file)
    assert plain.size == 120
    assert not any(
        tokenizer_piece.startswith("<0x") for tokenizer_piece in map(plain.piece, range(120))
    )
    assert 0 in plain.encode("日")


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "texts are empty"),
        (["", " \n "], {}, "texts are empty"),
        (TEXTS, {"vocab_size": 0}, "vocab_size is 0, expected at least 1"),
        (TEXTS, {"vocab_size": 10**5}, r"vocab_size is 100000, but these texts allow at most \d+"),
        (TEXTS, {"vocab_size": 100}, r"vocab_size is 100, but these texts need more than \d+"),
        (TEXTS, {"model_type": "word"}, "model_type is 'word', expected 'bpe' or 'unigram'"),
        (TEXTS, {"character_coverage": 0.0}, "character_coverage is 0.0, expected in"),
        (TEXTS, {"character_coverage": 1.01}, "character_coverage is 1.01"),
    ],
)
def test_what_cannot_be_trained_is_named_and_leaves_no_file(tmp_path, texts, settings, message):
    arguments = {"vocab_size": 420, **settings}
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, tmp_path / "out", **arguments)
    assert [*tmp_path.iterdir()] == []
