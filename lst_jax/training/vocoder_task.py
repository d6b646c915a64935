"""A HiFi-GAN unit vocoder and its discriminators, as the training loop takes them.

A step is the published one: the discriminators learn to tell speech from what the generator makes
(least squares), then the generator to be taken for speech by them, to resemble speech in all their
maps, and in its mel spectra; its duration predictor learns how long units last. The state has both,
each with its own optimizer's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax import Array

from lst_jax.checkpoints.train_state import TrainState
from lst_jax.settings import Bounds, NaturalFloat, NaturalInt, configuration, require
from lst_jax.shapes import Float, Int32
from lst_jax.sharding import (
    DEFAULT_RULES,
    LogicalRules,
    batch_mesh_size,
)
from lst_jax.speech.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    feature_distance,
    least_squares,
    log_mels,
)
from lst_jax.speech.hifigan import HiFiGAN, Speech
from lst_jax.speech.hifigan_config import HiFiGANConfig
from lst_jax.training.hooks import Record, Sums, Trainable
from lst_jax.training.optimizers import OptimizerConfig, learning_rate_schedule, make_optimizer
from lst_jax.training.speech_task import (
    SpeechProgress,
    SpeechTask,
    check_plain,
    make_speech_trainable,
)
from lst_jax.training.step import TrainingConfig

_Window = Annotated[int, Bounds(least=64, most=2**14)]


@configuration
class VocoderLossConfig:
    """What the generator learns by.

    Attributes:
      mel_weight: of the mean absolute difference of log mels.
      mel_windows: samples of the windows; the published loss has 1024 alone.
      mel_bands: of each spectrum.
      feature_weight: of the difference of the discriminators' maps.
      duration_weight: of the duration predictor's squared error.
      adversarial_from: updates before the discriminators take part; published: 0.
    """

    mel_weight: NaturalFloat = 45.0
    mel_windows: tuple[_Window, ...] = (1024,)
    mel_bands: Annotated[int, Bounds(least=1, most=512)] = 80
    feature_weight: NaturalFloat = 1.0
    duration_weight: NaturalFloat = 1.0
    adversarial_from: NaturalInt = 0

    def __post_init__(self) -> None:
        whole = len(self.mel_windows) > 0 and all(size % 4 == 0 for size in self.mel_windows)
        name = "VocoderLossConfig.mel_windows"
        require(whole, name, self.mel_windows, "multiples of 4, one or more")


class VocoderBatch(NamedTuple):
    """Rows of units and of the speech that they stand for.

    Attributes:
      units: one a frame.
      lengths: real units of each row.
      waveforms: `code_hop_size` samples a unit, zeros behind a row's length.
      speakers: 0 where there are none.
      runs: units without their repeats.
      durations: frames that each lasts; 0 behind the last.
    """

    units: Int32[Array, "B U"]
    lengths: Int32[Array, " B"]
    waveforms: Float[Array, "B n"]
    speakers: Int32[Array, " B"]
    runs: Int32[Array, "B R"]
    durations: Int32[Array, "B R"]


@dataclasses.dataclass
class VocoderProgress(SpeechProgress):
    """Totals of a run and the sums since its last record."""

    def describe(self, window: Mapping[str, float]) -> Record:
        """Returns means of the losses."""
        return {name: window[name] / window["steps"] for name in _LOSSES}


_LOSSES = ("mel", "duration", "adversarial", "features", "discriminators", "gradient_norm")


def make_vocoder_trainable(
    config: HiFiGANConfig,
    discriminators: DiscriminatorConfig,
    loss: VocoderLossConfig,
    optimizer_config: OptimizerConfig,
    training: TrainingConfig,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> Trainable:
    """Returns what the loop must know of both models; its batches are `VocoderBatch`es.

    Raises:
      ValueError: a setting of the training is one that it does not have, or styles are to be
        learned, which no batch has.
    """
    check_plain(training, "a vocoder")
    require(not config.multistyle, "HiFiGANConfig.multistyle", True, "false: speakers alone")
    optimizer = make_optimizer(optimizer_config, training.num_steps)
    schedule = learning_rate_schedule(optimizer_config, training.num_steps)
    model, judge = HiFiGAN(config, weight_norm=True), Discriminators(discriminators)
    # Long enough for every discriminator and window.
    shortest = -(-2 * max(loss.mel_windows) // config.code_hop_size)

    def init(key: Array) -> Any:
        rows = batch_mesh_size(mesh, rules)
        units = jnp.zeros((rows, shortest), jnp.int32)
        speakers = jnp.zeros(rows, jnp.int32) if config.multispkr else None
        first, second = jax.random.split(key)
        made = jnp.zeros((rows, shortest * config.code_hop_size))
        return {
            "generator": model.init(first, units, None, speakers)["params"],
            "discriminators": judge.init(second, made)["params"],
        }

    def init_optimizers(params: Any) -> Any:
        return {name: optimizer.init(tree) for name, tree in params.items()}

    def speak(params: Any, batch: VocoderBatch) -> Array:
        speakers = batch.speakers if config.multispkr else None
        speech = model.apply({"params": params}, batch.units, batch.lengths, speakers)
        return cast(Speech, speech).waveforms

    def mel_loss(made: Array, batch: VocoderBatch) -> Array:
        def spectra(size: int) -> Array:
            found = [
                log_mels(x, config.sampling_rate, size, loss.mel_bands)
                for x in (batch.waveforms, made)
            ]
            return jnp.mean(jnp.abs(found[0] - found[1]))

        return jnp.mean(jnp.stack([spectra(size) for size in loss.mel_windows]))

    def duration_loss(params: Any, batch: VocoderBatch, key: Array | None) -> Array:
        if config.dur_predictor_params is None:
            return jnp.zeros(())
        real = batch.durations > 0
        speech = model.apply(
            {"params": params},
            batch.runs,
            jnp.sum(real, axis=1),
            batch.speakers if config.multispkr else None,
            dropout=key is not None,
            rngs={} if key is None else {"dropout": key},
        )
        predicted = cast(Array, cast(Speech, speech).log_durations)
        errors = jnp.square(predicted - jnp.log1p(batch.durations))
        return jnp.sum(jnp.where(real, errors, 0)) / jnp.maximum(jnp.sum(real), 1)

    def in_pairs(real: Array, made: Array) -> Array:
        """Returns both (2 · B, n), row beside row, so that a device's own stay its own."""
        return jnp.stack([real, made], axis=1).reshape(-1, real.shape[1])

    def judged(params: Any, waveforms: Array) -> list[list[Array]]:
        return cast(Any, judge.apply({"params": params}, waveforms))

    def step(state: TrainState, batch: VocoderBatch) -> tuple[TrainState, Sums]:
        old, kept = state.params, cast(Any, state.opt_state)
        made, speak_backward = jax.vjp(lambda p: speak(p, batch), old["generator"])

        def discriminator_loss(params: Any) -> Array:
            both = judged(params, in_pairs(batch.waveforms, made))
            real, fake = ([maps[-1][i::2] for maps in both] for i in range(2))
            return least_squares(real, 1) + least_squares(fake, 0)

        def learn(_: None) -> tuple[Any, Any, Array]:
            value, gradients = jax.value_and_grad(discriminator_loss)(old["discriminators"])
            updates, new = optimizer.update(
                gradients, kept["discriminators"], old["discriminators"]
            )
            return optax.apply_updates(old["discriminators"], updates), new, value

        def wait(_: None) -> tuple[Any, Any, Array]:
            return old["discriminators"], kept["discriminators"], jnp.zeros(())

        takes_part = state.step >= loss.adversarial_from
        judges, judges_state, discriminator_value = jax.lax.cond(takes_part, learn, wait, None)

        def adversarial(waveforms: Array) -> tuple[Array, tuple[Array, Array]]:
            both = judged(judges, in_pairs(batch.waveforms, waveforms))
            real = [[jax.lax.stop_gradient(x[::2]) for x in maps] for maps in both]
            fake = [[x[1::2] for x in maps] for maps in both]
            scores = least_squares([maps[-1] for maps in fake], 1)
            features = feature_distance([m[:-1] for m in real], [m[:-1] for m in fake])
            return scores + loss.feature_weight * features, (scores, features)

        def of_adversarial(waveforms: Array) -> tuple[Array, tuple[Array, Array]]:
            gradient, parts = jax.grad(adversarial, has_aux=True)(waveforms)
            return gradient, parts

        def nothing(waveforms: Array) -> tuple[Array, tuple[Array, Array]]:
            return jnp.zeros_like(waveforms), (jnp.zeros(()), jnp.zeros(()))

        from_judges, (scores, features) = jax.lax.cond(takes_part, of_adversarial, nothing, made)
        mel, from_mel = jax.value_and_grad(mel_loss)(made, batch)
        (gradients,) = speak_backward(from_judges + loss.mel_weight * from_mel)
        key = jax.random.fold_in(jax.random.key(training.seed), state.step)
        duration, from_durations = jax.value_and_grad(duration_loss)(old["generator"], batch, key)
        gradients = jax.tree.map(
            lambda a, b: a + loss.duration_weight * b, gradients, from_durations
        )
        updates, generator_state = optimizer.update(gradients, kept["generator"], old["generator"])
        new = {
            "generator": optax.apply_updates(old["generator"], updates),
            "discriminators": judges,
        }
        sums = {
            "mel": mel,
            "duration": duration,
            "adversarial": scores,
            "features": features,
            "discriminators": discriminator_value,
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
            **counts(batch),
        }
        opt_state = {"generator": generator_state, "discriminators": judges_state}
        return TrainState(state.step + 1, new, cast(Any, opt_state)), sums

    def counts(batch: VocoderBatch) -> Sums:
        units = jnp.sum(batch.lengths)
        return {"units": units, "audio_seconds": units / config.frame_rate}

    def loss_sums(params: Any, batch: VocoderBatch) -> Sums:
        generator = params["generator"]
        return {
            "mel": mel_loss(speak(generator, batch), batch),
            "duration": duration_loss(generator, batch, None),
            **counts(batch),
        }

    task = SpeechTask(
        kind="a vocoder and its discriminators",
        init=init,
        init_optimizer=init_optimizers,
        step=step,
        loss=loss_sums,
        losses=_LOSSES,
        weights=("units",),
        advice="are there recordings of more than silence?",
        progress=VocoderProgress,
    )
    return make_speech_trainable(task, training, mesh, rules)
