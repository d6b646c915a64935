"""Files appear whole or not at all, and no directory that holds other things is replaced."""

from __future__ import annotations

import errno
import io
import os
import pathlib
import tracemalloc
import zipfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lst_jax.evaluation.jsonl import read_lines
from lst_jax.files import (
    append_line,
    new_directory,
    read_arrays,
    read_numbered_lines,
    refuse_to_replace,
    write_file,
    write_files,
    write_json,
)
from tests.disks import files_of_at_most


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
    with pytest.raises(OSError, match=r"No space .*/a'"):
        write_file(path, "new")
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_of_files_that_belong_together_all_appear_or_none(tmp_path):
    both = {tmp_path / "a": "new", tmp_path / "b" / "c": b"longer"}
    for before in ([], ["a", "b/c"]):
        for name in before:
            write_file(tmp_path / name, "old")
        with files_of_at_most(4), pytest.raises(OSError, match=r"/b/c'"):
            write_files(both)
        with pytest.raises(ValueError, match="surrogates"):
            write_files({**both, tmp_path / "d": "\ud800"})
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [
            tmp_path / name for name in before
        ]
        assert all((tmp_path / name).read_text() == "old" for name in before)
    assert write_files(both) == list(both)
    assert [path.read_bytes() for path in both] == [b"new", b"longer"]


def test_a_line_is_appended_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lines"
    with files_of_at_most(3), pytest.raises(OSError, match=r"/lines'"):
        append_line(path, "four")
    assert not path.exists()
    append_line(path, "é")
    path.write_bytes(path.read_bytes() + b"half")
    append_line(path, "two")
    text = "é\nhalf\ntwo\n".encode()
    assert path.read_bytes() == text
    with files_of_at_most(len(text) + 2), pytest.raises(OSError):
        append_line(path, "four")
    assert path.read_bytes() == text


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (OSError(errno.ENOSPC, "full"), ""),
        (RuntimeError("Error writing a chunk [OS error 28: No space left]"), ""),
        (ValueError("RESOURCE_EXHAUSTED: Error writing [os_error_code='28']"), ""),
        (ValueError("NOT_FOUND: Error reading [os_error_code='2']"), None),
        (ValueError("I/O error: No space left on device (os error 28)"), ""),
        (OSError(errno.ENOSPC, "full", "{}/a"), "/a"),
        (OSError(errno.ENOSPC, "full", "/elsewhere/a"), None),
        (OSError(errno.EIO, "of an input, perhaps"), None),
        (ValueError("of another kind"), None),
    ],
)
def test_what_cannot_be_written_is_named_as_it_was_to_be_called(tmp_path, error, named):
    out = tmp_path / "out"
    with (
        pytest.raises((type(error), OSError)) as caught,
        new_directory(out, refuse_to_replace) as folder,
    ):
        if isinstance(error, OSError) and error.filename:
            error.filename = error.filename.format(folder)
        raise error
    if named is None:
        assert caught.value is error
    else:
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, f"{out}{named}")


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
    refused = pytest.raises(OSError)
    with refused, new_directory(out, refuse_to_replace) as folder:
        began = True
        write_file(folder / "a", "1")
        if not before:
            appear()
    assert began is not before
    assert names(tmp_path) == ["out"]
    if kind != "broken link":
        assert (out / "thesis.txt" if kind == "directory" else out).read_text() == "years of work"


@pytest.mark.parametrize("when", ["out", "incomplete"])
@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt("SIGTERM")])
def test_a_replacement_that_fails_puts_back_what_was_there(tmp_path, monkeypatch, when, error):
    write_file(tmp_path / "out" / "a", "old")
    rename = pathlib.Path.rename

    def fail(path, target):
        if "incomplete" in path.name and when == "incomplete":
            raise error
        moved = rename(path, target)
        if path.name == "out":  # a signal is noticed behind what it came in
            raise error
        return moved

    monkeypatch.setattr("pathlib.Path.rename", fail)
    refused = pytest.raises(type(error), match=r"Input|SIGTERM")
    with refused, new_directory(tmp_path / "out", lambda _: None):
        pass
    monkeypatch.undo()
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "a").read_text() == "old"


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
    with pytest.raises(ValueError, match="path is empty"):
        write_file("", "text")


def test_lines_have_their_numbers_and_neither_breaks_nor_marks(tmp_path):
    path = tmp_path / "a"
    path.write_bytes("\ufeffa\ufeff\r\n\n\ufeffb".encode())
    assert list(read_numbered_lines(path)) == [(1, "a\ufeff".encode()), (2, b""), (3, b"b")]


def claiming(path, shape, dtype="<f4", data=b"1234", compress=False):
    """An .npz file whose array claims more than it has."""
    header = io.BytesIO()
    claim = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, claim)
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr("x.npy", header.getvalue() + data)
    return path


def test_arrays_come_back_as_numpy_wrote_them(tmp_path):
    arrays = {
        "a": np.arange(12, dtype="<f8").reshape(3, 4),
        "b": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "c": np.array("text"),
        "d": np.zeros((0, 3), np.float32),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays, other=np.zeros(3))
        found = read_arrays(tmp_path / "a.npz", list(arrays))
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "data"),
    [
        ((2**50,), "<f4", b"1234"),
        ((2**40, 2**40), "<f8", b"1234"),
        ((2**20,), "<f4", b"1234"),
        ((2,), "<f4", b"1234"),
        ((0,), "<f4", b"1234"),
        ((-1,), "<f4", b"1234"),
        ((-1, -1), "<f4", b"1234"),
        ((1,), "|O", b"1234"),
        ((1,), "<U999999999", b"1234"),
        ((), "<f4", b""),
    ],
)
def test_arrays_that_claim_what_they_have_not_are_refused_before_memory_is_taken(
    tmp_path, shape, dtype, data, compress
):
    path = claiming(tmp_path / "a.npz", shape, dtype, data, compress)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"a\.npz is no archive of arrays: ") as error:
            read_arrays(path, ["x"])
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_files_that_are_no_archives_are_named(tmp_path):
    path = tmp_path / "a.npz"
    for contents in (b"", b"PK", b"text", b"\x93NUMPY"):
        path.write_bytes(contents)
        with pytest.raises(ValueError, match=r"a\.npz is no archive"):
            read_arrays(path, ["x"])
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match="it has no y"):
        read_arrays(path, ["x", "y"])
    with pytest.raises(FileNotFoundError):
        read_arrays(tmp_path / "b.npz", ["x"])


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
@example(place=2907, bit=1)  # its index lies before the file
def test_a_flipped_bit_of_an_archive_is_named_or_changes_nothing(tmp_path_factory, place, bit):
    folder = tmp_path_factory.mktemp("archive")
    array = np.arange(40, dtype=np.float32)
    np.savez(folder / "a.npz", x=array)
    contents = bytearray((folder / "a.npz").read_bytes())
    contents[place % len(contents)] ^= 1 << bit
    (folder / "a.npz").write_bytes(contents)
    try:
        np.testing.assert_array_equal(read_arrays(folder / "a.npz", ["x"])["x"], array)
    except ValueError as error:
        assert "a.npz is no archive of arrays: " in str(error)


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
