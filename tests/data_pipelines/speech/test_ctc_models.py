"""CTC models as aligners and recognizers, by a model that hears tones as letters."""

import dataclasses

import flax.linen as nn
import jax
import numpy as np
import pytest

from data_pipelines.speech import ctc_models, spelling
from data_pipelines.speech.ctc_examples import make_labels
from data_pipelines.speech.hugging_face import SpeechModel, write_model
from lst_jax.speech.interfaces import Alignment, Rejection
from lst_jax.speech.wav2vec2 import Wav2Vec2
from lst_jax.speech.wav2vec2_config import receptive_field
from tests.data_pipelines.speech.small_models import SMALL_CTC

LABELS = make_labels("AEHLN")
CONFIG = dataclasses.replace(SMALL_CTC, vocab_size=len(LABELS))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model without attention, so that a frame depends on its neighbors alone."""
    waveform = np.zeros((1, receptive_field(CONFIG)), np.float32)
    boxed = jax.eval_shape(Wav2Vec2(CONFIG, head=True).init, jax.random.key(0), waveform)
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key == "scale":
            return np.ones(leaf.shape, np.float32)
        return rng.standard_normal(leaf.shape).astype(np.float32) / max(leaf.shape[0], 1) ** 0.5

    params = jax.tree_util.tree_map_with_path(draw, nn.unbox(boxed))
    params["params"]["layer_0"]["attention"]["out"]["kernel"][:] = 0
    path = tmp_path_factory.mktemp("ctc") / "model"
    write_model(path, SpeechModel(CONFIG, params, head=True, normalize=True, labels=LABELS))
    return path


@pytest.fixture(scope="module")
def model(directory):
    return ctc_models.open_aligner(str(directory), {})


def _noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * 16_000)).astype(np.float32)


def test_words_come_back_as_they_are_written_in_order(model):
    (found,) = model.align([_noise(1.5)], ["Hé \u2014 lane, \u201can\u201d"])
    assert isinstance(found, Alignment) and found.characters is not None
    assert [word.text for word in found.words] == ["Hé", "\u2014", "lane,", "\u201can\u201d"]
    assert "".join(letter.text for letter in found.characters) == "HELANEAN"
    times = [time for word in found.words for time in (word.start_s, word.end_s)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= 1.5
    assert found.words[1].start_s == found.words[1].end_s == found.words[0].end_s
    assert found.words[0].start_s == found.characters[0].start_s
    assert all(word.score is None or word.score <= 0 for word in found.words)


def test_an_utterance_is_aligned_alike_in_any_company(model):
    waveforms, texts = [_noise(1.5), _noise(0.4, 1), _noise(1.1, 2)], ["hale", "an", "nel al"]
    together = model.align(waveforms, texts)
    for waveform, text, found in zip(waveforms, texts, together, strict=True):
        (alone,) = model.align([waveform], [text])
        assert isinstance(alone, Alignment) and isinstance(found, Alignment)
        for one, other in zip(alone.words, found.words, strict=True):
            assert (one.start_s, one.end_s) == (other.start_s, other.end_s)
            assert one.score == pytest.approx(other.score, abs=1e-4)


def test_a_long_recording_has_no_seams(model, monkeypatch):
    waveform = _noise(2.0)
    whole = model.emissions([waveform])[0]
    monkeypatch.setattr(ctc_models, "_PIECES_S", (1,))
    monkeypatch.setattr(ctc_models, "_CONTEXT_S", 0.25)
    pieces = model.emissions([waveform])[0]
    np.testing.assert_allclose(pieces, whole, atol=1e-3)


def test_what_cannot_be_aligned_says_why(model, directory):
    texts = ["hale box", "\u2014", "a" * 60, "an"]
    found = model.align([_noise(1.0)] * 3 + [_noise(0.01)], texts)
    assert [result.kind for result in found if isinstance(result, Rejection)] == [
        *("missing-letter", "no-words", "too-short", "too-short")
    ]
    assert isinstance(found[0], Rejection) and "'box'" in found[0].reason
    star = ctc_models.open_aligner(str(directory), {"missing": "star"})
    (starred,) = star.align([_noise(1.0)], ["hale box an"])
    assert isinstance(starred, Alignment) and starred.words[1].text == "box"
    assert starred.words[1].score == 0


@pytest.mark.slow
def test_labels_of_mms_align_any_script_by_latin_letters_and_a_star(
    directory, tmp_path, monkeypatch
):
    # What uroman says of them, which reads its tables for seconds.
    latin = {"Привет,": "Privet,", "你好": "nihao", "два": "dva"}
    monkeypatch.setattr(spelling, "_romanize", lambda text: latin.get(text.strip(), text))
    names = ["<blank>", "<pad>", "</s>", "<unk>", *"aienuotsrmkldghybpwcvjzf'qx"]
    model = ctc_models.read_model(directory)
    config = dataclasses.replace(CONFIG, vocab_size=len(names), pad_token_id=1)
    head = {
        name: np.resize(x, (*x.shape[:-1], len(names)))
        for name, x in model.params["params"]["head"].items()
    }
    params = {"params": {**model.params["params"], "head": head}}
    labels = {name: number for number, name in enumerate(names)}
    mms = SpeechModel(config, params, head=True, normalize=True, labels=labels)
    write_model(tmp_path / "mms", mms)
    options = {"romanize": "yes", "missing": "star", "language": "ru"}
    aligner = ctc_models.open_aligner(str(tmp_path / "mms"), options)
    (found,) = aligner.align([_noise(1.5)], ["Привет, 你好 2 ♥"])
    assert isinstance(found, Alignment) and found.characters is not None
    assert [word.text for word in found.words] == ["Привет,", "你好", "2", "♥"]
    assert "".join(letter.text for letter in found.characters) == "privetnihaodva*"
    assert found.words[-1].score == 0 and all(word.score < 0 for word in found.words[:-1])


def test_a_recognizer_reads_the_likeliest_labels(directory):
    recognizer = ctc_models.open_recognizer(str(directory), {})
    words, nothing = recognizer.recognize([_noise(1.5), _noise(0.01)])
    (emissions,) = recognizer.emissions([_noise(1.5)])
    names = {number: label for label, number in LABELS.items()}
    best = emissions.argmax(axis=-1)
    kept = [x for i, x in enumerate(best) if x and (i == 0 or best[i - 1] != x)]
    read = "".join(names[x] if len(names[x]) == 1 else "" for x in kept).split("|")
    assert [word.text for word in words] == [word for word in read if word]
    assert nothing == ()


def test_of_a_list_no_other_words_are_heard_and_they_stand_where_an_aligner_puts_them(
    directory, model, tmp_path
):
    (tmp_path / "words.txt").write_text("Ha\nlane\nNel\nan\n")
    recognizer = ctc_models.open_recognizer(str(directory), {"words": str(tmp_path / "words.txt")})
    waveforms = [_noise(1.5), _noise(0.01), _noise(0.9, 1)]
    found = recognizer.recognize(waveforms)
    assert found[1] == () and found[0] and recognizer.recognize(waveforms[2:]) == found[2:]
    assert {word.text for words in found for word in words} <= {"Ha", "lane", "Nel", "an"}
    aligned = model.align(waveforms[:1], [" ".join(word.text for word in found[0])])
    assert [word.end_s for word in aligned[0].words] == [word.end_s for word in found[0]]
    assert recognizer.recognize(waveforms, listed=False) != found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("an\nbox\n", "words.txt:2: word 'box' has 'b'"),
        ("an hale\n", "words.txt:1 is 'an hale', expected a word"),
        ("...\n", "words.txt:1 is '...', expected a word"),
        ("", r"words.txt is \[\], expected a word on each line"),
    ],
)
def test_a_list_of_what_is_no_word_is_refused(directory, tmp_path, text, message):
    (tmp_path / "words.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        ctc_models.open_recognizer(str(directory), {"words": str(tmp_path / "words.txt")})


def test_a_directory_without_head_or_labels_is_refused(directory, tmp_path):
    for name, change in (("lm_head", {"head": False}), ("vocab.json", {"labels": None})):
        model = ctc_models.read_model(directory)
        path = tmp_path / name
        write_model(path, dataclasses.replace(model, **change))
        with pytest.raises(ValueError, match=name):
            ctc_models.open_aligner(str(path), {})
    with pytest.raises(ValueError, match="romanize of ctc is 'maybe', expected no or yes"):
        ctc_models.open_aligner(str(directory), {"romanize": "maybe"})
