"""Tests of records: payloads, directories of shards, and what is wrong with them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import pickle
import re
import shutil
import struct
from concurrent import futures

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
from data_pipelines.records import storage as records
from data_pipelines.records.payloads import decode_record, encode_record
from data_pipelines.records.types import check_record
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.vocabulary import TextTokenizer, Vocabulary
from tests.data_pipelines.small_corpus import SAMPLE, make_tokenizer
from tests.disks import files_of_at_most

VOCABULARY = Vocabulary(400)
VERSION1 = pathlib.Path(__file__).parents[2] / "testdata" / "version1"


def assert_same(one, other):
    assert type(one) is type(other)
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype == np.int32
            assert left.shape == right.shape
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


some_text = st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


def draw_times(draw, count):
    """Times (count, 2) in order, or None."""
    edges = st.lists(st.integers(0, 10**6), min_size=2 * count, max_size=2 * count).map(sorted)
    edges = draw(st.none() | edges)
    return None if edges is None else np.array(edges, np.int32).reshape(count, 2)


def draw_piece_units(draw, utterance):
    """How many units each piece has, or None."""
    if not draw(st.booleans()):
        return None
    counts = []
    pairs = zip(utterance.piece_counts.tolist(), utterance.unit_counts.tolist(), strict=True)
    for pieces, units in pairs:
        if pieces:
            edge = st.integers(0, int(units))
            cuts = sorted(draw(st.lists(edge, min_size=pieces - 1, max_size=pieces - 1)))
            counts += np.diff([0, *cuts, units]).tolist()
    return np.array(counts, np.int32)


@st.composite
def utterances(draw):
    """Utterances that know some of what may be known, and not the rest."""
    pairs = [*draw(aligned), ("end", [3, 3])]
    utterance = records.make_utterance(
        draw(names),
        [word for word, _ in pairs],
        [unit for _, units in pairs for unit in units],
        [len(units) for _, units in pairs],
        make_tokenizer(),
    )
    return dataclasses.replace(
        utterance,
        piece_unit_counts=draw_piece_units(draw, utterance),
        word_times_ms=draw_times(draw, len(pairs)),
        piece_times_ms=draw_times(draw, len(utterance.pieces)),
        **{name: draw(some_text) for name in ("transcript", "speaker", "license", "source")},
    )


@st.composite
def text_documents(draw):
    """Documents that know their license and source, or not."""
    pieces = draw(st.lists(st.integers(0, 399), min_size=1, max_size=50))
    return records.TextDocument(
        draw(names),
        np.array(pieces, np.int32),
        draw(st.integers(0, 99)),
        draw(some_text),
        draw(some_text),
    )


@settings(max_examples=100, deadline=None)
@given(utterances() | text_documents())
def test_records_survive_their_payload(record):
    check_record(record, VOCABULARY)
    assert_same(decode_record(encode_record(record)), record)


def int32(*values):
    return struct.pack(f"<{len(values)}i", *values)


def with_checksum(prefix, body):
    """A payload of version 2: the CRC-32C of its other bytes stands at offset 8."""
    return prefix + struct.pack("<I", crc32c(prefix + body)) + body


def crc32c(data):
    """CRC-32C bit by bit, as its definition has it."""
    register = 0xFFFFFFFF
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = (register >> 1) ^ (0x82F63B78 if register & 1 else 0)
    return register ^ 0xFFFFFFFF


BARE = records.Utterance(
    "é",
    ("ab", "[SIL]"),
    np.array([7, 8], np.int32),
    np.array([2, 0], np.int32),
    np.array([501, 0, 9], np.int32),
    np.array([1, 2], np.int32),
)
FULL = dataclasses.replace(
    BARE,
    piece_unit_counts=np.array([1, 0], np.int32),
    word_times_ms=np.array([[0, 40], [40, 120]], np.int32),
    piece_times_ms=np.array([[0, 30], [30, 40]], np.int32),
    transcript="Ab!",
    speaker="7240",
    license="CC BY 4.0",
    source="MLS",
)
BARE_ARRAYS = int32(2, 0) + int32(1, 2) + int32(7, 8) + int32(501, 0, 9)


def test_payloads_are_laid_out_as_documented():
    prefix = b"LSTU" + int32(2)
    assert encode_record(BARE) == with_checksum(
        prefix, int32(0, 2, 2, 3, 2, 8, 0, 0, 0, 0) + BARE_ARRAYS + "é".encode() + b"ab\n[SIL]"
    )
    times = int32(0, 40, 40, 120) + int32(0, 30, 30, 40)
    texts = "é".encode() + b"ab\n[SIL]" + b"Ab!" + b"7240" + b"CC BY 4.0" + b"MLS"
    assert encode_record(FULL) == with_checksum(
        prefix,
        int32(7, 2, 2, 3, 2, 8, 3, 4, 9, 3) + BARE_ARRAYS + int32(1, 0) + times + texts,
    )
    document = records.TextDocument("é", np.array([7, 8], np.int32), 5, source="web")
    assert encode_record(document) == with_checksum(
        b"LSTT" + int32(2), int32(5, 2, 2, 0, 3) + int32(7, 8) + "é".encode() + b"web"
    )


def test_payloads_of_version_1_are_read():
    payload = b"LSTU" + int32(1, 2, 8, 2, 2, 3) + BARE_ARRAYS + "é".encode() + b"ab\n[SIL]"
    assert_same(decode_record(payload), BARE)
    document = records.TextDocument("é", np.array([7, 8], np.int32), 5)
    payload = b"LSTT" + int32(1, 2, 5, 2) + int32(7, 8) + "é".encode()
    assert_same(decode_record(payload), document)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_cut_payloads_are_errors(cut, text):
    record = make_text("a pleasant path") if text else read_sample()[0]
    payload = encode_record(record)
    with pytest.raises(ValueError, match="a payload"):
        decode_record(payload[: cut % len(payload)])
    with pytest.raises(ValueError, match="a payload"):
        decode_record(payload + b"\0")


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([FULL, BARE, make_text("a pleasant path")]), st.integers(0, 10**6))
def test_a_flipped_bit_of_a_payload_is_an_error(record, place):
    payload = bytearray(encode_record(record))
    payload[place // 8 % len(payload)] ^= 1 << place % 8
    with pytest.raises(ValueError, match="a payload"):
        decode_record(bytes(payload))


@pytest.mark.parametrize("version", [0, 3, -1])
def test_payloads_of_another_version_are_errors(version):
    payload = bytearray(encode_record(make_text("a path")))
    payload[4:8] = int32(version)
    with pytest.raises(ValueError, match=f"version {version}, expected 1 … 2"):
        decode_record(bytes(payload))


@pytest.mark.parametrize(
    "body",
    [
        int32(8, 2, 2, 3, 2, 8, 0, 0, 0, 0),  # an array that version 2 has not
        int32(0, -2, 2, 3, 2, 8, 0, 0, 0, 0),
        int32(0, 2**31 - 1, 2, 3, 2, 8, 0, 0, 0, 0),
        int32(0, 2, 2),
    ],
)
def test_impossible_headers_are_errors(body):
    with pytest.raises(ValueError, match="a payload"):
        decode_record(with_checksum(b"LSTU" + int32(2), body))


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
        {"piece_unit_counts": np.array([2])},
        {"piece_unit_counts": np.array([1, 0])},
        {"piece_unit_counts": np.array([1.0])},
        {"word_times_ms": np.array([[0, 5]])},
        {"word_times_ms": np.array([[0, 5], [4, 9]])},
        {"word_times_ms": np.array([[-1, 5], [5, 9]])},
        {"word_times_ms": np.array([[0.0, 5.0], [5.0, 9.0]])},
        {"piece_times_ms": np.array([[5, 4]])},
        {"piece_times_ms": np.array([4, 5])},
        {"transcript": ""},
        {"speaker": 7},
        {"license": ""},
        {"source": b"web"},
    ],
)
def test_broken_utterances_are_not_written(tmp_path, changes):
    broken = dataclasses.replace(GOOD, **changes)
    with pytest.raises(ValueError, match="utterance 'a'"):
        records.write_records(tmp_path / "out", "speech", [GOOD, broken], make_tokenizer())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"pieces": np.zeros(0, np.int32)},
        {"word_count": -1},
        {"pieces": np.array([400], np.int32)},
        {"license": ""},
        {"source": 3},
    ],
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


def test_speech_whose_words_nobody_knows_is_no_silence_in_totals(tmp_path):
    one = read_sample()[0]
    alone = records.make_utterance(
        "alone", (records.SILENCE,), [3] * 50, np.array([50]), make_tokenizer()
    )
    out = tmp_path / "out"
    metadata = records.write_records(out, "speech", [one, alone], make_tokenizer())
    known, totals = records.count_record(one), metadata.totals
    assert (totals.silences, totals.silence_units) == (known.silences, known.silence_units)
    assert totals.mean_word_length == known.mean_word_length
    assert (totals.wordless, totals.wordless_units, totals.units) == (1, 50, known.units + 50)
    assert "2 documents (1 of them without words)" in metadata.summary()
    assert records.open_records(out).metadata == metadata


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


@pytest.mark.parametrize(
    ("encoders", "together"),
    [(("a", "a"), "a"), ((None, "a"), None), (("a", None), None), ((None, None), None)],
)
def test_directories_know_their_encoder_together(tmp_path, encoders, together):
    write_with_encoders(tmp_path, encoders)
    found = records.open_records(tmp_path / "part-*").metadata.encoder_fingerprint
    assert found == (together and together * 64)


def test_units_of_two_encoders_are_not_opened_as_one(tmp_path):
    write_with_encoders(tmp_path, ("a", "b"))
    with pytest.raises(ValueError, match=r"part-1 have units of the encoder bbb.*expected aaa"):
        records.open_records(tmp_path / "part-*")
    write_with_encoders(tmp_path / "more", ("a", None, "b", "c"))
    with pytest.raises(ValueError, match=r"part-2 have units of the encoder bbb.*expected aaa"):
        records.open_records(tmp_path / "more" / "part-*")
    with pytest.raises(ValueError, match="encoder_fingerprint is 'c', expected a SHA-256"):
        records.write_records(
            tmp_path / "out", "speech", [GOOD], make_tokenizer(), encoder_fingerprint="c"
        )


def write_with_encoders(folder, encoders):
    for number, encoder in enumerate(encoders):
        fingerprint = encoder and encoder * 64
        path = folder / f"part-{number}"
        records.write_records(
            path, "speech", [GOOD], make_tokenizer(), encoder_fingerprint=fingerprint
        )


# --- writing


def test_finished_outputs_are_replaced_only_when_told(tmp_path):
    path = tmp_path / "out"
    records.write_records(path, "text", [make_text("one")], make_tokenizer())
    with pytest.raises(FileExistsError, match="out exists"):
        write_text_records(path, "two", "b")
    assert records.open_records(path)[0].file_id == "a"
    write_text_records(path, "two", "b", overwrite=True)
    assert records.open_records(path)[0].file_id == "b"
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def write_text_records(path, text="one", file_id="a", **options):
    return records.write_records(
        path, "text", [make_text(text, file_id)], make_tokenizer(), **options
    )


def snapshot(folder):
    return {path: path.is_file() and path.read_bytes() for path in sorted(folder.rglob("*"))}


@pytest.mark.parametrize(
    "extra",
    [
        "notes/thesis.txt",
        "thesis.txt",
        "corpus.jsonl",
        "text-00000-of-00001.array_record/x",
        ".git/HEAD",
        "more.array_record",
    ],
)
@pytest.mark.parametrize("with_records", [True, False])
def test_a_directory_that_holds_anything_but_records_is_never_replaced(
    tmp_path, extra, with_records
):
    path = tmp_path / "out"
    if with_records:
        write_text_records(path)
        for shard in path.glob("*.array_record") if "/x" in extra else ():
            shard.unlink()
    (path / extra).parent.mkdir(parents=True, exist_ok=True)
    (path / extra).write_text("years of work")
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match=r"out (holds|is not empty and has no metadata)"):
        write_text_records(path, overwrite=True)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("metadata", [b"", b"{}", b'{"format": "lst-jax-run"}', b"\xff", None])
def test_a_directory_with_metadata_of_something_else_is_never_replaced(tmp_path, metadata):
    path = tmp_path / "out"
    path.mkdir()
    if metadata is None:
        (path / "metadata.json").mkdir()
    else:
        (path / "metadata.json").write_bytes(metadata)
    before = snapshot(tmp_path)
    with pytest.raises(FileExistsError, match=r"has no metadata\.json of records"):
        write_text_records(path, overwrite=True)
    assert snapshot(tmp_path) == before


def test_a_file_is_never_replaced_by_records(tmp_path):
    (tmp_path / "out").write_text("years of work")
    with pytest.raises(FileExistsError, match="is a file"):
        write_text_records(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out").read_text() == "years of work"


@pytest.mark.parametrize("overwrite", [True, False])
def test_an_output_that_comes_meanwhile_is_not_replaced(tmp_path, overwrite):
    """The place is looked at again before the last step."""
    path = tmp_path / "out"

    def items():
        yield make_text("one")
        path.mkdir()
        (path / "thesis.txt").write_text("years of work")

    with pytest.raises(FileExistsError, match="out"):
        records.write_records(path, "text", items(), make_tokenizer(), overwrite=overwrite)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]
    assert (path / "thesis.txt").read_text() == "years of work"


def test_records_that_come_meanwhile_are_replaced_only_when_told(tmp_path):
    def items():
        write_text_records(tmp_path / "out")
        yield make_text("two", "b")

    with pytest.raises(FileExistsError, match="out exists"):
        records.write_records(tmp_path / "out", "text", items(), make_tokenizer())
    assert records.open_records(tmp_path / "out")[0].file_id == "a"


def test_records_of_version_1_may_be_replaced(tmp_path):
    path = tmp_path / "out"
    shutil.copytree(VERSION1 / "text_records", path)
    write_text_records(path, overwrite=True)
    assert len(records.open_records(path)) == 1


def test_an_empty_output_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for overwrite in (True, False):
        with pytest.raises(ValueError, match="path is empty"):
            write_text_records("", overwrite=overwrite)


# --- what the tokenizer cannot spell


@pytest.fixture(scope="module")
def unspelling_tokenizer(tmp_path_factory):
    """A model without byte fallback: what it never saw is unk."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    return TextTokenizer(train_tokenizer(["a b c d e"] * 9, path, 11, byte_fallback=False))


