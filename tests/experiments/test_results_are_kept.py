"""Results are in their files, whatever becomes of the console, and the other way round."""

import json
import os
import subprocess
import sys

import pytest

from experiments.common import outputs
from tests.experiments.forked import ROOT
from tests.experiments.test_refusals import MODEL, STORY

UNITS = {"id": "é→", "units": [1, 2, 3]}


def run(tmp_path, *arguments, closed=False, **environment):
    """The end of a binary whose console cannot encode, or is closed."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        cwd=tmp_path,
        env=os.environ
        | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
        | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    if closed:
        process.stdout.close()
        process.stdout = None
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err.decode(errors="replace")
    assert err == b"" or b"Traceback" not in err
    return out


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("console", [{"PYTHONIOENCODING": "iso-8859-9"}, {"closed": True}])
def test_evaluation_and_generation_end_as_on_any_console(tmp_path, console):
    """Tables hold arrows, texts and names whatever Unicode has."""
    (tmp_path / "é→.jsonl").write_text(json.dumps(STORY | {"set": "ş→"}) + "\n")
    (tmp_path / "p.jsonl").write_text(json.dumps(UNITS) + "\n")
    run(
        *(tmp_path, "experiments.evaluate", *MODEL, "--data=é→.jsonl", "--output=é→.json"),
        "--directions=T-T",
        **console,
    )
    found = json.loads((tmp_path / "é→.json").read_text(encoding="utf-8"))
    assert found["data"] == ["é→.jsonl"] and found["results"][0]["set_name"] == "ş→"
    run(
        *(tmp_path, "experiments.generate", *MODEL, "--prompts=p.jsonl", "--output=out"),
        "--max_tokens=2",
        **console,
    )
    (line,) = (tmp_path / "out" / "continuations.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["id"] == "é→"


def test_results_that_cannot_be_written_are_shown_and_those_not_shown_written(tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError):
        outputs.keep_results(str(folder), {}, lambda: "the table")
    assert capsys.readouterr().out == "the table\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]

    def fail():
        raise UnicodeEncodeError("ascii", "→", 0, 1, "no")

    with pytest.raises(UnicodeEncodeError):
        outputs.keep_results(str(tmp_path / "a" / "b.json"), {"text": "→\ud800"}, fail)
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"text": "→\ud800"}


@pytest.mark.parametrize("name", ["file/below", "/dev/null", "folder"])
def test_an_output_that_can_be_no_file_is_refused_before_the_work(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        outputs.check_output(tmp_path / name)
    outputs.check_output(tmp_path / "file")
    outputs.check_output(tmp_path / "new" / "er")
    assert not (tmp_path / "new").exists()


def test_a_refused_start_takes_its_folders_away_and_no_others(tmp_path):
    kept = tmp_path / "run"
    (kept / "empty").mkdir(parents=True)
    (kept / "file").write_text("")
    for made in (kept / "checkpoints" / "1", tmp_path / "new" / "er" / "checkpoints"):
        workdir = kept if made.is_relative_to(kept) else made.parent
        with pytest.raises(ValueError), outputs.leaving_nothing(workdir):
            made.mkdir(parents=True)
            raise ValueError
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file", "run"]
    with pytest.raises(ValueError), outputs.leaving_nothing(tmp_path / "new"):
        (tmp_path / "new" / "checkpoints").mkdir(parents=True)
        (tmp_path / "new" / "file").write_text("work")
        raise ValueError
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["file"]
