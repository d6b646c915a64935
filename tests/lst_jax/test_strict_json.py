"""The JSON reader: Python's values for what is JSON, one line for what is not."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lst_jax import strict_json
from lst_jax.strict_json import parse_json, read_json_items, read_json_object

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | numbers | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(values)
def test_every_value_is_read_as_python_reads_it(value):
    text = json.dumps(value)
    assert json.dumps(parse_json(text)) == text
    assert json.dumps(parse_json(text.encode())) == text


@pytest.mark.parametrize("block", [1, 2, 3, 7, 2**20])
def test_items_of_a_list_are_read_in_blocks_of_any_size(tmp_path, monkeypatch, block):
    items = [-1.5e300, 1e-7, 12345, 'a \\ " é\n', [], {"b": [None, True, {}]}, 0, "\U0001f600"]
    whole = {"first": -12.25, "items": items, "empty": [], "last": {"items": [1]}}
    monkeypatch.setattr(strict_json, "_BLOCK", block)
    for step in (None, 1):
        (tmp_path / "x.json").write_text("\ufeff" + json.dumps(whole, indent=step))
        assert list(read_json_items(tmp_path / "x.json", "items")) == items
        assert list(read_json_items(tmp_path / "x.json", "empty")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "'[' in place of {"),
        ('{"items": [1, {"a": 2}', "'' in place of ,"),
        ('{"items": [1, {"a": 2', "from character 14 on: not JSON: Expecting"),
        ('{"items": [1, NaN]}', "NaN is no number"),
        ('{"items": [1,]}', "Expecting value"),
        ('{"items": {}}', "'{' in place of ["),
        ('{"items": [], "items": []}', "key twice: 'items'"),
        ('{"items": []} x', "more follows the object"),
        ('{"items": [' + "[" * 70 + "]" * 70 + "]}", "nested too deeply"),
        ("", "'' in place of {"),
    ],
)
def test_what_is_no_object_with_a_list_is_refused_in_a_line(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ValueError) as error:
        list(read_json_items(tmp_path / "x.json", "items"))
    assert message in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@given(st.binary(max_size=60) | st.text(alphabet='[]{}":,0123456789eE.-NaInfinity', max_size=40))
def test_anything_else_is_refused_in_a_line(text):
    try:
        value = parse_json(text)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 200
        return
    json.dumps(value, allow_nan=False)
    assert value == json.loads(text) or math.isnan(json.loads(text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON: Expecting value, column 1"),
        ("{\n1}", "not JSON: .*, line 2, column 1"),
        (b"\xff", "not UTF-8: byte 0xff at 0"),
        ("NaN", "NaN is no number"),
        ("[Infinity]", "Infinity is no number"),
        ("-1e400", "number too large: '-1e400'"),
        ("7" * 4301, "has 4301 digits"),
        ('{"a": 1, "b": 2, "a": 1}', "key twice: 'a'"),
        ('[{"x": {"y": 1, "y": 2}}]', "key twice: 'y'"),
        ("[" * 10_000, "nested too deeply"),
        ("[" * 10_000 + "]" * 10_000, "nested too deeply"),
        ("[" * 66 + "]" * 66, "nested too deeply"),
        ('{"a":' * 66 + "1" + "}" * 66, "nested too deeply"),
        ('{"' + "k" * 10**6 + '": NaN, "a": 1}', "NaN"),
    ],
)
def test_what_json_has_not_is_named(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_json(text)
    assert len(str(error.value)) < 200 and "\n" not in str(error.value)


def test_what_is_nested_within_bounds_is_read():
    assert parse_json("[" * 65 + "]" * 65) == json.loads("[" * 65 + "]" * 65)


def test_files_without_an_object_are_named(tmp_path):
    file = tmp_path / "a.json"
    for text, message in (("[3]", r"not a JSON object: found \[3\]"), ("{", "not JSON")):
        file.write_text(text)
        with pytest.raises(ValueError, match=rf"a\.json: {message}"):
            read_json_object(file)
    file.write_text('{"a": [1, 2.5, null, true]}')
    assert read_json_object(file) == {"a": [1, 2.5, None, True]}
