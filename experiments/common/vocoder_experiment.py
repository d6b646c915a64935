"""A vocoder's training as one configuration, its data, and what its results are measured by."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import gin
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.microworld import stories
from data_pipelines.microworld.speech import VOICES, synthesize
from data_pipelines.microworld.voices import full_scale
from data_pipelines.speech.audio import resample
from data_pipelines.speech.hifigan_checkpoints import HiFiGANWeights, write_vocoder
from data_pipelines.speech.imports import open_units
from data_pipelines.speech.readers import FORMATS, read_corpus
from data_pipelines.speech.recordings import Recording
from data_pipelines.speech.registry import open_encoder, open_vocoder
from data_pipelines.speech.vocoder_examples import (
    VocoderBatches,
    VocoderDataConfig,
    VoiceClip,
    fit_samples,
)
from experiments.common.speech_training import (
    ModelFile,
    count_held_out,
    keep_clips,
    make_own_mesh,
    train_model,
)
from lst_jax.local_paths import PathText, local_path
from lst_jax.settings import Bounds, Name, configuration, quote, require
from lst_jax.sharding import MeshConfig
from lst_jax.speech.discriminators import DiscriminatorConfig, log_mels
from lst_jax.speech.hifigan import fold_weight_norm
from lst_jax.speech.hifigan_config import DurationPredictorConfig, HiFiGANConfig
from lst_jax.speech.interfaces import Rejection, UnitEncoder, Vocoder
from lst_jax.training.hooks import Hook
from lst_jax.training.loop import TrainResult
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.starts import flatten_settings
from lst_jax.training.step import TrainingConfig
from lst_jax.training.vocoder_task import VocoderLossConfig, make_vocoder_trainable

VOCODER, DESCRIPTION = "vocoder", "vocoder.json"
_LONGEST_S = 60.0
_MEL_WINDOW, _MEL_BANDS = 1024, 80  # of the distance that is reported
_TRAIN_SEED, HELD_OUT_SEED = 3_000_017, 4_000_037  # of stories that are not the corpus'


@configuration
class VocoderExperiment:
    """Everything that a run is determined by; `train_vocoder` in Gin files.

    Attributes:
      training: length, records, checkpoints.
      model: its shape; the encoder decides `num_embeddings`, recordings decide the speakers.
      discriminators: their shape.
      loss: what is learned by.
      data: rows.
      optimizer: AdamW and its schedule, the same for both.
      mesh: devices along each mesh axis.
      encoder: specification of what makes units of recordings. None: `units` has them.
      units: units that are there, as in `experiments.prepare_speech`.
      recordings: a corpus' folder or manifest. None: the built-in corpus.
      format: its layout, as in `experiments.prepare_speech`.
      corpus_clips: sentences of the built-in corpus.
      corpus_voices: of the built-in corpus' speakers.
      held_out: recordings that are measured and not trained on, at most a tenth of given ones.
    """

    training: TrainingConfig
    model: HiFiGANConfig
    discriminators: DiscriminatorConfig = dataclasses.field(default_factory=DiscriminatorConfig)
    loss: VocoderLossConfig = dataclasses.field(default_factory=VocoderLossConfig)
    data: VocoderDataConfig = dataclasses.field(default_factory=VocoderDataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    encoder: Name | None = None
    units: PathText | None = None
    recordings: PathText | None = None
    format: Name = "folder"
    corpus_clips: Annotated[int, Bounds(least=1, most=10**6)] = 1000
    corpus_voices: Annotated[int, Bounds(least=1, most=len(VOICES))] = 1
    held_out: Annotated[int, Bounds(least=0, most=10**5)] = 20

    def __post_init__(self) -> None:
        one = (self.encoder is None) != (self.units is None)
        expected = "either an encoder or units"
        require(one, "VocoderExperiment.encoder", self.encoder, expected)
        expected = f"one of {', '.join(sorted(FORMATS))}"
        require(self.format in FORMATS, "VocoderExperiment.format", self.format, expected)
        theirs = self.units is None or self.recordings is not None
        require(theirs, "VocoderExperiment.recordings", None, "those that the units are of")

    def settings(self) -> dict[str, Any]:
        """Returns what the record of starts holds besides the training."""
        parts = flatten_settings(
            self.model, self.discriminators, self.loss, self.data, self.optimizer, self.mesh
        )
        names = ("encoder", "units", "recordings", "format")
        names += ("corpus_clips", "corpus_voices", "held_out")
        return parts | {f"VocoderExperiment.{name}": getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class VoiceCorpus:
    """Clips to train on and to measure.

    Attributes:
      read: returns the clip of a number, or why there is none.
      train, held_out: numbers of clips.
      unit_count: units.
      encoder_fingerprint: of the encoder that made them. None: not known.
      speakers: their names.
    """

    read: Callable[[int], VoiceClip | Rejection]
    train: Sequence[int]
    held_out: Sequence[int]
    unit_count: int
    encoder_fingerprint: str | None
    speakers: tuple[str, ...]


def run_vocoder_experiment(
    experiment: VocoderExperiment,
    workdir: str | pathlib.Path,
    config_text: Callable[[], str] | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Trains, or continues to train, in `workdir`; then writes the vocoder and its results there.

    `vocoder/` is a directory for `hifigan:WORKDIR/vocoder`; `results.json` has the distance of log
    mels on recordings held out.

    Raises:
      OSError, ValueError: files are missing or settings do not fit together.
      NonFiniteLossError: see `lst_jax.training.loop.train`.
    """
    workdir = pathlib.Path(workdir)
    mesh = make_own_mesh(experiment.mesh, "a vocoder")
    corpus = open_voice_corpus(experiment)
    config = fit_config(experiment.model, corpus)
    trainable = make_vocoder_trainable(
        config,
        experiment.discriminators,
        experiment.loss,
        experiment.optimizer,
        experiment.training,
        mesh,
    )
    clips = keep_clips(lambda index: corpus.read(corpus.train[index]))
    batches = VocoderBatches(clips, len(corpus.train), config.code_hop_size, experiment.data)

    def finish(result: TrainResult) -> tuple[dict[str, Any], Any]:
        params = jax.device_get(fold_weight_norm(result.state.params["generator"]))
        names = corpus.speakers if config.multispkr else None
        trained = HiFiGANWeights(
            config, {"params": params}, names, None, corpus.encoder_fingerprint
        )
        if not (workdir / VOCODER).exists():
            write_vocoder(workdir / VOCODER, trained)
        measured = measure(workdir / VOCODER, config, [corpus.read(i) for i in corpus.held_out])
        return {"parameters": sum(x.size for x in jax.tree.leaves(params))}, measured

    description = ModelFile(DESCRIPTION, dataclasses.asdict(config))
    return train_model(
        trainable, experiment, batches, workdir, mesh, description, finish, config_text, hooks
    )


