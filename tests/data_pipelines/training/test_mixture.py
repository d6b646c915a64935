"""Properties of the mixture of sources and of the randomness of its documents."""

import collections

import numpy as np
import pytest
from scipy import stats

from data_pipelines.records.storage import Totals, Utterance
from data_pipelines.training.mixture import (
    DocumentKey,
    DocumentRandom,
    MixedDrafts,
    SourceStatistics,
    document_weights,
    expected_speech_share,
    source_keys,
    stream_keys,
)
from lst_jax.patching import PatchingConfig
from lst_jax.vocabulary import Vocabulary

SPEECH = SourceStatistics(
    "speech", Totals(documents=10, words=400, silences=400, text_tokens=520, units=4000)
)
TEXT = SourceStatistics("text", Totals(documents=20, words=4000, text_tokens=5000))


def test_weights_give_the_ratio_in_words():
    speech, text = document_weights([SPEECH, TEXT], 0.5, "words", interleaved_share=1.0)
    assert speech + text == pytest.approx(1)
    assert speech * 40 / (text * 200) == pytest.approx(0.5)


def test_weights_give_the_ratio_in_tokens_of_interleaved_documents():
    speech, text = document_weights([SPEECH, TEXT], 0.5, "tokens", interleaved_share=0.0)
    assert speech * 400 / (text * 250) == pytest.approx(0.5)
    share = expected_speech_share(40)
    assert 0.3 < share < 0.4
    speech, text = document_weights([SPEECH, TEXT], 0.5, "tokens", interleaved_share=1.0)
    tokens = share * 400 + (1 - share) * 52
    assert speech * tokens / (text * 250) == pytest.approx(0.5)


def test_sources_of_a_kind_share_its_amount_by_their_weights():
    double = SourceStatistics("text", TEXT.totals, 2.0)
    speech, one, two = document_weights([SPEECH, TEXT, double], 1.0, "words", interleaved_share=1.0)
    assert two == pytest.approx(2 * one)
    assert speech * 40 == pytest.approx((one + two) * 200)
    assert document_weights([TEXT], 0.5, "tokens", interleaved_share=1.0) == [1.0]


