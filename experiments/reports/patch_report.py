"""The report on patches and words: tables, t-SNE and the lens by layer, as HTML, PNG and JSON."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from experiments.inspection.patch_analysis import (
    LENSES,
    PAPER,
    TRAINED,
    UNITS,
    UNTRAINED,
    Analysis,
    to_json,
)
from experiments.reports.figures import COLORS, png, svg
from experiments.reports.templating import render
from lst_jax.evaluation.patch_embeddings import WordMean, WordRate
from lst_jax.evaluation.tables import format_percent, format_rate, format_rows
from lst_jax.files import write_file, write_json

_SHOWN_WORDS = 12  # in t-SNE, so that their colors can be told apart
_MEASURES = {
    "within": "cosine within a word",
    "between": "cosine between words",
    "silhouette": "silhouette",
}
_LENS_NAMES = {
    "this_word": "the word, of all text pieces",
    "this_word_of_sample": "the word, of the sample's",
    "next_word": "the next word, of all text pieces",
}


def write_patch_report(
    directory: pathlib.Path, analysis: Analysis, source: Mapping[str, Any]
) -> None:
    """Writes `analysis.json`, `analysis.html`, `tsne.png` and `layers.png`.

    Args:
      directory: of the files.
      analysis: what was measured.
      source: what it was made from, with its `seed`.
    """
    points = tsne_points(analysis, source["seed"])
    write_json(directory / "analysis.json", {**source, **to_json(analysis), "tsne": points})
    figures = {"tsne": tsne_figure(points), "layers": layer_figure(analysis)}
    for name, figure in figures.items():
        write_file(directory / f"{name}.png", png(figure))
    page = render(
        "patch_report.html",
        source=source,
        analysis=analysis,
        similarity_header=_similarity_header(analysis),
        similarities=similarity_rows(analysis),
        layer_header=_LAYER_HEADER,
        layers=layer_rows(analysis),
        chance=[format_percent(analysis.chance[name]) for name in ("probe", *LENSES)],
        summary=summarize_lens(analysis),
        figures={name: svg(figure) for name, figure in figures.items()},
    )
    write_file(directory / "analysis.html", page)


def format_summary(analysis: Analysis) -> str:
    """Returns the tables as text."""
    similarities = [_similarity_header(analysis), *similarity_rows(analysis)]
    layers = [_LAYER_HEADER, *layer_rows(analysis)]
    return (
        f"\n{format_rows(similarities, 1)}\n\n{format_rows(layers, 2)}\n\n"
        f"{summarize_lens(analysis)}"
    )


def _similarity_header(analysis: Analysis) -> list[str]:
    gains = [f"gain over {name}" for name in analysis.embeddings if name != TRAINED]
    return ["", *analysis.embeddings, *gains, "paper"]


def similarity_rows(analysis: Analysis) -> list[list[str]]:
    """Returns a row for each measure of the patch encoder's vectors."""
    gains = [analysis.gain(name) for name in analysis.embeddings if name != TRAINED]
    columns = [*(found.similarity[0] for found in analysis.embeddings.values()), *gains]
    return [
        [label, *(_format(getattr(column, name)) for column in columns), PAPER[name]]
        for name, label in _MEASURES.items()
    ]


_LAYER_HEADER = ["layer", "model", "silhouette", "linear probe", *_LENS_NAMES.values()]


def layer_rows(analysis: Analysis) -> list[list[str]]:
    """Returns a row for each layer and model; layer 0 is the patch encoder's output."""
    rows = []
    for layer in range(len(analysis.embeddings[TRAINED].probe)):
        for name, found in analysis.embeddings.items():
            if layer < len(found.probe):
                lens = [_rate(found.lens[key][layer]) if found.lens else "" for key in LENSES]
                silhouette = _format(found.similarity[layer].silhouette)
                rows.append([str(layer), name, silhouette, _rate(found.probe[layer]), *lens])
    return rows


