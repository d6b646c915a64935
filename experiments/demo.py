r"""The whole road in one command: corpus, training, evaluation, report.

    python -m experiments.demo --workdir=runs/demo

builds the built-in corpus (spoken short stories), trains the LST with the curriculum and the
unpatched baseline under the same budget (steps, and patches a step), measures story completion in
all four directions, fine-tunes the LST for a minute each to transcribe and to speak, and writes
`report.html`. What was interrupted continues where it was when the same command is given again.
Training is that of `experiments.train` with the files of `GIN_FILES`; `--gin.NAME=VALUE` changes a
setting of all models.
"""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import json
import pathlib
import sys
import time

import gin
import jax
from absl import flags

from data_pipelines.microworld.build import (
    TEST_SETS,
    MicroworldConfig,
    MicroworldPaths,
    build_corpus,
)
from data_pipelines.speech.vocoder import MelVocoder
from experiments.common import cli, gin_config
from experiments.common.experiment import Experiment, check_experiment, run_experiment
from experiments.common.outputs import check_writable, make_progress_printer, write_json
from experiments.common.paths import define_path
from experiments.reports.demo_report import (
    COST_HEADER,
    ModelReport,
    cost_row,
    mean_patch_length,
    read_spoken_examples,
    write_report,
)
from experiments.reports.demo_speech import SpeechExample, make_speech_examples
from lst_jax.evaluation.choices import result_from_json, result_to_json
from lst_jax.evaluation.spoken_texts import read_spoken_texts
from lst_jax.evaluation.story_completion import (
    DIRECTIONS,
    KIND,
    StoryExample,
    evaluate_story_completion,
    read_story_examples,
)
from lst_jax.evaluation.tables import format_rate, format_rows
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.model.models import count_parameters
from lst_jax.settings import require
from lst_jax.training.loop import NonFiniteLossError
from lst_jax.training.metrics import format_duration, read_records

GIN_FILES = (
    "experiments/configs/models/tiny.gin",
    "experiments/configs/data/speech_text.gin",
    "experiments/configs/runs/demo.gin",
)
BASELINE_FILE = "experiments/configs/runs/baseline.gin"
# Directory under the workdir, name in tables, further Gin files.
MODELS = (
    ("lst", "LST (curriculum)", ()),
    ("baseline", "Baseline (no patches)", (BASELINE_FILE,)),
)
# What the LST is fine-tuned for: directory under the workdir, and its run file.
TASKS = {
    "lst_asr": "experiments/configs/runs/asr.gin",
    "lst_tts": "experiments/configs/runs/tts.gin",
}
FINETUNE_FILE = "experiments/configs/runs/demo_finetune.gin"
# Share of the whole time that each stage takes on two cores, for the time that is left.
_SHARES = {
    "corpus": 0.08,
    "train lst": 0.41,
    "train baseline": 0.21,
    "train lst_asr": 0.08,
    "train lst_tts": 0.08,
    "evaluate lst": 0.05,
    "evaluate baseline": 0.06,
    "speak": 0.02,
    "report": 0.01,
}
# Of the extra `demo`.
_PACKAGES = ("espeakng_loader", "sklearn", "threadpoolctl", "matplotlib")
_EVALUATION_ROWS = ScoringShape(batch_rows=8, patches_per_row=512)

gin_config.define_flags()
_WORKDIR = define_path("workdir", "Directory of the demo.", required=True)
_SPEECH_STORIES = flags.DEFINE_integer(
    "speech_stories", MicroworldConfig.speech_stories, "Training stories that are spoken."
)
_TEXT_STORIES = flags.DEFINE_integer(
    "text_stories", MicroworldConfig.text_stories, "Training stories given as text."
)
_TEST_ITEMS = flags.DEFINE_integer(
    "test_items", MicroworldConfig.test_items, "Items of each test set."
)


