"""The demo's examples of speech: a spoken prompt continued, one transcribed, a text spoken."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.vocoder import decode_known
from experiments.common.recognizers import hear, model_recognizer
from lst_jax.evaluation.spoken_texts import SpokenText
from lst_jax.evaluation.story_completion import StoryExample
from lst_jax.files import write_json
from lst_jax.inference.generation import GenerationLimits, generate
from lst_jax.inference.sampling import SamplingConfig
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.inference.transcription import synthesize
from lst_jax.speech.interfaces import Vocoder

_SECONDS = 6.0
_SAMPLING = SamplingConfig(temperature=0.7, top_p=0.95)
_FILE = "examples.json"


@dataclasses.dataclass(frozen=True)
class LabeledSound:
    """Sound, and what it is.

    Attributes:
      label: who speaks.
      wav: name of the file.
    """

    label: str
    wav: str


@dataclasses.dataclass(frozen=True)
class SpeechExample:
    """What was given and what was made of it.

    Attributes:
      title: what was done.
      lines: label and text, in order.
      clips: to listen to, by the vocoder.
    """

    title: str
    lines: tuple[tuple[str, str], ...]
    clips: tuple[LabeledSound, ...]


def make_speech_examples(
    directory: pathlib.Path,
    models: Mapping[str, TrainedModel],
    vocoder: Vocoder,
    story: StoryExample,
    spoken: Sequence[SpokenText],
) -> list[SpeechExample]:
    """Makes the examples, or reads those that the same models made before.

    Args:
      directory: gets `examples.json` and the wav files.
      models: "base" continues, "asr" transcribes, "tts" speaks.
      vocoder: of the units.
      story: held-out; its prompt is continued.
      spoken: two held-out stories, to transcribe and to speak.
    """
    made_by = {name: [str(model.checkpoint), model.step] for name, model in models.items()}
    path = directory / _FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("made_by") == made_by:
        examples = [_read(fields) for fields in found["examples"]]
        if all((directory / clip.wav).exists() for example in examples for clip in example.clips):
            return examples
    directory.mkdir(parents=True, exist_ok=True)
    writer = _ClipWriter(directory, vocoder)
    prompt = story.prompt
    assert prompt.units is not None and prompt.text is not None  # stories of the built-in corpus
    examples = [
        _continue(models["base"], models["asr"], prompt.units, prompt.text, writer),
        _transcribe(models["asr"], spoken[0].units, spoken[0].text, writer),
        _speak(models["tts"], models["asr"], spoken[1].text, writer),
    ]
    values = [dataclasses.asdict(example) for example in examples]
    write_json(path, {"made_by": made_by, "examples": values})
    return examples


class _ClipWriter:
    def __init__(self, directory: pathlib.Path, vocoder: Vocoder) -> None:
        self._directory = directory
        self._vocoder = vocoder

    def write(self, name: str, label: str, units: np.ndarray) -> LabeledSound:
        samples = decode_known(self._vocoder, units)
        samples = samples if samples.size else np.zeros(1, np.float32)  # a file needs one
        write_wav(self._directory / f"{name}.wav", samples, self._vocoder.sample_rate)
        return LabeledSound(label, f"{name}.wav")


def _continue(
    model: TrainedModel, asr: TrainedModel, units: np.ndarray, text: str, writer: _ClipWriter
) -> SpeechExample:
    vocabulary = model.vocabulary
    start = [vocabulary.bos_id, vocabulary.speech_mode_id]
    prompt = np.array([*start, *vocabulary.units_to_ids(units)], np.int32)
    max_units = round(_SECONDS * 25)
    (generation,) = generate(
        model,
        [prompt],
        sampling=_SAMPLING,
        # At least two seconds, so that there is something to hear.
        limits=GenerationLimits(max_units + 1, max_units=max_units, min_tokens=50),
        modality="speech",
        batch_rows=model.mesh.size,
    )
    made = vocabulary.ids_to_units(generation.tokens[vocabulary.is_unit(generation.tokens)])
    whole = np.concatenate([units, made])
    return SpeechExample(
        "A spoken prompt, continued in speech",
        (
            ("prompt", text),
            ("prompt and continuation, as the recognizer hears them", _hear(asr, whole)),
        ),
        (
            writer.write("prompt", "the prompt", units),
            writer.write("continuation", "the continuation", made),
        ),
    )


def _transcribe(
    asr: TrainedModel, units: np.ndarray, text: str, writer: _ClipWriter
) -> SpeechExample:
    return SpeechExample(
        "Speech, transcribed",
        (("said", text), ("recognized", _hear(asr, units))),
        (writer.write("transcribed", "what was said", units),),
    )


def _speak(tts: TrainedModel, asr: TrainedModel, text: str, writer: _ClipWriter) -> SpeechExample:
    (answer,) = synthesize(tts, [text], sampling=_SAMPLING, batch_rows=tts.mesh.size)
    return SpeechExample(
        "A text, spoken",
        (("text", text), ("as the recognizer hears it", _hear(asr, answer.units))),
        (writer.write("spoken", "the model's speech", answer.units),),
    )


def _hear(asr: TrainedModel, units: np.ndarray) -> str:
    (text,) = hear(model_recognizer(asr, asr.mesh.size), [units])
    return text


def _read(fields: Mapping[str, Any]) -> SpeechExample:
    return SpeechExample(
        fields["title"],
        tuple((label, text) for label, text in fields["lines"]),
        tuple(LabeledSound(**clip) for clip in fields["clips"]),
    )
