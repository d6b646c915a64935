"""What patch embeddings say of words: similarity, a linear probe, and a text lens by layer.

The numbers of a trained model stand beside those of the same model before training and, where that
means something, of mean unit embeddings. What counts is the gain over these.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from experiments.inspection.word_patches import NO_WORD, WordSample
from lst_jax.checkpoints.layout import split_path
from lst_jax.checkpoints.train_state import init_state
from lst_jax.evaluation.patch_embeddings import (
    WordMean,
    WordRate,
    WordSimilarity,
    measure_similarity,
    probe_words,
    word_rate,
)
from lst_jax.evaluation.patch_states import (
    mean_token_embeddings,
    patch_states,
    read_as_text,
)
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.training.starts import read_starts

# Of the paper, for aligned patches.
PAPER = {"within": "0.87", "between": "0.43", "silhouette": "0.65–0.68"}
TRAINED, UNTRAINED, UNITS = "trained", "untrained", "mean unit embeddings"
SIMILARITIES = ("within", "between", "silhouette")
LENSES = ("this_word", "this_word_of_sample", "next_word")
_SEED = "TrainingConfig.seed"


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """What is known of the words of a sample by one set of vectors.

    Attributes:
      vectors: (M, D), those of the first layer: what the patch encoder makes.
      similarity: by layer.
      probe: by layer, the share of held-out words that a linear probe names.
      lens: by layer, the share of words that the text lens reads; by the names of `LENSES`.
    """

    vectors: np.ndarray
    similarity: list[WordSimilarity]
    probe: list[WordRate]
    lens: dict[str, list[WordRate]]


@dataclasses.dataclass(frozen=True, eq=False)
class Analysis:
    """The whole analysis.

    Attributes:
      sample: the words.
      embeddings: by `TRAINED`, `UNTRAINED` and `UNITS`; the last has one layer and no lens.
      chance: of the probe and of each lens: always naming what is commonest in the sample.
      untrained_seed: of the parameters before training.
    """

    sample: WordSample
    embeddings: dict[str, Embeddings]
    chance: dict[str, float]
    untrained_seed: int

    def gain(self, over: str) -> WordSimilarity:
        """Returns what the trained patch encoder has more than others, paired by words."""
        return self.embeddings[TRAINED].similarity[0] - self.embeddings[over].similarity[0]


def run_seed(trained: TrainedModel) -> int:
    """Returns the seed of the parameters by the run's record of starts; 0 where there is none."""
    assert trained.checkpoint is not None
    starts = read_starts(split_path(trained.checkpoint)[0])
    return int(starts[0]["settings"].get(_SEED, 0)) if starts else 0


def analyze_words(
    trained: TrainedModel,
    sample: WordSample,
    *,
    seed: int = 0,
    batch_rows: int = 8,
    patches_per_row: int = 1024,
    report: Callable[[str], None] = lambda _: None,
    progress: Callable[[], Callable[[int, int], None] | None] = lambda: None,
) -> Analysis:
    """Analyzes the words of a sample by a trained model and by what it is compared with.

    Args:
      trained: an LST.
      sample: the words.
      seed: of resampling and of the probe's split.
      batch_rows, patches_per_row: of batches.
      report: is told what begins.
      progress: makes a callback for the batches of a model.
    """
    rng = np.random.default_rng(seed)
    # By utterance: two words of one are said by one voice.
    held_out = (rng.permutation(len(sample.chosen.documents)) % 2 == 0)[sample.chosen.document]

    def embed(model: TrainedModel, name: str) -> Embeddings:
        report(f"states of the {name} model")
        states = patch_states(
            model,
            sample.chosen,
            batch_rows=batch_rows,
            patches_per_row=patches_per_row,
            progress=progress(),
        )
        report(f"lens of the {name} model")
        return _measure(states, sample, held_out, seed, _read_lens(model, states, sample, seed))

    fresh = run_seed(trained)
    embeddings = {TRAINED: embed(trained, TRAINED)}
    params = init_state(trained.model.config, optax.identity(), fresh, trained.mesh, trained.rules)
    embeddings[UNTRAINED] = embed(dataclasses.replace(trained, params=params.params), UNTRAINED)
    units = mean_token_embeddings(trained, sample.chosen)[None]
    embeddings[UNITS] = _measure(units, sample, held_out, seed, {})
    followed = sample.next_pieces != NO_WORD
    chance = {
        "probe": _commonest(sample.words[held_out]),
        "this_word": _commonest(sample.first_pieces),
        "this_word_of_sample": _commonest(sample.first_pieces),
        "next_word": _commonest(sample.next_pieces[followed]),
    }
    return Analysis(sample, embeddings, chance, fresh)


def _measure(
    states: np.ndarray,
    sample: WordSample,
    held_out: np.ndarray,
    seed: int,
    lens: dict[str, list[WordRate]],
) -> Embeddings:
    words = sample.words
    return Embeddings(
        vectors=states[0],
        similarity=[measure_similarity(layer, words, seed) for layer in states],
        probe=[
            word_rate(probe_words(layer, words, held_out), words[held_out], seed)
            for layer in states
        ],
        lens=lens,
    )


def _read_lens(
    model: TrainedModel, states: np.ndarray, sample: WordSample, seed: int
) -> dict[str, list[WordRate]]:
    """Returns how often each layer of states (layers, M, D) is read as this word and the next."""
    own, following = sample.first_pieces, sample.next_pieces
    followed = following != NO_WORD
    lens: dict[str, list[WordRate]] = {name: [] for name in LENSES}
    for layer in states:
        any_piece, of_sample = read_as_text(model, layer, [np.unique(own)])
        lens["this_word"].append(word_rate(any_piece == own, sample.words, seed))
        lens["this_word_of_sample"].append(word_rate(of_sample == own, sample.words, seed))
        right = (any_piece == following)[followed]
        lens["next_word"].append(word_rate(right, sample.words[followed], seed))
    return lens


def _commonest(values: np.ndarray) -> float:
    return float(np.unique(values, return_counts=True)[1].max(initial=0) / max(len(values), 1))


def to_json(analysis: Analysis) -> dict[str, Any]:
    """Returns the analysis as JSON values, without the vectors."""
    sample = analysis.sample
    others = [name for name in analysis.embeddings if name != TRAINED]
    return {
        "words": list(sample.names),
        "occurrences_of_each": len(sample.words) // len(sample.names),
        "utterances": len(sample.chosen.documents),
        "utterances_searched": sample.searched,
        "untrained_seed": analysis.untrained_seed,
        "paper": PAPER,
        "chance": analysis.chance,
        "embeddings": {
            name: {
                "layers": [_similarity_json(similarity) for similarity in found.similarity],
                "probe": [dataclasses.asdict(rate) for rate in found.probe],
                "lens": {
                    key: [dataclasses.asdict(rate) for rate in rates]
                    for key, rates in found.lens.items()
                },
            }
            for name, found in analysis.embeddings.items()
        },
        "gain_over": {name: _similarity_json(analysis.gain(name)) for name in others},
    }


def _similarity_json(similarity: WordSimilarity) -> dict[str, Any]:
    estimates: dict[str, WordMean] = {name: getattr(similarity, name) for name in SIMILARITIES}
    return {
        name: {"value": estimate.value, "interval": estimate.interval}
        for name, estimate in estimates.items()
    }
