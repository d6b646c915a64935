"""The demo's report: one self-contained HTML page with tables, figures and sound.

Everything is embedded (figures as SVG, sound as data URIs), so that the page can be sent around.
"""

from __future__ import annotations

import dataclasses
import io
import json
import pathlib
import wave
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipelines.records.storage import Utterance, make_utterance
from data_pipelines.training.interleaving import speech_draft
from experiments.reports.demo_speech import SpeechExample
from experiments.reports.figures import COLORS, svg
from experiments.reports.templating import render
from lst_jax.evaluation.choices import ChoiceResult
from lst_jax.evaluation.story_completion import StoryExample
from lst_jax.evaluation.tables import format_rate
from lst_jax.files import write_file
from lst_jax.patching import PatchingConfig, patch_document
from lst_jax.training.hooks import step_of
from lst_jax.training.metrics import Record, format_duration
from lst_jax.vocabulary import TextTokenizer, Vocabulary

_SPOKEN = "#56B4E9"
_SILENT = "#DDDDDD"
# Seconds of the utterance that the figure shows: few enough for words to be read.
_SHOWN_S = 3.0


@dataclasses.dataclass(frozen=True)
class ModelReport:
    """What the report says of one trained model.

    Attributes:
      role: which it is, of `demo_text`.
      name: as it is called in tables.
      num_parameters: of the model.
      records: its metrics, `lst_jax.training.metrics.read_records`, from step 0 on.
      evaluations: its accuracies on the way, `read_evaluations`, likewise.
      results: its story-completion accuracy, one entry per set and direction.
    """

    role: str
    name: str
    num_parameters: int
    records: Sequence[Record]
    evaluations: Sequence[Record]
    results: Sequence[ChoiceResult]

    def seconds_until(self, step: int) -> float:
        """Returns the seconds of the first steps, without evaluation, saving and compilation."""
        ends = np.array([0, *(record["step"] for record in self.records)], float)
        of_step = np.array([record["step_seconds"] for record in self.records], float)
        return float(np.interp(step, ends, [0, *np.cumsum(np.diff(ends) * of_step)]))

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Returns (seconds of training, value) of a metric on the way."""
        return [
            (self.seconds_until(step_of(record)), float(record[metric] or 0))
            for record in self.evaluations
            if record.get(metric) is not None
        ]


@dataclasses.dataclass(frozen=True)
class SpokenExample:
    """An utterance to show and to play, an entry of the corpus' `examples.json`.

    Attributes:
      text: what is said.
      wav: the sound file's bytes, 16-bit mono.
      words: words and "[SIL]", in order.
      unit_counts: units of each entry of `words`.
      units: (U,) int32.
      frame_rate: units a second.
    """

    text: str
    wav: bytes
    words: tuple[str, ...]
    unit_counts: tuple[int, ...]
    units: np.ndarray
    frame_rate: float


def read_spoken_examples(directory: pathlib.Path) -> list[SpokenExample]:
    """Reads `examples.json` and its wav files."""
    entries = json.loads((directory / "examples.json").read_text(encoding="utf-8"))
    return [
        SpokenExample(
            text=entry["text"],
            wav=(directory / entry["wav"]).read_bytes(),
            words=tuple(entry["words"]),
            unit_counts=tuple(entry["unit_counts"]),
            units=np.array(entry["units"], np.int32),
            frame_rate=entry["frame_rate"],
        )
        for entry in entries
    ]


def write_report(
    path: pathlib.Path,
    models: Sequence[ModelReport],
    corpus: Mapping[str, Any],
    spoken: Sequence[SpokenExample],
    stories: Sequence[StoryExample],
    speech: Sequence[SpeechExample],
    speech_directory: pathlib.Path,
    tokenizer: TextTokenizer,
    patch_size: int,
    sentences: Sequence[str],
) -> None:
    """Writes the page.

    Args:
      path: of the HTML file.
      models: at least one, the same sets and directions evaluated for each.
      corpus: its `stats.json`.
      spoken: utterances to play; the first is drawn.
      stories: one example item of each test set.
      speech: what the models said and heard.
      speech_directory: of its wav files.
      tokenizer: the text tokenizer.
      patch_size: of the static patches drawn.
      sentences: what the results say.
    """
    clips = [clip.wav for example in speech for clip in example.clips]
    page = render(
        "demo_report.html",
        models=models,
        accuracies=list(zip(*(model.results for model in models), strict=True)),
        accuracy=lambda result: format_rate(result.accuracy, result.interval),
        sizes={result.set_name: result.n for result in models[0].results},
        stories=stories,
        speech=speech,
        clip_sounds={name: (speech_directory / name).read_bytes() for name in clips},
        spectrograms=svg(spectrogram_figure(speech, speech_directory)),
        cost_header=COST_HEADER,
        costs=[cost_row(model) for model in models],
        sentences=sentences,
        curves=svg(accuracy_figure(models)),
        losses=svg(loss_figure(models)),
        utterance=svg(utterance_figure(spoken[0], tokenizer, patch_size)) if spoken else None,
        spoken=spoken,
        corpus=[[name.replace("_", " "), _format_value(value)] for name, value in corpus.items()],
    )
    write_file(path, page)


def spectrogram_figure(speech: Sequence[SpeechExample], directory: pathlib.Path) -> Figure:
    """Returns a spectrogram of every clip, all on one scale of time."""
    clips = [clip for example in speech for clip in example.clips]
    figure, axes = plt.subplots(
        len(clips), 1, figsize=(10, 1.5 * len(clips)), sharex=True, layout="constrained"
    )
    for axis, clip in zip(np.atleast_1d(axes), clips, strict=True):
        samples, sample_rate = _read_wav((directory / clip.wav).read_bytes())
        # A spectrogram needs a window at least; what is silent has no logarithm.
        padded = np.pad(samples.astype(np.float32), (0, 512))
        padded += 1e-3 * np.random.default_rng(0).standard_normal(len(padded))
        *_, image = axis.specgram(padded, NFFT=512, Fs=sample_rate, noverlap=256, cmap="magma")
        image.set_clim(-40, max(0, image.get_clim()[1]))  # decibels
        axis.set_ylim(0, 6000)
        axis.set_ylabel("Hz")
        axis.set_title(clip.label, loc="left", fontsize=9)
    np.atleast_1d(axes)[-1].set_xlabel("seconds")
    return figure


def accuracy_figure(models: Sequence[ModelReport]) -> Figure:
    """Draws the accuracies on the way against the time of training."""
    metrics = dict.fromkeys(
        name for model in models for record in model.evaluations for name in record if "/" in name
    )
    figure, axes = plt.subplots(
        1, max(1, len(metrics)), figsize=(10, 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for axis, metric in zip(axes[0], metrics, strict=False):
        _, name, direction, _ = metric.split("/")
        for model, color in zip(models, COLORS, strict=False):
            seconds, values = np.array([(0, np.nan), *model.curve(metric)]).T
            axis.plot(seconds / 60, 100 * values, marker=".", color=color, label=model.name)
        axis.set_title(f"{name}, {direction.replace('-', '→')}", fontsize=10)
        axis.set_xlabel("minutes of training")
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].set_ylabel("accuracy [%]")
    axes[0, 0].legend(frameon=False)
    return figure


def loss_figure(models: Sequence[ModelReport]) -> Figure:
    """Draws loss of each modality, mean patch length and aligned fraction against steps."""
    panels = (
        ("loss_text", "text loss [nats / token]"),
        ("loss_speech", "speech loss [nats / unit]"),
        ("mean_patch_length", "mean speech patch [units]"),
        ("aligned_fraction", "aligned fraction"),
    )
    figure, axes = plt.subplots(2, 2, figsize=(10, 6), sharex=True, layout="constrained")
    for axis, (key, label) in zip(axes.flat, panels, strict=True):
        for model, color in zip(models, COLORS, strict=False):
            points = [(r["step"], r[key]) for r in model.records if r[key] is not None]
            axis.plot(*zip(*points, strict=True), color=color, label=model.name)
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("step")
    axes[0, 0].legend(frameon=False)
    return figure


def utterance_figure(example: SpokenExample, tokenizer: TextTokenizer, patch_size: int) -> Figure:
    """Draws waveform, words, units and the patches of every strategy over the first seconds."""
    samples, sample_rate = _read_wav(example.wav)
    end = min(_SHOWN_S, len(example.units) / example.frame_rate)
    figure, (wave_axis, axis) = plt.subplots(
        2, 1, figsize=(10, 5), sharex=True, layout="constrained", height_ratios=(1, 2.2)
    )
    shown = samples[: round(end * sample_rate)]
    wave_axis.plot(np.arange(len(shown)) / sample_rate, shown, color="#444444", linewidth=0.4)
    wave_axis.set_yticks([])
    wave_axis.set_ylabel("waveform")
    wave_axis.spines[["top", "right", "left"]].set_visible(False)

    utterance = make_utterance(
        "shown", example.words, example.units, example.unit_counts, tokenizer
    )
    rows = patch_rows(utterance, tokenizer.vocabulary(), patch_size)
    names = ["words", "units", *rows]
    spoken = [word != "[SIL]" for word in example.words]
    _draw_spans(axis, 0, example.unit_counts, example.frame_rate, end, spoken)
    _draw_labels(axis, 0, example.words, example.unit_counts, example.frame_rate, end)
    units = example.units[: round(end * example.frame_rate)]
    axis.imshow(
        units[None] * 37 % 501,  # neighboring ids look different
        extent=(0, len(units) / example.frame_rate, 1.4, 0.6),
        cmap="nipy_spectral",
        aspect="auto",
        interpolation="nearest",
    )
    for row, lengths in enumerate(rows.values(), start=2):
        _draw_spans(axis, row, lengths, example.frame_rate, end, [True] * len(lengths))
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(0, end)
    axis.set_xlabel("seconds")
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def patch_rows(
    utterance: Utterance, vocabulary: Vocabulary, patch_size: int
) -> dict[str, list[int]]:
    """Returns the lengths in units of an utterance's speech patches under each strategy."""
    strategies = {
        "none": PatchingConfig("none"),
        f"static({patch_size})": PatchingConfig("static", patch_size),
        "aligned": PatchingConfig("aligned", silence="separate"),
        "aligned, silence merged": PatchingConfig("aligned", silence="merged"),
    }
    rows = {}
    for name, config in strategies.items():
        aligned = config.strategy == "aligned"
        example = speech_draft(utterance, vocabulary, None, config, aligned)
        lengths = example.aligned_lengths if aligned else None
        document = patch_document(example.tokens, config, vocabulary, lengths)
        starts = np.cumsum(document.patch_lengths) - document.patch_lengths
        speech = vocabulary.is_unit(document.tokens[starts])
        rows[name] = document.patch_lengths[speech].tolist()
    return rows


