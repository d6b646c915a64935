"""What a vocoder's update is made of, each part computed on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lst_jax.sharding import MeshConfig, make_mesh
from lst_jax.speech.discriminators import (
    DiscriminatorConfig,
    Discriminators,
    feature_distance,
    least_squares,
    log_mels,
)
from lst_jax.speech.hifigan import HiFiGAN
from lst_jax.speech.hifigan_config import DurationPredictorConfig, HiFiGANConfig
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from lst_jax.training.vocoder_task import (
    VocoderBatch,
    VocoderLossConfig,
    make_vocoder_trainable,
)

CONFIG = HiFiGANConfig(
    resblock="2",
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
    upsample_rates=(10, 4),
    upsample_kernel_sizes=(10, 4),
    upsample_initial_channel=8,
    embedding_dim=4,
    model_in_dim=4,
    num_embeddings=5,
    sampling_rate=1000,
    code_hop_size=40,
    dur_predictor_params=DurationPredictorConfig(4, 4, var_pred_dropout=0.0),
)
DISCRIMINATORS = DiscriminatorConfig((2,), (4,), 1, (4, 4), (1, 1), (2, 1))
LOSS = VocoderLossConfig(
    mel_weight=7.0,
    mel_windows=(64, 128),
    mel_bands=8,
    feature_weight=3.0,
    duration_weight=5.0,
    adversarial_from=2,
)


def make_batch(rows, seed=0):
    rng = np.random.default_rng(seed)
    runs, durations = rng.integers(0, 5, (rows, 4)), rng.integers(1, 4, (rows, 4))
    durations[:, 3] = 0
    return VocoderBatch(
        units=rng.integers(0, 5, (rows, 8)).astype(np.int32),
        lengths=np.arange(8 - rows, 8, dtype=np.int32) + 1,
        waveforms=rng.normal(0, 0.1, (rows, 320)).astype(np.float32),
        speakers=np.zeros(rows, np.int32),
        runs=runs.astype(np.int32),
        durations=durations.astype(np.int32),
    )


@pytest.mark.slow
def test_an_update_is_the_sum_of_its_losses_and_judges_take_part_from_their_step_on():
    mesh = make_mesh(MeshConfig(fsdp=1), jax.devices()[:1])
    training, batch = TrainingConfig(num_steps=9, checkpoint_every=9), make_batch(2)
    optimizer = OptimizerConfig(warmup_steps=1)
    trainable = make_vocoder_trainable(CONFIG, DISCRIMINATORS, LOSS, optimizer, training, mesh)
    model, judge = HiFiGAN(CONFIG, weight_norm=True), Discriminators(DISCRIMINATORS)
    state = trainable.start(None).state

    def speak(params):
        return model.apply({"params": params}, batch.units, batch.lengths, None).waveforms

    def mel(params):
        spectra = [
            [log_mels(x, 1000, size, 8) for x in (batch.waveforms, speak(params))]
            for size in (64, 128)
        ]
        return sum(jnp.mean(jnp.abs(a - b)) for a, b in spectra) / 2

    def duration(params):
        spoken = model.apply({"params": params}, batch.runs, np.full(2, 3, np.int32), None)
        errors = (spoken.log_durations - np.log(1 + batch.durations)) ** 2
        return jnp.mean(errors[:, :3])

    def judged(params, waveforms):
        return judge.apply({"params": params}, waveforms)

    def deceived(params, judges):
        maps = judged(judges, speak(params))
        real = judged(judges, batch.waveforms)
        scores = least_squares([x[-1] for x in maps], 1)
        return scores, feature_distance([x[:-1] for x in real], [x[:-1] for x in maps])

    for step in range(4):
        before = jax.tree.map(np.array, state.params)
        state, sums = trainable.step(state, batch)
        after = jax.tree.map(np.array, state.params)
        old, judges = before["generator"], after["discriminators"]
        same = jax.tree.map(np.array_equal, before["discriminators"], judges)
        assert all(jax.tree.leaves(same)) == (step < 2)
        expected = {"adversarial": 0.0, "features": 0.0, "discriminators": 0.0}

        def total(params, judges=judges, takes_part=step >= 2):
            scores, features = deceived(params, judges)
            learned = 7 * mel(params) + 5 * duration(params)
            return learned + (scores + 3 * features if takes_part else 0)

        if step >= 2:
            real, fake = (
                [x[-1] for x in judged(before["discriminators"], waveforms)]
                for waveforms in (batch.waveforms, speak(old))
            )
            scores, features = deceived(old, judges)
            value = least_squares(real, 1) + least_squares(fake, 0)
            expected = {"adversarial": scores, "features": features, "discriminators": value}
        expected |= {"mel": mel(old), "duration": duration(old), "units": 15}
        expected |= {"gradient_norm": optax.tree.norm(jax.grad(total)(old))}
        expected |= {"audio_seconds": 15 * 40 / 1000}
        for name, wanted in expected.items():
            np.testing.assert_allclose(sums[name], wanted, rtol=1e-4, err_msg=f"{name} {step}")
        found = trainable.loss(before, batch)
        for name in ("mel", "duration", "units", "audio_seconds"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, err_msg=name)
