"""Questions to a model, and what becomes of its answers; generation itself has its own tests."""

import types

import jax
import numpy as np
import pytest

from lst_jax.inference import transcription
from lst_jax.inference.generation import Generation, Steps
from lst_jax.inference.sampling import SamplingConfig
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.inference.transcription import synthesize, transcribe
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig, patch_document
from tests.lst_jax.batches import VOCABULARY as V
from tests.lst_jax.inference.models import CASES, one_device

# Letters are pieces, from id 3 on.
TOKENIZER = types.SimpleNamespace(
    encode=lambda text: np.array([3 + ord(letter) - ord("a") for letter in text], np.int32),
    decode=lambda ids: " " + "".join(chr(ord("a") + i - 3) for i in ids) + " ",
)
STATIC = PatchingConfig("static", patch_size=3)


@pytest.fixture
def trained():
    config, _ = CASES["lst"]
    return TrainedModel(
        model=build_model(config),
        params=jax.numpy.zeros(()),
        mesh=one_device(),
        vocabulary=V,
        patching=STATIC,
        tokenizer=TOKENIZER,
        context_patches=90,
    )


@pytest.fixture
def asked(monkeypatch):
    """What `generate` is asked; it answers with as many tokens as the prompt has, and eos."""
    calls = []

    def generate(trained, prompts, **settings):
        calls.append((prompts, settings))
        first = V.first_unit_id if settings["modality"] == "speech" else 3
        for prompt in prompts:
            made = [*(first + np.arange(len(prompt)) % 5), V.eos_id]
            steps = Steps(len(made), len(made))
            yield Generation(
                np.array(made, np.int32), np.zeros(len(made), np.float32), "eos", steps, steps
            )

    monkeypatch.setattr(transcription, "generate", generate)
    return calls


def units(ids):
    return V.first_unit_id + np.array(ids)


def test_an_utterance_is_asked_for_its_text(trained, asked):
    utterances = [np.array([1, 2, 3, 4, 5, 6, 7]), np.array([9]), np.array([0, 19])]
    answers = transcribe(trained, utterances, max_tokens=33, batch_rows=2)
    ((prompts, settings),) = asked
    wanted = [
        [V.bos_id, V.speech_mode_id, *units(utterance), V.text_mode_id] for utterance in utterances
    ]
    # Rows of a batch are alike in length; answers come in the order of the questions.
    assert [prompt.tolist() for prompt in prompts] == [wanted[1], wanted[2], wanted[0]]
    assert settings["seeds"] == [1, 2, 0] and settings["batch_rows"] == 2
    assert settings["modality"] == "text" and settings["sampling"] == SamplingConfig()
    limits = settings["limits"]
    assert (limits.max_tokens, limits.max_patches, limits.max_units) == (33, 90, None)
    assert [answer.text for answer in answers] == ["abcdeabcde", "abcd", "abcde"]
    for answer, prompt, utterance in zip(answers, wanted, utterances, strict=True):
        assert answer.question_tokens == len(prompt)
        # bos, `<s>` and `<t>`, and units by threes.
        assert answer.question_patches == 3 + -(-len(utterance) // 3)
        assert answer.answer_patches == len(prompt) + 1  # text, and eos
        assert answer.units.tolist() == []
        assert len(answer.generation.tokens) == len(prompt) + 1


def test_a_text_is_asked_for_its_units(trained, asked):
    sampling = SamplingConfig(0.7, top_k=5)
    answers = synthesize(
        trained, ["  abcde ", "b"], sampling=sampling, max_units=40, seeds=[7, 11], batch_rows=3
    )
    ((prompts, settings),) = asked
    wanted = [
        [V.bos_id, V.text_mode_id, 3, 4, 5, 6, 7, V.speech_mode_id],
        [V.bos_id, V.text_mode_id, 4, V.speech_mode_id],
    ]
    assert [prompt.tolist() for prompt in prompts] == wanted[::-1]
    assert settings["seeds"] == [11, 7] and settings["sampling"] == sampling
    limits = settings["limits"]
    assert (limits.max_tokens, limits.max_units, limits.max_patches) == (41, 40, 90)
    assert [answer.units.tolist() for answer in answers] == [[0, 1, 2, 3, 4, 0, 1, 2], [0, 1, 2, 3]]
    for answer, prompt in zip(answers, wanted, strict=True):
        assert answer.text == ""
        assert answer.question_tokens == answer.question_patches == len(prompt)
        whole = patch_document(np.array([*prompt, *answer.generation.tokens]), STATIC, V)
        assert answer.answer_patches == whole.num_patches - len(prompt)


def test_seeds_count_from_0_where_none_are_given(trained, asked):
    synthesize(trained, ["abc", "a", "ab"], sampling=SamplingConfig(1.0))
    assert asked[0][1]["seeds"] == [1, 2, 0]


@pytest.mark.parametrize("names", [None, ["first.wav", "second.wav"]])
def test_a_question_that_is_none_is_named_before_any_is_answered(trained, asked, names):
    name = "first.wav" if names else r"utterances\[0\]"
    with pytest.raises(ValueError, match=f"^{name} is empty, expected something to answer"):
        transcribe(trained, [np.array([], int), np.array([1])], names=names)
    name = "second.wav" if names else r"texts\[1\]"
    with pytest.raises(ValueError, match=f"^{name} is empty"):
        synthesize(trained, ["a", "  "], sampling=SamplingConfig(), names=names)
    name = "second.wav" if names else r"utterances\[1\]"
    with pytest.raises(ValueError, match=name):
        transcribe(trained, [np.array([1]), np.zeros(300, int)], names=names)
    with pytest.raises(ValueError, match="unit"):
        transcribe(trained, [np.array([V.unit_count])], names=names and names[:1])
    assert not asked
