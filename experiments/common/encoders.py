"""The encoder and the vocoder that a binary is given, held to the models that they are for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from absl import flags

from data_pipelines.speech.registry import (
    default_vocoder,
    open_encoder,
    open_vocoder,
    parse_specification,
)
from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.layout import find_checkpoint
from lst_jax.speech.interfaces import UnitEncoder, Vocoder

flags.disclaim_key_flags()  # they are those of the binary that asks for them

_LEAST_SHARE = 0.9  # of a model's units that an encoder or a vocoder unknown to it has


class SpecificationParser(flags.ArgumentParser):
    """Refuses what is no specification while the flags are parsed, before anything is done."""

    syntactic_help = "KIND[:ARGUMENT][,OPTION=VALUE]…"

    def parse(self, argument: str) -> str:
        """Returns the specification as it is."""
        parse_specification(argument, "it")
        return argument

    def flag_type(self) -> str:
        """Returns the name of the type in the help."""
        return "specification"

    def paths(self, value: str) -> list[str]:
        """Returns what may be paths in a specification."""
        specification = parse_specification(value)
        return [specification.argument or "", *specification.options.values()]


def define_specification(
    name: str, help_text: str, *, required: bool = False
) -> flags.FlagHolder[Any]:
    """Defines a flag of one specification; None where it is not given."""
    return flags.DEFINE(SpecificationParser(), name, None, help_text, required=required)


def define_specifications(
    name: str, help_text: str, *, required: bool = False
) -> flags.FlagHolder[Any]:
    """Defines a flag of specifications that may be given several times."""
    parser, serializer = SpecificationParser(), flags.ArgumentSerializer()
    return flags.DEFINE_multi(parser, serializer, name, None, help_text, required=required)


def open_speech(
    encoder: str | None, vocoder: str | None, checkpoints: Sequence[str]
) -> tuple[UnitEncoder | None, Vocoder | None]:
    """Opens what hears and what speaks, before any parameters are read, which takes long.

    Args:
      encoder: its specification; None where none is given.
      vocoder: its specification. None: see `default_vocoder`.
      checkpoints: runs, or steps of them, whose units both take.

    Raises:
      ImportError, OSError: see `open_encoder`.
      ValueError: see `open_encoder`; or units are not those of a model, or of the encoder.
    """
    vocoder = vocoder or (encoder and default_vocoder(encoder))
    hears = None if encoder is None else open_encoder(encoder)
    speaks = None if vocoder is None else open_vocoder(vocoder)
    for checkpoint in checkpoints:
        model = read_description(find_checkpoint(checkpoint))
        known, count = model.encoder_fingerprint, model.vocabulary.unit_count
        for text, opened, found in (
            (encoder, hears, hears.fingerprint if hears else None),
            (vocoder, speaks, speaks.encoder_fingerprint if speaks else None),
        ):
            if opened is not None:
                # A model may have spare units.
                fits = range(1 if found and known else _least(count), count + 1)
                _check_units(text, opened.unit_count, fits, found, known, "model")
    if hears is not None and speaks is not None:
        known, count, found = hears.fingerprint, hears.unit_count, speaks.encoder_fingerprint
        fits = range(_least(count), _most(count) + 1)
        _check_units(vocoder, speaks.unit_count, fits, found, known, "encoder")
        if speaks.frame_rate != hears.frame_rate:
            raise ValueError(
                f"{vocoder} speaks {speaks.frame_rate:g} units a second, expected "
                f"{hears.frame_rate:g}, as the encoder hears"
            )
    return hears, speaks


def most_units(vocoder: Vocoder) -> int:
    """Returns how many units may be in what a vocoder speaks, of which it has nearly all."""
    return _most(vocoder.unit_count)


def check_same_encoder(what: str, found: str | None, expected: str | None, whose: str) -> None:
    """Checks that units are of the encoder that made others, as far as both are known.

    Args:
      what: has the units, such as "model runs/lst".
      found: fingerprint of their encoder.
      expected: fingerprint of the other encoder.
      whose: it is, such as the path of a model.

    Raises:
      ValueError: they are not.
    """
    if found and expected and found != expected:
        raise ValueError(
            f"{what}: units of the encoder {found}, expected {expected}, that of {whose}"
        )


def _least(count: int) -> int:
    return math.ceil(_LEAST_SHARE * count)


def _most(count: int) -> int:
    return math.floor(count / _LEAST_SHARE)


def _check_units(
    source: str | None,
    has: int,
    fits: range,
    found: str | None,
    known: str | None,
    whose: str,
) -> None:
    """Checks number of units and fingerprint against those of a model or an encoder."""
    if found and known and found != known:
        raise ValueError(f"{source} is of the encoder {found}, expected {known}, the {whose}'s")
    if has not in fits:
        raise ValueError(
            f"{source} has {has} units, expected {fits[0]} … {fits[-1]}, as the {whose}'s"
        )
