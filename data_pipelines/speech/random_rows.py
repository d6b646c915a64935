"""Batches of rows that are drawn at random, without end."""

from __future__ import annotations

import abc
from typing import Any

import grain
import numpy as np


class RandomRows(grain.DatasetIterator, abc.ABC):
    """Batches without end; each is a function of the seed and its number alone.

    It is an iterator of Grain's, so that a checkpoint holds where it is.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        """Takes how many rows a batch has, and what they are drawn by."""
        super().__init__()
        self._batch_size, self._seed = batch_size, seed
        self._batch = 0

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> Any:
        """Returns a row, a named tuple of arrays."""

    def __next__(self) -> Any:
        """Returns a tuple of the rows' kind, its arrays with the rows first."""
        rngs = (
            np.random.default_rng((self._seed, self._batch, i)) for i in range(self._batch_size)
        )
        rows = [self.draw(rng) for rng in rngs]
        self._batch += 1
        return type(rows[0])(*(np.stack(part) for part in zip(*rows, strict=True)))

    def get_state(self) -> dict[str, Any]:
        """Returns the number of the next batch."""
        return {"batch": self._batch}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a batch."""
        self._batch = state["batch"]
