"""Tests of records: payloads, directories of shards, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import pickle
import struct
from concurrent import futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
from data_pipelines.records import storage as records
from data_pipelines.records.payloads import decode_record, encode_record
from data_pipelines.records.types import check_record
from lst_jax.vocabulary import Vocabulary
from tests.data_pipelines.small_corpus import SAMPLE, make_tokenizer

VOCABULARY = Vocabulary(400)


def assert_same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype == np.int32
            assert left.tolist() == right.tolist()
        else:
            assert left == right


def read_sample():
    return list(read_reference_jsonl([SAMPLE], make_tokenizer()))


@pytest.fixture
def directory(tmp_path):
    """The sample as records in three shards."""
    path = tmp_path / "records"
    records.write_records(path, "speech", read_sample(), make_tokenizer(), records_per_shard=4)
    return path


def make_text(text, file_id="a"):
    return records.make_text_document(file_id, text, make_tokenizer())


# --- payloads


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda text: text.split() == [text] and "\u2581" not in text
)
aligned = st.lists(
    st.tuples(
        st.one_of(st.just(records.SILENCE), words), st.lists(st.integers(0, 501), max_size=9)
    ),
    max_size=20,
)
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(names, aligned)
def test_utterances_survive_their_payload(file_id, pairs):
    pairs = [*pairs, ("end", [3, 3])]
    utterance = records.make_utterance(
        file_id,
        [word for word, _ in pairs],
        [unit for _, units in pairs for unit in units],
        [len(units) for _, units in pairs],
        make_tokenizer(),
    )
    check_record(utterance, VOCABULARY)
    assert_same(decode_record(encode_record(utterance)), utterance)


@settings(max_examples=60, deadline=None)
@given(names, st.lists(st.integers(0, 399), min_size=1, max_size=50), st.integers(0, 99))
def test_texts_survive_their_payload(file_id, pieces, word_count):
    document = records.TextDocument(file_id, np.array(pieces, np.int32), word_count)
    check_record(document, VOCABULARY)
    assert_same(decode_record(encode_record(document)), document)


def test_payloads_are_laid_out_as_documented():
    def int32(*values):
        return struct.pack(f"<{len(values)}i", *values)

    utterance = records.Utterance(
        "é",
        ("ab", "[SIL]"),
        np.array([7, 8], np.int32),
        np.array([2, 0], np.int32),
        np.array([501, 0, 9], np.int32),
        np.array([1, 2], np.int32),
    )
    assert encode_record(utterance) == (
        b"LSTU"
        + int32(1, 2, 8, 2, 2, 3)
        + int32(2, 0)
        + int32(1, 2)
        + int32(7, 8)
        + int32(501, 0, 9)
        + "é".encode()
        + b"ab\n[SIL]"
    )
    document = records.TextDocument("é", np.array([7, 8], np.int32), 5)
    assert encode_record(document) == b"LSTT" + int32(1, 2, 5, 2) + int32(7, 8) + "é".encode()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_cut_payloads_are_errors(cut, text):
    record = make_text("a pleasant path") if text else read_sample()[0]
    payload = encode_record(record)
    with pytest.raises(ValueError, match="a payload"):
        decode_record(payload[: cut % len(payload)])
    with pytest.raises(ValueError, match="a payload"):
        decode_record(payload + b"\0")


def test_payloads_of_another_version_are_errors():
    payload = bytearray(encode_record(make_text("a path")))
    payload[4] = 2
    with pytest.raises(ValueError, match="version 2, expected 1"):
        decode_record(bytes(payload))


GOOD = records.Utterance(
    "a",
    ("b", "[SIL]"),
    np.array([7], np.int32),
    np.array([1, 0], np.int32),
    np.array([1, 2, 3], np.int32),
    np.array([1, 2], np.int32),
)


@pytest.mark.parametrize(
    "changes",
    [
        {"words": ()},
        {"words": ("b", "")},
        {"words": ("b\n", "[SIL]")},
        {"words": ("b", "c")},
        {"words": ("[SIL]", "[SIL]")},
        {"words": ("b",)},
        {"pieces": np.array([7, 7])},
        {"pieces": np.array([400])},
        {"pieces": np.array([-1])},
        {"pieces": np.array([1.0])},
        {"piece_counts": np.array([[1, 0]])},
        {"piece_counts": np.array([2, -1])},
        {"units": np.array([1, 2])},
        {"units": np.array([1, 2, 502])},
        {"units": np.array([1, 2, -1])},
        {"units": np.array([], np.int32), "unit_counts": np.array([0, 0])},
        {"unit_counts": np.array([4, -1])},
        {"unit_counts": np.array([3])},
    ],
)
def test_broken_utterances_are_not_written(tmp_path, changes):
    broken = dataclasses.replace(GOOD, **changes)
    with pytest.raises(ValueError, match="utterance 'a'"):
        records.write_records(tmp_path / "out", "speech", [GOOD, broken], make_tokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [{"pieces": np.zeros(0, np.int32)}, {"word_count": -1}, {"pieces": np.array([400], np.int32)}],
)
def test_broken_texts_are_not_written(tmp_path, changes):
    broken = dataclasses.replace(make_text("a path"), **changes)
    with pytest.raises(ValueError, match="text document 'a'"):
        records.write_records(tmp_path / "out", "text", [broken], make_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_units_that_are_no_integers_are_errors():
    with pytest.raises(ValueError, match="units has dtype float64"):
        records.make_utterance("a", ["b"], [1.5], [1], make_tokenizer())


# --- directories


def test_records_come_back_in_order(directory):
    source = records.open_records(
        directory, VOCABULARY, fingerprint=make_tokenizer().fingerprint, kind="speech"
    )
    sample = read_sample()
    assert len(source) == len(sample) == 10
    for index, utterance in enumerate(sample):
        assert_same(source[index], utterance)
    for one, other in zip(source, sample, strict=True):
        assert_same(one, other)
    order = [9, 0, 4, 4, 3]
    for one, index in zip(source.__getitems__(order), order, strict=True):
        assert_same(one, sample[index])
    assert source.__getitems__([]) == []


def test_totals_are_those_of_the_records(directory):
    metadata = records.open_records(directory).metadata
    assert metadata.totals == sum(map(records.count_record, read_sample()), records.Totals())
    assert metadata.totals.units == 4108
    assert [shard.records for shard in metadata.shards] == [4, 4, 2]
    assert metadata.fingerprint == make_tokenizer().fingerprint


def test_totals_of_texts_count_words(tmp_path):
    texts = [make_text("one two three"), make_text("four")]
    metadata = records.write_records(tmp_path / "out", "text", texts, make_tokenizer())
    assert metadata.totals.words == 4
    assert metadata.totals.text_tokens == sum(len(text.pieces) for text in texts)
    assert metadata.unit_count == 0
    assert_same(records.open_records(tmp_path / "out", Vocabulary(400, unit_count=9))[1], texts[1])


@pytest.mark.parametrize("index", [-1, 10, 10**9])
def test_indices_outside_are_errors(directory, index):
    source = records.open_records(directory)
    with pytest.raises(IndexError, match="record index"):
        source[index]
    with pytest.raises(IndexError, match="record index"):
        source.__getitems__([0, index])


def test_sources_pickle_small_and_read_on(directory):
    source = records.open_records(directory)
    first = source[0]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    assert_same(pickle.loads(pickled)[0], first)


def test_threads_read_what_one_reads(directory):
    source = records.open_records(directory)
    order = [*range(10)] * 5
    with futures.ThreadPoolExecutor(8) as pool:
        read = list(pool.map(source.__getitem__, order))
    sample = read_sample()
    for one, index in zip(read, order, strict=True):
        assert_same(one, sample[index])


def test_closed_sources_open_again(directory):
    source = records.open_records(directory)
    first = source[0]
    source.close()
    assert_same(source[0], first)


def test_patterns_open_directories_as_one(tmp_path):
    for name, text in (("part-b", "two words"), ("part-a", "one")):
        records.write_records(tmp_path / name, "text", [make_text(text, name)], make_tokenizer())
    source = records.open_records(tmp_path / "part-*")
    assert [document.file_id for document in source] == ["part-a", "part-b"]
    assert source.metadata.totals.words == 3


def test_patterns_do_not_mix_kinds(tmp_path):
    records.write_records(tmp_path / "part-a", "text", [make_text("one")], make_tokenizer())
    records.write_records(tmp_path / "part-b", "speech", [GOOD], make_tokenizer())
    with pytest.raises(ValueError, match="part-b hold speech, expected text"):
        records.open_records(tmp_path / "part-*")


# --- writing


def test_finished_outputs_are_replaced_only_when_told(tmp_path):
    path = tmp_path / "out"
    records.write_records(path, "text", [make_text("one")], make_tokenizer())
    with pytest.raises(FileExistsError, match="out exists"):
        records.write_records(path, "text", [make_text("two", "b")], make_tokenizer())
    assert records.open_records(path)[0].file_id == "a"
    records.write_records(path, "text", [make_text("two", "b")], make_tokenizer(), overwrite=True)
    assert records.open_records(path)[0].file_id == "b"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_empty_directories_may_become_outputs(tmp_path):
    (tmp_path / "out").mkdir()
    records.write_records(tmp_path / "out", "text", [make_text("one")], make_tokenizer())
    assert len(records.open_records(tmp_path / "out")) == 1


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "out"
    records.write_records(path, "text", [make_text("one")], make_tokenizer())

    def fail():
        yield make_text("two", "b")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_records(path, "text", fail(), make_tokenizer(), overwrite=True)
    assert records.open_records(path)[0].file_id == "a"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_nothing_to_write_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no records"):
        records.write_records(tmp_path / "out", "text", [], make_tokenizer())
    assert list(tmp_path.iterdir()) == []


def test_kinds_do_not_mix(tmp_path):
    with pytest.raises(ValueError, match="expected a Utterance"):
        records.write_records(tmp_path / "out", "speech", [make_text("one")], make_tokenizer())
    with pytest.raises(ValueError, match="kind is 'video'"):
        records.write_records(tmp_path / "out", "video", [GOOD], make_tokenizer())


def test_the_same_records_make_the_same_files(tmp_path):
    for name in ("a", "b"):
        records.write_records(tmp_path / name, "speech", read_sample(), make_tokenizer())
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# --- opening what is wrong


def test_missing_records_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such directory"):
        records.open_records(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"nowhere-\*: nothing matches"):
        records.open_records(tmp_path / "nowhere-*")
    with pytest.raises(FileNotFoundError, match=r"no metadata\.json"):
        records.open_records(tmp_path)


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\xff",
        b"[]",
        b"[" * 100_000,
        b'{"format": "lst-jax-records"}',
        b'{"format": "lst-jax-records", "version": 1}',
        b'{"format": "lst-jax-records", "version": 1, "totals": 3, "shards": 4}',
    ],
)
def test_malformed_metadata_is_named(directory, contents):
    (directory / "metadata.json").write_bytes(contents)
    with pytest.raises(ValueError, match=r"metadata\.json is not the metadata of records"):
        records.open_records(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "video"},
        {"kind": []},
        {"version": 2},
        {"text_size": "400"},
        {"unit_count": -1},
        {"fingerprint": None},
        {"totals": {"documents": 11}},
        {"totals": {"pages": 1}},
        {"shards": [{"name": 1, "records": 10, "bytes": 5}]},
        {"shards": [7]},
        {"color": "red"},
    ],
)
def test_impossible_metadata_is_named(directory, changes):
    path = directory / "metadata.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=r"metadata\.json is not the metadata of records"):
        records.open_records(directory)


def test_another_tokenizer_is_an_error_that_names_both(directory):
    mine, other = make_tokenizer().fingerprint, make_tokenizer(401).fingerprint
    with pytest.raises(ValueError, match=f"{mine}.*{other}"):
        records.open_records(directory, fingerprint=other)


@pytest.mark.parametrize(
    ("vocabulary", "message"),
    [
        (Vocabulary(401), "400 text pieces, expected 401"),
        (Vocabulary(400, unit_count=501), "502 speech units, expected 501"),
    ],
)
def test_another_vocabulary_is_an_error(directory, vocabulary, message):
    with pytest.raises(ValueError, match=message):
        records.open_records(directory, vocabulary)


def test_another_kind_is_an_error(directory):
    with pytest.raises(ValueError, match="hold speech, expected text"):
        records.open_records(directory, kind="text")


def shard_path(directory, shard=1):
    return directory / records.open_records(directory).metadata.shards[shard].name


def test_missing_shards_are_named(directory):
    path = shard_path(directory)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=path.name):
        records.open_records(directory)


@pytest.mark.parametrize("size", [0, 1, 65536, 131_071])
def test_truncated_shards_are_named(directory, size):
    path = shard_path(directory)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=f"{path.name} has {size} bytes.*truncated"):
        records.open_records(directory)


@pytest.mark.parametrize("start", [0, 65536])
def test_corrupt_shards_are_named(directory, start):
    path = shard_path(directory)
    contents = bytearray(path.read_bytes())
    contents[start : start + 4096] = bytes(byte ^ 0x5A for byte in contents[start : start + 4096])
    path.write_bytes(contents)
    source = records.open_records(directory)
    assert source[0].file_id == read_sample()[0].file_id
    with pytest.raises(ValueError, match=path.name):
        for index in range(4, 8):
            source[index]


def test_shards_of_foreign_records_are_named(directory):
    other = directory.parent / "other"
    records.write_records(other, "text", [make_text("one")] * 3, make_tokenizer())
    path = shard_path(directory)
    path.write_bytes(shard_path(other, 0).read_bytes())
    source = records.open_records(directory)  # it happens to be as long
    with pytest.raises(ValueError, match=f"{path.name} holds 3 records, expected 4"):
        source[4]
