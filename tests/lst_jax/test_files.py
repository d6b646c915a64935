"""Files appear whole or not at all, and no directory that holds other things is replaced."""

from __future__ import annotations

import os

import pytest

from lst_jax.evaluation.jsonl import read_lines
from lst_jax.files import (
    new_directory,
    read_numbered_lines,
    refuse_to_replace,
    write_file,
    write_json,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_folders_and_nothing_beside_it(tmp_path):
    path = write_json(tmp_path / "a" / "b.json", {"é": 1})
    assert path.read_text(encoding="utf-8") == '{\n  "é": 1\n}\n'
    assert write_file(path, b"\xff").read_bytes() == b"\xff"
    assert names(path.parent) == ["b.json"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="surrogates"):
        write_file(path, "\ud800")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_file(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_a_directory_appears_whole_or_not_at_all(tmp_path):
    with new_directory(tmp_path / "x" / "out", refuse_to_replace) as folder:
        write_file(folder / "a", "1")
        assert names(tmp_path / "x") == [folder.name]
    assert names(tmp_path / "x") == ["out"] and names(tmp_path / "x" / "out") == ["a"]
    with pytest.raises(KeyboardInterrupt), new_directory(tmp_path / "y", refuse_to_replace):
        raise KeyboardInterrupt
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("kind", ["directory", "file", "broken link"])
def test_what_is_at_the_output_stays_whether_it_was_there_or_came_meanwhile(tmp_path, before, kind):
    out = tmp_path / "out"

    def appear():
        if kind == "directory":
            write_file(out / "thesis.txt", "years of work")
        elif kind == "file":
            write_file(out, "years of work")
        else:
            out.symlink_to(out)  # leads nowhere

    if before:
        appear()
    began = False
    refused = pytest.raises((FileExistsError, RuntimeError, OSError))
    with refused, new_directory(out, refuse_to_replace) as folder:
        began = True
        write_file(folder / "a", "1")
        if not before:
            appear()
    assert began is not before
    assert names(tmp_path) == ["out"]
    if kind != "broken link":
        assert (out / "thesis.txt" if kind == "directory" else out).read_text() == "years of work"


def test_an_output_behind_a_link_is_made_there_and_the_link_stays(tmp_path):
    target = tmp_path / "disk" / "out"
    target.mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(target)
    with new_directory(link, refuse_to_replace) as folder:
        write_file(folder / "a", "1")
    assert link.is_symlink() and names(target) == ["a"] and names(target.parent) == ["out"]


def test_an_empty_path_is_no_directory():
    with pytest.raises(ValueError, match="path is empty"), new_directory("", refuse_to_replace):
        pass


def test_lines_have_their_numbers_and_neither_breaks_nor_marks(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("\ufeffa\ufeff\r\n\n\ufeffb".encode())
    assert list(read_numbered_lines(path)) == [(1, "a\ufeff".encode()), (2, b""), (3, b"b")]


def test_examples_are_read_with_a_mark_and_refused_in_utf16(tmp_path):
    """Evaluation items and prompts come through the same lines as corpora."""
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"a": 1}\n\ufeff{"a": 2}\n', encoding="utf-8")
    assert list(read_lines(path, lambda fields, _: fields["a"])) == [1, 2]
    path.write_text('{"a": 1}\n', encoding="utf-16")
    with pytest.raises(ValueError, match=r"a\.jsonl is UTF-16"):
        next(read_lines(path, lambda fields, _: fields))
    path.write_text('{"a": 1, "b": {"c": 1, "c": 2}}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:1: key twice: 'c'"):
        next(read_lines(path, lambda fields, _: fields))
    bad = tmp_path / os.fsdecode(b"\xe9")
    bad.write_text("{}\n")
    with pytest.raises(ValueError, match="expected a name in UTF-8"):
        next(read_lines(bad, lambda fields, _: fields))
