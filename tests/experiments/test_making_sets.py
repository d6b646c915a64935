"""Evaluation sets from releases and from text, as a user makes and scores them."""

import json
import shutil
import signal
import time

import numpy as np
import pytest

from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from tests.binaries import Binary, run_binary
from tests.data_pipelines.evaluation_sets.layouts import (
    write_hellaswag,
    write_sound,
    write_zerospeech,
)
from tests.experiments.test_evaluate import UNIT_COUNT, write_run, write_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]

MEL = "--encoder=mel:encoder.npz"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, an encoder of noise, and sets in the layouts of their releases."""
    folder = tmp_path_factory.mktemp("sets")
    features = MelFeatures()
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * features.sample_rate)
    frames = features.log_mels(noise.astype(np.float32), features.sample_rate)
    labels = [f"sound {i % 9}" for i in range(len(frames))]
    encoder = MelKMeansEncoder.fit(features, [frames], [labels], unit_count=UNIT_COUNT, width=4)
    encoder.save(folder / "encoder.npz")
    words = "a man is sitting on roof using wrap ripping tiles off holds cube starts pulling"
    write_run(folder / "lst", "lst", write_tokenizer(folder / "words.model", words))
    write_zerospeech(folder / "sLM21")
    for number, name in enumerate(("1_correct", "1_incorrect", "2_correct", "2_incorrect")):
        (folder / "stories").mkdir(exist_ok=True)
        write_sound(folder / f"stories/{name}.wav", number)
    write_hellaswag(folder / "hellaswag.jsonl", 6)
    return folder


def run(place, binary, *arguments):
    done = run_binary(f"experiments.{binary}", *arguments, cwd=place)
    assert done.returncode == 0, done.stderr
    return done


def test_released_layouts_are_converted_scored_and_submitted(place):
    for kind, source in (("swuggy", "sLM21"), ("sblimp", "sLM21"), ("storycloze", "stories")):
        split = () if kind == "storycloze" else ("--split=dev",)
        arguments = (f"--set={kind}", f"--input={source}", MEL, *split, "--subset")
        done = run(place, "convert_set", *arguments, f"--output=made/{kind}")
        assert f"items of {'StoryCloze' if not split else 's' + kind[1:].upper()}" in done.stdout
    sets = ("swuggy", "sblimp")
    data = [f"--data=made/{kind}/items.jsonl" for kind in sets]
    common = ("--checkpoint=lst", "--patches_per_row=128", "--output=pairs.json")
    run(place, "evaluate_pairs", *common, *data, "--submission=sent", "--submission_scores=mean")
    results = json.loads((place / "pairs.json").read_text())
    assert results["scored_by"]["normalized_accuracy"] == "mean per token"
    whole = [x for x in results["results"] if x["category"] is None]
    assert [(x["set_name"], x["n"]) for x in whole] == [("sWUGGY", 2), ("sBLIMP", 2)]
    for task in ("lexical", "syntactic"):
        lines = (place / f"sent/{task}/dev.txt").read_text().splitlines()
        names = {path.stem for path in (place / f"sLM21/{task}/dev").glob("*.wav")}
        assert {line.split(" ")[0] for line in lines} == names and len(lines) == len(names)
        assert all(float(line.split(" ")[1]) < 0 for line in lines)
    shutil.copytree(place / "sLM21/lexical/dev", place / "blind/lexical/test")
    (place / "blind/lexical/test/gold.csv").unlink()
    run(place, "convert_set", "--set=swuggy", "--input=blind", MEL, "--output=made/blind")
    data = "--data=made/blind/items.jsonl"
    run(place, "evaluate_pairs", *common, data, "--submission=blind/sent")
    assert json.loads((place / "pairs.json").read_text())["results"] == []
    lines = (place / "blind/sent/lexical/test.txt").read_text().splitlines()
    expected = {path.stem for path in (place / "sLM21/lexical/dev").glob("*.wav")}
    assert {line.split(" ")[0] for line in lines} == expected
    stories = ("--data=made/storycloze/items.jsonl", "--logits=speech")
    run(place, "evaluate_pairs", *common, *stories)
    assert json.loads((place / "pairs.json").read_text())["logits"] == "speech"


def test_text_is_spoken_and_scored_in_four_directions_whoever_was_killed(place):
    voices = ("--synthesizer=espeak", "--synthesizer=espeak:gmw/en-US+f2,rate=200")
    arguments = ("--input=hellaswag.jsonl", *voices, MEL, "--subset", "--items_per_part=1")
    run(place, "make_spoken_set", *arguments, "--output=whole")
    command = ("experiments.make_spoken_set", *arguments, "--output=killed")
    killed = Binary(*command, cwd=place)
    deadline = time.monotonic() + 120
    while not list((place / "killed/parts").glob("*1.json")) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    killed.wait(60)
    run(place, "make_spoken_set", *arguments, "--output=killed")
    for name in ("items.jsonl", "rejects.jsonl", "settings.json"):
        assert (place / "killed" / name).read_bytes() == (place / "whole" / name).read_bytes()
    items = [json.loads(x) for x in (place / "whole/items.jsonl").read_text().splitlines()]
    assert len(items) == 6 and all(len(item["endings"]) == 4 for item in items)
    scored = ("--checkpoint=lst", "--patches_per_row=512", "--output=stories.json")
    run(place, "evaluate", *scored, "--data=whole/items.jsonl")
    results = json.loads((place / "stories.json").read_text())["results"]
    found = [(x["set_name"], x["direction"], x["n"]) for x in results]
    assert found == [("HellaSwag", way, 6) for way in ("S-S", "T-T", "S-T", "T-S")]


MISTAKES = {
    "count": (
        ("make_spoken_set", "--input=hellaswag.jsonl", "--synthesizer=espeak"),
        "HellaSwag is 6, expected 10,042, as published; --subset takes a part",
    ),
    "voice": (
        ("make_spoken_set", "--input=hellaswag.jsonl", "--synthesizer=espeak:none", "--subset"),
        "eSpeak NG has no such voice",
    ),
    "no file": (
        ("make_spoken_set", "--input=none.jsonl", "--synthesizer=espeak"),
        "none.jsonl",
    ),
    "silence": (
        ("make_spoken_set", "--input=hellaswag.jsonl", "--synthesizer=command:false {wav}"),
        "of 6 items were rejected, expected at most",
    ),
    "pairs": (
        ("convert_set", "--set=swuggy", "--input=sLM21", "--split=dev"),
        "sWUGGY is 2, expected 5,000 or 10,000",
    ),
    "folder": (("convert_set", "--set=sblimp", "--input=stories"), "syntactic/test"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_end_with_one_clear_line_and_no_items(place, mistake):
    (binary, *arguments), message = MISTAKES[mistake]
    subset = ["--subset"] if mistake == "silence" else []
    done = run_binary(
        f"experiments.{binary}", *arguments, *subset, MEL, "--output=never", cwd=place
    )
    (line,) = done.stderr.strip().splitlines()
    assert done.returncode == 2 and message in line
    assert not (place / "never/items.jsonl").exists()
