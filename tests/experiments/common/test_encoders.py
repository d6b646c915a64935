"""Encoders and vocoders that binaries are given, held to the models that they are for."""

import ast
import pathlib
import re
import types

import pytest

import experiments
from data_pipelines.speech import registry
from experiments.common import encoders

UNITS = "a" * 64


def model(unit_count=8, fingerprint=None):
    vocabulary = types.SimpleNamespace(unit_count=unit_count)
    return types.SimpleNamespace(vocabulary=vocabulary, encoder_fingerprint=fingerprint)


@pytest.fixture
def given(monkeypatch):
    """An encoder and a vocoder of 8 units, whatever the specification; models by name."""
    found = types.SimpleNamespace(
        unit_count=8, fingerprint=UNITS, encoder_fingerprint=UNITS, models={}
    )
    monkeypatch.setattr(encoders, "open_encoder", lambda specification: found)
    monkeypatch.setattr(encoders, "open_vocoder", lambda specification: found)
    monkeypatch.setattr(encoders, "find_checkpoint", lambda name: name)
    monkeypatch.setattr(encoders, "read_description", lambda name: found.models[name])
    return found


def load(kind, name):
    if kind == "encoder":
        return encoders.load_encoder("mel:e.npz", [name])
    return encoders.load_vocoder("mel:e.npz", None, [name])


@pytest.mark.parametrize("kind", ["encoder", "vocoder"])
@pytest.mark.parametrize(
    ("unit_count", "known", "fits"),
    [(7, None, False), (8, None, True), (9, None, False), (80, UNITS, True), (7, UNITS, False)],
)
def test_what_fits_a_model_has_its_fingerprint_or_its_number_of_units(
    given, kind, unit_count, known, fits
):
    """One that the model does not know has 9 tenths of its units."""
    given.models["m"] = model(unit_count, known)
    if fits:
        assert load(kind, "m") is given
        return
    with pytest.raises(ValueError, match=r"mel:e\.npz has 8 units, expected"):
        load(kind, "m")


@pytest.mark.parametrize("kind", ["encoder", "vocoder"])
def test_another_encoder_than_the_models_is_refused_by_name(given, kind):
    given.models |= {"m": model(8, "b" * 64)}
    with pytest.raises(ValueError, match=rf"mel:e\.npz is of the encoder {UNITS}, expected b+,"):
        load(kind, "m")


def test_a_vocoder_is_the_encoders_own_unless_another_is_given(given, monkeypatch):
    opened = []
    mine = {"built_in": "b", "mel:e.npz": "e", "mel:copy.npz": "b"}
    monkeypatch.setattr(
        registry, "open_encoder", lambda text: types.SimpleNamespace(fingerprint=mine[text])
    )
    monkeypatch.setattr(encoders, "open_vocoder", lambda text: opened.append(text) or given)
    assert encoders.load_vocoder(None, None, []) is None
    assert encoders.load_vocoder(None, "hubert:d,layer=3", []) is None  # it has none
    encoders.load_vocoder(None, "mel:e.npz", [])
    encoders.load_vocoder("mel:other.npz", "mel:e.npz", [])
    encoders.load_vocoder(None, "mel:copy.npz", [])
    assert opened == ["mel:e.npz", "mel:other.npz", "built_in"]


def test_units_of_two_encoders_are_told_apart_where_both_are_known():
    encoders.check_same_encoder("records r", UNITS, None, "m")
    encoders.check_same_encoder("records r", None, UNITS, "m")
    encoders.check_same_encoder("records r", UNITS, UNITS, "m")
    with pytest.raises(ValueError, match="records r: units of the encoder aaaa"):
        encoders.check_same_encoder("records r", UNITS, "b" * 64, "m")


def test_no_binary_names_a_class_that_hears_or_speaks():
    """All are opened by specifications."""
    concrete = re.compile(r".+(Encoder|Aligner|Recognizer|Synthesizer|Vocoder)")
    root = pathlib.Path(experiments.__file__).parent
    files = [*root.glob("*.py"), *root.glob("common/*.py"), *root.glob("demonstration/*.py")]
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            module = (isinstance(node, ast.ImportFrom) and node.module) or ""
            if ".speech" in module and module != "lst_jax.speech.interfaces":
                names = [alias.name for alias in node.names]
                assert not any(map(concrete.fullmatch, names)), (file, names)


def test_a_vocoder_of_another_rate_is_refused():
    slow, fast = (types.SimpleNamespace(frame_rate=rate) for rate in (25.0, 50.0))
    encoders.check_same_rate("hifigan:v", slow, slow)
    encoders.check_same_rate("hifigan:v", slow, None)
    with pytest.raises(ValueError, match=r"hifigan:v speaks 50 units a second, expected 25, as"):
        encoders.check_same_rate("hifigan:v", fast, slow)
