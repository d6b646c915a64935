"""Properties of the files of spoken texts."""

import json

import numpy as np
import pytest

from lst_jax.evaluation.spoken_texts import read_spoken_texts


def write(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def line(**changes):
    return {"id": "a", "text": "Ann lost her key.", "units": [3, 0, 8]} | changes


def test_utterances_come_in_the_order_of_the_files(tmp_path):
    first = write(tmp_path / "1.jsonl", line(), line(id="b", units=[1], speaker="x"))
    second = write(tmp_path / "2.jsonl", line(id="c", text="hello"))
    found = read_spoken_texts([first, second], 9)
    assert [item.example_id for item in found] == ["a", "b", "c"]
    assert found[2].text == "hello"
    np.testing.assert_array_equal(found[0].units, [3, 0, 8])
    assert found[1].origin == f"{first}:2"


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"text": " ... "}, "text is .*; expected a string with words"),
        ({"text": 3}, "text is 3"),
        ({"units": []}, "units is \\[\\]"),
        ({"units": [9]}, r"units\[0\] is 9; expected an integer 0 … 8"),
        ({"units": None}, "units is null"),
        ({"id": ""}, "id is"),
        ({"id": "b"}, "already used"),
    ],
)
def test_what_is_no_spoken_text_is_named_with_its_line(tmp_path, bad, message):
    path = write(tmp_path / "x.jsonl", line(id="b"), line(**bad))
    with pytest.raises(ValueError, match=f"x.jsonl:2: .*{message}"):
        read_spoken_texts([path], 9)


def test_units_of_another_encoder_than_the_models_are_refused(tmp_path):
    known, other = "a" * 64, "b" * 64
    path = write(tmp_path / "x.jsonl", line(), line(id="b", encoder_fingerprint=known))
    for fingerprint in (known, None):
        assert len(read_spoken_texts([path], 9, fingerprint)) == 2
    with pytest.raises(ValueError, match=f"x.jsonl:2: encoder_fingerprint is .*expected {other}"):
        read_spoken_texts([path], 9, other)
