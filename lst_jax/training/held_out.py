"""The loss on batches that training never sees, by modality and by patching strategy.

A loss a token compares no models of different tokens. So what the targets stand for is counted,
too: losses in nats a second of speech and bits a byte of text compare all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lst_jax.batch import Batch
from lst_jax.sharding import shard_batch
from lst_jax.training.hooks import LossSums

_MODALITIES = ("text", "speech")
_RATES = ("bits_per_byte", "nats_per_second")


def target_amounts(
    batch: Batch, token_sizes: np.ndarray, first_unit_id: int, unit_rate: float
) -> np.ndarray:
    """Returns what the targets of a batch stand for, weighted as their losses are.

    Args:
      batch: on the host.
      token_sizes: what each id stands for: UTF-8 bytes of a text piece, units of a speech id.
      first_unit_id: targets from this id on are speech.
      unit_rate: units a second of speech.

    Returns:
      (2,) float64: bytes of text, seconds of speech.
    """
    sizes = np.asarray(batch.loss_weights, np.float64) * token_sizes[batch.targets]
    speech = batch.targets >= first_unit_id
    written, spoken = (sizes * ~speech).sum(), (sizes * speech).sum()
    return np.array([written, spoken / unit_rate])


class HeldOutLoss:
    """An evaluator: mean losses over the same batches every time.

    `loss`, `loss_text` and `loss_speech` are in nats a token, `bits_per_byte` is of text and
    `nats_per_second` of speech.
    """

    def __init__(
        self,
        loss: LossSums,
        batches: Mapping[str, Sequence[Batch]],
        mesh: jax.sharding.Mesh,
        every: int,
        amounts: Callable[[Batch], np.ndarray] | None = None,
    ) -> None:
        """Takes what is measured on.

        Args:
          loss: see `step.make_loss`.
          batches: this process's rows of the held-out batches, by patching strategy.
          mesh: the device mesh.
          every: steps from one evaluation to the next.
          amounts: see `target_amounts`; None: there are no losses by bytes and seconds.
        """
        self.every = every
        rates = _RATES if amounts else ()
        self.names = tuple(
            f"held_out/{strategy}/{name}"
            for strategy in batches
            for name in ("loss", "loss_text", "loss_speech", *rates)
        )
        self._amounts = (
            {strategy: _sum_amounts(amounts, rows) for strategy, rows in batches.items()}
            if amounts
            else {}
        )
        self._loss = loss
        self._batches = batches
        self._mesh = mesh

    def evaluate(self, params: Any) -> dict[str, float]:
        """Returns the losses; that of a modality without a target is NaN."""
        losses: list[float] = []
        for strategy, batches in self._batches.items():
            # Waits for each batch, so that at most one is on the devices; sums are made in float64.
            sums = [
                jax.device_get(self._loss(params, shard_batch(batch, self._mesh)))
                for batch in batches
            ]
            nll, weight = (
                {kind: math.fsum(float(s[f"{kind}_{name}"]) for s in sums) for kind in _MODALITIES}
                for name in ("nll", "weight")
            )
            losses.append(_mean(sum(nll.values()), sum(weight.values())))
            losses += [_mean(nll[kind], weight[kind]) for kind in _MODALITIES]
            if strategy in self._amounts:
                written, spoken = map(float, self._amounts[strategy])
                losses += [_mean(nll["text"] / math.log(2), written), _mean(nll["speech"], spoken)]
        return dict(zip(self.names, losses, strict=True))


def _sum_amounts(amounts: Callable[[Batch], np.ndarray], batches: Sequence[Batch]) -> np.ndarray:
    """Returns the amounts of all processes' rows of batches."""
    total = np.sum([amounts(batch) for batch in batches], axis=0)
    if jax.process_count() > 1:
        total = np.sum(multihost_utils.process_allgather(total), axis=0)
    return total


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else math.nan
