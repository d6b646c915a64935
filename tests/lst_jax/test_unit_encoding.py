"""Unit vocabularies that are not plain: units come back, and pieces are SentencePiece's."""

import itertools
import json
import pickle

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines import unit_vocabulary
from data_pipelines.unit_vocabulary import train_unit_encoding
from lst_jax.unit_encoding import UnitEncoding, read_unit_encoding, unit_encoding_to_json
from lst_jax.vocabulary import Vocabulary

UNIT_COUNT = 6
UNITS = st.lists(st.integers(0, UNIT_COUNT - 1), max_size=60)


def vocabulary_of(encoding):
    return Vocabulary(10, unit_count=UNIT_COUNT, units=encoding)


@st.composite
def encodings(draw, deduplicated):
    """Pieces made as learning makes them: of two that are there."""
    known = [(unit,) for unit in range(UNIT_COUNT)]
    for first, second in draw(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)))):
        piece = known[first % len(known)] + known[second % len(known)]
        known += [piece] * (piece not in known and len(piece) < 12)
    alone = draw(deduplicated)
    run_length = draw(st.floats(1, 4)) if alone else 1.0
    return UnitEncoding(alone, run_length, tuple(known[UNIT_COUNT:]))


@settings(max_examples=100, deadline=None)
@given(encodings(st.just(False)), UNITS)
def test_units_that_were_joined_come_back(encoding, units):
    vocabulary = vocabulary_of(encoding)
    ids = vocabulary.units_to_ids(units)
    assert len(ids) <= len(units) and vocabulary.is_unit(ids).all() and ids.dtype == np.int32
    assert vocabulary.ids_to_units(ids).tolist() == units
    # Nothing is left to join.
    spelled = [tuple(vocabulary.ids_to_units([i]).tolist()) for i in ids]
    assert not {a + b for a, b in itertools.pairwise(spelled)} & set(encoding.pieces)
    assert pickle.loads(pickle.dumps(vocabulary)) == vocabulary


@settings(max_examples=100, deadline=None)
@given(encodings(st.just(True)), UNITS)
def test_units_without_repeats_last_their_mean_length(encoding, units):
    vocabulary = vocabulary_of(encoding)
    runs = [unit for unit, before in zip(units, [None, *units], strict=False) if unit != before]
    ids = vocabulary.units_to_ids(units)
    back = vocabulary.ids_to_units(ids)
    assert len(back) == int(np.floor(len(runs) * encoding.run_length + 0.5))
    assert vocabulary.units_to_ids(back).tolist() == ids.tolist()
    assert [u for u, b in zip(back, [None, *back], strict=False) if u != b] == runs


@settings(max_examples=50, deadline=None)
@given(encodings(st.booleans()), st.lists(st.integers(0, UNIT_COUNT + 30), max_size=30))
def test_whatever_a_model_makes_becomes_units(encoding, numbers):
    vocabulary = vocabulary_of(encoding)
    made = np.array(numbers) % (vocabulary.size - vocabulary.first_unit_id)
    units = vocabulary.ids_to_units(vocabulary.first_unit_id + made)
    assert units.min(initial=0) >= 0 and units.max(initial=0) < UNIT_COUNT
    assert len(units) >= len(made)


def make_sequences(count=60):
    rng = np.random.default_rng(0)
    syllables = [[0, 0, 1], [2, 3, 3, 3], [4, 1], [0, 0, 0, 0]]
    return [
        np.concatenate([syllables[i] for i in rng.integers(4, size=12)]).astype(np.int32)
        for _ in range(count)
    ]


@pytest.mark.parametrize("deduplicated", [False, True])
def test_a_trained_vocabulary_joins_as_sentencepiece_does(monkeypatch, deduplicated):
    models = []

    class Kept(sentencepiece.SentencePieceProcessor):
        def __init__(self, model_proto):
            super().__init__(model_proto=model_proto)
            models.append(self)

    monkeypatch.setattr(unit_vocabulary.sentencepiece, "SentencePieceProcessor", Kept)
    sequences = make_sequences()
    options = {"vocab_size": 16, "deduplicated": deduplicated}
    encoding = train_unit_encoding(sequences, UNIT_COUNT, **options)
    assert train_unit_encoding(sequences, UNIT_COUNT, **options) == encoding
    vocabulary = vocabulary_of(encoding)
    assert vocabulary.size - vocabulary.first_unit_id == 16  # unit 5, which is never said, too
    rng = np.random.default_rng(1)
    for units in [*sequences, *(rng.integers(5, size=40) for _ in range(60))]:
        given_units = unit_vocabulary.drop_repeats(units) if deduplicated else units
        pieces = models[0].encode(unit_vocabulary._spell(given_units), out_type=str)
        spelled = [tuple(ord(c) - unit_vocabulary._FIRST_CHARACTER for c in p) for p in pieces]
        known = [(unit,) for unit in range(UNIT_COUNT)] + list(encoding.pieces)
        found = [known[i - vocabulary.first_unit_id] for i in vocabulary.units_to_ids(units)]
        assert found == spelled
    total = sum(map(len, sequences))
    made = sum(len(vocabulary.units_to_ids(units)) for units in sequences)
    assert encoding.units_per_id == total / made > 1.5
    assert (encoding.run_length > 1) == deduplicated


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (6, "vocab_size is 6, expected over 6, the units"),
        (10**4, r"vocab_size is 10000, but these units allow at most \d+ ids"),
    ],
)
def test_a_vocabulary_that_cannot_be_learned_is_refused(size, message):
    with pytest.raises(ValueError, match=message):
        train_unit_encoding(make_sequences(), UNIT_COUNT, vocab_size=size)


def test_units_there_must_be():
    with pytest.raises(ValueError, match="expected some units to learn from"):
        train_unit_encoding([], UNIT_COUNT, deduplicated=True)


def test_a_file_comes_back_and_another_is_refused(tmp_path):
    encoding, path = UnitEncoding(True, 1.25, ((0, 1), (0, 1, 0)), 2.0), tmp_path / "units.json"
    fields = unit_encoding_to_json(encoding, UNIT_COUNT)
    path.write_text(json.dumps(fields))
    assert read_unit_encoding(path, UNIT_COUNT) == encoding
    assert read_unit_encoding(path, UNIT_COUNT, "a") == encoding  # whose encoder is not told
    path.write_text(json.dumps(unit_encoding_to_json(encoding, UNIT_COUNT, "b")))
    assert read_unit_encoding(path, UNIT_COUNT) == read_unit_encoding(path, UNIT_COUNT, "b")
    with pytest.raises(ValueError, match="of the encoder b, expected a, as the records'"):
        read_unit_encoding(path, UNIT_COUNT, "a")
    for change, message in (
        ({"format": "x"}, "format and format_version are ['x', 1], expected ['lst-jax-units', 1]"),
        ({"unit_count": 7}, "unit_count is 7, expected 6"),
        ({"units": {"pieces": 3}}, "UnitEncoding.pieces is 3, expected"),
        ({"color": 1}, "has no color"),
    ):
        path.write_text(json.dumps(fields | change))
        with pytest.raises(ValueError) as error:
            read_unit_encoding(path, UNIT_COUNT)
        assert str(error.value).startswith(str(path)) and message in str(error.value)
