"""One function for all paths: what is none, what is remote, what can be written."""

import os
import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst_jax.checkpoints.layout import find_checkpoint
from lst_jax.local_paths import PathText, RecordedPath, local_path
from lst_jax.porting.port import open_checkpoint
from lst_jax.settings import configuration, validate_value
from lst_jax.vocabulary import TextTokenizer

REMOTE = (
    "gs://bucket/a",
    "s3://bucket/*",
    "hdfs://a",
    "file:///a",
    "GS://a",
    "gs:/a",
    "c3.x-y+z:/a",
)
LOCAL = ("a", "./123", "/a/b:c", "a:b/c", "C:/a", "gs:", "gs:a", "a b/ü→.gin", "x" * 255)


@configuration
class Paths:
    here: PathText
    more: tuple[PathText, ...] = ()


@pytest.mark.parametrize("path", LOCAL)
def test_a_local_path_stays_what_it_is(path):
    assert local_path(path) == pathlib.Path(path) == local_path(pathlib.Path(path))
    assert Paths(path, (path,)) == Paths(path, [path])
    assert Paths(path).here == path


@pytest.mark.parametrize("path", [*REMOTE, "", "a\0b", "\udcff", "x" * 256, "ü" * 128, "x/" * 3000])
def test_what_is_no_local_path_is_refused(path):
    for call in (
        *(local_path, Paths, lambda p: Paths("a", (p,)), TextTokenizer),
        *(find_checkpoint, open_checkpoint),
    ):
        with pytest.raises(ValueError, match=r"expected .*local path") as error:
            call(path)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize("path", REMOTE)
def test_what_pathlib_has_made_of_a_remote_path_is_refused(path):
    with pytest.raises(ValueError, match="remote ones are not supported yet"):
        local_path(pathlib.Path(path))


def test_a_leading_tilde_is_the_home_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~") == tmp_path
    assert local_path("~/a") == tmp_path / "a" == pathlib.Path(Paths("~/a").here)
    assert local_path("./~") == pathlib.Path.cwd() / "~" == local_path(local_path("./~"))
    with pytest.raises(ValueError, match="no such user"):
        local_path("~nobody-has-this-name/a")


def test_what_a_file_says_of_another_machine_is_not_looked_at():
    assert validate_value(RecordedPath, "gs://a/~", "tokenizer") == "gs://a/~"


@given(st.text())
def test_a_path_is_returned_or_refused_and_what_is_returned_can_be_encoded(text):
    try:
        path = local_path(text)
    except ValueError as error:
        assert len(str(error).splitlines()) == 1
    else:
        assert os.fsencode(path).decode("utf-8") == str(path) and text
