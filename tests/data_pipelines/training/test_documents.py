"""Properties of the documents of recognition and synthesis."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.records.storage import write_records
from data_pipelines.training.dataset import DataConfig, SourceConfig, make_training_dataset
from data_pipelines.training.documents import task_draft
from lst_jax.patching import PatchingConfig, patch_document
from tests.data_pipelines.small_corpus import make_tokenizer
from tests.data_pipelines.training.test_interleaving import (
    ENTRIES,
    VOCABULARY,
    make_utterance,
    split_segments,
)


def learned(tokens, answer_begin, config=None, lengths=None):
    """The tokens that a document's loss is about."""
    config = config or PatchingConfig("static")
    document = patch_document(tokens, config, VOCABULARY, lengths, answer_begin=answer_begin)
    return tokens[1:][document.loss_weights[:-1] == 1]


@pytest.mark.parametrize("task", ["asr", "tts"])
@settings(max_examples=100, deadline=None)
@given(ENTRIES, st.booleans())
def test_question_and_answer_are_whole_and_only_the_answer_is_learned(task, entries, align):
    utterance = make_utterance(entries)
    example = task_draft(utterance, task, VOCABULARY, align=align)
    segments = split_segments(example.tokens)
    assert [speech for speech, _ in segments] == [task == "asr", task == "tts"]
    units, text = VOCABULARY.units_to_ids(utterance.units), utterance.pieces
    for speech, content in segments:
        np.testing.assert_array_equal(content, units if speech else text)
    answer = [*(text if task == "asr" else units), VOCABULARY.eos_id]
    found = learned(example.tokens, example.answer_begin, lengths=example.aligned_lengths)
    np.testing.assert_array_equal(found, answer)
    assert (example.aligned_lengths is not None) == align


def test_a_piece_without_its_question_teaches_nothing():
    entries = [(2, 3), (0, 2), (1, 4)]
    example = task_draft(make_utterance(entries), "asr", VOCABULARY)
    for begin in range(1, len(example.tokens) - 1):
        piece = patch_document(
            example.tokens,
            PatchingConfig("static"),
            VOCABULARY,
            begin=begin,
            answer_begin=example.answer_begin,
        )
        assert not piece.loss_weights.any()


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    tokenizer = make_tokenizer()
    rng = np.random.default_rng(0)
    utterances = [
        dataclasses.replace(
            make_utterance([(1, int(n)) for n in rng.integers(1, 9, 6)]), file_id=f"u{i}"
        )
        for i in range(20)
    ]
    path = tmp_path_factory.mktemp("records") / "speech"
    write_records(path, "speech", utterances, tokenizer)
    return DataConfig((SourceConfig(str(path), "speech"),), 2, 64, 96, largest_gap=1.0, task="asr")


@pytest.mark.parametrize("strategy", ["static", "aligned", "none"])
def test_batches_learn_the_text_and_never_the_units(config, strategy):
    vocabulary = make_tokenizer().vocabulary(502)
    patching = PatchingConfig(strategy)
    tokens = config.patches_per_row if strategy == "none" else config.tokens_per_row
    config = dataclasses.replace(config, patching=patching, tokens_per_row=tokens)
    iterator = iter(make_training_dataset(config, vocabulary, prefetch=0))
    for _ in range(4):
        batch = next(iterator)
        learned = batch.loss_weights > 0
        assert not vocabulary.is_unit(batch.targets[learned]).any()
        documents = sum(len(np.unique(ids[ids > 0])) for ids in batch.document_ids)
        assert (batch.targets[learned] == vocabulary.eos_id).sum() == documents
        assert learned.sum() == 7 * documents  # six words of a piece each, and eos


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "translation"}, "task is 'translation', expected None, 'asr' or 'tts'"),
        ({"sources": (SourceConfig("x", "text"),)}, "expected only speech for task 'asr'"),
    ],
)
def test_a_task_that_is_none_is_an_error(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)
