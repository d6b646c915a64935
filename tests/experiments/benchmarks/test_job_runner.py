"""Measurements against a deadline: what fails, hangs, dies or is too long costs itself alone."""

import json
import pathlib
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from experiments.benchmarks.job_runner import JobRunner, last_run, read_records, supervise

# A worker whose jobs do what their names say; its arguments are the file, the deadline and jobs.
WORKER = textwrap.dedent(
    """
    import os, sys, time
    from experiments.benchmarks.job_runner import Job, JobRunner, read_records

    path, deadline, *names = sys.argv[1:]
    begun = [(x["stage"], x["job"]) for x in read_records(path) if x["status"] == "begun"]
    broken = []

    def run(name):
        yield {"value": 1.5}
        if name.startswith("fail"):
            raise ValueError("so\\nit\\nis" + 5000 * "!")
        if name.startswith("hang"):
            time.sleep(1000)
        if name.startswith("die"):
            os.abort()
        if name.startswith("break"):
            broken.append(name)
            raise RuntimeError("illegal address")
        if name.startswith("endless"):
            while True:
                time.sleep(0.05)
                yield {"value": float("nan")}

    def is_alive():
        if broken:
            raise RuntimeError("illegal address, still")

    def jobs():
        for name in names:
            seconds = 1000.0 if name.startswith("long") else 0.1
            yield Job("stage", name, seconds, lambda name=name: run(name))

    JobRunner(path, float(deadline), is_alive, begun).run(jobs())
    """
)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A command, but for the arguments; hung jobs are given up soon."""
    script = tmp_path / "worker.py"
    root = str(pathlib.Path(__file__).parents[3])
    patience = "import experiments.benchmarks.job_runner as j; j._PATIENCE_S = 0.5\n"
    script.write_text(f"import sys; sys.path.insert(0, {root!r})\n{patience}{WORKER}")
    return [sys.executable, str(script), str(tmp_path / "results.jsonl")]


def run_jobs(worker, names, seconds=30.0):
    deadline = time.monotonic() + seconds
    code = supervise([*worker, str(deadline), *names], deadline)
    return code, read_records(worker[2])


def outcomes(records):
    """How each job ended, by name."""
    ends = ("done", "failed", "cut off", "skipped")
    return {record["job"]: record["status"] for record in records if record["status"] in ends}


@pytest.mark.multiprocess
def test_whatever_a_job_dies_of_the_next_one_runs(worker):
    names = ["fine1", "fail", "fine2", "hang", "fine3", "die", "fine4", "break", "fine5"]
    code, records = run_jobs(worker, names)
    assert code == 0
    ends = outcomes(records)
    assert "die" not in ends  # nobody was left to tell, but it is known to have begun
    assert ends == {
        **{f"fine{i}": "done" for i in range(1, 6)},
        **{"fail": "failed", "hang": "cut off", "break": "failed"},
    }
    assert [x["job"] for x in records if x["status"] == "begun"] == names
    assert sum(x["status"] == "ok" for x in records) == len(names)
    (failure,) = [x for x in records if x["job"] == "fail" and x["status"] == "failed"]
    assert failure["error"].startswith("ValueError: so it is") and len(failure["error"]) <= 600
    assert failure["at"].startswith("worker.py:")


@pytest.mark.multiprocess
def test_a_job_that_would_overrun_is_not_begun(worker):
    _, records = run_jobs(worker, ["long", "fine"])
    assert outcomes(records) == {"long": "skipped", "fine": "done"}
    (skipped,) = [x for x in records if x["job"] == "long"]
    assert skipped["reason"].startswith("needs about 1000 s")


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("name", ["hang", "endless"])
def test_nothing_outlives_the_deadline(worker, name):
    # The worker takes a while to start.
    begin, seconds = time.monotonic(), 4.0
    names = [name, *(f"{name}{i}" for i in range(50))]
    run_jobs(worker, names, seconds)
    assert time.monotonic() - begin < seconds + 2
    records = read_records(worker[2])
    assert records and all(record["status"] for record in records)
    values = {x["value"] for x in records if x["status"] == "ok"}
    assert values <= {1.5, "nan"}


@pytest.mark.multiprocess
def test_a_worker_does_not_outlive_its_supervisor(worker):
    deadline = time.monotonic() + 60
    code = (
        "import sys; from experiments.benchmarks.job_runner import supervise;"
        "supervise(sys.argv[2:], float(sys.argv[1]))"
    )
    arguments = [str(deadline), *worker, str(deadline), "endless"]
    supervisor = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=pathlib.Path(__file__).parents[3]
    )
    while not any(x["status"] == "ok" for x in read_records(worker[2])):
        time.sleep(0.05)
        assert supervisor.poll() is None
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait()
    time.sleep(1.0)
    size = pathlib.Path(worker[2]).stat().st_size
    time.sleep(0.5)
    assert pathlib.Path(worker[2]).stat().st_size == size


def test_records_are_plain_json_and_appended(tmp_path):
    path = tmp_path / "results.jsonl"
    for number in (1.0, float("inf")):
        runner = JobRunner(path, time.monotonic() + 1, lambda: None)
        runner.append({"stage": "run", "number": number, "list": (1, float("nan")), "none": None})
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == {"stage": "run", "number": 1.0, "list": [1, "nan"], "none": None}
    assert second["number"] == "inf"
    assert last_run(read_records(path)) == [second]
    assert read_records(tmp_path / "missing") == [] == last_run([])
