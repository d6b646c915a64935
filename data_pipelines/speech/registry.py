"""Encoders, aligners, recognizers, synthesizers and others, each chosen by one line of text.

    KIND[:ARGUMENT][,OPTION=VALUE]…      hubert:models/mhubert,layer=11,quantizer=km500.npy

Paths may hold colons and commas: a comma begins an option only where a name (small letters, digits
and `_`) and `=` follow. What has `,name=` in it cannot be written so; a path needs a link then.

A built-in kind is a line of a table here: a function `open(argument, options)`, whose module is
imported when the kind is used. Packages add kinds by entry points of the same form:

    [project.entry-points."lst_jax.unit_encoders"]
    codec = "my_package.codec:open_codec"

The other groups are `lst_jax.aligners`, `lst_jax.recognizers`, `lst_jax.synthesizers`,
`lst_jax.language_models` and `lst_jax.vocoders`. A built-in kind cannot be replaced. What a
function returns is held to the Protocol of `lst_jax.speech.interfaces`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import math
import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Annotated, Any

from data_pipelines.records.metadata import check_fingerprint
from lst_jax.local_paths import local_path
from lst_jax.settings import Bounds, list_names, quote, require, validate_value
from lst_jax.speech import interfaces

_KIND = re.compile(r"[a-z][a-z0-9_-]*")
_OPTION = re.compile(r",(?=[a-z][a-z0-9_]*=)")
_BUILT_IN = "built_in"
_ATTRIBUTES: dict[str, Any] = {
    "sample_rate": Annotated[int, Bounds(least=1, most=2**20)],
    "frame_rate": Annotated[float, Bounds(above=0, most=2**20)],
    "unit_count": Annotated[int, Bounds(least=1, most=2**20)],
    "fingerprint": str,
    "encoder_fingerprint": str | None,
}


@dataclasses.dataclass(frozen=True)
class Specification:
    """The parts of a specification.

    Attributes:
      kind: of the thing.
      argument: what follows the colon; None where there is none.
      options: by name.
    """

    kind: str
    argument: str | None
    options: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Room:
    """What there is of one Protocol: its noun, its entry points' group, and the built-in kinds."""

    noun: str
    group: str
    protocol: type
    kinds: Mapping[str, str]


_ENCODERS = _Room(
    "encoder",
    "lst_jax.unit_encoders",
    interfaces.UnitEncoder,
    {
        _BUILT_IN: "data_pipelines.speech.units:open_built_in",
        "hubert": "data_pipelines.speech.hubert_encoder:open_hubert",
        "mel": "data_pipelines.speech.units:open_mel",
    },
)
_ALIGNERS = _Room(
    "aligner",
    "lst_jax.aligners",
    interfaces.Aligner,
    {
        "ctc": "data_pipelines.speech.ctc_models:open_aligner",
        "pocketsphinx": "data_pipelines.speech.sphinx:open_aligner",
    },
)
_RECOGNIZERS = _Room(
    "recognizer",
    "lst_jax.recognizers",
    interfaces.Recognizer,
    {
        "command": "data_pipelines.speech.programs:open_command_recognizer",
        "pocketsphinx": "data_pipelines.speech.sphinx:open_recognizer",
        "python": "data_pipelines.speech.programs:open_python_recognizer",
        "ctc": "data_pipelines.speech.ctc_models:open_recognizer",
    },
)
_SYNTHESIZERS = _Room(
    "synthesizer",
    "lst_jax.synthesizers",
    interfaces.Synthesizer,
    {
        "command": "data_pipelines.speech.programs:open_command_synthesizer",
        "espeak": "data_pipelines.speech.espeak:open_espeak",
        "python": "data_pipelines.speech.programs:open_python_synthesizer",
    },
)
_LANGUAGE_MODELS = _Room(
    "language model",
    "lst_jax.language_models",
    interfaces.LanguageModel,
    {"transformers": "data_pipelines.speech.causal_models:open_causal_model"},
)
_VOCODERS = _Room(
    "vocoder",
    "lst_jax.vocoders",
    interfaces.Vocoder,
    {
        _BUILT_IN: "data_pipelines.speech.hifigan_vocoder:open_built_in",
        "hifigan": "data_pipelines.speech.hifigan_vocoder:open_hifigan",
        "mel": "data_pipelines.speech.vocoder:open_mel_vocoder",
    },
)


def open_encoder(specification: str) -> interfaces.UnitEncoder:
    """Returns the encoder of a specification.

    Raises:
      ValueError: it is none, of no known kind, or what it names does not fit; in one line.
      OSError: a file that it names cannot be read.
      ImportError: an extra that it needs is missing.
    """
    return _open(_ENCODERS, specification)


def open_aligner(specification: str) -> interfaces.Aligner:
    """Returns the aligner of a specification; see `open_encoder`."""
    return _open(_ALIGNERS, specification)


def open_recognizer(specification: str) -> interfaces.Recognizer:
    """Returns the recognizer of a specification; see `open_encoder`."""
    return _open(_RECOGNIZERS, specification)


def open_synthesizer(specification: str) -> interfaces.Synthesizer:
    """Returns the synthesizer of a specification; see `open_encoder`."""
    return _open(_SYNTHESIZERS, specification)


def open_language_model(specification: str) -> interfaces.LanguageModel:
    """Returns the language model of a specification; see `open_encoder`."""
    return _open(_LANGUAGE_MODELS, specification)