@pytest.mark.parametrize(("unknown", "refused"), [(9, False), (10, False), (11, True)])
def test_unknown_pieces_are_counted_and_bounded(tmp_path, unspelling_tokenizer, unknown, refused):
    """The bound is met exactly, under and over."""
    tokenizer = unspelling_tokenizer
    (known,), (unk,) = tokenizer.encode("a")[-1:], tokenizer.encode("ж")[-1:]
    assert (tokenizer.count_unknown([known]), tokenizer.count_unknown(np.array([unk, unk]))) == (
        0,
        2,
    )
    pieces = np.array([unk] * unknown + [known] * (100 - unknown), np.int32)
    texts = [
        records.TextDocument("good", pieces[unknown:], 1),
        records.TextDocument("bad", pieces[:unknown], 1),
    ]

    def write():
        return records.write_records(
            tmp_path / "out", "text", texts, tokenizer, max_unknown_share=0.1
        )

    if refused:
        with pytest.raises(ValueError, match=r"^11\.00% .* first in 'bad', expected at most 10"):
            write()
        assert list(tmp_path.iterdir()) == []
    else:
        assert write().unknown_pieces == unknown
        assert records.open_records(tmp_path / "out").metadata.unknown_pieces == unknown


def test_directories_know_their_unknown_pieces_together(tmp_path):
    for name in ("part-a", "part-b"):
        write_text_records(tmp_path / name)
    assert records.open_records(tmp_path / "part-*").metadata.unknown_pieces == 0
    path = tmp_path / "part-b" / "metadata.json"
    fields = json.loads(path.read_text())
    del fields["crc32c"], fields["unknown_pieces"]
    path.write_text(json.dumps(fields))
    assert records.open_records(tmp_path / "part-*").metadata.unknown_pieces is None


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


