"""The loss on batches that training never sees, by modality and by patching strategy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from lst_jax.batch import Batch
from lst_jax.sharding import shard_batch
from lst_jax.training.hooks import LossSums

_MODALITIES = ("text", "speech")


class HeldOutLoss:
    """An evaluator: mean losses in nats a token, over the same batches every time."""

    def __init__(
        self,
        loss: LossSums,
        batches: Mapping[str, Sequence[Batch]],
        mesh: jax.sharding.Mesh,
        every: int,
    ) -> None:
        """Takes what is measured on.

        Args:
          loss: see `step.make_loss`.
          batches: this process's rows of the held-out batches, by patching strategy.
          mesh: the device mesh.
          every: steps from one evaluation to the next.
        """
        self.every = every
        self.names = tuple(
            f"held_out/{strategy}/{name}"
            for strategy in batches
            for name in ("loss", "loss_text", "loss_speech")
        )
        self._loss = loss
        self._batches = batches
        self._mesh = mesh

    def evaluate(self, params: Any) -> dict[str, float]:
        """Returns the losses; that of a modality without a target is NaN."""
        losses: list[float] = []
        for batches in self._batches.values():
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
        return dict(zip(self.names, losses, strict=True))


def _mean(total: float, weight: float) -> float:
    return total / weight if weight else math.nan
