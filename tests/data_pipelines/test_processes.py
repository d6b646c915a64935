"""A killed process leaves no workers behind, whatever they work at, and no shared memory."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from data_pipelines.processes import starting_workers
from data_pipelines.training.dataset import DataConfig, SourceConfig
from tests.data_pipelines.small_corpus import SAMPLE, make_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
VERSION1 = ROOT / "tests" / "testdata" / "version1"
SPEECH, TEXT = (str(VERSION1 / f"{kind}_records") for kind in ("speech", "text"))
SOURCES = (SourceConfig(SPEECH, "speech"), SourceConfig(TEXT, "text"))
BATCHES = DataConfig(SOURCES, batch_size=2, patches_per_row=32, tokens_per_row=64)

# Each makes an iterator of endless work for two workers.
WORK = {
    "batches": f"""
        from absl import flags
        from data_pipelines.training.dataset import DataConfig, SourceConfig
        from data_pipelines.training.dataset import make_training_dataset
        from lst_jax.patching import PatchingConfig
        from lst_jax.vocabulary import Vocabulary
        flags.FLAGS.mark_as_parsed()
        vocabulary = Vocabulary(text_size=64, unit_count=20)
        work = iter(make_training_dataset({BATCHES!r}, vocabulary, num_workers=2))
    """,
    "lines": f"""
        from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
        from lst_jax.vocabulary import TextTokenizer
        import itertools
        tokenizer = TextTokenizer(sys.argv[1])
        work = itertools.chain.from_iterable(
            read_reference_jsonl([{str(SAMPLE)!r}], tokenizer, num_workers=2)
            for _ in itertools.count()
        )
    """,
    "stories": """
        from data_pipelines.microworld import build, corpus, speaking
        import itertools
        def forever():
            with speaking.run_pool(2) as run:
                config = corpus.MicroworldConfig(speech_stories=10**6)
                yield from run(speaking.speak_frames, build._story_tasks(config, 10**6))
        work = forever()
    """,
}
MAIN = """
import experiments  # first, as in every binary
import sys, time
if __name__ == "__main__":
    BODY
    if sys.argv[2] == "starting":
        import threading
        threading.Thread(target=next, args=(work,), daemon=True).start()
        time.sleep(0.7)
    else:
        next(work)
    print("ready", flush=True)
    while True:
        time.sleep(1) if sys.argv[2] == "starting" else next(work)
"""


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.parametrize("state", ["starting", "working"])
@pytest.mark.parametrize("work", list(WORK))
def test_a_killed_process_leaves_no_workers_and_no_shared_memory(tmp_path, work, state):
    lines = [line[4:] for line in WORK[work].splitlines()]
    (tmp_path / "main.py").write_text(MAIN.replace("    BODY", "\n".join(lines)))
    before = shared_memory()
    with subprocess.Popen(
        [sys.executable, "main.py", make_tokenizer().model_path, state],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MARK_OF_TEST": str(tmp_path)},
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as main:
        try:
            assert main.stdout.readline() == b"ready\n"
            assert len(marked_processes(tmp_path)) >= 3
            created = shared_memory() - before
            main.kill()
            main.wait()
            # A worker that was still starting sees that its parent is gone once it has imported
            # what it needs, which takes long on a busy machine.
            deadline = time.monotonic() + 90
            while marked_processes(tmp_path) or created & shared_memory():
                assert time.monotonic() < deadline
                time.sleep(0.1)
        finally:
            for process in marked_processes(tmp_path):
                os.kill(process, signal.SIGKILL)


def shared_memory():
    """Names of the arrays that Python processes share; those of others soon go, too."""
    return {path.name for path in pathlib.Path("/dev/shm").glob("psm_*")}


def marked_processes(folder):
    """Processes with the mark of a test in their environment."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"MARK_OF_TEST={folder}\0".encode() in entry.read_bytes():
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_what_a_terminal_sends_is_held_back_while_workers_start():
    code = "import signal; print(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    command = [sys.executable, "-S", "-c", code]
    with starting_workers():
        held = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    after = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (held.strip(), after.strip()) == ("True", "False")


def test_signals_are_still_held_back_when_the_first_worker_has_started():
    code = (
        "import signal\n"
        "from multiprocessing import resource_tracker\n"
        "from data_pipelines.processes import starting_workers\n"
        "with starting_workers(signal.SIGTERM):\n"
        "    resource_tracker.ensure_running()  # as the start of a process does\n"
        "    held = signal.pthread_sigmask(signal.SIG_BLOCK, [])\n"
        "print({signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= held)\n"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "True\n"
