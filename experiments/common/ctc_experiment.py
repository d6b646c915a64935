"""A CTC model's training as one configuration, its data, and what its results are measured by."""

from __future__ import annotations

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any

import gin
import jax
import numpy as np
from soxr import resample

from data_pipelines.microworld import stories, voices
from data_pipelines.microworld.speech import TimedSpeech
from data_pipelines.speech.audio import read_audio
from data_pipelines.speech.ctc_examples import (
    SAMPLE_RATE,
    Clip,
    CTCBatches,
    CTCDataConfig,
    make_labels,
    spell_clip,
)
from data_pipelines.speech.ctc_models import CTCModel
from data_pipelines.speech.hugging_face import SpeechModel, write_model
from data_pipelines.speech.spelling import Speller
from experiments.common.speech_training import (
    ModelFile,
    count_held_out,
    keep_clips,
    make_own_mesh,
    train_model,
)
from lst_jax.evaluation.error_rates import character_error_rate, count_errors, word_error_rate
from lst_jax.files import read_numbered_lines, write_file
from lst_jax.local_paths import PathText, local_path
from lst_jax.settings import (
    Bounds,
    Name,
    NaturalFloat,
    configuration,
    require,
)
from lst_jax.sharding import MeshConfig
from lst_jax.speech.interfaces import Rejection, TimedText
from lst_jax.speech.wav2vec2_config import Wav2Vec2Config
from lst_jax.strict_json import parse_object
from lst_jax.training.ctc_task import make_ctc_trainable
from lst_jax.training.hooks import Hook
from lst_jax.training.loop import TrainResult
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.starts import flatten_settings
from lst_jax.training.step import TrainingConfig

MODEL, WORDS, DESCRIPTION = "model", "words.txt", "ctc.json"
_ENGLISH = "ABCDEFGHIJKLMNOPQRSTUVWXYZ'"
_GOOD_MS = 100
_TRAIN_SEED, _HELD_OUT_SEED = 1_000_003, 2_000_003  # of stories that are not the corpus'


