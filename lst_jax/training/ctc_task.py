"""A wav2vec 2.0 model with a CTC head, as the training loop takes it.

CTC alone may put a letter's probability on any frame within it, so where it is known which letter
each frame is of, the frames' cross-entropy is learned beside it. The first convolution begins as
a bank of filters on the mel scale, from which a small model learns letters in minutes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from lst_jax.checkpoints.train_state import TrainState
from lst_jax.settings import require
from lst_jax.shapes import Float, Int32
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    batch_mesh_size,
)
from lst_jax.speech.wav2vec2 import HiddenStates, Wav2Vec2
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config, receptive_field
from lst_jax.training.hooks import Record, Sums, Trainable
from lst_jax.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from lst_jax.training.speech_task import (
    SpeechProgress,
    SpeechTask,
    check_plain,
    make_speech_trainable,
)
from lst_jax.training.step import TrainingConfig

_LOWEST_HZ, _HIGHEST_HZ = 60.0, 7000.0
_SAMPLE_RATE = 16_000


class CTCBatch(NamedTuple):
    """Rows of speech and what is said in them.

    Attributes:
      waveforms: normalized as the model takes them; all of a row is real.
      targets: labels; those behind a row's length are 0.
      lengths: labels of each row; 0 where they do not fit into its frames, and CTC is left out.
      frame_targets: the label of each frame, −1 where it is not known.
    """

    waveforms: Float[Array, "B n"]
    targets: Int32[Array, "B m"]
    lengths: Int32[Array, " B"]
    frame_targets: Int32[Array, "B L"]


@dataclasses.dataclass
class CTCProgress(SpeechProgress):
    """Totals of a run and the sums since its last record."""

    def describe(self, window: Mapping[str, float]) -> Record:
        """Returns losses a frame and a row, where there were such."""
        known, rows = window["known_frames"], window["ctc_rows"]
        return {
            "frame_loss": window["frame_nll"] / known if known else None,
            "frame_accuracy": window["right_frames"] / known if known else None,
            "ctc_loss": window["ctc_nll"] / rows if rows else None,
            "gradient_norm": window["gradient_norm"] / window["steps"],
        }


def make_ctc_trainable(
    config: Wav2Vec2Config,
    ctc_weight: float,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> Trainable:
    """Returns what the loop must know of the model; its batches are `CTCBatch`es.

    The loss of a batch is the mean cross-entropy of the frames whose labels are known, and
    `ctc_weight` times CTC's, per frame.

    Raises:
      ValueError: a setting of the training is one that it does not have.
    """
    check_plain(training, "a CTC model")
    require(config.pad_token_id is not None, "pad_token_id", None, "the blank's id")
    optimizer = make_optimizer(optimizer_config, training.num_steps)
    schedule = learning_rate_schedule(optimizer_config, training.num_steps)
    model = Wav2Vec2(config, head=True)
    field = receptive_field(config)
    sums_of = functools.partial(_loss_sums, model)

    def init(key: Array) -> Any:
        rows = batch_mesh_size(mesh, rules)
        params = model.init(key, jnp.zeros((rows, field), jnp.float32))["params"]
        first = params["feature_extractor"]["convolution_0"]
        kernel = nn.unbox(first["kernel"])
        bank = jnp.asarray(filter_bank(*kernel.shape[::2]))[:, None]
        first["kernel"] = nn.meta.replace_boxed(first["kernel"], bank)
        return params

    def mean_loss(params: Any, batch: CTCBatch) -> tuple[Array, Sums]:
        sums = sums_of(params, batch)
        known = jnp.maximum(sums["known_frames"], 1)
        ctc = sums["ctc_nll"] / jnp.maximum(sums["ctc_rows"], 1) / batch.frame_targets.shape[1]
        return sums["frame_nll"] / known + ctc_weight * ctc, sums

    def step(state: TrainState, batch: CTCBatch) -> tuple[TrainState, Sums]:
        gradients, sums = jax.grad(mean_loss, has_aux=True)(state.params, batch)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        sums |= {
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, opt_state), sums

    task = SpeechTask(
        kind="a CTC model",
        init=init,
        init_optimizer=optimizer.init,
        step=step,
        loss=sums_of,
        losses=("frame_nll", "ctc_nll", "gradient_norm"),
        weights=("known_frames", "ctc_rows"),
        advice="are rows shorter than what is said in them?",
        progress=CTCProgress,
    )
    return make_speech_trainable(task, training, mesh, rules)


def _loss_sums(model: Wav2Vec2, params: Any, batch: CTCBatch) -> Sums:
    states = cast(HiddenStates, model.apply({"params": params}, batch.waveforms))
    logits = cast(Array, states.logits)
    known = batch.frame_targets >= 0
    labels = jnp.where(known, batch.frame_targets, 0)
    frame_nll = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    has_labels = batch.lengths > 0
    padding = jnp.arange(batch.targets.shape[1]) >= batch.lengths[:, None]
    ctc_nll = optax.ctc_loss(
        logits,
        jnp.zeros(logits.shape[:2]),
        batch.targets,
        padding.astype(jnp.float32),
        blank_id=cast(int, model.config.pad_token_id),
    )
    right = known & (jnp.argmax(logits, -1) == labels)
    return {
        "frame_nll": jnp.sum(jnp.where(known, frame_nll, 0)),
        "known_frames": jnp.sum(known),
        "right_frames": jnp.sum(right),
        "ctc_nll": jnp.sum(jnp.where(has_labels, ctc_nll, 0)),
        "ctc_rows": jnp.sum(has_labels),
        "audio_seconds": jnp.float32(batch.waveforms.size / _SAMPLE_RATE),
    }


def filter_bank(taps: int, filters: int) -> np.ndarray:
    """Returns float32 (taps, filters) of norm 1: cosines and sines at mel-spaced frequencies.

    Each lasts for some of its periods, at most for all taps.
    """
    lowest, highest = (math.log1p(hz / 700) for hz in (_LOWEST_HZ, _HIGHEST_HZ))
    mels = np.linspace(lowest, highest, -(-filters // 2))
    frequency = 700 * np.expm1(np.repeat(mels, 2)[:filters])
    phase = np.tile([0.0, np.pi / 2], filters)[:filters]
    time = (np.arange(taps) - (taps - 1) / 2)[:, None] / _SAMPLE_RATE
    width = np.minimum(taps / _SAMPLE_RATE, 12 / frequency)
    window = np.where(np.abs(time) < width / 2, 0.5 + 0.5 * np.cos(2 * np.pi * time / width), 0)
    bank = window * np.cos(2 * np.pi * frequency * time + phase)
    return (bank / np.sqrt(np.sum(bank**2, axis=0))).astype(np.float32)