class Clock:
    """Says which stage begins, and how long is left by the shares of the stages done."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._current: str | None = None
        self._started_at = self._start
        # Of stages that really ran: a stage found finished tells nothing of the speed.
        self._seconds = 0.0
        self._share = 0.0

    def begin(self, stage: str) -> None:
        """Announces a stage."""
        now = time.monotonic()
        self._finish(now)
        self._current, self._started_at = stage, now
        number = list(_SHARES).index(stage) + 1
        left = ""
        if self._share:
            remaining = sum(list(_SHARES.values())[number - 1 :])
            seconds = self._seconds / self._share * remaining
            left = f", about {format_duration(seconds)} left"
        elapsed = format_duration(now - self._start)
        print(f"\n[{number}/{len(_SHARES)}] {stage} ({elapsed} elapsed{left})", flush=True)

    def _finish(self, now: float) -> None:
        seconds = now - self._started_at
        if self._current and seconds > 1:
            self._seconds += seconds
            self._share += _SHARES[self._current]


def main(argv: list[str]) -> None:
    """Runs the stages that are not done yet."""
    cli.check_no_arguments(argv)
    workdir = pathlib.Path(_WORKDIR.value)
    config = MicroworldConfig(
        speech_stories=_SPEECH_STORIES.value,
        text_stories=_TEXT_STORIES.value,
        test_items=_TEST_ITEMS.value,
        fit_stories=min(MicroworldConfig.fit_stories, _SPEECH_STORIES.value),
    )
    check_writable(workdir)
    check_packages()
    # The last model's settings are checked before the first model's data are made.
    for name in (*(directory for directory, *_ in MODELS), *TASKS):
        configure(name, workdir, config.unit_count)
    clock = Clock()
    clock.begin("corpus")
    corpus = build_corpus(config, workdir / "corpus")
    try:
        for name in (*(directory for directory, *_ in MODELS), *TASKS):
            clock.begin(f"train {name}")
            train_model(name, workdir, config.unit_count)
    except NonFiniteLossError as error:
        cli.end_with_error(error, cli.ExitCode.NOT_FINITE)
    reports = []
    for directory, name, _ in MODELS:
        clock.begin(f"evaluate {directory}")
        reports.append(evaluate_model(workdir / directory, name, corpus))
    clock.begin("speak")
    speech = speak(workdir, corpus)
    clock.begin("report")
    path = report(workdir, corpus, reports, speech)
    print(format_results(reports), flush=True)
    print(f"\nreport: {path}", flush=True)


def check_packages() -> None:
    """Raises an `ImportError` for a package of the extra `demo` that is not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"no {', '.join(missing)}, expected the extra demo: lst-jax[demo]")


def configure(name: str, workdir: pathlib.Path, unit_count: int) -> Experiment:
    """Returns what a model of the demo is trained with; its corpus need not be there yet.

    Args:
      name: the model's directory in `workdir`.
      workdir: of the demo.
      unit_count: size of the corpus's unit set.

    Raises:
      OSError, ValueError: a Gin file or setting is not valid.
    """
    corpus = MicroworldPaths(workdir / "corpus")
    macros = {
        "TOKENIZER": corpus.tokenizer,
        "SPEECH_RECORDS": corpus.speech_records,
        "TEXT_RECORDS": corpus.text_records,
    }
    if name in TASKS:
        files = (*GIN_FILES[:2], TASKS[name], FINETUNE_FILE)
        macros["INITIAL_CHECKPOINT"] = workdir / MODELS[0][0]
    else:
        further = {directory: files for directory, _, files in MODELS}
        files = (*GIN_FILES, *further[name])
    paths = [f"{macro}={str(path.absolute())!r}" for macro, path in macros.items()]
    bindings = [*(flags.FLAGS["gin_binding"].value or []), *paths]
    gin_config.parse([*files, *(flags.FLAGS["gin_file"].value or [])], bindings)
    experiment = gin_config.build_experiment()
    check_experiment(experiment)
    given = experiment.unit_count
    require(given == unit_count, "UNIT_COUNT", given, f"{unit_count}, which the corpus has")
    return experiment


def train_model(name: str, workdir: pathlib.Path, unit_count: int) -> None:
    """Trains a model to the end; exits where a signal stopped it on the way."""
    experiment = configure(name, workdir, unit_count)
    result = run_experiment(experiment, workdir / name, gin.operative_config_str)
    if not result.finished:
        print("stopped; the same command continues", flush=True)
        sys.exit(int(cli.ExitCode.STOPPED))