@pytest.mark.parametrize("size", [100, 3000])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(tmp_path, size):
    documents = [make_text("one", f"{i}") for i in range(100)]
    with (
        files_of_at_most(size),
        pytest.raises(OSError, match=r"cannot be written: .*too large") as error,
    ):
        records.write_records(tmp_path / "out", "text", documents, make_tokenizer())
    assert "text-00000" in str(error.value) and not list(tmp_path.iterdir())


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
        b'{"format": "lst-jax-records", "format": "lst-jax-records"}',
        b'{"format": "lst-jax-records", "format_version": 1e999}',
        b'{"format": "lst-jax-records", "format_version": NaN}',
        b'{"format": "lst-jax-records", "format_version": ' + b"9" * 10_000 + b"}",
    ],
)
def test_malformed_metadata_is_named_in_a_line(directory, contents):
    (directory / "metadata.json").write_bytes(contents)
    with pytest.raises(ValueError, match=r"^[^\n]*metadata\.json[^\n]{,300}$"):
        records.open_records(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "video"},
        {"kind": []},
        {"format_version": 3},
        {"format_version": 1},
        {"format_version": "2"},
        {"format_version": True},
        {"version": 1},
        {"text_size": "400"},
        {"unit_count": -1},
        {"text_size": 400.0},
        {"text_size": True},
        {"text_size": 10**30},
        {"fingerprint": None},
        {"fingerprint": "abc"},
        {"encoder_fingerprint": "../x"},
        {"totals": None},
        {"totals": {"documents": 11}},
        {"totals": {"pages": 1}},
        {"shards": [{"name": 1, "records": 10, "bytes": 5}]},
        {"shards": [7]},
        {"shards": [{"name": "../speech", "records": 10, "bytes": 5}]},
        {"shards": [{"name": "..", "records": 10, "bytes": 5}]},
        {"shards": "speech"},
        {"color": "red"},
    ],
)
def test_impossible_metadata_is_named(directory, changes):
    path = directory / "metadata.json"
    fields = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"^[^\n]*metadata\.json: [^\n]{,300}$"):
        records.open_records(directory)
    del fields["crc32c"]  # as in the first records of version 2
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match=r"^[^\n]*metadata\.json: (?!.*CRC)[^\n]{,300}$"):
        records.open_records(directory)


