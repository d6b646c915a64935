"""Tests of the published record format's reader."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.corpora.lines import BadLine, RecordError, SkipReport
from data_pipelines.corpora.reference_jsonl import parse_reference_line, read_reference_jsonl
from data_pipelines.records.types import SILENCE, Totals, check_record, count_record
from lst_jax.vocabulary import Vocabulary
from tests.data_pipelines.small_corpus import SAMPLE, chain, make_tokenizer, reference_line


def test_the_sample_comes_in_whole():
    utterances = list(read_reference_jsonl([SAMPLE], make_tokenizer()))
    totals = sum(map(count_record, utterances), Totals())
    assert (totals.documents, totals.units) == (10, 4108)
    assert totals.mean_word_length == pytest.approx(5.8, abs=0.05)
    assert totals.mean_silence_length == pytest.approx(3.8, abs=0.05)
    for line, utterance in zip(SAMPLE.read_bytes().splitlines(), utterances, strict=True):
        digits = [part for part in json.loads(line)["interleaved"].split() if part.isdecimal()]
        assert utterance.units.tolist() == [int(digit) for digit in digits]
        assert utterance.unit_counts.sum() == len(digits)


def test_the_first_block_is_kept():
    aligned = parse_reference_line(reference_line(chain("TEXT one", "HUBERT 1 2")), 502)
    assert (aligned.words, aligned.units, aligned.unit_counts) == (("one",), (1, 2), (2,))


def test_silences_have_no_pieces_and_words_some():
    for utterance in read_reference_jsonl([SAMPLE], make_tokenizer()):
        silent = np.array([word == SILENCE for word in utterance.words])
        assert (utterance.is_silence == silent).all()
        spoken = [word for word in utterance.words if word != SILENCE]
        assert make_tokenizer().decode(utterance.pieces) == " ".join(spoken)


words = st.one_of(st.just(SILENCE), st.text("abc'é日", min_size=1, max_size=6))
pairs = st.lists(st.tuples(words, st.lists(st.integers(0, 501), max_size=5)), min_size=1)


@settings(max_examples=50, deadline=None)
@given(pairs)
def test_every_word_and_unit_comes_back(pairs):
    pairs = [*pairs, ("end", [7])]
    blocks = [
        block
        for word, units in pairs
        for block in (f"TEXT {word}", " ".join(["HUBERT", *map(str, units)]))
    ]
    aligned = parse_reference_line(reference_line(chain(*blocks)), 502)
    assert aligned.words == tuple(word for word, _ in pairs)
    assert aligned.units == tuple(unit for _, units in pairs for unit in units)
    assert aligned.unit_counts == tuple(len(units) for _, units in pairs)


def test_bpe_marks_continue_the_word_before():
    line = reference_line(
        chain("TEXT sing", "HUBERT 1", "TEXT [BPE]ing", "HUBERT 2 3", "TEXT [BPE]", "HUBERT 4")
    )
    aligned = parse_reference_line(line, 502)
    assert (aligned.words, aligned.units, aligned.unit_counts) == (("singing",), (1, 2, 3, 4), (4,))


def spell(word, tokenizer):
    """The texts of a word's pieces."""
    pieces, _ = tokenizer.encode_words([word])
    return [tokenizer.piece(piece).strip("\u2581") for piece in pieces.tolist()]


