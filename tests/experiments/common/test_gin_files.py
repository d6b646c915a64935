"""Gin files: where they are looked up, what they include, and mistakes in a line."""

import pathlib

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

import experiments.common.ctc_experiment
import experiments.common.vocoder_experiment
import experiments.studies.study_config  # noqa: F401  # what its Gin files name is registered with Gin
from experiments.common import gin_config
from experiments.common.gin_files import Bindings

CONFIGS = pathlib.Path(gin_config.__file__).parents[1] / "configs"
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.gin"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current directory that is no checkout."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_has_a_short_a_long_and_an_absolute_name(folder, name):
    found = []
    for spelled in (name, f"experiments/configs/{name}", str(CONFIGS / name)):
        gin.clear_config()
        bindings = Bindings()
        bindings.parse_file(spelled)
        found.append(dict(bindings))
    assert found[0] == found[1] == found[2] != {}


def test_a_file_includes_presets_and_files_beside_it_and_what_follows_wins(folder):
    write(folder / "sub" / "deep" / "c.gin", "\ninclude 'runs/tiny.gin'\nNUM_STEPS = 6\nSEED = 9\n")
    write(folder / "sub" / "b.gin", "include 'deep/c.gin'\n")
    write(folder / "a.gin", "SEED = 1\ninclude 'sub/b.gin'  # comment\nNUM_STEPS = 7\n")
    write(folder / "elsewhere" / "d.gin", f"include '{folder}/a.gin'\n")
    for name in ("a.gin", "./a.gin", f"{folder}/a.gin", "elsewhere/d.gin"):
        gin_config.parse(["models/tiny.gin", name])
        assert gin.query_parameter("NUM_STEPS/gin.macro.value") == 7
        assert gin.query_parameter("SEED/gin.macro.value") == 9


def test_presets_include_presets_whatever_the_current_directory_has(folder):
    write(folder / "experiments" / "configs" / "runs" / "common.gin", "NOT = 1\n")
    gin_config.parse(["runs/tiny.gin"])
    with pytest.raises(ValueError, match="NOT: no Gin file"):
        gin_config.parse(["runs/tiny.gin"], ["NOT=2"])


def test_an_include_in_a_text_is_none(folder):
    write(folder / "a.gin", "A = '''\ninclude 'nothing.gin'\n'''\nB = 1\n")
    gin_config.parse(["a.gin"], ["B=2"])
    assert gin.query_parameter("B/gin.macro.value") == 2


def test_a_long_value_of_several_lines_can_be_replaced(folder):
    lines = ",\n  ".join(f"'{'x' * 60}{i}'" for i in range(9))
    write(folder / "a.gin", f"LONG = (\n  {lines})\n")
    gin_config.parse(["a.gin"], ["LONG=()"])
    assert gin.query_parameter("LONG/gin.macro.value") == ()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "include 'a.gin'"}, r"includes a\.gin, which includes it"),
        ({"a": "include 'b.gin'", "b": "X = 1\ninclude 'a.gin'"}, r"b\.gin includes a\.gin, which"),
        ({"a": "include 'b.gin'"}, r"Gin file b\.gin, which .*a\.gin includes: no such file in .*"),
        ({"a": "\ninclude 5"}, r"a\.gin, line 2: Expected file path"),
        ({"a": "include 'gs://b/c.gin'"}, "gin_file is 'gs://b/c.gin', expected a local path"),
        ({"a": "X = 1\n\ninclude 'runs/tiny.gin'\n\nY = = 3"}, r"a\.gin, line 5: Unable"),
        ({"a": "include 'runs/tiny.gin'\n\nNope.x = 3"}, r'(?s)Nope.*a\.gin", line 3'),
        ({"a": "X = (1,\n"}, r"a\.gin: (unexpected )?EOF in multi-line statement"),
        (
            {"a": "X = " + "(" * 3000},
            r"a\.gin(: too many nested parentheses| is nested too deeply)",
        ),
        ({"a": "X = 1\nY = 2\nX = 3"}, r"a\.gin sets X twice, expected it once"),
        ({"a": "X = %Y"}, "X is %Y, expected a macro that is set"),
        ({"a": "X = %Y\nY = [%X]"}, "'X' refers to itself: 'X' → 'Y' → 'X'"),
        ({"a": "X = {'k': (%X,)}"}, "'X' refers to itself"),
        ({"a": "X = %gin.REQUIRED"}, "required and not set: --gin.X=VALUE"),
        ({"a": "X = (1, %gin.REQUIRED)"}, "required and not set: --gin.X=VALUE"),
        ({"a": "#" * 2**21}, r"a\.gin has 2097152 bytes, expected at most"),
        ({"b": ""}, r"Gin file a\.gin: no such file in .*, .*experiments/configs"),
    ],
)
def test_mistakes_in_files_are_named(folder, files, message):
    for name, text in files.items():
        write(folder / f"{name}.gin", text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        gin_config.parse(["a.gin"])


def test_a_file_is_utf8_with_or_without_its_mark(folder):
    (folder / "a.gin").write_bytes("\ufeffX = 'é'\n".encode())
    bindings = Bindings()
    bindings.parse_file("a.gin")
    assert bindings == {"X": "é"}
    (folder / "a.gin").write_bytes(b"X = '\xff'\n")
    with pytest.raises(ValueError, match=r"Gin file .*a\.gin is not UTF-8"):
        gin_config.parse(["a.gin"])


@given(st.lists(st.sampled_from("ABCDEF"), min_size=6, max_size=6))
def test_a_circle_of_macros_is_found_where_there_is_one(targets):
    gin.clear_config()
    text = "\n".join(f"{name} = %{to}" for name, to in zip("ABCDEF", targets, strict=True))
    bindings = Bindings()
    bindings.parse_binding(text)
    # Every one of six points to one of the six, so that some circle must be there.
    with pytest.raises(ValueError, match="refers to itself"):
        bindings.check_references()
    last = Bindings()
    ordered = [
        f"{name} = %{max(to, chr(ord(name) + 1))}"
        for name, to in zip("ABCDE", targets[:5], strict=True)
    ]
    last.parse_binding("\n".join([*ordered, "F = 1"]))
    last.check_references()