def test_metadata_without_a_checksum_open(directory):
    path = directory / "metadata.json"
    fields = json.loads(path.read_text())
    del fields["crc32c"], fields["unknown_pieces"]
    path.write_text(json.dumps(fields))
    metadata = records.open_records(directory).metadata
    assert metadata.unknown_pieces is None
    assert metadata.identity() == records.RecordMetadata.from_json(metadata.to_json()).identity()


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_of_metadata_is_named_or_changes_nothing(directory, bit):
    """Spaces may become other spaces; no count, name or fingerprint becomes another."""
    path = directory / "metadata.json"
    contents, metadata = path.read_bytes(), records.open_records(directory).metadata
    for place in range(len(contents)):
        flipped = bytearray(contents)
        flipped[place] ^= 1 << bit
        try:
            assert records.RecordMetadata.from_json(bytes(flipped), path) == metadata
        except ValueError as error:
            assert str(path) in str(error) and "\n" not in str(error)


def test_metadata_say_their_version_and_read_back(directory):
    text = (directory / "metadata.json").read_text()
    assert json.loads(text)["format_version"] == 2
    assert records.RecordMetadata.from_json(text).to_json() == text


def test_version_1_had_no_encoder_and_is_known_by_the_same_fields(directory):
    fields = json.loads((directory / "metadata.json").read_text())
    del fields["format_version"], fields["encoder_fingerprint"]
    del fields["crc32c"], fields["unknown_pieces"]
    first = records.RecordMetadata.from_json(json.dumps(fields | {"version": 1}))
    assert first.encoder_fingerprint is None
    assert first == dataclasses.replace(
        records.open_records(directory).metadata, unknown_pieces=None
    )
    del fields["format"]
    assert json.loads(json.dumps(first.identity())) == fields
    named = dataclasses.replace(first, encoder_fingerprint="a" * 64)
    assert named.identity() == first.identity() | {"encoder_fingerprint": "a" * 64}
    with pytest.raises(ValueError, match="version 1 has no encoder_fingerprint"):
        fields |= {"format": "lst-jax-records", "version": 1, "encoder_fingerprint": "a" * 64}
        records.RecordMetadata.from_json(json.dumps(fields))


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