def _draw_spans(
    axis: Axes,
    row: int,
    lengths: Sequence[int],
    frame_rate: float,
    end: float,
    spoken: Sequence[bool],
) -> None:
    """Draws boxes of the given lengths in units, one after the other."""
    ends = np.cumsum(lengths) / frame_rate
    starts = ends - np.asarray(lengths) / frame_rate
    shown = starts < end
    spans = np.stack([starts, ends - starts], axis=1)[shown]
    colors = [_SPOKEN if flag else _SILENT for flag in np.asarray(spoken)[shown]]
    axis.broken_barh(
        spans.tolist(), (row - 0.4, 0.8), facecolors=colors, edgecolors="white", linewidth=1.0
    )


def _draw_labels(
    axis: Axes,
    row: int,
    words: Sequence[str],
    lengths: Sequence[int],
    frame_rate: float,
    end: float,
) -> None:
    middles = (np.cumsum(lengths) - np.asarray(lengths) / 2) / frame_rate
    for word, middle in zip(words, middles, strict=True):
        if middle < end and word != "[SIL]":
            axis.text(middle, row, word, ha="center", va="center", fontsize=7, clip_on=True)


def _read_wav(data: bytes) -> tuple[np.ndarray, int]:
    with wave.open(io.BytesIO(data)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
        return samples, file.getframerate()


COST_HEADER = (
    "model",
    "parameters",
    "steps",
    "patches",
    "tokens",
    "speech units",
    "mean patch",
    "PFLOPs",
    "training time",
)


def cost_row(model: ModelReport) -> list[str]:
    """Returns what a model's training took; cells in the order of `COST_HEADER`."""
    last = model.records[-1]
    return [
        model.name,
        f"{model.num_parameters:,}",
        f"{last['step']:,}",
        f"{last['total_patches']:,}",
        f"{last['total_tokens']:,}",
        f"{last['total_speech_units']:,}",
        f"{mean_patch_length(model.records):.2f}",
        f"{(last['total_flops'] or 0) / 1e15:.4f}",
        format_duration(model.seconds_until(step_of(last))),
    ]


def mean_patch_length(records: Sequence[Record]) -> float:
    """Returns the mean over the records of the mean length of a speech patch, in units."""
    return float(np.mean([r["mean_patch_length"] for r in records if r["mean_patch_length"]]))


def _format_value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.2f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_format_value(item)}" for key, item in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
