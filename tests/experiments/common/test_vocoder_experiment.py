"""Training a vocoder: resumed to the bit, opened as a vocoder of its units, and what is refused."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.registry import open_vocoder
from data_pipelines.speech.vocoder_examples import VocoderDataConfig
from experiments.common import vocoder_experiment
from experiments.common.vocoder_experiment import VocoderExperiment, run_vocoder_experiment
from lst_jax.speech.discriminators import DiscriminatorConfig
from lst_jax.speech.hifigan_config import DurationPredictorConfig, HiFiGANConfig
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from lst_jax.training.vocoder_task import VocoderLossConfig

HOP, UNITS = 40, 5
MODEL = HiFiGANConfig(
    resblock="2",
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
    upsample_rates=(10, 4),
    upsample_kernel_sizes=(10, 4),
    upsample_initial_channel=8,
    embedding_dim=4,
    model_in_dim=4,
    sampling_rate=1000,
    code_hop_size=HOP,
    dur_predictor_params=DurationPredictorConfig(4, 4),
)
EXPERIMENT = VocoderExperiment(
    training=TrainingConfig(num_steps=4, checkpoint_every=2),
    model=MODEL,
    discriminators=DiscriminatorConfig((2,), (4,), 1, (4, 4), (1, 1), (2, 1)),
    loss=VocoderLossConfig(mel_windows=(128,), mel_bands=8, adversarial_from=1),
    data=VocoderDataConfig(batch_size=8, row_units=8, row_runs=4),
    optimizer=OptimizerConfig(warmup_steps=1),
    encoder="tones",
    held_out=2,
)


class Tones:
    """An encoder: how loud each frame is."""

    sample_rate, frame_rate, unit_count, fingerprint = 1000, 25.0, UNITS, "0" * 64

    def encode(self, waveforms):
        return [
            np.clip(np.abs(x[: len(x) // HOP * HOP]).reshape(-1, HOP).mean(1) * 9, 0, 4).astype(int)
            for x in waveforms
        ]


class Interrupt:
    """Sends SIGTERM behind an update."""

    def before_step(self, step):
        pass

    def after_step(self, step, state):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    monkeypatch.setattr(vocoder_experiment, "open_encoder", lambda _: Tones())
    folder = tmp_path / "recordings"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(20):
        loudness = np.repeat(rng.uniform(0, 0.5, 30), 20)
        samples = loudness * np.sin(np.arange(600))
        write_wav(folder / f"{i}.wav", (samples * 2**15).astype(np.int16), 1000)
    return dataclasses.replace(EXPERIMENT, recordings=str(folder))


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_its_vocoder_speaks(
    experiment, tmp_path
):
    whole = run_vocoder_experiment(experiment, tmp_path / "whole")
    first = run_vocoder_experiment(experiment, tmp_path / "parts", hooks=[Interrupt()])
    assert whole.finished and not first.finished
    assert not (tmp_path / "parts" / "results.json").exists()
    second = run_vocoder_experiment(experiment, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.state, second.state)

    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["training"]["steps"] == 4 and results["held_out"]["recordings"] == 2
    assert results["held_out"]["mel_distance"] > 0
    vocoder = open_vocoder(f"hifigan:{tmp_path}/whole/vocoder,durations=predicted")
    assert (vocoder.unit_count, vocoder.encoder_fingerprint) == (UNITS, "0" * 64)
    assert np.isfinite(vocoder.decode([np.array([1, 1, 3])])[0]).all()
    with pytest.raises(
        ValueError, match=r"vocoder.json: upsample_initial_channel is 8, expected 4"
    ):
        other = dataclasses.replace(MODEL, upsample_initial_channel=4)
        run_vocoder_experiment(dataclasses.replace(experiment, model=other), tmp_path / "whole")


def test_what_does_not_fit_together_is_refused_by_name(experiment, tmp_path):
    slow = dataclasses.replace(MODEL, sampling_rate=2000)
    with pytest.raises(ValueError, match=r"frame_rate of the encoder is 25.0, expected 50.0"):
        run_vocoder_experiment(dataclasses.replace(experiment, model=slow), tmp_path / "out")
    with pytest.raises(ValueError, match="encoder is None, expected either an encoder or units"):
        dataclasses.replace(experiment, encoder=None)
    with pytest.raises(ValueError, match="format is 'tape', expected one of common_voice"):
        dataclasses.replace(experiment, format="tape")
    units = tmp_path / "units.jsonl"
    units.write_text('{"id": "0", "units": [1, 900]}\n')
    given = dataclasses.replace(experiment, encoder=None, units=str(units))
    corpus = vocoder_experiment.open_voice_corpus(given)
    with pytest.raises(ValueError, match=r"units.jsonl: 0 has 900, expected units 0 … 499"):
        corpus.read(0)
    assert "has none of it" in corpus.read(1).reason
    assert len(corpus.train) == 18 and len(corpus.held_out) == 2
    assert not (tmp_path / "out").exists()
