"""Which documents are aligned, over the steps of a curriculum."""

import numpy as np
import pytest
from scipy import stats

from data_pipelines.records.storage import Utterance
from data_pipelines.training.mixture import MixedDrafts, source_keys, stream_keys
from lst_jax.patching import PatchingConfig, aligned_probability
from lst_jax.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text_size=20, unit_count=5)
UTTERANCE = Utterance(
    "u",
    ("a", "b"),
    np.array([3, 4], np.int32),
    np.ones(2, np.int32),
    np.array([0, 1, 2, 3], np.int32),
    np.array([1, 3], np.int32),
)
VISITS = 2000


class Records(list):
    """One record under every number."""

    def __getitems__(self, indices):
        return [self[0] for _ in indices]


def make_drafts(seed):
    keys = stream_keys([source_keys(0, VISITS, 0, None)], [1.0], 0, 1, endless=True)
    patching = PatchingConfig("curriculum", curriculum_start=3, curriculum_end=13)
    return MixedDrafts(keys, [Records([UTTERANCE])], seed, patching, VOCABULARY, 0.0)


def test_a_document_is_aligned_below_the_probability_and_not_at_it():
    drafts = make_drafts(1)
    for index in range(20):
        draw = drafts.load(index, 0.0).draw
        assert 0 <= draw < 1
        for probability, aligned in (
            (0.0, False),
            (np.nextafter(draw, 0), False),
            (draw, False),
            (np.nextafter(draw, 1), True),
            (1.0, True),
        ):
            again = drafts.load(index, probability)
            assert again.draw == draw
            assert (again.aligned_lengths is not None) is aligned
    lengths = drafts.load(0, 1.0).aligned_lengths
    assert lengths.tolist() == [1, 1, 1, 3, 1]


@pytest.mark.parametrize("seed", [0, 7])
def test_each_step_aligns_the_share_that_the_curriculum_says(seed):
    """Draws are uniform by chi-square, and the shares of all steps binomial."""
    drafts = make_drafts(seed)
    config = PatchingConfig("curriculum", curriculum_start=3, curriculum_end=13)
    draws = np.array([drafts.load(index, 0.0).draw for index in range(VISITS)])
    counts, _ = np.histogram(draws, 20, (0, 1))
    assert stats.chisquare(counts).pvalue > 1e-3
    # Visits that follow each other are not alike.
    table, _, _ = np.histogram2d(draws[:-1], draws[1:], 4, ((0, 1), (0, 1)))
    assert stats.chi2_contingency(table).pvalue > 1e-3
    for step in range(16):
        expected = min(max((13 - step) / 10, 0), 1)
        probability = aligned_probability(config, step)
        assert probability == pytest.approx(expected)
        aligned = int((draws < probability).sum())
        if expected in (0, 1):
            assert aligned == expected * VISITS
        else:
            assert stats.binomtest(aligned, VISITS, expected).pvalue > 1e-3
