"""The binary for patches and words, end to end on a tiny run, and what it refuses."""

import json

import numpy as np
import pytest

from data_pipelines.records.storage import open_records
from experiments.inspection.word_patches import SampleConfig, sample_words
from lst_jax.evaluation.patch_embeddings import measure_similarity
from lst_jax.evaluation.patch_states import patch_states
from lst_jax.inference.trained_model import load_trained_model
from tests.binaries import run_binary
from tests.test_version1 import VERSION1

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
TOKENIZER = VERSION1 / "tokenizer.model"


def command(kind, records, output, *arguments):
    return [
        "experiments.analyze_patches",
        f"--checkpoint={VERSION1 / kind}",
        f"--tokenizer={TOKENIZER}",
        f"--records={VERSION1 / records}",
        f"--output={output}",
        *arguments,
    ]


def analyze(*arguments):
    return run_binary(*command(*arguments))


def test_files_have_what_the_library_computes(tmp_path):
    output = tmp_path / "out" / "patches"
    done = analyze("lst_run", "speech_records", output, "--occurrences=3", "--batch_rows=2")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in output.iterdir()}
    assert names == {"analysis.html", "analysis.json", "layers.png", "tsne.png"}
    written = json.loads((output / "analysis.json").read_text())
    trained = load_trained_model(VERSION1 / "lst_run", TOKENIZER)
    source = open_records(VERSION1 / "speech_records", trained.vocabulary)
    config = SampleConfig(occurrences=3)
    sample = sample_words(source, config, trained.patching, trained.vocabulary, 48)
    states = patch_states(trained, sample.chosen, patches_per_row=48)
    assert written["words"] == list(sample.names) and len(sample.names) >= 2
    embeddings = written["embeddings"]
    assert [*embeddings] == ["trained", "untrained", "mean unit embeddings"]
    for layer, found in zip(states, embeddings["trained"]["layers"], strict=True):
        expected = measure_similarity(layer, sample.words)
        for name in ("within", "between", "silhouette"):
            assert found[name]["value"] == pytest.approx(getattr(expected, name).value, abs=0.02)
    before = written["embeddings"]["untrained"]["layers"][0]["within"]["value"]
    gain = written["gain_over"]["untrained"]["within"]["value"]
    after = written["embeddings"]["trained"]["layers"][0]["within"]["value"]
    assert gain == pytest.approx(after - before)
    for rates in written["embeddings"]["trained"]["lens"].values():
        assert all(0 <= rate["value"] <= 1 for rate in rates)
    assert {*written["tsne"]} == {*embeddings}
    for words in written["tsne"].values():
        assert [np.shape(words[name]) for name in sample.names] == [(3, 2)] * len(sample.names)
    page = (output / "analysis.html").read_text()
    assert page.count("<svg") == 2 and "0.65–0.68" in page and "nan" not in done.stdout
    assert np.all([word in page for word in written["words"]])


@pytest.mark.parametrize("there", [False, True])
def test_a_disk_that_fills_between_two_files_keeps_none(tmp_path, there):
    output = tmp_path / "out" / "patches"
    (output if there else output.parent).mkdir(parents=True)
    done = run_binary(
        *command("lst_run", "speech_records", output, "--occurrences=3", "--batch_rows=2"),
        largest_file=20_000,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1] == f"error: {output}/tsne.png: File too large"
    assert [path.name for path in output.parent.iterdir()] == ["patches"] * there
    assert not there or not list(output.iterdir())


@pytest.mark.parametrize(
    ("kind", "records", "arguments", "named"),
    [
        ("baseline_run", "speech_records", [], "is an unpatched baseline, which has no patches"),
        ("lst_run", "text_records", [], "hold text, expected speech"),
        ("lst_run", "speech_records", ["--occurrences=900"], "0 words occur 900 times"),
    ],
)
def test_mistakes_end_with_one_line_and_leave_nothing(tmp_path, kind, records, arguments, named):
    done = analyze(kind, records, tmp_path / "a" / "b", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert named in done.stderr
    assert not list(tmp_path.iterdir())
