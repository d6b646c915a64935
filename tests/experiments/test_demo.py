"""The demo from end to end, with a corpus of a few stories and models trained for a few steps."""

import json
import pathlib
import re

import numpy as np
import pytest

from data_pipelines.records.storage import make_utterance
from data_pipelines.speech.audio import read_audio
from experiments.demonstration.run_lengths import DemoPlan, write_plan
from experiments.reports.demo_report import SpokenExample, patch_rows, read_spoken_examples
from lst_jax.vocabulary import TextTokenizer
from tests.binaries import run_binary
from tests.data_pipelines.evaluation_sets.layouts import write_hellaswag
from tests.marks import quick

pytestmark = pytest.mark.multiprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
SETS = {"StoryCloze": 2, "TopicStoryCloze": 2, "HellaSwag": 4}
ARGUMENTS = (
    *("--speech_stories=24", "--text_stories=300", "--test_items=4"),
    *("--minutes=0.01", "--gin.LOG_EVERY=10", "--gin.DIM_LOCAL=16", "--gin.DIM_GLOBAL=32"),
    *("--gin.NUM_LAYERS_GLOBAL=1", "--gin.NUM_LAYERS_DECODER=1", "--gin.BATCH_ROWS=2"),
)


def run_demo(workdir):
    """One call of the binary, on two CPU devices where there are two cores."""
    return run_binary("experiments.demo", f"--workdir={workdir}", *ARGUMENTS, timeout=600)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished demo: its workdir and its output."""
    workdir = tmp_path_factory.mktemp("demo")
    # As if a step had been timed (`demonstration/test_stages.py` does).
    write_plan(workdir / "plan.json", DemoPlan(0.01, 50, 0.03, 0.01, 1.75e8, 1.38e8))
    done = run_demo(workdir)
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir, done.stdout


@pytest.mark.slow
def test_the_table_has_every_set_and_direction_and_both_costs(demo):
    workdir, output = demo
    for name, endings in SETS.items():
        for direction in ("S→S", "T→T", "S→T", "T→S"):
            line = re.search(rf"^{name} +{direction} +(\d+) +4 ", output, re.MULTILINE)
            assert line and int(line[1]) == 100 // endings
    results = json.loads((workdir / "results.json").read_text())
    lst, equal_steps, equal_flops = results["models"]
    assert lst["training"]["step"] == equal_steps["training"]["step"] == results["plan"]["steps"]
    assert all(len(model["results"]) == 12 for model in results["models"])
    # A budget is one: as many patches a step, up to what packing leaves empty, or as many FLOPs.
    units = [model["training"]["total_patches"] for model in (lst, equal_steps)]
    assert 0.8 < units[0] / units[1] < 1.25
    assert lst["training"]["total_tokens"] > equal_steps["training"]["total_tokens"]
    flops = [model["training"]["total_flops"] for model in (lst, equal_flops)]
    assert flops[0] == pytest.approx(flops[1], rel=0.1)  # lengths are multiples of ten steps
    assert "one run cannot settle" in results["text"][-1] and results["text"][0] in output


@pytest.mark.slow
def test_accuracy_on_the_way_is_against_the_time_of_steps_alone(demo):
    results = json.loads((demo[0] / "results.json").read_text())
    for model in results["models"]:
        way = model["on_the_way"]
        assert len(way) >= 5 and way[-1]["step"] == model["training"]["step"]
        times = [record["training_seconds"] for record in way]
        assert times == sorted(times) and times[0] > 0
        assert times[-1] == model["training_seconds"] < model["training"]["total_seconds"]
    names = {name for record in results["models"][0]["on_the_way"] for name in record}
    assert "stories/stories with two endings/S-S/accuracy" in names


@pytest.mark.slow
def test_the_report_stands_alone(demo):
    page = (demo[0] / "report.html").read_text()
    assert page.count("<svg") == 4
    assert page.count("data:audio/wav;base64,") == 4 + 4  # of the corpus, and of the model
    # Nothing is fetched: links are anchors inside the page or XML namespaces.
    assert not re.search(r"(src|href)=['\"](?!data:|#)", page.replace("xlink:href", "href"))
    assert "Traceback" not in page and "nan" not in re.sub(r"<svg.*?</svg>", "", page, flags=re.S)


@pytest.mark.slow
def test_a_second_run_does_nothing_again(demo):
    workdir, first = demo
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*.json*")}
    again = run_demo(workdir)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout[again.stdout.index("set ") :] == first[first.index("set ") :]
    changed = {p.name for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert changed <= {"results.json", "model.json", "starts.jsonl"}  # records of each start


@pytest.mark.slow
def test_the_model_continues_transcribes_and_speaks(demo):
    directory = demo[0] / "speech"
    examples = json.loads((directory / "examples.json").read_text())["examples"]
    assert [len(example["clips"]) for example in examples] == [2, 1, 1]
    for example in examples:
        assert all(text for _, text in example["lines"][:1])
        for clip in example["clips"]:
            assert len(read_audio(directory / clip["wav"], 22050)) > 0
    assert len(read_audio(directory / "continuation.wav", 22050)) >= 2 * 22050


@pytest.mark.slow
def test_a_published_text_is_spoken_and_scored_by_its_models(demo, tmp_path):
    write_hellaswag(tmp_path / "hellaswag.jsonl", 4)
    made = (
        "--input=hellaswag.jsonl --synthesizer=espeak --subset --output=spoken",
        f"--encoder=mel:{demo[0]}/corpus/encoder/encoder.npz",
    )
    scored = ("--data=spoken/items.jsonl", f"--checkpoint={demo[0]}/lst", "--output=out.json")
    for binary, *arguments in (
        ("make_spoken_set", *made[0].split(), made[1]),
        ("evaluate", *scored),
    ):
        done = run_binary(f"experiments.{binary}", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out.json").read_text())["results"]
    assert [(x["direction"], x["n"], x["chance"]) for x in results] == [
        (direction, 4, 0.25) for direction in ("S-S", "T-T", "S-T", "T-S")
    ]


@pytest.mark.slow
def test_patches_of_every_strategy_hold_every_unit(demo):
    directory = demo[0] / "corpus" / "examples"
    example: SpokenExample = read_spoken_examples(directory)[0]
    tokenizer = TextTokenizer(demo[0] / "corpus" / "tokenizer" / "tokenizer.model")
    utterance = make_utterance("x", example.words, example.units, example.unit_counts, tokenizer)
    rows = patch_rows(utterance, tokenizer.vocabulary(), 4)
    for lengths in rows.values():
        assert sum(lengths) == len(example.units)
    assert np.mean(rows["static(4)"]) > 3.5 and set(rows["none"]) == {1}
    assert len(rows["aligned, silence merged"]) <= len(rows["aligned"])


def test_without_the_extra_one_line_names_it_before_anything_is_done(tmp_path):
    (tmp_path / "bare.py").write_text(
        "import runpy, sys\n"
        "hidden = ('espeakng_loader', 'jinja2', 'matplotlib', 'sklearn', 'threadpoolctl')\n"
        "sys.modules |= dict.fromkeys(hidden)\n"
        "runpy.run_module('experiments.demo', run_name='__main__', alter_sys=True)\n"
    )
    done = run_binary("bare", "--workdir=runs/demo", cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: no espeakng_loader") and "'lst-jax[demo]'" in line
    assert [path.name for path in tmp_path.iterdir()] == ["bare.py"]


@pytest.mark.parametrize(
    "mistake", quick(["--speech_stories=0", "--gin.NUM_STEPS=9", "--minutes=nan"], "--minutes=nan")
)
def test_a_mistake_ends_with_one_line(tmp_path, mistake):
    done = run_binary("experiments.demo", f"--workdir={tmp_path}", mistake)
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "Traceback" not in done.stderr
