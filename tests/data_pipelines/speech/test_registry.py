"""Specification strings, and the kinds that other packages add."""

import importlib
import re
import sys

import pytest

from data_pipelines.speech.registry import (
    check_options,
    default_vocoder,
    open_aligner,
    open_encoder,
    open_language_model,
    open_recognizer,
    open_synthesizer,
    open_vocoder,
    parse_specification,
    path_argument,
)
from data_pipelines.speech.units import BUILT_IN

GROUPS = {
    "unit_encoders": ("encoder", open_encoder),
    "aligners": ("aligner", open_aligner),
    "recognizers": ("recognizer", open_recognizer),
    "synthesizers": ("synthesizer", open_synthesizer),
    "language_models": ("language model", open_language_model),
    "vocoders": ("vocoder", open_vocoder),
}

MODULE = """
from data_pipelines.speech.registry import check_options


class Everything:
    sample_rate, frame_rate, unit_count, fingerprint = 16000, 50.0, 4, "a" * 64
    encoder_fingerprint = None

    def encode(self, waveforms):
        return []

    align = recognize = synthesize = score = decode = encode


def open_codec(argument, options):
    check_options("codec", options, ["gain", "rate"])
    found = Everything()
    found.argument, found.options = argument, options
    if "rate" in options:
        found.sample_rate = options["rate"]
    return found


def open_nothing(argument, options):
    return object()


class Odd(Everything):
    fingerprint = "a"
    encode = align = recognize = synthesize = score = decode = 3


def open_odd(argument, options):
    return Odd()


constant = 3
"""

KINDS = {
    "codec": "fake_codec:open_codec",
    "nothing": "fake_codec:open_nothing",
    "odd": "fake_codec:open_odd",
    "constant": "fake_codec:constant",
    "lost": "fake_codec:lost",
    "gone": "no_such_package:open",
}


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A distribution on the path that adds kinds of everything."""
    (tmp_path / "fake_codec.py").write_text(MODULE)
    info = tmp_path / "fake_codec-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-codec\nVersion: 1.0\n")
    lines = [f"{kind} = {place}" for kind, place in KINDS.items()]
    parts = ["\n".join([f"[lst_jax.{group}]", *lines, ""]) for group in GROUPS]
    (info / "entry_points.txt").write_text("\n".join(parts))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield tmp_path
    sys.modules.pop("fake_codec", None)


@pytest.mark.parametrize(
    ("text", "kind", "argument", "options"),
    [
        ("pocketsphinx", "pocketsphinx", None, {}),
        ("mel:", "mel", "", {}),
        ("hubert:C:/a,b/c d", "hubert", "C:/a,b/c d", {}),
        ("hubert:a=b,layer=11,file=x,y:z=1", "hubert", "a=b", {"layer": "11", "file": "x,y:z=1"}),
        ("command:say -x A=1,B=2 {text},rate=8", "command", "say -x A=1,B=2 {text}", {"rate": "8"}),
        ("codec,gain=", "codec", None, {"gain": ""}),
    ],
)
def test_a_specification_has_a_kind_an_argument_and_options(text, kind, argument, options):
    found = parse_specification(text)
    assert (found.kind, found.argument, found.options) == (kind, argument, options)


@pytest.mark.parametrize("text", ["", ":a", "a/b.npz", "Mel:x", "encoder.npz", "a b", "mel,x:y"])
def test_what_has_no_kind_is_no_specification(text):
    with pytest.raises(ValueError, match=r"^encoder is .*, expected KIND\[:ARGUMENT\]"):
        open_encoder(text)


def test_an_option_comes_once():
    with pytest.raises(ValueError, match="expected the option layer once"):
        parse_specification("hubert:a,layer=1,layer=2")


@pytest.mark.parametrize("group", GROUPS)
def test_packages_add_kinds(group, installed):
    _, opener = GROUPS[group]
    found = opener("codec:a:b,c,gain=2")
    assert (found.argument, found.options) == ("a:b,c", {"gain": "2"})


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_kind_is_refused_with_the_known_ones(group, installed):
    noun, opener = GROUPS[group]
    with pytest.raises(ValueError, match=f"^{noun} is 'codek:x', expected one of .*codec, "):
        opener("codek:x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("codec,gian=2", "an option of codec is 'gian', expected gain, rate or none"),
        ("codec,rate=2", "encoder codec.sample_rate is '2', expected an integer"),
        ("nothing", "of type object without sample_rate, frame_rate, .*, expected a UnitEncoder"),
        ("odd", "encoder odd .*encode = 3, expected a method|fingerprint is 'a', expected a SHA"),
        ("constant", "encoder constant is 'fake_codec:constant', expected a function"),
        ("lost", "'fake_codec:lost' of lst_jax.unit_encoders, expected a function"),
        ("gone", "'no_such_package:open' of .*No module named"),
    ],
)
def test_what_a_package_gives_is_held_to_the_protocol(text, message, installed):
    with pytest.raises(ValueError, match=message):
        open_encoder(text)


def test_a_kind_of_two_packages_is_refused(installed):
    info = installed / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lst_jax.vocoders]\ncodec = other:open\n")
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"one package with this kind, not .*other:open"):
        open_vocoder("codec")


def test_kinds_refuse_options_and_missing_arguments():
    with pytest.raises(ValueError, match="an option of mel is 'x', expected none"):
        check_options("mel", {"x": "1"}, [])
    with pytest.raises(ValueError, match=re.escape("mel is '', expected mel:PATH, a file")):
        path_argument("mel", "", "a file")
    with pytest.raises(ValueError, match="remote"):
        path_argument("mel", "s3://bucket/x", "a file")


def test_the_built_in_voice_speaks_the_units_of_the_built_in_encoder():
    encoder, vocoder = open_encoder("built_in"), open_vocoder("built_in")
    assert vocoder.encoder_fingerprint == encoder.fingerprint
    assert (vocoder.unit_count, vocoder.frame_rate) == (encoder.unit_count, encoder.frame_rate)
    assert default_vocoder("built_in") == default_vocoder(f"mel:{BUILT_IN}/encoder.npz")
    assert default_vocoder("hubert:none") is None  # without a look at it
    for text in ("built_in:x", "built_in,pitch=3"):
        for open_kind in (open_encoder, open_vocoder):
            with pytest.raises(ValueError, match="built_in"):
                open_kind(text)
