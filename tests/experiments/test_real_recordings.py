"""Real speech through every stage: decoded, encoded, aligned, packed and learned.

Lane `speech` fetches the recordings by `experiments.fetch_speech` to `LST_JAX_RECORDINGS`, trains
the aligner of `experiments.train_ctc` to `LST_JAX_CTC`, and makes units and a vocoder of the
recordings by `experiments.benchmarks.voice_recordings`, whose results are `LST_JAX_VOICES`.
"""

import json
import os
import pathlib
import wave

import numpy as np
import pytest
import torch
import transformers

from data_pipelines.records.storage import open_records
from data_pipelines.speech.audio import read_audio
from data_pipelines.speech.registry import open_aligner, open_encoder, open_recognizer
from lst_jax.speech.interfaces import Alignment
from tests.binaries import run_binary

pytestmark = pytest.mark.recordings

RATE, UNITS, LAYER = 16_000, 20, 2


@pytest.fixture(scope="module")
def root():
    return pathlib.Path(os.environ["LST_JAX_RECORDINGS"])


@pytest.fixture(scope="module")
def ctc():
    return f"ctc:{os.environ['LST_JAX_CTC']}/model"


@pytest.fixture(scope="module")
def speech(root):
    """Waveform and transcript of each recording, by name."""
    files = sorted((root / "recordings").glob("*.wav"))
    assert len(files) == 5
    return {
        file.stem: (read_audio(file, RATE), file.with_suffix(".txt").read_text().strip())
        for file in files
    }


@pytest.fixture(scope="module")
def reference(root):
    """Seconds at which each word ends, by recording."""
    return {
        file.stem: [
            word["end"]
            for segment in json.loads(file.read_text())["segments"]
            for word in segment["words"]
        ]
        for file in (root / "alignments").glob("*.json")
    }


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    """A HuBERT of random weights as transformers has it, in a folder with centroids beside."""
    folder = tmp_path_factory.mktemp("hubert")
    torch.manual_seed(0)
    config = transformers.HubertConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        conv_dim=[32] * 7,
        num_conv_pos_embeddings=32,
        num_conv_pos_embedding_groups=4,
    )
    model = transformers.HubertModel(config).eval()
    model.save_pretrained(folder)
    np.save(folder / "centroids.npy", np.random.default_rng(0).normal(size=(UNITS, 48)))
    return model, folder


@pytest.fixture(scope="module")
def ends(speech, ctc):
    """Ends of words by aligner and recording, as they are found."""
    found = {}
    for specification in ("pocketsphinx", ctc):
        aligner = open_aligner(specification)
        assert aligner.sample_rate == RATE
        waveforms, texts = zip(*speech.values(), strict=True)
        alignments = aligner.align(waveforms, texts)
        assert all(isinstance(x, Alignment) for x in alignments), alignments
        for text, alignment in zip(texts, alignments, strict=True):
            assert [word.text for word in alignment.words] == text.split()
        kind = specification.partition(":")[0]
        found[kind] = {
            name: [word.end_s for word in alignment.words]
            for name, alignment in zip(speech, alignments, strict=True)
        }
    return found


def differences(first, second):
    """Absolute differences of all word ends in milliseconds."""
    pairs = [zip(first[name], second[name], strict=True) for name in first]
    return 1000 * np.abs([a - b for pair in pairs for a, b in pair])


def test_samples_are_those_of_the_files(root, speech):
    for name, (samples, _) in speech.items():
        with wave.open(str(root / "recordings" / f"{name}.wav")) as file:
            plain = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        np.testing.assert_array_equal(samples, plain.astype(np.float32) / 32768)


def test_units_are_those_of_transformers(speech, hubert):
    model, folder = hubert
    encoder = open_encoder(f"hubert:{folder},layer={LAYER},quantizer={folder}/centroids.npy")
    centroids = np.load(folder / "centroids.npy").astype(np.float32)
    found = encoder.encode([samples for samples, _ in speech.values()])
    for units, (samples, _) in zip(found, speech.values(), strict=True):
        with torch.no_grad():
            states = model(torch.from_numpy(samples[None]), output_hidden_states=True)
        hidden = states.hidden_states[LAYER][0].numpy()
        distances = ((hidden[:, None] - centroids) ** 2).sum(-1)
        nearest = np.sort(distances, axis=1)
        clear = nearest[:, 1] - nearest[:, 0] > 1e-3
        assert units.shape == (len(hidden),) and clear.mean() > 0.95
        np.testing.assert_array_equal(units[clear], distances.argmin(axis=1)[clear])


