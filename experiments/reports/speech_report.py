"""What a prepared corpus holds: hours, speakers, units, words and silences, as JSON and a page."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from data_pipelines.records.storage import Utterance
from experiments.reports.figures import COLORS, svg
from experiments.reports.templating import render
from lst_jax.files import format_json, write_files
from lst_jax.patching import PatchingConfig

# Edges of histograms; what lies outside counts in the first or last bar.
_EDGES = {
    "seconds of an utterance": np.arange(0.0, 41.0, 1.0),
    "seconds of a word": np.arange(0.0, 1.55, 0.05),
    "seconds of a silence": np.arange(0.0, 2.05, 0.05),
    "units of a word": np.arange(0.0, 51.0, 1.0),
    "score of an utterance": np.arange(-4.0, 0.1, 0.1),
}


@dataclasses.dataclass
class SpeechStatistics:
    """What records of speech add up to.

    Attributes:
      frame_rate: units a second.
      rejects: what became no record: kind, id and reason.
    """

    frame_rate: float
    rejects: Sequence[dict[str, str]]

    def __post_init__(self) -> None:
        self.seconds = self.silent_seconds = 0.0
        self.utterances = self.wordless = self.words = self.silences = self.units = 0
        self.known: dict[str, collections.Counter[str]] = {
            name: collections.Counter() for name in ("speaker", "license", "source")
        }
        self.bars = {name: np.zeros(len(edges) - 1, np.int64) for name, edges in _EDGES.items()}

    def add(self, record: Utterance, duration_s: float, score: float | None) -> None:
        """Counts a record, how long it lasts, and its score."""
        silent = record.is_silence
        times = np.zeros(0) if record.word_times_ms is None else np.diff(record.word_times_ms)
        lengths = times.ravel() / 1000
        self.seconds += duration_s
        self.utterances += 1
        self.units += len(record.units)
        self._count("seconds of an utterance", [duration_s])
        self._count("score of an utterance", [] if score is None else [score])
        for name, counter in self.known.items():
            counter[getattr(record, name) or "unknown"] += 1
        if silent.all():  # speech without words, which is no silence
            self.wordless += 1
            return
        self.words += int((~silent).sum())
        self.silences += int(silent.sum())
        self._count("units of a word", record.unit_counts[~silent])
        if len(lengths):
            self.silent_seconds += float(lengths[silent].sum())
            self._count("seconds of a word", lengths[~silent])
            self._count("seconds of a silence", lengths[silent])

    def _count(self, name: str, values: Any) -> None:
        edges = _EDGES[name]
        inside = np.clip(values, edges[0], edges[-1] - 1e-9)
        self.bars[name] += np.histogram(inside, edges)[0]

    def to_json(self) -> dict[str, Any]:
        """Returns the figures and histograms as JSON values."""
        patch = PatchingConfig().patch_size
        return {
            "hours": self.seconds / 3600,
            "utterances": self.utterances,
            "utterances without words": self.wordless,
            "speakers": len(self.known["speaker"].keys() - {"unknown"}),
            "units": self.units,
            "units a second": self.units / self.seconds,
            "words": self.words,
            "words a minute": 60 * self.words / self.seconds,
            f"words a patch of {patch} units": patch * self.words / self.units,
            "silences": self.silences,
            "share of silence": self.silent_seconds / self.seconds,
            "licenses": dict(self.known["license"]),
            "sources": dict(self.known["source"]),
            "rejects": dict(collections.Counter(reject["kind"] for reject in self.rejects)),
            "histograms": {
                name: {"edges": _EDGES[name].round(6).tolist(), "counts": counts.tolist()}
                for name, counts in self.bars.items()
            },
        }

    def summary(self) -> str:
        """Returns the figures in one line."""
        return (
            f"{self.seconds / 3600:.2f} h of audio, "
            f"{self.units / self.seconds:.2f} units a second, "
            f"{self.wordless:,} utterances without words, {len(self.rejects):,} rejects"
        )

    def figure(self) -> Figure:
        """Draws the histograms."""
        figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), layout="constrained")
        for axis, (name, counts) in zip(axes.flat, self.bars.items(), strict=False):
            edges = _EDGES[name]
            axis.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLORS[0])
            axis.set_xlabel(name)
            axis.spines[["top", "right"]].set_visible(False)
        axes.flat[-1].set_axis_off()
        return figure


def write_speech_report(folder: pathlib.Path, statistics: SpeechStatistics, corpus: str) -> None:
    """Writes `statistics.json` and `statistics.html`."""
    values = statistics.to_json()
    rows = [
        [name, _format(value)] for name, value in values.items() if isinstance(value, int | float)
    ]
    tables = {name: list(values[name].items()) for name in ("licenses", "sources", "rejects")}
    page = render(
        "speech_report.html",
        corpus=corpus,
        rows=rows,
        tables=tables,
        figure=svg(statistics.figure()),
    )
    write_files({folder / "statistics.json": format_json(values), folder / "statistics.html": page})


def _format(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.3f}"
