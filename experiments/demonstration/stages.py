"""The stages of the demo: corpus, training, evaluation, speech, report. Each is done once."""

from __future__ import annotations

import hashlib
import itertools
import json
import pathlib
import time
from collections.abc import Sequence

import gin
import jax

from data_pipelines.microworld.build import build_corpus
from data_pipelines.microworld.corpus import TEST_SETS, MicroworldConfig, MicroworldPaths
from data_pipelines.speech.vocoder import MelVocoder
from experiments.common import gin_config
from experiments.common.experiment import Experiment, check_experiment, run_experiment
from experiments.common.outputs import make_progress_printer
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
from lst_jax.files import write_json
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.model.models import count_parameters
from lst_jax.settings import require
from lst_jax.training.metrics import format_duration, read_records

GIN_FILES = (
    "experiments/configs/models/tiny.gin",
    "experiments/configs/data/speech_text.gin",
    "experiments/configs/runs/demo.gin",
)
# Directory under the workdir, name in tables, further Gin files.
MODELS = (
    ("lst", "LST (curriculum)", ()),
    ("baseline", "Baseline (no patches)", ("experiments/configs/runs/baseline.gin",)),
)
# What the LST is fine-tuned for: directory under the workdir, and its run file.
TASKS = {
    "lst_asr": "experiments/configs/runs/asr.gin",
    "lst_tts": "experiments/configs/runs/tts.gin",
}
FINETUNE_FILE = "experiments/configs/runs/demo_finetune.gin"
_TRAINED = (*(directory for directory, *_ in MODELS), *TASKS)
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
_EVALUATION_ROWS = ScoringShape(batch_rows=8, patches_per_row=512)


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


class Demo:
    """A demo in its workdir."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: MicroworldConfig,
        gin_files: Sequence[str],
        gin_bindings: Sequence[str],
    ) -> None:
        """Checks the settings of all models, before the first one's data are made.

        Args:
          workdir: its directory.
          config: of the corpus.
          gin_files: further ones, for all models.
          gin_bindings: of settings of all models.

        Raises:
          OSError, ValueError: a Gin file or setting is not valid.
        """
        self._workdir = workdir
        self._config = config
        self._gin_files = gin_files
        self._gin_bindings = gin_bindings
        self._corpus = MicroworldPaths(workdir / "corpus")
        for name in _TRAINED:
            self._configure(name)

    def run(self) -> bool:
        """Runs the stages that are not done yet; returns whether all are, or a signal came.

        Raises:
          NonFiniteLossError: a model's loss is not finite.
        """
        clock = Clock()
        clock.begin("corpus")
        build_corpus(self._config, self._corpus.root)
        for name in _TRAINED:
            clock.begin(f"train {name}")
            experiment = self._configure(name)
            result = run_experiment(experiment, self._workdir / name, gin.operative_config_str)
            if not result.finished:
                return False
        reports = []
        for directory, name, _ in MODELS:
            clock.begin(f"evaluate {directory}")
            reports.append(self._evaluate(self._workdir / directory, name))
        clock.begin("speak")
        speech = self._speak()
        clock.begin("report")
        path = self._report(reports, speech)
        print(format_results(reports), flush=True)
        print(f"\nreport: {path}", flush=True)
        return True

    def _configure(self, name: str) -> Experiment:
        """Returns what a model is trained with; its corpus need not be there yet."""
        macros = {
            "TOKENIZER": self._corpus.tokenizer,
            "SPEECH_RECORDS": self._corpus.speech_records,
            "TEXT_RECORDS": self._corpus.text_records,
        }
        if name in TASKS:
            files = (*GIN_FILES[:2], TASKS[name], FINETUNE_FILE)
            macros["INITIAL_CHECKPOINT"] = self._workdir / MODELS[0][0]
        else:
            further = {directory: files for directory, _, files in MODELS}
            files = (*GIN_FILES, *further[name])
        paths = [f"{macro}={str(path.absolute())!r}" for macro, path in macros.items()]
        gin_config.parse([*files, *self._gin_files], [*self._gin_bindings, *paths])
        experiment = gin_config.build_experiment()
        check_experiment(experiment)
        given, unit_count = experiment.unit_count, self._config.unit_count
        require(given == unit_count, "UNIT_COUNT", given, f"{unit_count}, which the corpus has")
        return experiment

    def _evaluate(self, workdir: pathlib.Path, name: str) -> ModelReport:
        """Evaluates story completion of the last checkpoint, or reads what was measured before."""
        trained = load_trained_model(workdir)
        path = workdir / "story_completion.json"
        sets = [self._corpus.test_set(kind) for kind in TEST_SETS]
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

    def _speak(self) -> list[SpeechExample]:
        """Returns the examples of speech continued, transcribed and spoken."""
        names = ("base", "asr", "tts")
        directories = (MODELS[0][0], *TASKS)
        models = {
            name: load_trained_model(self._workdir / directory)
            for name, directory in zip(names, directories, strict=True)
        }
        unit_count = models["base"].vocabulary.unit_count
        spoken = read_spoken_texts([self._corpus.spoken_texts], unit_count)
        return make_speech_examples(
            self._workdir / "speech",
            models,
            MelVocoder.load(self._corpus.encoder),
            self._first_stories(unit_count)[0],
            # Of different sets, so that they are about different things.
            [spoken[len(spoken) // 3], spoken[-1]],
        )

    def _first_stories(self, unit_count: int) -> list[StoryExample]:
        """Returns the first item of each test set."""
        sets = [self._corpus.test_set(kind) for kind in TEST_SETS]
        examples = read_story_examples(sets, unit_count)
        return [next(group) for _, group in itertools.groupby(examples, lambda x: x.set_name)]

    def _report(self, reports: list[ModelReport], speech: list[SpeechExample]) -> pathlib.Path:
        """Writes `results.json` and `report.html`, whose path is returned."""
        trained = load_trained_model(self._workdir / MODELS[0][0])
        path = self._workdir / "report.html"
        write_report(
            path,
            reports,
            json.loads(self._corpus.stats.read_text(encoding="utf-8")),
            read_spoken_examples(self._corpus.examples),
            self._first_stories(trained.vocabulary.unit_count),
            speech,
            self._workdir / "speech",
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
        results = {"platform": jax.default_backend(), "models": summary}
        write_json(self._workdir / "results.json", results)
        return path


def format_results(reports: list[ModelReport]) -> str:
    """Returns accuracies and costs of all models as two aligned tables."""
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
    """Returns what changes when the test set does."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
