"""`model.json`: every description comes back, and what is none is refused in one line."""

from __future__ import annotations

import copy
import dataclasses
import json
import types

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lst_jax.checkpoints.description import (
    DataDescription,
    ModelDescription,
    check_tokenizer,
    description_difference,
    description_from_file,
    description_to_json,
    exported_from_file,
)
from lst_jax.config import baseline_of
from lst_jax.patching import PatchingConfig
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import Vocabulary
from tests.lst_jax.training.training_runs import DESCRIPTION, TINY

UNITS = UnitEncoding(True, 1.5, ((3, 4), (3, 4, 0)), 2.5)
JOINED = dataclasses.replace(DESCRIPTION.vocabulary, units=UNITS)
FULL = ModelDescription(
    model=dataclasses.replace(TINY, vocab_size=JOINED.size),
    vocabulary=JOINED,
    tokenizer_fingerprint="0" * 64,
    data=DataDescription(PatchingConfig("curriculum", 4), "causal", "t.model", 48, 64),
    encoder_fingerprint="1" * 64,
    published_params='{"model": {"dim": 3, "names": ["a", null]}, "data": {}}',
)


def write(path, fields):
    file = path / "model.json"
    file.write_text(fields if isinstance(fields, str) else json.dumps(fields), encoding="utf-8")
    return file


def assert_one_line(error, *parts):
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    for part in parts:
        assert part in message


characters = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
maybe = st.none() | st.text(characters, min_size=1, max_size=8)
slots = st.none() | st.integers(1, 2**24)
descriptions = st.builds(
    ModelDescription,
    model=st.sampled_from([TINY, baseline_of(TINY)]),
    vocabulary=st.builds(
        dataclasses.replace,
        st.just(DESCRIPTION.vocabulary),
        units=st.builds(UnitEncoding, st.just(True), st.floats(1, 9), units_per_id=st.floats(1, 9)),
    ),
    tokenizer_fingerprint=maybe,
    data=st.builds(
        DataDescription,
        patching=st.none() | st.builds(PatchingConfig, st.sampled_from(["none", "static"])),
        visibility=st.sampled_from([None, "causal", "reference"]),
        tokenizer=maybe,
        patches_per_row=slots,
        tokens_per_row=slots,
    ),
    encoder_fingerprint=maybe,
    published_params=st.none() | st.just('{"model": {"x": [1, 2.5, null, {"y": "z"}]}}'),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(description=descriptions, step=st.integers(0, 2**31 - 1))
def test_every_description_comes_back_with_its_types(tmp_path, description, step):
    fields = description_to_json(description)
    assert fields["format_version"] == 2
    assert description_from_file(write(tmp_path, fields)) == description
    assert exported_from_file(write(tmp_path, fields | {"step": step})) == (description, step)


def test_what_is_absent_has_its_default(tmp_path):
    fields = description_to_json(DESCRIPTION)
    for name in ("data", "encoder_fingerprint", "units", "global_transformer"):
        del fields[name]
    del fields["published_params"], fields["model"]["num_heads_cross"]
    assert description_from_file(write(tmp_path, fields)) == DESCRIPTION


def version1(description, **data):
    """What version 1 wrote of a description."""
    fields = description_to_json(description)
    data = dataclasses.asdict(description.data) | data
    return {name: fields[name] for name in ("model", "vocabulary", "tokenizer_fingerprint")} | {
        "data": data
    }


def test_version_1_kept_the_step_and_the_published_settings_among_the_data(tmp_path):
    description = dataclasses.replace(
        FULL, encoder_fingerprint=None, model=TINY, vocabulary=DESCRIPTION.vocabulary
    )
    params = json.loads(description.published_params)
    file = write(tmp_path, version1(description, step=7, published_params=params))
    assert exported_from_file(file) == (description, 7)
    file = write(tmp_path, version1(description, published_params=params))
    assert exported_from_file(file) == (description, 0)
    file = write(tmp_path, version1(DESCRIPTION, color="red"))
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    assert_one_line(error, str(file), "DataDescription has no color")
    file = write(tmp_path, version1(DESCRIPTION) | {"units": {}})
    with pytest.raises(ValueError, match="version 1 has no units"):
        description_from_file(file)


VALUES_OF_THE_WRONG_KIND = ["abc", -5, 2.5, None, [1], {}, True, 10**30]


@pytest.mark.parametrize("make", [version1, None])
@pytest.mark.parametrize("step", [*VALUES_OF_THE_WRONG_KIND, "../../up", "3", 2**31])
def test_a_step_that_is_no_number_of_steps_is_refused(tmp_path, make, step):
    fields = version1(FULL, step=step) if make else description_to_json(FULL) | {"step": step}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError) as error:
        exported_from_file(file)
    assert_one_line(error, f"{file}: step is ", "expected an integer")