@configuration
class CTCExperiment:
    """Everything that a run is determined by; `train_ctc` in Gin files.

    Attributes:
      training: length, records, checkpoints.
      model: its shape; labels decide `vocab_size`.
      data: rows.
      optimizer: AdamW and its schedule.
      mesh: devices along each mesh axis.
      ctc_weight: of CTC's loss beside that of frames whose letters are known.
      recordings: JSONL of recordings of a few seconds; None: the built-in corpus.
      corpus_clips: sentences of the built-in corpus.
      language: ISO 639-1, of numbers and symbols.
      held_out: recordings that are measured and not trained on, at most a tenth of given ones.
    """

    training: TrainingConfig
    model: Wav2Vec2Config
    data: CTCDataConfig = dataclasses.field(default_factory=CTCDataConfig)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    ctc_weight: NaturalFloat = 2.0
    recordings: PathText | None = None
    corpus_clips: Annotated[int, Bounds(least=1, most=10**6)] = 2500
    language: Name = "en"
    held_out: Annotated[int, Bounds(least=0, most=10**5)] = 200

    def settings(self) -> dict[str, Any]:
        """Returns what the record of starts holds besides the training."""
        names = ("ctc_weight", "recordings", "corpus_clips", "language", "held_out")
        parts = flatten_settings(self.model, self.data, self.optimizer, self.mesh)
        return parts | {f"CTCExperiment.{name}": getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class CTCRecording:
    """A recording and what is said in it.

    Attributes:
      read: returns its samples at 16 kHz, when its phonemes start (None: unknown), and its words,
        whose times are 0 where they are unknown.
      timed: whether words have times.
    """

    read: Callable[[], tuple[np.ndarray, Sequence[Sequence[float]] | None, Sequence[TimedText]]]
    timed: bool


@dataclasses.dataclass(frozen=True)
class _Corpus:
    """Recordings to train on and to measure, the latter by name of their group, and their words."""

    letters: Sequence[str]
    words: Collection[str]
    recordings: Sequence[CTCRecording]
    held_out: Mapping[str, Sequence[CTCRecording]]


def run_ctc_experiment(
    experiment: CTCExperiment,
    workdir: str | pathlib.Path,
    config_text: Callable[[], str] | None = None,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Trains, or continues to train, in `workdir`; then writes the model and its results there.

    `model/` is a directory of Hugging Face's, for `ctc:WORKDIR/model`; `words.txt` lists the words
    of the corpus, for `,words=`; `results.json` says what both reach on recordings held out.

    Raises:
      OSError, ValueError: files are missing or settings do not fit together.
      NonFiniteLossError: see `lst_jax.training.loop.train`.
    """
    workdir = pathlib.Path(workdir)
    mesh = make_own_mesh(experiment.mesh, "a CTC model")
    corpus = _open_corpus(experiment)
    labels = make_labels(corpus.letters)
    config = dataclasses.replace(experiment.model, vocab_size=len(labels), pad_token_id=0)
    trainable = make_ctc_trainable(
        config, experiment.ctc_weight, experiment.optimizer, experiment.training, mesh
    )
    speller = Speller(frozenset(corpus.letters), experiment.language)
    clips = keep_clips(lambda index: _spell(corpus.recordings[index], speller))
    batches = CTCBatches(clips, len(corpus.recordings), labels, config, experiment.data)
    description = ModelFile(DESCRIPTION, {"config": vars(config), "labels": labels})

    def finish(result: TrainResult) -> tuple[dict[str, Any], Any]:
        params = {"params": result.state.params}
        model = SpeechModel(config, params, head=True, normalize=True, labels=labels)
        if not (workdir / MODEL).exists():
            write_model(workdir / MODEL, model)
        write_file(workdir / WORDS, "".join(f"{word}\n" for word in sorted(corpus.words)))
        opened = CTCModel(workdir / MODEL, language=experiment.language, words=workdir / WORDS)
        measured = {name: measure(opened, group) for name, group in corpus.held_out.items()}
        size = sum(x.size for x in jax.tree.leaves(params))
        return {"parameters": size, "listed_words": len(corpus.words)}, measured

    return train_model(
        trainable, experiment, batches, workdir, mesh, description, finish, config_text, hooks
    )


def measure(model: CTCModel, recordings: Sequence[CTCRecording]) -> dict[str, float]:
    """Returns how far word ends are off, where they are known, and error rates of transcripts.

    Args:
      model: with a list of words; `wer` and `cer` are without it, `listed_wer` is with it.
      recordings: of which it learned nothing.
    """
    read = [recording.read() for recording in recordings]
    waveforms = [samples for samples, _, _ in read]
    texts = [" ".join(word.text for word in words) for _, _, words in read]
    result: dict[str, float] = {"recordings": len(recordings)}
    for prefix, listed in (("", False), ("listed_", True)):
        heard = model.recognize(waveforms, listed=listed)
        counted = [
            count_errors(str(i), text, " ".join(word.text for word in words))
            for i, (text, words) in enumerate(zip(texts, heard, strict=True))
        ]
        result[f"{prefix}wer"] = word_error_rate(counted).rate
        result[f"{prefix}cer"] = character_error_rate(counted).rate
    errors_ms, rejected = [], 0
    aligned = model.align(waveforms, texts)
    for found, recording, (_, _, words) in zip(aligned, recordings, read, strict=True):
        if isinstance(found, Rejection):
            rejected += 1
        elif recording.timed:
            pairs = zip(found.words, words, strict=True)
            errors_ms += [1000 * abs(a.end_s - b.end_s) for a, b in pairs]
    result["rejected"] = rejected
    if errors_ms:
        result |= {
            "words": len(errors_ms),
            "median_ms": float(np.median(errors_ms)),
            "p95_ms": float(np.percentile(errors_ms, 95)),
            f"within_{_GOOD_MS}_ms": float(np.mean(np.array(errors_ms) <= _GOOD_MS)),
        }
    return result


def _spell(recording: CTCRecording, speller: Speller) -> Clip | Rejection:
    samples, starts, words = recording.read()
    return spell_clip(samples, words, starts, speller, timed=recording.timed)


def _open_corpus(experiment: CTCExperiment) -> _Corpus:
    if experiment.recordings is not None:
        return _read_recordings(experiment)

    def spoken(seed: int, index: int, held_out: bool) -> CTCRecording:
        return CTCRecording(
            lambda: _resample(voices.speak(seed, index, held_out=held_out)), timed=True
        )

    seed, count = experiment.data.seed, experiment.corpus_clips
    held_out = range(experiment.held_out)
    return _Corpus(
        _ENGLISH,
        stories.vocabulary(),
        [spoken(seed + _TRAIN_SEED, i, False) for i in range(count)],
        {"voices held out": [spoken(seed + _HELD_OUT_SEED, i, True) for i in held_out]}
        if held_out
        else {},
    )


def _resample(
    speech: TimedSpeech,
) -> tuple[np.ndarray, Sequence[Sequence[float]], Sequence[TimedText]]:
    wave = resample(voices.full_scale(speech), speech.sample_rate, SAMPLE_RATE)
    return wave.astype(np.float32), speech.phoneme_starts_s, speech.words


def _read_recordings(experiment: CTCExperiment) -> _Corpus:
    """Reads JSONL: `audio`, a path from the file's folder; `text`; perhaps `words` with times."""
    assert experiment.recordings is not None
    path = local_path(experiment.recordings, "recordings")
    speller = Speller(None, experiment.language)
    recordings, letters, words = [], set(), []
    for number, line in read_numbered_lines(path):
        recording, text = _read_line(f"{path}:{number}", path.parent, line)
        recordings.append(recording)
        words.append([])
        for word in text.split():
            spelled = speller.spell(word)
            if isinstance(spelled, Rejection):
                raise ValueError(f"{path}:{number}: {spelled.reason}")
            letters.update(spelled.upper().replace(" ", ""))
            words[-1] += [word] if spelled else []
    count = count_held_out(experiment.held_out, len(recordings), str(path))
    kept = len(recordings) - count
    held_out = {"recordings held out": recordings[kept:]} if count else {}
    known = set(itertools.chain.from_iterable(words[:kept]))
    return _Corpus(sorted(letters), known, recordings[:kept], held_out)


def _read_line(place: str, folder: pathlib.Path, line: bytes) -> tuple[CTCRecording, str]:
    try:
        fields = parse_object(line)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    for name in ("audio", "text"):
        value = fields.get(name)
        require(isinstance(value, str) and value != "", f"{place}: {name}", value, "text")
    file, text = folder / fields["audio"], fields["text"]
    if not file.is_file():
        raise FileNotFoundError(f"{place}: no file {file}")
    given = fields.get("words")
    words = [TimedText(word, 0.0, 0.0) for word in text.split()]
    if given is not None:
        try:
            words = [TimedText(w["word"], float(w["start_s"]), float(w["end_s"])) for w in given]
        except (TypeError, KeyError, ValueError):
            words = []
        texts = [word.text for word in words]
        expected = "objects with word, start_s and end_s, for each word of the text"
        require(texts == text.split(), f"{place}: words", given, expected)
    return CTCRecording(
        lambda: (read_audio(file, SAMPLE_RATE), None, words), given is not None
    ), text


gin.external_configurable(CTCExperiment, "train_ctc")
gin.external_configurable(CTCDataConfig)
gin.external_configurable(Wav2Vec2Config)
