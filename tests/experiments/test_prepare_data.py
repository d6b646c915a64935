"""Tests of the data binaries as a user runs them."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from data_pipelines.records import storage as records
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.vocabulary import TextTokenizer
from tests.binaries import run_binary
from tests.data_pipelines.small_corpus import SAMPLE, chain, make_tokenizer, reference_line

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

ROOT = pathlib.Path(__file__).parents[2]


def run(binary, *arguments, **environment):
    return run_binary(f"experiments.{binary}", *arguments, environment=environment)


def prepare(output, *arguments, input=SAMPLE, format="reference_jsonl", **environment):
    return run(
        "prepare_data",
        f"--input={input}",
        f"--format={format}",
        f"--tokenizer={make_tokenizer().model_path}",
        f"--output={output}",
        *arguments,
        **environment,
    )


def assert_one_clear_line(result, message):
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_sample_becomes_records_with_a_trained_tokenizer(tmp_path):
    trained = run(
        "train_tokenizer",
        f"--input={SAMPLE}",
        "--format=reference_jsonl",
        "--vocab_size=420",
        f"--output={tmp_path / 'tokenizer'}",
    )
    assert trained.returncode == 0, trained.stderr
    tokenizer = TextTokenizer(tmp_path / "tokenizer.model")
    assert "420 pieces" in trained.stdout
    assert tokenizer.fingerprint in trained.stdout
    prepared = run(
        "prepare_data",
        f"--input={SAMPLE.parent}/mls_*.jsonl",
        "--format=reference_jsonl",
        f"--tokenizer={tmp_path / 'tokenizer.model'}",
        f"--output={tmp_path / 'records'}",
        "--records_per_shard=4",
        "--num_workers=2",
    )
    assert prepared.returncode == 0, prepared.stderr
    assert "3 shards, 10 documents, 425 words" in prepared.stdout
    assert "4,108 units; mean length of a word 5.78 units, of a silence 3.80" in prepared.stdout
    source = records.open_records(tmp_path / "records", fingerprint=tokenizer.fingerprint)
    assert sum(len(utterance.units) for utterance in source) == 4108


def test_texts_become_records(tmp_path):
    (tmp_path / "corpus.txt").write_text("the little river\na path\n")
    result = prepare(tmp_path / "out", input=tmp_path / "corpus.txt", format="text")
    assert result.returncode == 0, result.stderr
    assert "1 shards, 2 documents, 5 words" in result.stdout
    assert len(records.open_records(tmp_path / "out", kind="text")) == 2


def test_bad_lines_end_the_run_or_are_reported(tmp_path):
    path = tmp_path / "corpus.jsonl"
    good = reference_line(chain("TEXT a", "HUBERT 1"))
    path.write_bytes(good + b"\nnonsense\n")
    assert_one_clear_line(prepare(tmp_path / "out", input=path), f"{path}:2: not JSON")
    assert not (tmp_path / "out").exists()
    result = prepare(tmp_path / "out", "--skip_bad_records", input=path)
    assert result.returncode == 0, result.stderr
    assert "skipped 1 bad records" in result.stdout
    assert f"{path}:2: not JSON" in result.stdout
    assert len(records.open_records(tmp_path / "out")) == 1


def test_the_unit_set_is_a_setting(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(reference_line(chain("TEXT a", "HUBERT 999")))
    assert_one_clear_line(prepare(tmp_path / "out", input=path), "expected 0 … 501")
    assert prepare(tmp_path / "out", "--unit_count=1000", input=path).returncode == 0
    assert records.open_records(tmp_path / "out").metadata.unit_count == 1000


def test_outputs_are_replaced_only_when_told(tmp_path):
    assert prepare(tmp_path / "out").returncode == 0
    assert_one_clear_line(prepare(tmp_path / "out"), "out exists and is not empty")
    assert prepare(tmp_path / "out", "--overwrite").returncode == 0


def test_a_directory_with_the_input_and_other_files_is_never_replaced(tmp_path):
    corpus = tmp_path / "corpus"
    (corpus / "notes").mkdir(parents=True)
    (corpus / "notes" / "thesis.txt").write_text("years of work")
    shutil.copy(SAMPLE, corpus / "x.jsonl")
    result = prepare(corpus, "--overwrite", input=corpus / "x.jsonl")
    assert_one_clear_line(result, "has no metadata.json of records")
    assert (corpus / "notes" / "thesis.txt").read_text() == "years of work"
    assert (corpus / "x.jsonl").read_bytes() == SAMPLE.read_bytes()


def test_unknown_pieces_are_shown_and_bounded(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("a b c d e\n" * 99 + "a b c d ж\n")
    trained = train_tokenizer(["a b c d e"] * 9, tmp_path / "t", 11, byte_fallback=False)
    flags = {"input": path, "format": "text"}
    tokenizer = f"--tokenizer={trained}"
    shown = prepare(tmp_path / "out", tokenizer, **flags)
    assert shown.returncode == 0, shown.stderr
    unknown = records.open_records(tmp_path / "out").metadata.unknown_pieces
    assert unknown > 0 and f"({unknown} of them unknown, 0." in shown.stdout
    refused = prepare(tmp_path / "other", tokenizer, "--max_unknown_share=0", **flags)
    assert_one_clear_line(refused, "unknown to the tokenizer, first in 'corpus.txt:100'")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--inputt=x"], "Unknown command line flag 'inputt'"),
        (["--format=csv"], "--format=csv"),
        (["--input=nowhere/*.jsonl"], "nowhere/*.jsonl: no such file"),
        (["--tokenizer=nowhere.model"], "nowhere.model: no such file"),
        ([f"--tokenizer={__file__}"], "is not a SentencePiece model"),
        (["--unit_count=0"], "unit_count"),
        (["stray.jsonl"], "unexpected argument 'stray.jsonl'"),
        ([f"--input={SAMPLE}"], "is named twice"),
    ],
)
def test_mistakes_end_with_one_clear_line(tmp_path, arguments, message):
    assert_one_clear_line(prepare(tmp_path / "out", *arguments), message)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_too_large_is_one_clear_line(tmp_path):
    result = run(
        "train_tokenizer",
        f"--input={SAMPLE}",
        "--format=reference_jsonl",
        "--vocab_size=99999",
        f"--output={tmp_path / 'tokenizer'}",
    )
    assert_one_clear_line(result, "vocab_size is 99999, but these texts allow at most")


def test_debugging_shows_the_traceback(tmp_path):
    result = prepare(tmp_path / "out", "--tokenizer=nowhere.model", LST_DEBUG="1")
    assert "Traceback" in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith("error: ")