def open_vocoder(specification: str) -> interfaces.Vocoder:
    """Returns the vocoder of a specification; see `open_encoder`."""
    return _open(_VOCODERS, specification)


def default_vocoder(encoder: str) -> str | None:
    """Returns what speaks an encoder's units where no vocoder is named.

    It is the same specification, if there is such a kind of vocoder; but the built-in voice, where
    the units are those of the built-in encoder.

    Raises:
      ValueError, OSError, ImportError: see `open_encoder`.
    """
    if parse_specification(encoder, "encoder").kind not in _known(_VOCODERS):
        return None
    own = open_encoder(_BUILT_IN).fingerprint
    return _BUILT_IN if open_encoder(encoder).fingerprint == own else encoder


def parse_specification(text: str, name: str = "specification") -> Specification:
    """Parses a specification, without a look at what it names.

    Args:
      text: the specification.
      name: what it is of, for the message.

    Raises:
      ValueError: it has no kind, or an option twice.
    """
    head, *rest = _OPTION.split(text)
    kind, colon, argument = head.partition(":")
    is_kind = _KIND.fullmatch(kind) is not None
    require(is_kind, name, text, "KIND[:ARGUMENT][,OPTION=VALUE]…, such as mel:encoder.npz")
    options: dict[str, str] = {}
    for option in rest:
        key, _, value = option.partition("=")
        require(key not in options, name, text, f"the option {key} once")
        options[key] = value
    return Specification(kind, argument if colon else None, options)


def check_options(kind: str, options: Mapping[str, str], known: Collection[str]) -> None:
    """Refuses options that a kind does not have; for the functions that open it.

    Raises:
      ValueError: naming the first of them, and those that there are.
    """
    for name in options:
        expected = f"{', '.join(known)} or none" if known else "none"
        require(name in known, f"an option of {kind}", name, expected)


def check_no_argument(kind: str, argument: str) -> None:
    """Refuses an argument of a kind that takes none; for the functions that open it.

    Raises:
      ValueError: there is one.
    """
    require(argument == "", kind, argument, f"{kind} alone")


def number_option(
    kind: str, options: Mapping[str, str], name: str, default: float, least: float = 0.0
) -> float:
    """Returns an option as a number of the default's type; for the functions that open a kind.

    Raises:
      ValueError: it is none, or less than the least.
    """
    if name not in options:
        return default
    try:
        value = type(default)(options[name])
    except ValueError:
        value = math.nan
    noun = "an integer" if isinstance(default, int) else "a number"
    expected = f"{noun}, at least {least:g}"
    require(least <= value < 2**31, f"{name} of {kind}", options[name], expected)
    return value


def path_argument(kind: str, argument: str, noun: str) -> pathlib.Path:
    """Returns the argument of a kind as a path; for the functions that open it.

    Args:
      kind: of the specification.
      argument: "" where there is none.
      noun: what the path is of, such as "an encoder's file".

    Raises:
      ValueError: there is none, or it can be no local path.
    """
    require(argument != "", kind, argument, f"{kind}:PATH, {noun}")
    return local_path(argument, kind)


def _open(room: _Room, text: str) -> Any:
    specification = parse_specification(text, room.noun)
    kind = specification.kind
    opener = _find(room, kind, text)
    found = opener(specification.argument or "", specification.options)
    _check_protocol(room, kind, found)
    return found


def _known(room: _Room) -> list[str]:
    return sorted({*room.kinds, *importlib.metadata.entry_points(group=room.group).names})


def _find(room: _Room, kind: str, text: str) -> Any:
    """Returns the function that opens a kind."""
    if kind in room.kinds:
        module, _, function = room.kinds[kind].partition(":")
        return getattr(importlib.import_module(module), function)
    known = _known(room)
    expected = f"one of the kinds {list_names(known)}" if known else "an installed kind"
    require(kind in known, room.noun, text, expected)
    offered = importlib.metadata.entry_points(group=room.group, name=kind)
    points = {point.value: point for point in offered}
    places = ", ".join(points)
    require(len(points) == 1, room.noun, text, f"one package with this kind, not {places}")
    (point,) = points.values()
    try:
        opener = point.load()
    except (ImportError, AttributeError) as error:
        place = f"{room.noun} {kind} is {quote(point.value)} of {room.group}"
        raise ValueError(f"{place}, expected a function that can be imported: {error}") from error
    require(callable(opener), f"{room.noun} {kind}", point.value, "a function")
    return opener


def _check_protocol(room: _Room, kind: str, found: object) -> None:
    """Holds what a kind's function returned to the room's Protocol."""
    name, protocol = f"{room.noun} {kind}", room.protocol.__name__
    members = {key: value for key, value in vars(room.protocol).items() if key[0] != "_"}
    missing = [key for key in members if not hasattr(found, key)]
    what = f"{name} is of type {type(found).__name__}"
    if missing:
        raise ValueError(f"{what} without {', '.join(missing)}, expected a {protocol}")
    for key, member in members.items():
        value = getattr(found, key)
        if isinstance(member, property):
            value = validate_value(_ATTRIBUTES[key], value, f"{name}.{key}")
            if value is not None and "fingerprint" in key:
                check_fingerprint(f"{name}.{key}", value)
        elif not callable(value):
            raise ValueError(f"{what} with {key} = {quote(value)}, expected a method")