@pytest.mark.parametrize("version", [1, 2])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_of_a_shard_is_named_or_changes_nothing(shards_of_sample, version, data):
    """What is left over between blocks may change; no record does, and no error is nameless."""
    directory, contents, sample = shards_of_sample[version]
    used = [i for i, byte in enumerate(contents) if byte]
    place = data.draw(st.sampled_from(used) | st.integers(0, len(contents) - 1))
    flipped = bytearray(contents)
    flipped[place] ^= data.draw(st.integers(1, 255))
    path = shard_path(directory, 0)
    path.write_bytes(flipped)
    try:
        read = list(records.open_records(directory))
    except ValueError as error:
        assert re.search(
            rf"{path.name}(: cannot read record \d+: | cannot be | holds )", str(error)
        )
        assert "\n" not in str(error)
        return
    for one, other in zip(read, sample, strict=True):
        assert_same(one, other)


@pytest.fixture(scope="module")
def shards_of_sample(tmp_path_factory):
    """By version a directory of one shard, the shard's bytes and its records."""
    folder = tmp_path_factory.mktemp("shards")
    records.write_records(folder / "2", "speech", read_sample()[:3], make_tokenizer())
    shutil.copytree(VERSION1 / "speech_records", folder / "1")
    paths = {version: folder / str(version) for version in (1, 2)}
    return {
        version: (path, shard_path(path, 0).read_bytes(), list(records.open_records(path)))
        for version, path in paths.items()
    }


def test_a_damaged_payload_in_a_sound_shard_is_named(directory):
    """The container's own checksums hold what was given to it, damaged or not."""
    path = shard_path(directory, 1)
    payloads = [bytearray(encode_record(record)) for record in read_sample()[4:8]]
    payloads[2][100] ^= 4
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,zstd:3")
    for payload in payloads:
        writer.write(bytes(payload))
    writer.close()
    source = records.open_records(directory)
    message = rf"{path.name}: cannot read record 2: a payload has CRC-32C 0x"
    for indices in ([6], [4, 5, 6, 7], [0, 6]):
        with pytest.raises(ValueError, match=message):
            source.__getitems__(indices)
    assert len(source.__getitems__([4, 5, 7])) == 3
