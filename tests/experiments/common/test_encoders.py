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


def speech(unit_count=8, fingerprint=None, frame_rate=25.0):
    return types.SimpleNamespace(
        unit_count=unit_count,
        fingerprint=fingerprint,
        encoder_fingerprint=fingerprint,
        frame_rate=frame_rate,
    )


@pytest.fixture
def there(monkeypatch):
    """Encoders, vocoders and models by their names, all of 8 units at first."""
    found = {name: speech(8, UNITS) for name in ("mel:e.npz", "hubert:d,layer=3", "hifigan:v")}
    found |= {name: speech(8, "c" * 64) for name in ("mel:copy.npz", "built_in")}
    monkeypatch.setattr(registry, "open_encoder", found.__getitem__)
    monkeypatch.setattr(encoders, "open_encoder", found.__getitem__)
    monkeypatch.setattr(encoders, "open_vocoder", found.__getitem__)
    monkeypatch.setattr(encoders, "find_checkpoint", lambda name: name)
    monkeypatch.setattr(encoders, "read_description", found.__getitem__)
    return found


KINDS = {"encoder": ("hubert:d,layer=3", None), "vocoder": (None, "hifigan:v")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("unit_count", "known", "fits"),
    [(7, None, False), (8, None, True), (9, None, False), (80, UNITS, True), (7, UNITS, False)],
)
def test_what_fits_a_model_has_its_fingerprint_or_its_number_of_units(
    there, kind, unit_count, known, fits
):
    """One that the model does not know has 9 tenths of its units."""
    there["m"] = model(unit_count, known)
    if fits:
        assert sum(x is not None for x in encoders.open_speech(*KINDS[kind], ["m"])) == 1
        return
    with pytest.raises(ValueError, match=r" has 8 units, expected .*, as the model's"):
        encoders.open_speech(*KINDS[kind], ["m"])


@pytest.mark.parametrize("kind", KINDS)
def test_another_encoder_than_the_models_is_refused_by_name(there, kind):
    there["m"] = model(8, "b" * 64)
    with pytest.raises(ValueError, match=rf" is of the encoder {UNITS}, expected b+, the model's"):
        encoders.open_speech(*KINDS[kind], ["m"])


def test_a_vocoder_is_the_encoders_own_unless_another_is_given(there):
    assert encoders.open_speech(None, None, []) == (None, None)
    hubert, mel, hifigan = (there[x] for x in ("hubert:d,layer=3", "mel:e.npz", "hifigan:v"))
    assert encoders.open_speech("hubert:d,layer=3", None, []) == (hubert, None)  # it has none
    assert encoders.open_speech("mel:e.npz", None, []) == (mel, mel)
    assert encoders.open_speech("mel:copy.npz", None, [])[1] is there["built_in"]
    assert encoders.open_speech("mel:e.npz", "hifigan:v", []) == (mel, hifigan)


@pytest.mark.parametrize(
    ("vocoder", "message"),
    [
        (speech(8, UNITS, 50.0), "hifigan:v speaks 50 units a second, expected 25, as the enc"),
        (speech(8, None, 50.0), "hifigan:v speaks 50 units a second, expected 25"),
        (speech(8, "b" * 64), f"hifigan:v is of the encoder b+, expected {UNITS}, the encoder's"),
        (speech(7), "hifigan:v has 7 units, expected 8 … 8, as the encoder's"),
        (speech(7, UNITS), "hifigan:v has 7 units, expected 8 … 8, as the encoder's"),
        (speech(9, UNITS), "hifigan:v has 9 units, expected 8 … 8, as the encoder's"),
    ],
)
def test_a_vocoder_of_other_units_than_the_encoders_is_refused(there, vocoder, message):
    there["hifigan:v"] = vocoder
    encoders.open_speech(None, "hifigan:v", [])
    with pytest.raises(ValueError, match=message):
        encoders.open_speech("mel:e.npz", "hifigan:v", [])


def test_a_vocoder_may_lack_a_tenth_of_the_units():
    assert encoders.most_units(speech(9)) == 10
    assert encoders.most_units(speech(8)) == 8


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