@pytest.mark.parametrize("version", [0, 3, -1, "2", 2.0, True, None, [2]])
def test_a_version_that_is_not_known_is_refused(tmp_path, version):
    file = write(tmp_path, description_to_json(FULL) | {"format_version": version})
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    assert_one_line(error, f"{file}: format_version is {version!r}, expected 1 … 2")


def places(value, path=()):
    """The path of every value inside one."""
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))


def put(fields, path, value):
    """The fields with another value at a path."""
    fields = copy.deepcopy(fields)
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return fields


FIELDS = description_to_json(FULL)
PLACES = [path for path in places(FIELDS) if path]


@settings(
    max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(
    place=st.sampled_from(PLACES),
    value=st.sampled_from([*VALUES_OF_THE_WRONG_KIND, [], "x" * 10**5, 0.0, -1, [[[]]]]),
)
def test_a_value_of_another_kind_is_refused_by_name_or_means_what_it_says(tmp_path, place, value):
    """What is read without complaint is written back as it was."""
    fields = put(FIELDS, place, value)
    file = write(tmp_path, fields)
    try:
        description = description_from_file(file)
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{file}: ") and "\n" not in message and len(message) < 600
        return
    back = json.loads(json.dumps(description_to_json(description)))
    for key in place[:-1]:
        back = back[key]
    found = back[place[-1]]
    if type(found) is float and type(value) is int:
        value = float(value)
    # An object that is {} stands for the defaults.
    assert value == {} or (found == value and type(found) is type(value))


@pytest.mark.parametrize("section", [(), ("model",), ("vocabulary",), ("data",), ("units",)])
def test_a_field_that_is_not_known_is_refused_by_name(tmp_path, section):
    fields = put(FIELDS, (*section, "colour"), 1)
    file = write(tmp_path, fields)
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    assert_one_line(error, str(file), "colour", "expected")


def test_options_that_the_global_transformer_has_not_are_refused(tmp_path):
    file = write(tmp_path, put(FIELDS, ("global_transformer", "window"), 3))
    with pytest.raises(ValueError, match="GlobalTransformerOptions has no window"):
        description_from_file(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ("{}", "model.kind is None"),
        ("[" * 10_000, "nested too deeply"),
        ('{"a": ' * 10_000, "nested too deeply"),
        ('{"model": ' + "[" * 500 + "]" * 500 + "}", "nested too deeply"),
        ('{"step": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"step": NaN}', "NaN is no number"),
        ('{"step": -Infinity}', "-Infinity is no number"),
        ('{"step": 1e999}', "too large"),
        ('{"model": 1, "model": 2}', "key twice: 'model'"),
        ('{"model": 3}', "model is 3, expected an object"),
        ('{"model": {"kind": ["LSTConfig"]}}', "model.kind is ['LSTConfig'], expected"),
        ('{"model": {"kind": "LSTConfig"}, "data": []}', "data is [], expected an object"),
        ('{"format_version": 2, "model": {"kind": "LSTConfig"}}', "is without vocab_size"),
    ],
)
def test_what_is_no_description_is_refused_in_a_line(tmp_path, text, message):
    file = write(tmp_path, text)
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    assert_one_line(error, str(file), message)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "model.json").write_bytes(b"\xff{}")
    with pytest.raises(ValueError, match=r"model\.json: not UTF-8: byte 0xff at 0"):
        description_from_file(tmp_path / "model.json")


