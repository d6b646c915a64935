"""The encoder and the vocoder that a binary is given, held to the models that they are for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from absl import flags

from data_pipelines.speech.registry import (
    default_vocoder,
    open_encoder,
    open_vocoder,
    parse_specification,
)
from lst_jax.checkpoints.description import ModelDescription, read_description
from lst_jax.checkpoints.layout import find_checkpoint
from lst_jax.speech.interfaces import UnitEncoder, Vocoder

flags.disclaim_key_flags()  # they are those of the binary that asks for them

_LEAST_SHARE = 0.9  # of a model's units that an encoder unknown to it has


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


def load_encoder(specification: str | None, checkpoints: Sequence[str]) -> UnitEncoder | None:
    """Opens an encoder, before any parameters are read, which takes long.

    Args:
      specification: of the encoder; None where none is given.
      checkpoints: runs, or steps of them.

    Raises:
      ImportError, OSError: see `open_encoder`.
      ValueError: see `open_encoder`; or its units are not those of a model.
    """
    if specification is None:
        return None
    encoder = open_encoder(specification)
    for model in _descriptions(checkpoints):
        expected = model.encoder_fingerprint
        _check_fingerprint(specification, encoder.fingerprint, expected)
        _check_count(specification, encoder.unit_count, model, is_known=expected is not None)
    return encoder


def load_vocoder(
    specification: str | None, encoder: str | None, checkpoints: Sequence[str]
) -> Vocoder | None:
    """Opens a vocoder, as `load_encoder` does.

    Args:
      specification: of the vocoder. None: see `default_vocoder`.
      encoder: specification of the encoder; None where none is given.
      checkpoints: runs, or steps of them.

    Raises:
      ImportError, OSError: see `open_vocoder`.
      ValueError: see `open_vocoder`; or its units are not those of a model.
    """
    own = specification is None
    if own:
        specification = encoder and default_vocoder(encoder)
    if specification is None:
        return None
    vocoder = open_vocoder(specification)
    for model in _descriptions(checkpoints):
        found, expected = vocoder.encoder_fingerprint, model.encoder_fingerprint
        _check_fingerprint(specification, found, expected)
        is_known = found is not None and expected is not None
        _check_count(specification, vocoder.unit_count, model, is_known=is_known)
    return vocoder


def check_same_rate(specification: str | None, vocoder: Any, encoder: Any) -> None:
    """Checks that a vocoder speaks as many units a second as an encoder hears.

    Raises:
      ValueError: it does not.
    """
    if vocoder is not None and encoder is not None and vocoder.frame_rate != encoder.frame_rate:
        raise ValueError(
            f"{specification} speaks {vocoder.frame_rate:g} units a second, expected "
            f"{encoder.frame_rate:g}, as the encoder hears"
        )


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


def _descriptions(checkpoints: Sequence[str]) -> Iterator[ModelDescription]:
    return (read_description(find_checkpoint(checkpoint)) for checkpoint in checkpoints)


def _check_fingerprint(source: str, found: str | None, expected: str | None) -> None:
    if found and expected and found != expected:
        raise ValueError(
            f"{source} is of the encoder {found}, expected {expected}, which made the model's units"
        )


def _check_count(source: str, found: int, model: ModelDescription, *, is_known: bool) -> None:
    """Checks the number of units, of which a model may have a few more than its encoder."""
    unit_count = model.vocabulary.unit_count
    least = 1 if is_known else math.ceil(_LEAST_SHARE * unit_count)
    if not least <= found <= unit_count:
        raise ValueError(
            f"{source} has {found} units, expected {least} … {unit_count} for a model of "
            f"{unit_count}"
        )