def evaluate_model(workdir: pathlib.Path, name: str, corpus: MicroworldPaths) -> ModelReport:
    """Evaluates story completion of the last checkpoint, or reads what was measured before."""
    trained = load_trained_model(workdir)
    path = workdir / "story_completion.json"
    sets = [corpus.test_set(kind) for kind in TEST_SETS]
    measured_on = {"step": trained.step, "sets": [_digest(file) for file in sets]}
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("measured_on") != measured_on:
        examples = read_story_examples(sets, trained.vocabulary.unit_count)
        results = evaluate_story_completion(
            trained,
            examples,
            directions=DIRECTIONS,
            shape=_EVALUATION_ROWS,
            progress=make_progress_printer(),
        )
        found = {"measured_on": measured_on, **results.as_dict(with_scores=True)}
        write_json(path, found)
    return ModelReport(
        name=name,
        num_parameters=count_parameters(trained.model.config),
        records=read_records(workdir),
        results=[result_from_json(fields, KIND) for fields in found["results"]],
    )


def speak(workdir: pathlib.Path, corpus: MicroworldPaths) -> list[SpeechExample]:
    """Returns the examples of speech continued, transcribed and spoken."""
    names = ("base", "asr", "tts")
    directories = (MODELS[0][0], *TASKS)
    models = {
        name: load_trained_model(workdir / directory)
        for name, directory in zip(names, directories, strict=True)
    }
    unit_count = models["base"].vocabulary.unit_count
    spoken = read_spoken_texts([corpus.spoken_texts], unit_count)
    return make_speech_examples(
        workdir / "speech",
        models,
        MelVocoder.load(corpus.encoder),
        first_stories(corpus, unit_count)[0],
        # Of different sets, so that they are about different things.
        [spoken[len(spoken) // 3], spoken[-1]],
    )


def first_stories(corpus: MicroworldPaths, unit_count: int) -> list[StoryExample]:
    """Returns the first item of each test set."""
    sets = [corpus.test_set(kind) for kind in TEST_SETS]
    examples = read_story_examples(sets, unit_count)
    return [next(group) for _, group in itertools.groupby(examples, lambda x: x.set_name)]


def report(
    workdir: pathlib.Path,
    corpus: MicroworldPaths,
    reports: list[ModelReport],
    speech: list[SpeechExample],
) -> pathlib.Path:
    """Writes `results.json` and `report.html`, whose path is returned."""
    trained = load_trained_model(workdir / MODELS[0][0])
    path = workdir / "report.html"
    write_report(
        path,
        reports,
        json.loads(corpus.stats.read_text(encoding="utf-8")),
        read_spoken_examples(corpus.examples),
        first_stories(corpus, trained.vocabulary.unit_count),
        speech,
        workdir / "speech",
        trained.text_tokenizer,
        trained.patching.patch_size,
    )
    summary = [
        {
            "model": model.name,
            "parameters": model.num_parameters,
            "training": model.records[-1],
            "mean_patch_length": mean_patch_length(model.records),
            "results": [result_to_json(result, KIND) for result in model.results],
        }
        for model in reports
    ]
    write_json(workdir / "results.json", {"platform": jax.default_backend(), "models": summary})
    return path


def format_results(reports: list[ModelReport]) -> str:
    """Accuracies and costs of all models as two aligned tables."""
    header = ["set", "direction", "chance", "n", *(model.name for model in reports)]
    rows = [header]
    for entries in zip(*(model.results for model in reports), strict=True):
        first = entries[0]
        rows.append(
            [
                first.set_name,
                first.group.replace("-", "→"),
                f"{100 * first.chance:.0f}",
                str(first.n),
                *(format_rate(r.accuracy, r.interval) for r in entries),
            ]
        )
    costs = [list(COST_HEADER), *(cost_row(model) for model in reports)]
    return f"\n{format_rows(rows, 1)}\n\n{format_rows(costs, 1)}"


def _digest(path: pathlib.Path) -> str:
    """Changes when the test set does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