def test_the_first_files_of_version_2_say_that_units_are_plain(tmp_path):
    plain = {"deduplicated": False, "pieces_fingerprint": None}
    file = write(tmp_path, description_to_json(DESCRIPTION) | {"units": plain})
    assert description_from_file(file) == DESCRIPTION
    file = write(tmp_path, FIELDS | {"units": plain | {"pieces_fingerprint": "2" * 64}})
    with pytest.raises(ValueError, match="UnitEncoding has no pieces_fingerprint"):
        description_from_file(file)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ({"pieces": [[3, 20]]}, "pieces[0] is (3, 20), expected units 0 … 19"),
        ({"pieces": [[3] * 257]}, "expected units 0 … 19, at most 256"),
        ({"pieces": [[3]]}, "pieces[0] is (3,), expected a piece that is not there yet"),
        ({"pieces": [[3, 4], [3, 4]]}, "pieces[1] is (3, 4), expected a piece that is not"),
        ({"pieces": [[]]}, "pieces[0] is (), expected two units or earlier pieces"),
        ({"pieces": [[3, 4, 0, 1, 2]]}, "pieces[0] is (3, 4, 0, 1, 2), expected two units or"),
        ({"pieces": [[3, -4]]}, "UnitEncoding.pieces is ((3, -4),), expected a tuple"),
        ({"run_length": 1.5}, "UnitEncoding.run_length is 1.5, expected 1 where runs are kept"),
        ({"deduplicated": True, "run_length": 0.5}, "run_length is 0.5, expected"),
        ({"units_per_id": "1"}, "units_per_id is '1', expected"),
    ],
)
def test_a_unit_vocabulary_that_can_be_none_is_refused_in_a_line(tmp_path, units, message):
    file = write(tmp_path, FIELDS | {"units": units})
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    assert_one_line(error, str(file), message)


def test_another_encoder_or_unit_encoding_is_another_model():
    for change, message in (
        ({"encoder_fingerprint": "3" * 64}, "encoder_fingerprint is '111"),
        (
            {
                "vocabulary": dataclasses.replace(
                    JOINED, units=dataclasses.replace(UNITS, pieces=((4, 3), (3, 4)))
                )
            },
            "vocabulary.units.pieces[0][0] is 3 there and 4 here",
        ),
    ):
        found = description_difference(FULL, dataclasses.replace(FULL, **change))
        assert message in found
    unknown = dataclasses.replace(FULL, encoder_fingerprint=None)
    assert description_difference(FULL, unknown) is None
    assert description_difference(unknown, FULL) is None
    moved = dataclasses.replace(FULL, data=DataDescription(tokenizer="elsewhere.model"))
    assert description_difference(FULL, moved) is None


@pytest.mark.parametrize("params", ["[]", "{", '{"model": 3}', '{"data": []}', "[" * 10_000])
def test_published_settings_are_objects(params):
    with pytest.raises(ValueError, match=r"ModelDescription\.published_params") as error:
        dataclasses.replace(FULL, published_params=params)
    assert_one_line(error)


def test_a_vocabulary_of_another_size_is_refused(tmp_path):
    other = Vocabulary(41, unit_count=20)
    plain = {"text_size": 41, "unit_count": 20}
    file = write(tmp_path, description_to_json(DESCRIPTION) | {"vocabulary": plain})
    with pytest.raises(ValueError) as error:
        description_from_file(file)
    expected = f"expected {other.size}"
    assert_one_line(error, str(file), "ModelDescription.model.vocab_size is", expected)


def test_a_file_that_does_not_tell_its_step_is_of_step_0(tmp_path):
    file = write(tmp_path, description_to_json(DESCRIPTION))
    assert exported_from_file(file) == (DESCRIPTION, 0)


@pytest.mark.parametrize(
    ("fingerprint", "size", "message"),
    [
        ("a" * 64, 40, None),
        (None, 40, None),
        ("b" * 64, 40, "t.model has SHA-256 aaaa.*; expected bbbb.*, the tokenizer of the model"),
        (None, 41, "t.model has 40 pieces; expected 41, as the model"),
        ("a" * 64, 41, "t.model has 40 pieces"),
    ],
)
def test_another_tokenizer_is_named(fingerprint, size, message):
    tokenizer = types.SimpleNamespace(model_path="t.model", fingerprint="a" * 64, size=40)
    vocabulary = Vocabulary(size, unit_count=20)
    config = dataclasses.replace(TINY, vocab_size=vocabulary.size)
    description = ModelDescription(config, vocabulary, tokenizer_fingerprint=fingerprint)
    if message is None:
        check_tokenizer(tokenizer, description)
        return
    with pytest.raises(ValueError, match=message):
        check_tokenizer(tokenizer, description)
