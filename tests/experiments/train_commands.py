"""The training binary, run as a user runs it, with a tiny model on a sample of real speech."""

import pathlib

from data_pipelines.corpora.reference_jsonl import read_reference_jsonl
from data_pipelines.records.storage import write_records
from data_pipelines.tokenizers import train_tokenizer
from lst_jax.training.metrics import read_records
from lst_jax.vocabulary import TextTokenizer
from tests.binaries import Binary

ROOT = pathlib.Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "tests" / "testdata" / "mls_sample.jsonl"
NUM_STEPS = 24
MODEL = ["--gin_file=experiments/configs/models/tiny.gin"]
FILES = [
    *MODEL,
    "--gin_file=experiments/configs/data/speech.gin",
    "--gin_file=experiments/configs/runs/tiny.gin",
]
SETTINGS = {
    "DIM_LOCAL": 16,
    "DIM_GLOBAL": 32,
    "NUM_LAYERS_GLOBAL": 1,
    "NUM_LAYERS_DECODER": 1,
    "NUM_HEADS_LOCAL": 2,
    "NUM_HEADS_GLOBAL": 2,
    "ATTENTION": "dense",
    "MULTIPLE_OF": 16,
    "NUM_STEPS": NUM_STEPS,
    "WARMUP_STEPS": 2,
    "BATCH_ROWS": 4,
    "NUM_PATCHES": 48,
    "NUM_TOKENS": 96,
    "LOG_EVERY": 1,
    "CHECKPOINT_EVERY": 3,
}
# Of a record, what is not a measurement of time.
TIMES = {"patches_per_second", "tokens_per_second", "mfu", "step_seconds", "eta_seconds"} | {
    "pause_seconds",
    "total_seconds",
}


def write_corpus(root):
    """The flags that name a tokenizer, records and the kept programs."""
    tokenizer = TextTokenizer(
        train_tokenizer(["the quick brown fox jumps over the lazy dog"], root / "t", 300)
    )
    write_records(root / "speech", "speech", read_reference_jsonl([SAMPLE], tokenizer), tokenizer)
    return [
        f"--gin.TOKENIZER={tokenizer.model_path}",
        f"--gin.SPEECH_RECORDS={root / 'speech'}",
        f"--compilation_cache_dir={root / 'programs'}",
    ]


def start(*arguments, devices=1):
    return Binary("experiments.train", *arguments, devices=devices)


def training_flags(corpus, workdir, **changes):
    bindings = [f"--gin.{name}={value}" for name, value in (SETTINGS | changes).items()]
    return [*FILES, *bindings, *corpus, f"--workdir={workdir}"]


def signal_at(process, step, which):
    """Signals a run when it reports `step`: what it says until its end."""
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith(f"step {step}/"):
            process.send_signal(which)
            break
    lines.append(process.communicate(timeout=120)[0])
    return "".join(lines)


def untimed_records(workdir):
    """The records of a run, without what is a measurement of time."""
    return [{k: v for k, v in r.items() if k not in TIMES} for r in read_records(workdir)]
