"""The binaries that make speech and text: recognition, synthesis, continuation."""

import dataclasses
import json

import numpy as np
import pytest

from data_pipelines.speech.audio import read_audio, write_wav
from data_pipelines.speech.hifigan_checkpoints import HiFiGANWeights, write_vocoder
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from lst_jax.inference.scoring import Continuation, score_continuations
from lst_jax.inference.trained_model import load_trained_model
from tests.binaries import run_binary
from tests.data_pipelines.speech.test_hifigan import PLAIN, random_params
from tests.experiments.test_evaluate import UNIT_COUNT, write_run, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

TEXT = "ann lost her key she found it a bed"
RECOGNIZER = "def hear(utterances):\n    return ['ann lost her key' for _ in utterances]\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Untrained models, utterances, an encoder of noise, sound, and a recognizer."""
    folder = tmp_path_factory.mktemp("speech")
    tokenizer = write_tokenizer(folder / "words.model", TEXT)
    for kind in ("lst", "baseline"):
        write_run(folder / kind, kind, tokenizer)
    rng = np.random.default_rng(0)
    lines = [
        {"id": f"u{i}", "text": "Ann lost her key.", "units": rng.integers(0, 9, n).tolist()}
        for i, n in enumerate((9, 21, 12))
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    features = MelFeatures()
    noise = rng.normal(0, 0.1, features.sample_rate * 2).astype(np.float32)
    frames = features.log_mels(noise, features.sample_rate)
    labels = [f"sound {i % 9}" for i in range(len(frames))]
    encoder = MelKMeansEncoder.fit(features, [frames], [labels], unit_count=UNIT_COUNT, width=4)
    encoder.save(folder / "encoder.npz")
    arrays = dict(np.load(folder / "encoder.npz"))
    few = {name: arrays[name][:3] for name in ("centroids", "unit_log_mels")}
    np.savez(folder / "few.npz", **arrays | few)
    turned = {"centroids": arrays["centroids"] * np.complex64(1j)}
    np.savez(folder / "complex.npz", **arrays | turned)
    for name, factors, rate in (("voice", (21, 42), 22_050), ("fast", (16, 20), 16_000)):
        shape = {"upsample_rates": factors, "upsample_kernel_sizes": factors}
        shape |= {"code_hop_size": factors[0] * factors[1], "sampling_rate": rate}
        config = dataclasses.replace(PLAIN, **shape)
        trained = HiFiGANWeights(config, random_params(config)[0], None, None, encoder.fingerprint)
        write_vocoder(folder / name, trained)
    write_wav(folder / "noise.wav", noise, features.sample_rate)
    (folder / "broken.wav").write_bytes(b"RIFF nothing")
    (folder / "recognizers.py").write_text(RECOGNIZER)
    lines[1] |= {"units": [1] * 3000}
    (folder / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    prompts = [{"text": "ann"}, {"units": [1] * 3000}]
    (folder / "long_prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    for name, ids in {"same": ("a", "b", "a"), "folder": ("a", "../b")}.items():
        prompts = [json.dumps({"id": value, "text": "ann"}) for value in ids]
        (folder / f"{name}_ids.jsonl").write_text("\n".join(prompts))
    (folder / "latin.jsonl").write_bytes('{"text": "anné"}'.encode("latin-1"))
    (folder / "done").mkdir()
    (folder / "done" / "continuations.jsonl").write_text("")
    return folder


def run(folder, binary, *arguments):
    return run_binary(f"experiments.{binary}", *arguments, cwd=folder)


def results(folder, done, name):
    assert done.returncode == 0, done.stderr
    return json.loads((folder / name).read_text())["results"]


def test_recognition_counts_errors_and_units_of_each_model(place):
    arguments = ("--checkpoint=lst", "--checkpoint=baseline", "--data=data.jsonl")
    done = run(place, "evaluate_asr", *arguments, "--max_tokens=12", "--output=asr.json")
    lst, baseline = results(place, done, "asr.json")
    # Patches of three: bos, `<s>`, ⌈U / 3⌉ patches, `<t>`.
    assert lst["context_patches"] == sum(3 + n // 3 for n in (9, 21, 12))
    assert baseline["context_patches"] == lst["context_tokens"] == baseline["context_tokens"]
    for result in (lst, baseline):
        assert result["generation_patches"] == result["generation_tokens"]  # all of it text
        utterances = result["errors"]["utterances"]
        assert [u["words"] for u in utterances] == [4, 4, 4]
        rate = result["errors"]["wer"]
        assert rate["rate"] == sum(u["word_errors"] for u in utterances) / 12
        assert rate["interval"][0] <= rate["rate"] <= rate["interval"][1]
    table = done.stdout.splitlines()
    assert len(table) == 3 and table[0].split()[:4] == ["model", "n", "WER", "CER"]


@pytest.mark.parametrize(
    "recognizer",
    [
        "--recognizer=python:recognizers:hear,takes=units",
        "--recognizer=command:sh -c 'test -s {wav} && echo ANN lost her key!'",
        "--recognizer=lst:lst",
    ],
    ids=["function", "command", "model"],
)
def test_synthesis_is_judged_by_any_recognizer(place, recognizer):
    done = run(
        place,
        "evaluate_tts",
        *("--checkpoint=lst", "--data=data.jsonl", "--limit=2", "--max_seconds=1"),
        *("--encoder=mel:encoder.npz", "--vocoder=hifigan:voice", "--output=tts.json", recognizer),
    )
    (result,) = results(place, done, "tts.json")
    assert len(result["errors"]["utterances"]) == 2
    assert result["generation_patches"] < result["generation_tokens"] <= 2 * 26
    if "lst:" not in recognizer:
        assert result["errors"]["wer"]["rate"] == 0
    assert "the data's own speech" in done.stdout


def test_continuations_are_printed_and_written(place):
    (place / "prompts.jsonl").write_text('{"id": "mine", "units": [1, 2, 3]}\n')
    done = run(
        place,
        "generate",
        *("--checkpoint=lst", "--text=ann lost", "--wav=noise.wav", "--prompts=prompts.jsonl"),
        *("--encoder=mel:encoder.npz", "--vocoder=hifigan:voice", "--output=out"),
        *("--max_seconds=1", "--max_tokens=20"),
        *("--samples=2", "--temperature=1", "--top_p=1"),
    )
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (place / "out/continuations.jsonl").open()]
    assert [line["id"] for line in lines].count("mine") == 2
    assert len(lines) == len(done.stdout.splitlines()) == 6
    for line in lines:
        kinds = {kind for segment in line["segments"] for kind in segment}
        assert kinds <= ({"text"} if line["prompt"] == {"text": "ann lost"} else {"units"})
        if line["wav"]:
            units = sum(len(segment["units"]) for segment in line["segments"])
            assert len(read_audio(place / "out" / line["wav"], 22_050)) == units * 22_050 // 25
    first, second = (line for line in lines if line["id"] == "mine")
    assert first["prompt"] == second["prompt"] == {"units": [1, 2, 3]}
    assert first["segments"] != second["segments"]

    done = run(
        place,
        "evaluate_speech_quality",
        *("--data=out/continuations.jsonl", "--data=data.jsonl", "--language_model=lst:lst"),
        *("--recognizer=python:recognizers:hear,takes=units", "--output=quality.json"),
    )
    made, own = results(place, done, "quality.json")
    assert json.loads((place / "quality.json").read_text())["language_model"] == "lst:lst"
    assert (made["n"], own["n"], made["errors"]) == (6, 3, None)
    assert own["errors"]["wer"]["rate"] == 0 == own["auto_bleu"]["value"]
    trained = load_trained_model(place / "lst")
    vocabulary = trained.vocabulary
    ids = trained.text_tokenizer.encode("ann lost her key")
    prompt = np.array([vocabulary.bos_id, vocabulary.text_mode_id], np.int32)
    (score,) = score_continuations(trained, [Continuation(prompt, ids)])
    assert own["perplexity"]["value"] == pytest.approx(np.exp(-score / len(ids)), rel=1e-3)
    assert own["word_perplexity"]["value"] == pytest.approx(np.exp(-score / 4), rel=1e-3)
    assert len(done.stdout.splitlines()) == 3


LST = ("--checkpoint=lst",)
MISTAKES = {
    "no prompt": ("generate", LST, "no prompt, expected --text"),
    "empty prompt": ("generate", (*LST, "--text= "), "text is ' ', expected words"),
    "long prompt": (
        "generate",
        (*LST, "--units=" + "1," * 3000),
        "… has 1002 patches in 3002 tokens: expected",
    ),
    "long line": (
        "generate",
        (*LST, "--text=ann", "--prompts=long_prompts.jsonl", "--output=long"),
        "long_prompts.jsonl:2 has 1002 patches",
    ),
    "long utterance": (
        "evaluate_asr",
        (*LST, "--data=long.jsonl"),
        "long.jsonl:2 has 1003 patches",
    ),
    "unit": ("generate", (*LST, "--units=3,9"), "expected an integer 0 … 8"),
    "huge unit": ("generate", (*LST, "--units=99999999999999999999"), "expected an integer 0 … 8"),
    "same id": (
        "generate",
        (*LST, "--prompts=same_ids.jsonl"),
        "jsonl:3: its id 'a' is already",
    ),
    "id": ("generate", (*LST, "--prompts=folder_ids.jsonl"), "folder_ids.jsonl:2: id is '../b'"),
    "encoding": ("generate", (*LST, "--prompts=latin.jsonl"), "latin.jsonl:1: not UTF-8"),
    "seconds": ("generate", (*LST, "--text=ann", "--max_seconds=inf"), "max_seconds is inf"),
    "output": ("generate", (*LST, "--text=ann", "--output=done"), "expected a new directory"),
    "few centroids": (
        "generate",
        (*LST, "--text=ann", "--encoder=mel:few.npz"),
        "mel:few.npz has 3 units, expected",
    ),
    "complex centroids": (
        "generate",
        (*LST, "--text=ann", "--encoder=mel:complex.npz"),
        "complex.npz is not a lst-jax-mel",
    ),
    "a vocoder of few": (
        "evaluate_tts",
        (*LST, "--data=data.jsonl", "--encoder=mel:few.npz", "--recognizer=command:echo {wav}"),
        "mel:few.npz has 3 units, expected",
    ),
    "a vocoder of another rate": (
        "evaluate_tts",
        (
            *(*LST, "--data=data.jsonl", "--encoder=mel:encoder.npz", "--vocoder=hifigan:fast"),
            "--recognizer=command:echo {wav}",
        ),
        "hifigan:fast speaks 50 units a second, expected 25, as the encoder hears",
    ),
    "a vocoder of few units": (
        "evaluate_speech_quality",
        (
            *("--data=data.jsonl", "--vocoder=mel:few.npz"),
            "--recognizer=python:recognizers:hear,takes=units",
        ),
        "units[0] is 7; expected an integer 0 … 2",
    ),
    "no sound": ("generate", (*LST, "--wav=broken.wav", "--encoder=mel:encoder.npz"), "broken.wav"),
    "no encoder": ("generate", (*LST, "--wav=noise.wav"), "needs --encoder"),
    "temperature": ("generate", (*LST, "--text=ann", "--temperature=-1"), "temperature"),
    "no recognizer": ("evaluate_tts", (*LST, "--data=data.jsonl"), "recognizer"),
    "function": (
        "evaluate_tts",
        (*LST, "--data=data.jsonl", "--recognizer=python:recognizers:nothing"),
        "expected package.module:function",
    ),
    "command": (
        "evaluate_tts",
        (
            *(*LST, "--data=data.jsonl", "--limit=1", "--max_seconds=1"),
            "--recognizer=command:false,takes=units",
        ),
        "failed with status 1",
    ),
    "no vocoder": (
        "evaluate_tts",
        (*LST, "--data=data.jsonl", "--recognizer=command:echo {wav}"),
        "--vocoder is None, expected one",
    ),
    "no language model": (
        "evaluate_speech_quality",
        (
            *("--data=data.jsonl", "--recognizer=python:recognizers:hear,takes=units"),
            "--language_model=lst",
        ),
        "language model is 'lst', expected lst:CHECKPOINT",
    ),
    "no kind": ("generate", (*LST, "--text=ann", "--encoder=encoder.npz"), "expected KIND"),
    "unknown kind": (
        "generate",
        (*LST, "--text=ann", "--encoder=mal:encoder.npz"),
        "encoder is 'mal:encoder.npz', expected one of the kinds",
    ),
    "no checkpoint": ("evaluate_asr", ("--checkpoint=no", "--data=data.jsonl"), "no run there"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_clear_line(place, mistake):
    binary, arguments, message = MISTAKES[mistake]
    done = run(place, binary, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (place / "long").exists()