def test_pocketsphinx_finds_word_ends_as_the_references_have_them(ends, reference):
    off = differences(ends["pocketsphinx"], reference)
    print(f"pocketsphinx from the references: median {np.median(off):.0f} ms, {off.max():.0f}")
    assert np.median(off) <= 40 and np.mean(off <= 100) >= 0.95


def test_the_trained_model_finds_word_ends_of_speech_that_it_never_heard(ends, reference):
    """It learned from synthetic voices alone."""
    off = differences(ends["ctc"], reference)
    between = differences(ends["ctc"], ends["pocketsphinx"])
    for name, values in (("the references", off), ("pocketsphinx", between)):
        shares = [f"{np.mean(values <= bound):.0%} within {bound} ms" for bound in (100, 300)]
        print(f"train_ctc from {name}: median {np.median(values):.0f} ms, {', '.join(shares)}")
    assert np.median(off) <= 200


def test_pocketsphinx_hears_most_words(speech):
    waveforms, texts = zip(*speech.values(), strict=True)
    heard = open_recognizer("pocketsphinx").recognize(waveforms)
    right = [
        len({word.text.lower() for word in words} & set(text.split())) / len(set(text.split()))
        for words, text in zip(heard, texts, strict=True)
    ]
    assert np.mean(right) > 0.5


def test_a_voice_that_learned_recordings_is_heard_at_least_as_often_as_griffin_lims():
    """Shortly trained, it may lose in a recording what it wins in others."""
    results = json.loads(pathlib.Path(os.environ["LST_JAX_VOICES"]).read_text())["results"]
    learned = [x for x in results if x["units"] == "fitted, learned"]
    voices = {
        voice: {x["recording"]: x for x in learned if x["voice"] == voice}
        for voice in ("mel", "hifigan")
    }
    assert len(voices["mel"]) == 4 and voices["mel"].keys() == voices["hifigan"].keys()
    same = {voice: sum(x["same"] for x in found.values()) for voice, found in voices.items()}
    print(f"words heard as in the originals: {same}")
    assert same["hifigan"] >= same["mel"]
    for name, griffin_lim in voices["mel"].items():
        assert voices["hifigan"][name]["mel_distance"] < griffin_lim["mel_distance"]


def test_recordings_become_records_that_train(root, hubert, tmp_path):
    _, folder = hubert
    texts = tmp_path / "texts.txt"
    texts.write_text(
        "".join(file.read_text().strip() + "\n" for file in (root / "recordings").glob("*.txt"))
    )
    encoder = f"hubert:{folder},layer={LAYER},quantizer={folder}/centroids.npy"
    steps = [
        (
            "train_tokenizer",
            *(
                f"--input={texts}",
                "--format=text",
                "--output=tokenizer",
                "--vocab_size=60",
                "--nobyte_fallback",
            ),
        ),
        (
            "prepare_speech",
            *(f"--input={root}/recordings", "--format=folder", f"--encoder={encoder}"),
            *("--aligner=pocketsphinx", "--tokenizer=tokenizer.model", "--output=prepared"),
        ),
        (
            "train",
            *(f"--gin_file={x}.gin" for x in ("models/tiny", "data/speech")),
            *("--gin_file=runs/tiny.gin", "--gin.NUM_STEPS=2", "--gin.WARMUP_STEPS=1"),
            *("--gin.TOKENIZER=tokenizer.model", "--gin.SPEECH_RECORDS=prepared/records"),
            *(f"--gin.UNIT_COUNT={UNITS}", "--gin.BATCH_ROWS=2", "--workdir=run"),
        ),
    ]
    for binary, *arguments in steps:
        done = run_binary(f"experiments.{binary}", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    metadata = open_records(tmp_path / "prepared" / "records").metadata
    assert metadata.totals.documents == 5
    assert metadata.encoder_fingerprint == open_encoder(encoder).fingerprint
    model = json.loads((tmp_path / "run" / "model.json").read_text())
    assert model["encoder_fingerprint"] == metadata.encoder_fingerprint
