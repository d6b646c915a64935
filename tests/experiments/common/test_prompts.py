"""Prompts of flags and files: their names."""

import json

import pytest

from experiments.common.prompts import KINDS, read_prompts


def _read(tmp_path, *ids):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"id": i, "text": "a"}) + "\n" for i in ids))
    return [prompt.name for prompt in read_prompts({kind: [] for kind in KINDS}, [str(file)])]


def test_ids_are_kept_and_prompts_without_one_are_numbered(tmp_path):
    assert _read(tmp_path, "é", 7, "a b", "x" * 240, "-", "..") == [
        *("é", "7", "a b", "x" * 240, "-", ".."),
    ]
    given = {"text": ["a", "b"], "wav": [], "units": ["3 4"]}
    assert [prompt.name for prompt in read_prompts(given, [])] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "name",
    ["a/b", "../b", "/", ".", "a\nb", "a\0", "\ud800", "x" * 241, "é" * 121, "\x1b[2J", True],
)
def test_ids_that_cannot_begin_a_file_s_name_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"prompts\.jsonl:1: id is") as error:
        _read(tmp_path, name)
    assert len(str(error.value)) < 450 and str(error.value).isprintable()


@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("é", "e\u0301"), ("ß", "SS")])
def test_ids_that_some_file_systems_take_for_one_are_refused(tmp_path, names):
    with pytest.raises(ValueError, match=r"prompts\.jsonl:2: its id .* is already there as"):
        _read(tmp_path, *names)
