"""Splits generated tokens into pieces of text and of speech, in order."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from lst_jax.shapes import Int, Int32, check_shapes
from lst_jax.vocabulary import TextTokenizer, Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Consecutive tokens of one modality.

    Attributes:
      text: of text pieces; None for speech.
      units: (U,) int32, of units; None for text.
    """

    text: str | None = None
    units: Int32[np.ndarray, " U"] | None = None


@check_shapes
def split_segments(
    tokens: Int[np.ndarray, " T"], vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> list[Segment]:
    """Returns the text and the speech in tokens; modes, bos and eos part them and are in none."""
    kinds = np.where(vocabulary.is_unit(tokens), 2, np.where(vocabulary.is_text(tokens), 1, 0))
    edges = [*np.flatnonzero(np.diff(kinds, prepend=-1)), len(tokens)]
    segments = []
    for begin, end in itertools.pairwise(edges):
        if kinds[begin] == 2:
            segments.append(Segment(units=vocabulary.ids_to_units(tokens[begin:end])))
        elif kinds[begin] == 1:
            segments.append(Segment(text=tokenizer.decode(tokens[begin:end]).strip()))
    return segments