def measure(
    directory: pathlib.Path, config: HiFiGANConfig, clips: Sequence[VoiceClip | Rejection]
) -> dict[str, float]:
    """Returns the mean distance of log mels between clips and what a vocoder makes of their units.

    Each is spoken by its own speaker.
    """

    @functools.cache
    def vocoder_of(speaker: int) -> Vocoder:
        option = f",speaker={speaker}" if config.multispkr else ""
        return open_vocoder(f"hifigan:{directory}{option}")

    distances = [
        mel_distance(clip.samples, made, config.sampling_rate)
        for clip in clips
        if not isinstance(clip, Rejection)
        for made in vocoder_of(clip.speaker).decode([clip.units])
    ]
    mean = {"mel_distance": float(np.mean(distances))} if distances else {}
    return {"recordings": len(distances), **mean}


def mel_distance(real: np.ndarray, made: np.ndarray, sample_rate: int) -> float:
    """Returns the mean absolute difference of log mels of the samples that both have."""
    step = _MEL_WINDOW // 4
    length = max(min(len(real), len(made)) // step * step, 2 * _MEL_WINDOW)
    both = np.stack([np.pad(x[:length], (0, max(length - len(x), 0))) for x in (real, made)])
    found = np.asarray(log_mels(jnp.asarray(both), sample_rate, _MEL_WINDOW, _MEL_BANDS))
    return float(np.mean(np.abs(found[0] - found[1])))


def fit_config(config: HiFiGANConfig, corpus: VoiceCorpus) -> HiFiGANConfig:
    """Returns a model's shape with the units and speakers of a corpus."""
    several = len(corpus.speakers) > 1
    return dataclasses.replace(
        config,
        num_embeddings=corpus.unit_count,
        multispkr=several,
        num_speakers=max(len(corpus.speakers), 1),
        model_in_dim=(1 + several + config.multistyle) * config.embedding_dim,
    )


def open_voice_corpus(experiment: VocoderExperiment) -> VoiceCorpus:
    """Opens the recordings of an experiment and what makes their units.

    Raises:
      OSError, ValueError: files are missing, or units of another rate than the model's.
    """
    config = experiment.model
    encoder = None if experiment.encoder is None else open_encoder(experiment.encoder)
    if encoder is not None:
        rate, expected = encoder.frame_rate, f"{config.frame_rate}, by the model's code_hop_size"
        require(rate == config.frame_rate, "frame_rate of the encoder", rate, expected)
    if experiment.recordings is None:
        assert encoder is not None
        return _built_in(experiment, encoder)
    root = local_path(experiment.recordings, "recordings")
    recordings = [x for x in read_corpus(root, experiment.format) if x.rejection is None]
    kept = len(recordings) - count_held_out(experiment.held_out, len(recordings), str(root))
    speakers = sorted({x.speaker for x in recordings if x.speaker is not None})
    nameless = sum(x.speaker is None for x in recordings)
    require(
        not speakers or not nameless,
        experiment.recordings,
        nameless,
        "no recording without speaker",
    )
    return VoiceCorpus(
        _recording_reader(experiment, recordings, encoder, speakers),
        range(kept),
        range(kept, len(recordings)),
        config.num_embeddings if encoder is None else encoder.unit_count,
        None if encoder is None else encoder.fingerprint,
        tuple(speakers),
    )


def _recording_reader(
    experiment: VocoderExperiment,
    recordings: Sequence[Recording],
    encoder: UnitEncoder | None,
    speakers: Sequence[str],
) -> Callable[[int], VoiceClip | Rejection]:
    config = experiment.model
    index = None if experiment.units is None else open_units(local_path(experiment.units, "units"))

    def read(number: int) -> VoiceClip | Rejection:
        recording = recordings[number]
        if index is None:
            assert encoder is not None
            rate = encoder.sample_rate
            sound = recording.sound.load(rate, _LONGEST_S)
            (units,) = encoder.encode([sound])
            if isinstance(units, Rejection):
                return units
            samples = resample(sound, rate, config.sampling_rate)
        else:
            found = index.find(recording.id, recording.sound)
            if found is None:
                return Rejection("no-units", f"{experiment.units} has none of it")
            units, start_s = found
            samples = recording.sound.load(config.sampling_rate, _LONGEST_S)
            first = round(start_s * config.frame_rate)
            units = units[first : first + -(-len(samples) // config.code_hop_size)]
            outside = units[(units < 0) | (units >= config.num_embeddings)]
            if not len(units) or len(outside):
                shown = quote(outside[0]) if len(outside) else "none"
                expected = f"units 0 … {config.num_embeddings - 1}"
                raise ValueError(
                    f"{experiment.units}: {recording.id} has {shown}, expected {expected}"
                )
        speaker = 0 if recording.speaker is None else speakers.index(recording.speaker)
        samples = fit_samples(samples, units, config.code_hop_size)
        return VoiceClip(samples, units.astype(np.int32), speaker)

    return read


def _built_in(experiment: VocoderExperiment, encoder: UnitEncoder) -> VoiceCorpus:
    """Returns sentences of the built-in corpus' grammar by its own voices."""
    voices = VOICES[: experiment.corpus_voices]
    count = experiment.corpus_clips

    def read(number: int) -> VoiceClip | Rejection:
        held_out = number >= count
        seed = HELD_OUT_SEED if held_out else _TRAIN_SEED
        text = story_sentence(experiment.data.seed + seed, number)
        speaker = number % len(voices)
        speech = synthesize(text, voices[speaker])
        sound = resample(full_scale(speech), speech.sample_rate, encoder.sample_rate)
        (units,) = encoder.encode([sound])
        if isinstance(units, Rejection):
            return units
        rate, hop = experiment.model.sampling_rate, experiment.model.code_hop_size
        samples = resample(full_scale(speech), speech.sample_rate, rate)
        return VoiceClip(fit_samples(samples, units, hop), units, speaker)

    return VoiceCorpus(
        read,
        range(count),
        range(count, count + experiment.held_out),
        encoder.unit_count,
        encoder.fingerprint,
        tuple(voice.espeak_name for voice in voices),
    )


def story_sentence(seed: int, number: int) -> str:
    """Returns a sentence of a story of its own."""
    sentences = stories.generate_story(seed, "train", number).sentences
    return sentences[number % len(sentences)]


for _configurable in (
    HiFiGANConfig,
    DurationPredictorConfig,
    DiscriminatorConfig,
    VocoderLossConfig,
    VocoderDataConfig,
):
    gin.external_configurable(_configurable)
gin.external_configurable(VocoderExperiment, "train_vocoder")