def test_weights_name_what_is_wrong():
    for sources, ratio, unit, message in [
        ([SPEECH, TEXT], 0.0, "words", "speech_text_ratio"),
        ([SPEECH, TEXT], float("nan"), "words", "speech_text_ratio"),
        ([SPEECH, TEXT], 0.5, "hours", "ratio_unit"),
        ([SPEECH, SourceStatistics("text", TEXT.totals, 0.0)], 0.5, "words", r"sources\[1\]"),
        ([SPEECH, SourceStatistics("text", Totals())], 0.5, "words", r"sources\[1\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            document_weights(sources, ratio, unit, interleaved_share=1.0)


@pytest.mark.parametrize("num_streams", [1, 2, 3, 8, 40])
def test_streams_take_every_record_once_an_epoch(num_streams):
    sizes, epochs = [13, 31], 3
    sources = [source_keys(number, size, 7, epochs) for number, size in enumerate(sizes)]
    visits = collections.Counter()
    for stream in range(num_streams):
        keys = stream_keys(sources, [0.7, 0.3], stream, num_streams, endless=False)
        visits.update(keys[index] for index in range(len(keys)))
    assert visits == {
        DocumentKey(source, epoch, record): 1
        for source, size in enumerate(sizes)
        for epoch in range(epochs)
        for record in range(size)
    }


def test_epochs_are_shuffled_apart():
    keys = source_keys(0, 50, 3, None)
    orders = [[keys[epoch * 50 + i].record for i in range(50)] for epoch in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(50))
    assert {keys[i].epoch for i in range(50, 100)} == {1}


def test_every_source_is_shuffled_by_itself():
    """Of sources of one size no two are in one order, nor is one with two seeds."""
    seeds = (0, 1, 2**32, 2**64 - 1)
    orders = [
        [tuple(source_keys(source, 40, seed, 1)[i].record for i in range(40)) for seed in seeds]
        for source in range(6)
    ]
    for of_source in orders:
        assert len(set(of_source)) == len(seeds)
        assert all(sorted(order) == list(range(40)) for order in of_source)
    for of_seed in zip(*orders, strict=True):
        assert len(set(of_seed)) == len(orders)


@pytest.mark.slow
def test_every_record_may_stand_at_every_place():
    places = [[source_keys(0, 8, seed, 1)[i].record for i in range(8)] for seed in range(96)]
    for place in range(8):
        counts = np.bincount([order[place] for order in places], minlength=8)
        assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("weights", [(0.8, 0.2), (0.2, 0.8), (0.1, 0.3, 0.6), (1 / 3, 2 / 3)])
@pytest.mark.parametrize("endless", [True, False])
def test_a_mixture_follows_its_weights_at_every_place(weights, endless):
    """While all sources last, none is ever more than a document from its share."""
    sizes = [round(weight * 600) for weight in weights]
    epochs = None if endless else 1
    sources = [source_keys(number, size, 0, epochs) for number, size in enumerate(sizes)]
    keys = stream_keys(sources, list(weights), 0, 1, endless)
    taken = np.array([keys[index].source for index in range(500)])
    for number, weight in enumerate(weights):
        expected = weight * np.arange(1, 501)
        assert np.abs(np.cumsum(taken == number) - expected).max() <= 1.5


def test_sources_that_last_go_on_where_others_have_ended():
    sources = [source_keys(number, size, 0, 1) for number, size in enumerate((5, 100))]
    keys = stream_keys(sources, [0.5, 0.5], 0, 1, endless=False)
    taken = [keys[index].source for index in range(len(keys))]
    assert sorted(taken[:10]) == [0] * 5 + [1] * 5
    assert taken[10:] == [1] * 95


def test_every_stream_gets_the_mixture():
    sources = [source_keys(number, 100, 0, None) for number in range(2)]
    for stream in range(4):
        keys = stream_keys(sources, [0.5, 0.5], stream, 4, endless=True)
        share = np.mean([keys[index].source for index in range(200)])
        assert 0.45 < share < 0.55


def test_randomness_depends_on_seed_source_epoch_and_record_alone():
    key = DocumentKey(1, 2, 3)
    random = DocumentRandom(5)
    first = random.generator(key).random(64)
    others = [
        random.generator(key._replace(**change)).random(64)
        for change in ({"source": 2}, {"epoch": 3}, {"record": 4}, {"record": 2})
    ]
    random.generator(key).integers(7)  # leaves half a word unused
    np.testing.assert_array_equal(first, random.generator(key).random(64))
    others.append(DocumentRandom(6).generator(key).random(64))
    assert len(np.unique(np.concatenate([first, *others]))) == 64 * 6


def test_draws_of_visits_are_uniform():
    random = DocumentRandom(0)
    draws = [random.generator(DocumentKey(0, 0, record)).random() for record in range(2000)]
    assert stats.kstest(draws, "uniform").pvalue > 1e-3
    pairs = np.histogram2d(draws[:-1], draws[1:], 5, ((0, 1), (0, 1)))[0]
    assert stats.chisquare(pairs.ravel()).pvalue > 1e-3


def one_utterance(words=40):
    return Utterance(
        "u",
        ("w",) * words,
        np.arange(3, 3 + words, dtype=np.int32),
        np.ones(words, np.int32),
        np.arange(10 * words, dtype=np.int32) % 50,
        np.full(words, 10, np.int32),
    )


class Records(list):
    """Records in memory."""

    def __getitems__(self, indices):
        return [self[index] for index in indices]


def test_an_utterance_is_interleaved_anew_in_each_epoch():
    vocabulary = Vocabulary(text_size=100, unit_count=50)
    utterance = one_utterance()
    keys = stream_keys([source_keys(0, 1, 0, None)], [1.0], 0, 1, endless=True)

    def make(interleaved_share):
        return MixedDrafts(
            keys, [Records([utterance])], 0, PatchingConfig(), vocabulary, interleaved_share
        )

    drafts = make(1.0)
    tokens = [drafts.load(epoch, 0.0).tokens.tobytes() for epoch in range(5)]
    assert len(set(tokens)) > 1
    assert tokens == [make(1.0).load(epoch, 1.0).tokens.tobytes() for epoch in range(5)]
    whole = make(0.0).load(0, 0.0).tokens
    assert vocabulary.is_unit(whole).sum() == 400
    half = make(0.5)
    wholes = [vocabulary.is_unit(half.load(i, 0.0).tokens).sum() == 400 for i in range(400)]
    assert stats.binomtest(sum(wholes), 400).pvalue > 1e-3
    most = make(0.9)
    wholes = [vocabulary.is_unit(most.load(i, 0.0).tokens).sum() == 400 for i in range(400)]
    assert stats.binomtest(sum(wholes), 400, 0.1).pvalue > 1e-3


@pytest.mark.parametrize("task", [None, "asr"])
def test_noise_depends_on_seed_epoch_and_record_alone(task):
    """Whatever was read before, and whether the document was aligned then."""
    vocabulary = Vocabulary(text_size=100, unit_count=50)
    keys = stream_keys([source_keys(0, 2, 0, None)], [1.0], 0, 1, endless=True)

    def lengths(seed, indices, noise=1.0):
        config = PatchingConfig("curriculum", boundary_noise=noise)
        records = Records([one_utterance(), one_utterance()])
        drafts = MixedDrafts(keys, [records], seed, config, vocabulary, 0.0, task)
        drafts.load(indices[0], 0.0)
        found = {i: drafts.load(i, 1.0) for i in indices}
        return {i: draft.aligned_lengths.tolist() for i, draft in found.items()}

    forward, backward = lengths(0, range(6)), lengths(0, range(5, -1, -1))
    assert forward == backward
    assert len({tuple(x) for x in forward.values()}) == 6  # two records, three epochs
    assert lengths(1, range(6)) != forward
    exact = lengths(0, range(6), noise=0.0)
    assert len({tuple(x) for x in exact.values()}) == 1
    assert {sum(x) for x in forward.values()} == {sum(exact[0])}
