"""Texts with the units that say them, which recognition and synthesis are measured on.

JSON lines, one utterance a line (docs/formats.md):

    {"id": "17", "text": "Ann lost her key.", "units": [3, 3, 99, …]}
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lst_jax.evaluation.error_rates import normalize
from lst_jax.evaluation.jsonl import Example, field, parse_units, read_examples, show


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenText(Example):
    """An utterance; `set_name` is empty, as all are of one set.

    Attributes:
      text: what is said, with words.
      units: (U,) int32, U ≥ 1.
    """

    text: str
    units: np.ndarray


def read_spoken_texts(
    paths: Sequence[str | pathlib.Path], unit_count: int, encoder_fingerprint: str | None = None
) -> tuple[SpokenText, ...]:
    """Reads and checks files of utterances.

    Args:
      paths: JSONL files.
      unit_count: number of speech units.
      encoder_fingerprint: of the encoder of the model's units, see `jsonl.read_examples`.

    Raises:
      OSError, ValueError: see `jsonl.read_examples`; or a text has no words.
    """
    return read_examples(paths, unit_count, _parse, encoder_fingerprint)


def _parse(fields: Mapping[str, Any], unit_count: int, origin: str) -> SpokenText:
    text = field(fields, "text", str)
    if not normalize(text):
        raise ValueError(f"text is {show(text)}; expected a string with words")
    units = parse_units(field(fields, "units", list), "units", unit_count)
    return SpokenText(field(fields, "id", str), "", origin, text, units)