def read_one(path, line):
    path.write_bytes(line)
    (utterance,) = read_reference_jsonl([path], make_tokenizer())
    check_record(utterance, Vocabulary(400))
    return utterance


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["little", "pleasant", "river", "the", "[SIL]"]), max_size=6))
def test_blocks_that_are_the_tokenizers_pieces_keep_their_units(tmp_path_factory, words):
    blocks, counts = [], []
    for number, word in enumerate([*words, "kyll"]):
        if word == SILENCE:
            blocks += ["TEXT [SIL]", "HUBERT 7 7"]
            continue
        for place, piece in enumerate(spell(word, make_tokenizer())):
            counts.append((number + place) % 3)
            blocks += [f"TEXT {'[BPE]' if place else ''}{piece}", "HUBERT" + " 5" * counts[-1]]
    line = reference_line(chain(*blocks, "TEXT [SIL]", "HUBERT 7"))
    utterance = read_one(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", line)
    assert utterance.piece_unit_counts.dtype == np.int32
    assert utterance.piece_unit_counts.tolist() == counts


@pytest.mark.parametrize("word", ["zebra", "zeb[BPE]ra"])
def test_units_of_other_parts_than_the_pieces_are_the_words_alone(tmp_path, word):
    assert spell("zebra", make_tokenizer()) not in (["zebra"], ["zeb", "ra"])
    first, _, second = word.partition("[BPE]")
    blocks = [f"TEXT {first}", "HUBERT 1 2"]
    blocks += [f"TEXT [BPE]{second}", "HUBERT 3"] if second else []
    utterance = read_one(tmp_path / "corpus.jsonl", reference_line(chain(*blocks)))
    assert utterance.piece_unit_counts is None


def test_what_a_line_says_of_its_recording_is_kept(tmp_path):
    known = {"transcript": "A, b!", "speaker": "7240", "license": "CC BY 4.0", "source": "MLS"}
    fields = json.loads(reference_line(chain(*GOOD))) | {"snr": 3.5}
    utterance = read_one(tmp_path / "all", json.dumps(fields | known).encode())
    assert {name: getattr(utterance, name) for name in known} == known
    utterance = read_one(tmp_path / "none", json.dumps(fields | {"speaker": None}).encode())
    assert {getattr(utterance, name) for name in known} == {None}
    assert utterance.word_times_ms is None and utterance.piece_times_ms is None


GOOD = ("TEXT a", "HUBERT 1")


def known_line(**known):
    return json.dumps(json.loads(reference_line(chain(*GOOD))) | known).encode()


BAD_LINES = [
    (b"", "blank line"),
    (b"  \t", "blank line"),
    (b"\xff{}", "not UTF-8"),
    (b"{", "not JSON"),
    (b"[" * 100_000, "nested too deeply"),
    (b'{"file_id": ' + b"9" * 5000 + b"}", "number too large"),
    (b"[]", "not a JSON object"),
    (b"null", "not a JSON object"),
    (b'{"file_id": "a"}', "missing key: 'interleaved'"),
    (b'{"interleaved": ""}', "missing key: 'file_id'"),
    (b'{"file_id": "a", "file_id": "b", "interleaved": ""}', "key twice"),
    (b'{"file_id": 1, "interleaved": ""}', "'file_id' is not a str"),
    (b'{"file_id": "a", "interleaved": "", "snr": NaN}', "not JSON: NaN"),
    (known_line(speaker=7240), "'speaker' is not a str: found 7240"),
    (known_line(license={}), "'license' is not a str"),
    (known_line(transcript=" "), "empty transcript"),
    (known_line(source="\ud800"), "not Unicode"),
    (b'{"file_id": "a", "interleaved": null}', "'interleaved' is not a str"),
    (b'{"file_id": "a\\ud800", "interleaved": ""}', "not Unicode"),
    (reference_line(chain(*GOOD), file_id=""), "empty file_id"),
    (reference_line(""), "empty utterance"),
    (reference_line(chain("TEXT a", "HUBERT")), "empty utterance"),
    (reference_line("junk " + chain(*GOOD)), "not alternating"),
    (reference_line(chain("HUBERT 1", *GOOD)), "not alternating"),
    (reference_line(chain(*GOOD, "TEXT b")), "not alternating"),
    (reference_line(chain(*GOOD, "HUBERT 1")), "not alternating"),
    (reference_line(chain(*GOOD, "TEXT b", "TEXT c")), "not alternating"),
    (reference_line(chain(*GOOD, "SPEECH 1")), "unknown block"),
    (reference_line(chain(*GOOD, "")), "unknown block"),
    (reference_line(chain("TEXT ", "HUBERT 1")), "empty word"),
    (reference_line(chain("TEXT a b", "HUBERT 1")), "several words"),
    (reference_line(chain("TEXT a[SIL]", "HUBERT 1")), "a mark inside a word"),
    (reference_line(chain("TEXT a[BPE]", "HUBERT 1")), "a mark inside a word"),
    (reference_line(chain("TEXT [BPE]a", "HUBERT 1")), "continues no word"),
    (reference_line(chain("TEXT [SIL]", "HUBERT 1", "TEXT [BPE]", "HUBERT 1")), "continues no"),
    (reference_line(chain("TEXT a", "HUBERT 502")), "unit outside the unit set: found '502'"),
    (reference_line(chain("TEXT a", "HUBERT -1")), "unit outside"),
    (reference_line(chain("TEXT a", "HUBERT 1.0")), "unit outside"),
    (reference_line(chain("TEXT a", "HUBERT x")), "unit outside"),
    (reference_line(chain("TEXT a", "HUBERT ٣")), "unit outside"),
    (reference_line(chain("TEXT a", "HUBERT " + "9" * 5000)), "unit outside"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_nothing_bad_is_mended(line, message):
    with pytest.raises(BadLine) as error:
        parse_reference_line(line, 502)
    assert message in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_errors_name_file_and_line(tmp_path, line, message):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join([reference_line(chain(*GOOD), file_id="good"), line, b""]))
    with pytest.raises(RecordError) as error:
        list(read_reference_jsonl([path], make_tokenizer()))
    assert str(error.value).startswith(f"{path}:2: ")
    assert message in str(error.value)
    assert (error.value.path, error.value.line) == (path, 2)


def test_words_that_cannot_be_encoded_name_file_and_line(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(reference_line(chain("TEXT \u2581", "HUBERT 1")))
    with pytest.raises(RecordError, match=r"corpus.jsonl:1: a word cannot be encoded"):
        list(read_reference_jsonl([path], make_tokenizer()))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_skipped_lines_are_counted_by_reason(tmp_path, num_workers):
    path = tmp_path / "corpus.jsonl"
    good = [reference_line(chain(*GOOD), file_id=str(index)) for index in range(300)]
    lines = [*good[:150], b"{", *good[150:], b"[", good[7], b"nope"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    skipped = SkipReport()
    utterances = list(
        read_reference_jsonl([path], make_tokenizer(), skipped=skipped, num_workers=num_workers)
    )
    assert [utterance.file_id for utterance in utterances] == [str(i) for i in range(300)]
    assert skipped.counts == {"not JSON": 3, "duplicate file_id": 1}
    assert skipped.total == 4
    assert f"{path}:151: not JSON" in str(skipped)
    assert f"{path}:303: duplicate file_id: '7' is also at {path}:8" in str(skipped)


def test_a_name_used_twice_is_an_error_across_files(tmp_path):
    paths = [tmp_path / "1.jsonl", tmp_path / "2.jsonl"]
    for path in paths:
        path.write_bytes(reference_line(chain(*GOOD)))
    with pytest.raises(
        RecordError, match=r"2.jsonl:1: duplicate file_id: 'a' is also at .*1.jsonl:1"
    ):
        list(read_reference_jsonl(paths, make_tokenizer()))


def test_missing_files_are_found_before_reading(tmp_path):
    utterances = read_reference_jsonl([SAMPLE, tmp_path / "nowhere"], make_tokenizer())
    with pytest.raises(FileNotFoundError, match="nowhere"):
        next(utterances)


def test_empty_files_are_errors(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.touch()
    with pytest.raises(RecordError, match=r"empty\.jsonl:1: blank line"):
        list(read_reference_jsonl([path], make_tokenizer()))