def summarize_lens(analysis: Analysis) -> str:
    """Returns at which layer the word of a spoken patch is read best, and how often."""
    trained, untrained = analysis.embeddings[TRAINED].lens, analysis.embeddings[UNTRAINED].lens
    sentences = []
    for key, what in (("this_word", "just said"), ("next_word", "that comes next")):
        layer = int(np.argmax([rate.value for rate in trained[key]]))
        best, before = trained[key][layer], untrained[key][layer]
        last = len(trained[key]) - 1
        sentences.append(
            f"The word {what} is read best from layer {layer} of {last}: in {_rate(best)} % of the "
            f"cases; before training in {_rate(before)} %, by always naming the commonest in "
            f"{format_percent(analysis.chance[key])} %."
        )
    return " ".join(sentences)


def tsne_points(analysis: Analysis, seed: int) -> dict[str, dict[str, list[list[float]]]]:
    """Returns the vectors of a few words in two dimensions, by kind of vectors and by word."""
    sample = analysis.sample
    chosen = np.random.default_rng(seed).permutation(len(sample.names))[:_SHOWN_WORDS]
    shown = np.isin(sample.words, chosen)
    words = sample.words[shown]
    found = {name: _tsne(x.vectors[shown], seed) for name, x in analysis.embeddings.items()}
    return {
        name: {sample.names[word]: points[words == word].tolist() for word in np.sort(chosen)}
        for name, points in found.items()
    }


def _tsne(vectors: np.ndarray, seed: int) -> np.ndarray:
    """Returns points (m, 2) by cosine distance."""
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    # By PCA's axes t-SNE starts from the data; the seed settles the rest.
    directions = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    method = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return method.fit_transform(directions.astype(np.float64)).round(3)


def tsne_figure(panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]]) -> Figure:
    """Draws what `tsne_points` returns, a panel for each kind of vectors."""
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 4.5), layout="constrained")
    for axis, (name, words) in zip(axes, panels.items(), strict=True):
        for index, (word, points) in enumerate(words.items()):
            axis.scatter(*np.transpose(points), s=9, color=plt.get_cmap("tab20")(index))
            axis.annotate(word, np.median(points, axis=0), ha="center", fontsize=8)
        axis.set(title=name, xticks=[], yticks=[])
    return figure


def layer_figure(analysis: Analysis) -> Figure:
    """Draws silhouette, probe and lens against the layer."""
    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    names = (TRAINED, UNTRAINED)
    for name, color in zip(names, COLORS, strict=False):
        found = analysis.embeddings[name]
        estimates = [similarity.silhouette for similarity in found.similarity]
        _draw(axes[0], [(x.value, x.interval) for x in estimates], color, name)
        _draw(axes[1], [(x.value, x.interval) for x in found.probe], color, name)
        for key, style in (("this_word", "-"), ("next_word", "--")):
            label = f"{key.replace('_', ' ')}, {name}"
            _draw(axes[2], [(x.value, x.interval) for x in found.lens[key]], color, label, style)
    units = analysis.embeddings[UNITS]
    axes[0].axhline(units.similarity[0].silhouette.value, color=COLORS[2], label=UNITS)
    axes[1].axhline(units.probe[0].value, color=COLORS[2], label=UNITS)
    axes[1].axhline(analysis.chance["probe"], color="gray", linestyle=":", label="chance")
    axes[2].axhline(analysis.chance["this_word"], color="gray", linestyle=":", label="chance")
    titles = ("silhouette", "held-out words that a linear probe names", "words read as text")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="layer of the global transformer")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    return figure


def _draw(
    axis: Any,
    values: Sequence[tuple[float, tuple[float, float]]],
    color: str,
    label: str,
    style: str = "-",
) -> None:
    layers = np.arange(len(values))
    lower, upper = np.array([interval for _, interval in values]).T
    axis.plot(layers, [value for value, _ in values], style, color=color, label=label, marker=".")
    axis.fill_between(layers, lower, upper, color=color, alpha=0.15, linewidth=0)


def _rate(rate: WordRate) -> str:
    return format_rate(rate.value, rate.interval)


def _format(estimate: WordMean) -> str:
    lower, upper = estimate.interval
    return f"{estimate.value:.2f} ({lower:.2f} … {upper:.2f})"
