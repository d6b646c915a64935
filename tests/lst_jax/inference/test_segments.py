"""Properties of generated tokens split into text and speech."""

import numpy as np
import pytest

from data_pipelines.tokenizers import train_tokenizer
from lst_jax.inference.segments import split_segments
from lst_jax.unit_encoding import UnitEncoding
from lst_jax.vocabulary import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "t"
    return TextTokenizer(train_tokenizer(["the quick brown fox jumps"], path, 300))


@pytest.mark.parametrize("encoding", [None, UnitEncoding(pieces=((3, 3), (3, 3, 7)))])
def test_every_token_but_modes_and_ends_is_in_one_segment(tokenizer, encoding):
    v = tokenizer.vocabulary(20, encoding)
    words, units = tokenizer.encode("quick fox"), v.units_to_ids([3, 3, 7])
    tokens = np.array(
        [*words, v.speech_mode_id, *units, v.text_mode_id, *words, *units, v.eos_id], np.int32
    )
    first, second, third, fourth = split_segments(tokens, v, tokenizer)
    assert first.text == third.text == "quick fox"
    assert first.units is None
    np.testing.assert_array_equal(second.units, [3, 3, 7])
    np.testing.assert_array_equal(fourth.units, [3, 3, 7])
    assert second.text is None


def test_nothing_said_is_no_segment(tokenizer):
    v = tokenizer.vocabulary(20)
    for tokens in ([], [v.eos_id], [v.text_mode_id, v.speech_mode_id]):
        assert split_segments(np.array(tokens, np.int32), v, tokenizer) == []
