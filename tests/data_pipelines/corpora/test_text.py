"""Tests of text corpora and of training tokenizers on them."""

from __future__ import annotations

import json
import os

import pytest

from data_pipelines.corpora.lines import RecordError, SkipReport
from data_pipelines.corpora.text import read_text_corpus
from data_pipelines.tokenizers import train_tokenizer
from tests.data_pipelines.small_corpus import make_tokenizer, sample_texts

TEXTS = ["the little river", "été 1999 — “wow”", "  spaces  kept  "]


def write_text(path, texts):
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def write_jsonl(path, texts):
    return write_text(path, [json.dumps({"id": 7, "text": text}) for text in texts])


@pytest.mark.parametrize(("write", "format"), [(write_text, "text"), (write_jsonl, "text_jsonl")])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_document_comes_in_by_its_place(tmp_path, write, format, num_workers):
    path = write(tmp_path / "corpus", TEXTS)
    documents = list(
        read_text_corpus([path], make_tokenizer(), format=format, num_workers=num_workers)
    )
    assert [document.file_id for document in documents] == ["corpus:1", "corpus:2", "corpus:3"]
    assert [document.word_count for document in documents] == [3, 4, 2]
    for document, text in zip(documents, TEXTS, strict=True):
        assert document.pieces.tolist() == make_tokenizer().encode(text).tolist()
        assert make_tokenizer().decode(document.pieces) == text


def test_documents_of_jsonl_may_hold_line_breaks(tmp_path):
    path = write_jsonl(tmp_path / "corpus", ["one\ntwo"])
    (document,) = read_text_corpus([path], make_tokenizer())
    assert make_tokenizer().decode(document.pieces) == "one\ntwo"


def test_license_and_source_of_jsonl_are_kept(tmp_path):
    known = {"license": "CC0", "source": "web"}
    lines = [{"text": "one", **known}, {"text": "two", "source": None, "url": 3}]
    path = write_text(tmp_path / "corpus", map(json.dumps, lines))
    first, second = read_text_corpus([path], make_tokenizer())
    assert (first.license, first.source) == ("CC0", "web")
    assert (second.license, second.source) == (None, None)


def test_windows_line_ends_are_no_part_of_a_document(tmp_path):
    path = tmp_path / "corpus"
    path.write_bytes(b"one\r\ntwo")
    documents = list(read_text_corpus([path], make_tokenizer(), format="text"))
    assert [make_tokenizer().decode(document.pieces) for document in documents] == ["one", "two"]


@pytest.mark.parametrize(
    ("format", "line", "message"),
    [
        ("text", b"", "blank line"),
        ("text", b"a\0b\0", "NUL character: at 1; expected UTF-8, not UTF-16"),
        ("text_jsonl", b'{"text": "a", "text": "b"}', "key twice: 'text'"),
        ("text", " \u3000\t".encode(), "blank line"),
        ("text", b"caf\xe9", "not UTF-8: byte 0xe9 at 3"),
        ("text_jsonl", b"", "blank line"),
        ("text_jsonl", b"plain text", "not JSON"),
        ("text_jsonl", b'"text"', "not a JSON object"),
        ("text_jsonl", b'{"txt": "a"}', "missing key: 'text'"),
        ("text_jsonl", b'{"text": ["a"]}', "'text' is not a str"),
        ("text_jsonl", b'{"text": " \\n "}', "empty text"),
        ("text_jsonl", b'{"text": "\\udfff"}', "not Unicode"),
        ("text_jsonl", b'{"text": "a", "license": 3}', "'license' is not a str"),
        ("text_jsonl", b'{"text": "a", "source": ""}', "empty source"),
    ],
)
def test_bad_lines_name_file_and_line_or_are_counted(tmp_path, format, line, message):
    good = b'{"text": "good"}'
    path = tmp_path / "corpus"
    path.write_bytes(b"\n".join([good, line, good]) + b"\n")
    with pytest.raises(RecordError) as error:
        list(read_text_corpus([path], make_tokenizer(), format=format))
    assert str(error.value).startswith(f"{path}:2: {message}")
    skipped = SkipReport()
    assert (
        len(list(read_text_corpus([path], make_tokenizer(), format=format, skipped=skipped))) == 2
    )
    assert skipped.total == 1
    assert f"{path}:2: {message}" in str(skipped)


