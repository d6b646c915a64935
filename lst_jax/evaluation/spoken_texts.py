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
from lst_jax.evaluation.jsonl import check_unit_count, field, parse_units, read_examples, show


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenText:
    """An utterance.

    Attributes:
      example_id: its name.
      set_name: empty; utterances are of one set.
      text: what is said, with words.
      units: (U,) int32, U ≥ 1.
      origin: where it was read, for error messages.
    """

    example_id: str
    set_name: str
    text: str
    units: np.ndarray
    origin: str


def read_spoken_texts(
    paths: Sequence[str | pathlib.Path], unit_count: int
) -> tuple[SpokenText, ...]:
    """Reads and checks files of utterances.

    Args:
      paths: JSONL files.
      unit_count: number of speech units; a unit is 0 … unit_count − 1.

    Returns:
      The utterances in file order, at least one.

    Raises:
      ValueError: naming file and line, see `read_examples`; or a text has no words.
      OSError: a file cannot be read.
    """
    check_unit_count(unit_count)

    def parse(fields: Mapping[str, Any], origin: str) -> SpokenText:
        text = field(fields, "text", str)
        if not normalize(text):
            raise ValueError(f"text is {show(text)}; expected a string with words")
        units = parse_units(field(fields, "units", list), "units", unit_count)
        return SpokenText(field(fields, "id", str), "", text, units, origin)

    return read_examples(paths, parse)
