"""The binary that makes records of recordings, as a user runs it."""

from __future__ import annotations

import json
import shutil
import signal
import time

import numpy as np
import pytest

from data_pipelines.records.storage import open_records
from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.units import MelFeatures, MelKMeansEncoder
from tests.binaries import Binary, run_binary
from tests.data_pipelines.small_corpus import make_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]
_RECORDINGS, _SPOKEN = 8, 6


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder, recordings of noise, and when words are said in all but the last two."""
    folder = tmp_path_factory.mktemp("speech")
    features, rng = MelFeatures(), np.random.default_rng(0)
    rate = features.sample_rate
    noise = rng.normal(0, 0.1, 2 * rate).astype(np.float32)
    frames = features.log_mels(noise, rate)
    labels = [f"sound {i % 9}" for i in range(len(frames))]
    encoder = MelKMeansEncoder.fit(features, [frames], [labels], unit_count=9, width=4)
    encoder.save(folder / "encoder.npz")
    (folder / "corpus").mkdir()
    for number in range(_RECORDINGS):
        samples = rng.normal(0, 0.1, round((0.5 + 0.05 * number) * rate))
        write_wav(folder / f"corpus/{number:02d}.wav", samples, rate)
        if number < _SPOKEN:
            (folder / f"corpus/{number:02d}.txt").write_text("The house.")
    lines = [f"{n:02d} 1 0.1 0.2 the\n{n:02d} 1 0.3 0.2 house\n" for n in range(_SPOKEN)]
    (folder / "words.ctm").write_text("".join(lines))
    return folder


def _arguments(place, output, *more):
    return (
        *("--input=corpus", "--format=folder", "--encoder=mel:encoder.npz"),
        *("--alignment=words.ctm", f"--tokenizer={make_tokenizer().model_path}"),
        *("--recordings_per_part=1", f"--output={output}", *more),
    )


def _run(place, output, *more):
    binary = "experiments.prepare_speech"
    return run_binary(binary, *_arguments(place, output, *more), cwd=place)


def _files(folder):
    files = {path.name: path.read_bytes() for path in (folder / "records").iterdir()}
    return files | {name: (folder / name).read_bytes() for name in ("statistics.json",)}


def test_killed_and_shared_runs_give_the_same_bytes(place):
    done = _run(place, "whole")
    assert done.returncode == 0, done.stderr
    assert f"{_RECORDINGS - _SPOKEN} utterances without words" in done.stdout
    assert sorted(path.name for path in (place / "whole").iterdir()) == [
        *("records", "rejects.jsonl", "settings.json", "statistics.html", "statistics.json"),
    ]
    parts = place / "killed/parts"
    for which in (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM):
        before = len(list(parts.glob("0*.json")))
        killed = Binary("experiments.prepare_speech", *_arguments(place, "killed"), cwd=place)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("0*.json"))) <= before and time.monotonic() < deadline:
            time.sleep(0.002)
        for _ in range(2):  # who insists
            killed.send_signal(which)
        said, _ = killed.communicate(60)
        expected = (143, "stopped by SIGTERM\n") if which == signal.SIGTERM else (-which, "")
        assert (killed.returncode, said) == expected and before < _RECORDINGS - 1
    assert not list(parts.glob(".*"))
    assert not (place / "killed/records").exists()
    assert _run(place, "killed").returncode == 0
    assert _files(place / "killed") == _files(place / "whole")
    # Without --shard the other half is made, and all of it joined.
    done = _run(place, "shared", "--shard=1/2", "--num_workers=1")
    assert done.returncode == 0, done.stderr
    assert len(list((place / "shared/parts").glob("*.json"))) == 1 + _RECORDINGS // 2
    assert _run(place, "shared").returncode == 0
    assert _files(place / "shared") == _files(place / "whole")
    again = _run(place, "whole")
    assert again.returncode == 0 and "complete already" in again.stdout
    other = _run(place, "whole", "--piece_seconds=9")
    assert other.returncode == 2 and "piece_seconds = 30.0, expected 9.0" in other.stderr
    records = open_records(place / "whole/records")
    assert len(records) == _RECORDINGS
    assert records[0].words == ("[SIL]", "The", "house.", "[SIL]")
    assert records.metadata.encoder_fingerprint is not None


def test_too_many_rejects_end_it_with_their_reasons_and_no_records(place):
    (place / "corpus/broken.wav").write_bytes(b"RIFF nothing")
    try:
        done = _run(place, "few")
        assert done.returncode == 2
        (line,) = done.stderr.strip().splitlines()
        assert f"1 of {_RECORDINGS + 1} utterances became no record" in line and "broken" in line
        assert not (place / "few/records").exists()
        assert '"id": "broken"' in (place / "few/rejects.jsonl").read_text()
        (place / "bad").mkdir()
        shutil.copy(place / "corpus/broken.wav", place / "bad")
        none = _run(place, "none", "--input=bad", "--max_reject_share=1")
        assert none.returncode == 2
        assert "number of records is 0, expected one or more: see none/rejects.jsonl" in none.stderr
        done = _run(place, "few", "--max_reject_share=0.2")
        assert done.returncode == 0, done.stderr
        (reject,) = map(json.loads, (place / "few/rejects.jsonl").read_text().splitlines())
        assert (reject["kind"], reject["id"]) == ("unreadable", "broken")
    finally:
        (place / "corpus/broken.wav").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shard=2/2",), "--shard is '2/2', expected i/n"),
        (("--units=words.ctm",), "either an encoder or --units"),
        (("--unit_count=9",), "--unit_count is 9, expected it only beside --units"),
        (("--aligner=nobody",), "one of the kinds"),
        (("--alignment=none.ctm",), "none.ctm"),
        (("--format=mls",), "holds no recording"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_is_made(place, arguments, message):
    done = _run(place, "never", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert message in line
    assert not (place / "never").exists()