BYTE_ORDER_MARK = "\ufeff".encode()


@pytest.mark.parametrize("format", ["text", "text_jsonl"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_byte_order_mark_is_no_part_of_a_document(tmp_path, format, num_workers):
    """Neither that of a file from Windows nor those of several that were joined."""
    lines = [b"one", b"two"] if format == "text" else [b'{"text": "one"}', b'{"text": "two"}']
    path = tmp_path / "corpus"
    path.write_bytes(b"".join(BYTE_ORDER_MARK + line + b"\r\n" for line in lines))
    documents = read_text_corpus([path], make_tokenizer(), format=format, num_workers=num_workers)
    assert [make_tokenizer().decode(document.pieces) for document in documents] == ["one", "two"]


@pytest.mark.parametrize("format", ["text", "text_jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_text_in_a_wide_encoding_is_refused_before_work_begins(tmp_path, format, encoding):
    good, wide = write_text(tmp_path / "good", ["one"]), tmp_path / "wide"
    text = "one\n" if format == "text" else '{"text": "one"}\n'
    good.write_text(text)
    wide.write_text(text, encoding=encoding)
    documents = read_text_corpus([good, wide], make_tokenizer(), format=format)
    if encoding in ("utf-16", "utf-32"):  # with a mark, which the file as a whole is refused by
        with pytest.raises(ValueError, match=r"wide is UTF-16 or UTF-32.*expected UTF-8$"):
            next(documents)
    else:
        with pytest.raises(RecordError, match=r"wide:1: (NUL character|not JSON)"):
            list(documents)


def test_a_file_whose_name_is_not_utf8_is_refused_before_work_begins(tmp_path):
    good = write_text(tmp_path / "good", ["one"])
    bad = tmp_path / os.fsdecode(b"caf\xe9.txt")
    bad.write_text("two\n")
    documents = read_text_corpus([good, bad], make_tokenizer(), format="text")
    with pytest.raises(ValueError, match=r"caf\\udce9\.txt: expected a name in UTF-8"):
        next(documents)


def test_unknown_formats_are_errors(tmp_path):
    with pytest.raises(ValueError, match="format is 'csv'"):
        read_text_corpus([tmp_path], make_tokenizer(), format="csv")


# --- tokenizers


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_texts_make_the_same_tokenizer(tmp_path, model_type):
    paths = [
        train_tokenizer(sample_texts(), tmp_path / name, 350, model_type=model_type)
        for name in ("a", "b")
    ]
    assert paths[0] == tmp_path / "a.model"
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_tokenizers_that_cannot_be_are_errors(tmp_path):
    texts = sample_texts()
    for arguments, message in (
        ((texts, tmp_path / "a", 100_000), "vocab_size is 100000, but these texts allow at most"),
        ((texts, tmp_path / "a", 100), "vocab_size is 100, but these texts need more than"),
        ((texts, tmp_path / "a", 0), "vocab_size is 0"),
        (([], tmp_path / "a", 300), "texts are empty"),
        ((["", " \n"], tmp_path / "a", 300), "texts are empty"),
    ):
        with pytest.raises(ValueError, match=message):
            train_tokenizer(*arguments)
    for prefix in ("", f"{tmp_path}/"):
        with pytest.raises(ValueError, match=r"output_prefix is .*, expected a file's path"):
            train_tokenizer(texts, prefix, 350)
    with pytest.raises(ValueError, match="model_type is 'word'"):
        train_tokenizer(texts, tmp_path / "a", 350, model_type="word")
    with pytest.raises(ValueError, match="character_coverage"):
        train_tokenizer(texts, tmp_path / "a", 350, character_coverage=1.5)
    assert list(tmp_path.iterdir()) == []


def test_the_limit_an_error_names_is_one_that_works(tmp_path):
    with pytest.raises(ValueError, match="at most") as error:
        train_tokenizer(sample_texts(), tmp_path / "a", 100_000)
    limit = int(str(error.value).split()[-2])
    assert train_tokenizer(sample_texts(), tmp_path / "a", limit).exists()


def test_characters_never_seen_survive_as_bytes():
    tokenizer = make_tokenizer()
    assert tokenizer.decode(tokenizer.encode("日本 🎉")) == "日本 🎉"
