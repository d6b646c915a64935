"""Training a CTC model: resumed to the bit, measured, opened as an aligner, and what is refused."""

import dataclasses
import json
import os
import signal

import jax
import numpy as np
import pytest

from data_pipelines.microworld import voices
from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.ctc_examples import CTCDataConfig
from data_pipelines.speech.registry import open_aligner, open_recognizer
from experiments.common import ctc_experiment
from experiments.common.ctc_experiment import CTCExperiment, run_ctc_experiment
from lst_jax.speech.interfaces import Alignment
from lst_jax.training.ctc_task import filter_bank
from lst_jax.training.optimizers import OptimizerConfig
from lst_jax.training.step import TrainingConfig
from tests.data_pipelines.speech.small_models import SMALL_CTC

EXPERIMENT = CTCExperiment(
    training=TrainingConfig(num_steps=4, checkpoint_every=2),
    model=SMALL_CTC,
    data=CTCDataConfig(batch_size=8, row_s=2.5),
    optimizer=OptimizerConfig(warmup_steps=1),
    corpus_clips=8,
    held_out=2,
)


class _Interrupt:
    """Sends SIGTERM behind an update."""

    def before_step(self, step):
        pass

    def after_step(self, step, state):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


@pytest.mark.slow
def test_a_run_that_is_stopped_goes_on_to_the_same_bits_and_its_model_aligns(tmp_path):
    whole = run_ctc_experiment(EXPERIMENT, tmp_path / "whole")
    first = run_ctc_experiment(EXPERIMENT, tmp_path / "parts", hooks=[_Interrupt()])
    assert whole.finished and not first.finished
    assert not (tmp_path / "parts" / "results.json").exists()
    second = run_ctc_experiment(EXPERIMENT, tmp_path / "parts")
    jax.tree.map(np.testing.assert_array_equal, whole.state.params, second.state.params)

    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    assert results["training"]["steps"] == 4
    measured = results["held_out"]["voices held out"]
    assert measured["recordings"] == 2 and measured["words"] > 4 and measured["median_ms"] > 0
    assert measured["wer"] > 0 and measured["listed_wer"] > 0  # it has learned nothing yet

    aligner = open_aligner(f"ctc:{tmp_path}/whole/model")
    listed = (tmp_path / "parts/words.txt").read_text().split()
    assert len(listed) == results["training"]["listed_words"] > 200
    recognizer = open_recognizer(f"ctc:{tmp_path}/parts/model,words={tmp_path}/parts/words.txt")
    samples, _, words = ctc_experiment._resample(voices.speak(0, 0))
    (found,) = aligner.align([samples], [" ".join(word.text for word in words)])
    assert isinstance(found, Alignment) and len(found.words) == len(words)
    (heard,) = recognizer.recognize([samples])
    assert {word.text for word in heard} <= set(listed)
    with pytest.raises(ValueError, match=r"ctc.json: config is .*, expected"):
        other = dataclasses.replace(
            EXPERIMENT, model=dataclasses.replace(SMALL_CTC, hidden_size=32)
        )
        run_ctc_experiment(other, tmp_path / "whole")


def _write_recordings(folder, **changes):
    write_wav(folder / "a.wav", np.zeros(8000, np.int16), 16_000)
    line = {"audio": "a.wav", "text": "Größe 12", **changes}
    (folder / "r.jsonl").write_text((json.dumps(line) + "\n") * 20)
    return dataclasses.replace(EXPERIMENT, recordings=str(folder / "r.jsonl"), language="de")


def test_recordings_give_the_labels_and_a_tenth_of_them_at_most_is_held_out(tmp_path):
    corpus = ctc_experiment._open_corpus(_write_recordings(tmp_path))
    assert corpus.letters == sorted(set("GRÖSSEZWÖLF")) and corpus.words == {"Größe", "12"}
    assert len(corpus.recordings) == 18 and len(corpus.held_out["recordings held out"]) == 2
    assert not corpus.recordings[0].timed
    samples, starts, words = corpus.recordings[0].read()
    assert len(samples) == 8000 and starts is None
    assert [word.text for word in words] == ["Größe", "12"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": "none.wav"}, r"r.jsonl:1: no file .*none.wav"),
        ({"text": ""}, r"r.jsonl:1: text is '', expected text"),
        ({"text": "5%"}, r"r.jsonl:1: word '5%' has '%'"),
        ({"words": [{"word": "x"}]}, r"r.jsonl:1: words is .*, expected objects with word"),
    ],
)
def test_lines_that_are_no_recordings_are_refused(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        ctc_experiment._open_corpus(_write_recordings(tmp_path, **changes))


def test_rows_shorter_than_a_frame_are_refused(tmp_path):
    short = dataclasses.replace(EXPERIMENT, data=CTCDataConfig(batch_size=8, row_s=0.01))
    with pytest.raises(ValueError, match=r"CTCDataConfig\.row_s is 0\.01, expected"):
        run_ctc_experiment(short, tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_filters_rise_on_the_mel_scale():
    bank = filter_bank(128, 9)
    assert bank.shape == (128, 9) and bank.dtype == np.float32
    np.testing.assert_allclose(np.sum(bank**2, axis=0), 1, rtol=1e-5)
    peaks = np.abs(np.fft.rfft(bank, 4096, axis=0)).argmax(axis=0)
    assert (np.diff(peaks[::2]) > 0).all()
    assert abs(np.sum(bank[:, 2] * bank[:, 3])) < 0.1  # cosine and sine
