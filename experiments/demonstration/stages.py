"""The stages of the demo: corpus, training, evaluation, speech, report. Each is done once."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import pathlib
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import gin
import jax

from data_pipelines.microworld.build import build_corpus
from data_pipelines.microworld.corpus import TEST_SETS, MicroworldConfig, MicroworldPaths
from experiments.common import gin_config
from experiments.common.encoders import open_speech
from experiments.common.experiment import Experiment, check_experiment, run_experiment
from experiments.common.outputs import make_progress_printer
from experiments.demonstration.run_lengths import (
    PILOT_STEPS,
    choose_plan,
    equal_flops_steps,
    length_bindings,
    read_plan,
    write_plan,
)
from experiments.reports.demo_report import (
    COST_HEADER,
    ModelReport,
    cost_row,
    mean_patch_length,
    read_spoken_examples,
    write_report,
)
from experiments.reports.demo_speech import SpeechExample, make_speech_examples
from experiments.reports.demo_text import (
    EQUAL_FLOPS,
    EQUAL_STEPS,
    LST,
    cover_seeds,
    describe_results,
    read_seed_spread,
)
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
from lst_jax.files import write_file, write_json
from lst_jax.inference.scoring import ScoringShape
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.model.models import count_parameters
from lst_jax.settings import given, require
from lst_jax.speech.interfaces import Vocoder
from lst_jax.training.hooks import step_of
from lst_jax.training.metrics import Record, format_duration, read_evaluations, read_records

_PLAN = "plan.json"
GIN_FILES = (
    "experiments/configs/models/tiny.gin",
    "experiments/configs/data/speech_text.gin",
    "experiments/configs/runs/demo.gin",
)
_BASELINE_FILE = "experiments/configs/runs/baseline.gin"
# Directories under the workdir: what the report calls a model, and its name in tables.
MODELS = {
    "lst": (LST, "LST (curriculum)"),
    "baseline_equal_steps": (EQUAL_STEPS, "Baseline, equal steps"),
    "baseline": (EQUAL_FLOPS, "Baseline, equal FLOPs"),
}
_PILOTS = ("pilot_lst", "pilot_baseline")
# What the LST is fine-tuned for: directory under the workdir, and its run file.
TASKS = {
    "lst_asr": "experiments/configs/runs/asr.gin",
    "lst_tts": "experiments/configs/runs/tts.gin",
}
FINETUNE_FILE = "experiments/configs/runs/demo_finetune.gin"
# Share of the whole time that each stage takes on two cores, for the time that is left.
_SHARES = {
    "corpus": 0.07,
    "measure": 0.05,
    "train lst": 0.30,
    "train baseline": 0.20,
    "train baseline_equal_steps": 0.04,
    "train lst_asr": 0.06,
    "train lst_tts": 0.06,
    "evaluate lst": 0.06,
    "evaluate baseline_equal_steps": 0.06,
    "evaluate baseline": 0.06,
    "speak": 0.02,
    "report": 0.02,
}
# Rows are parted among all devices, and parameters, which are few, copied.
_MESH = "MESH_DATA=-1", "MESH_FSDP=1"
_EVALUATION_ROWS = ScoringShape(batch_rows=8, patches_per_row=512)
# Accuracy on the way is of so many items of each set of two endings, taken together.
_ITEMS_ON_THE_WAY = 100
_SET_ON_THE_WAY = "stories with two endings"
# What the demo gives trainings itself.
_OWN_SETTINGS = (
    *length_bindings(10, 10, 1),
    *("EVAL_EVERY", "EVAL_STORIES", "INITIAL_CHECKPOINT", "INITIAL_STATE"),
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


class Demo:
    """A demo in its workdir."""

    def __init__(
        self,
        workdir: pathlib.Path,
        config: MicroworldConfig,
        minutes: float,
        gin_files: Sequence[str],
        gin_bindings: Sequence[str],
        vocoder: str | None = None,
    ) -> None:
        """Checks the settings of all models, before the first one's data are made.

        Args:
          workdir: its directory.
          config: of the corpus.
          minutes: that all of it may take.
          gin_files: further ones, for all models.
          gin_bindings: of settings of all models.
          vocoder: specification of what speaks. None: the built-in voice.

        Raises:
          OSError, ValueError: a Gin file or setting is not valid, or the demo in the workdir was
            begun with other minutes.
        """
        self._workdir = workdir
        self._config = config
        self._minutes = minutes
        self._gin_files = gin_files
        self._gin_bindings = gin_bindings
        self._vocoder = vocoder
        self._corpus = MicroworldPaths(workdir / "corpus")
        self._stories = workdir / "on_the_way.jsonl"
        self._spread = read_seed_spread()
        for binding in gin_bindings:
            name = binding.partition("=")[0].strip()
            require(name not in _OWN_SETTINGS, f"--gin.{name}", binding, "none: the demo sets it")
        self._plan = read_plan(workdir / _PLAN, minutes)
        for name in (*_PILOTS, *TASKS):
            self._configure(name)

    def run(self) -> bool:
        """Runs the stages that are not done yet; returns whether all are, or a signal came.

        Raises:
          NonFiniteLossError: a model's loss is not finite.
        """
        start = time.monotonic()
        clock = Clock()
        clock.begin("corpus")
        build_corpus(self._config, self._corpus.root)
        self._open_vocoder([])  # one that does not fit is known before anything is trained
        self._write_stories()
        clock.begin("measure")
        if self._plan is None and not self._measure(start):
            return False
        clock.begin("train lst")
        if not self._train("lst"):
            return False
        for name in (*self._baselines(), *TASKS):
            clock.begin(f"train {name}")
            if not self._train(name):
                return False
        reports = []
        for directory in MODELS:
            clock.begin(f"evaluate {directory}")
            reports.append(self._evaluate(directory))
        clock.begin("speak")
        speech = self._speak()
        clock.begin("report")
        path = self._report(reports, speech)
        print(format_results(reports), flush=True)
        print("\n" + "\n".join(self._describe(reports)), flush=True)
        print(f"\nreport: {path}", flush=True)
        return True

    def _train(self, name: str) -> bool:
        """Trains a model, or goes on; returns whether it is finished."""
        experiment = self._configure(name)
        return run_experiment(experiment, self._workdir / name, gin.operative_config_str).finished

    def _measure(self, start: float) -> bool:
        """Times a step of both models and chooses their lengths; returns whether it could."""
        measured = []
        for name in _PILOTS:
            workdir = self._workdir / name
            if not self._train(name):
                return False
            last = read_records(workdir)[-1]
            flops = float(last["total_flops"] or 0) / step_of(last)
            measured.append((float(last["step_seconds"] or 0), flops))
        self._plan = choose_plan(self._minutes, time.monotonic() - start, *measured)
        write_plan(self._workdir / _PLAN, self._plan)
        for name in _PILOTS:
            shutil.rmtree(self._workdir / name)
        print(f"{self._plan.steps} steps, for {self._minutes:g} minutes in all", flush=True)
        return True

    def _baselines(self) -> list[str]:
        """Returns the baselines, the longer one first: the other branches off from it."""
        return sorted(("baseline", "baseline_equal_steps"), key=self._steps, reverse=True)

    def _steps(self, name: str) -> int:
        """Returns the steps of a model by the plan, of fine-tuning where there is none yet."""
        if self._plan is None:
            return PILOT_STEPS
        if name in TASKS:
            return max(1, self._plan.steps // 3)
        if name == "baseline":
            last = read_records(self._workdir / "lst")[-1]
            return equal_flops_steps(self._plan, float(last["total_flops"] or 0))
        return self._plan.steps

    def _lengths(self, name: str) -> dict[str, Any]:
        """Returns the settings of a model that follow from the plan."""
        steps = self._steps(name)
        if name in _PILOTS or name in TASKS:
            return {"NUM_STEPS": steps, "WARMUP_STEPS": min(20, steps // 10)}
        assert self._plan is not None
        every = steps // 5
        settings: dict[str, Any] = {}
        if name != "lst":
            trunk, branch = self._baselines()
            every = self._steps(branch) // 5
            if name == branch:
                settings["INITIAL_CHECKPOINT"] = str(
                    self._workdir.absolute() / trunk / f"{4 * every}"
                )
                settings["INITIAL_STATE"] = "all"
        settings |= {"EVAL_EVERY": every, "EVAL_STORIES": (str(self._stories.absolute()),)}
        return settings | length_bindings(steps, self._plan.steps, every)

    def _write_stories(self) -> None:
        """Writes the items that accuracy on the way is measured by."""
        lines = []
        for kind in TEST_SETS[:2]:
            with self._corpus.test_set(kind).open(encoding="utf-8") as file:
                for line in itertools.islice(file, _ITEMS_ON_THE_WAY):
                    item = json.loads(line)
                    item |= {"id": f"{kind} {item['id']}", "set": _SET_ON_THE_WAY}
                    lines.append(json.dumps(item) + "\n")
        text = "".join(lines)
        if not self._stories.exists() or self._stories.read_text(encoding="utf-8") != text:
            write_file(self._stories, text)

    def _configure(self, name: str) -> Experiment:
        """Returns what a model is trained with; its corpus need not be there yet."""
        macros: dict[str, Any] = {
            "TOKENIZER": str(self._corpus.tokenizer.absolute()),
            "SPEECH_RECORDS": str(self._corpus.speech_records.absolute()),
            "TEXT_RECORDS": str(self._corpus.text_records.absolute()),
        }
        files = [*GIN_FILES]
        if name in TASKS:
            files[-1:] = TASKS[name], FINETUNE_FILE
            macros["INITIAL_CHECKPOINT"] = str((self._workdir / "lst").absolute())
        elif "baseline" in name:
            files.append(_BASELINE_FILE)
        bindings = [f"{key}={value!r}" for key, value in (macros | self._lengths(name)).items()]
        # Files that are given may say another mesh, which bindings would replace.
        mesh = () if self._gin_files else _MESH
        gin_config.parse([*files, *self._gin_files], [*mesh, *self._gin_bindings, *bindings])
        experiment = gin_config.build_experiment()
        check_experiment(experiment)
        given, unit_count = experiment.unit_count, self._config.unit_count
        require(given == unit_count, "UNIT_COUNT", given, f"{unit_count}, which the corpus has")
        return experiment

    def _evaluate(self, directory: str) -> ModelReport:
        """Evaluates story completion of the last checkpoint, or reads what was measured before."""
        role, name = MODELS[directory]
        workdir = self._workdir / directory
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
        results = [result_from_json(fields, KIND) for fields in found["results"]]
        return ModelReport(
            role=role,
            name=name,
            num_parameters=count_parameters(trained.model.config),
            records=self._history(directory, read_records),
            evaluations=self._history(directory, read_evaluations),
            results=cover_seeds(results, role, self._spread),
        )

    def _history(
        self, directory: str, read: Callable[[pathlib.Path], list[Record]]
    ) -> list[Record]:
        """Returns a model's records, those before it branched off from another's run first."""
        own = read(self._workdir / directory)
        trunk, branch = self._baselines()
        if directory != branch:
            return own
        begin = 4 * (self._steps(branch) // 5)
        return [x for x in read(self._workdir / trunk) if step_of(x) <= begin] + own

    def _speak(self) -> list[SpeechExample]:
        """Returns the examples of speech continued, transcribed and spoken."""
        names = ("base", "asr", "tts")
        directories = ("lst", *TASKS)
        models = {
            name: load_trained_model(self._workdir / directory)
            for name, directory in zip(names, directories, strict=True)
        }
        unit_count = models["base"].vocabulary.unit_count
        spoken = read_spoken_texts([self._corpus.spoken_texts], unit_count)
        vocoder = self._open_vocoder([str(self._workdir / name) for name in directories])
        return make_speech_examples(
            self._workdir / "speech",
            models,
            vocoder,
            self._first_stories(unit_count)[0],
            # Of different sets, so that they are about different things.
            [spoken[len(spoken) // 3], spoken[-1]],
        )

    def _open_vocoder(self, checkpoints: Sequence[str]) -> Vocoder:
        _, vocoder = open_speech(f"mel:{self._corpus.encoder}", self._vocoder, checkpoints)
        return given(vocoder, "vocoder", "one of the encoder's units")

    def _first_stories(self, unit_count: int) -> list[StoryExample]:
        """Returns the first item of each test set."""
        sets = [self._corpus.test_set(kind) for kind in TEST_SETS]
        examples = read_story_examples(sets, unit_count)
        return [next(group) for _, group in itertools.groupby(examples, lambda x: x.set_name)]

    def _report(self, reports: list[ModelReport], speech: list[SpeechExample]) -> pathlib.Path:
        """Writes `results.json` and `report.html`, whose path is returned."""
        trained = load_trained_model(self._workdir / "lst")
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
            self._describe(reports),
        )
        results = {
            "platform": jax.default_backend(),
            "plan": dataclasses.asdict(self._plan) if self._plan else None,
            "covers_seeds": self._covers_seeds(reports),
            "models": self._summarize(reports),
            "text": self._describe(reports),
        }
        write_json(self._workdir / "results.json", results)
        return path

    def _covers_seeds(self, reports: Sequence[ModelReport]) -> bool:
        return self._spread is not None and self._spread.covers(reports[0].results)

    def _describe(self, reports: Sequence[ModelReport]) -> list[str]:
        """Returns what this run showed, in sentences."""
        return describe_results(self._summarize(reports), self._covers_seeds(reports))

    @staticmethod
    def _summarize(reports: Sequence[ModelReport]) -> list[dict[str, Any]]:
        """Returns what `results.json` says of the models."""
        return [
            {
                "role": model.role,
                "model": model.name,
                "parameters": model.num_parameters,
                "training": model.records[-1],
                "training_seconds": model.seconds_until(step_of(model.records[-1])),
                "mean_patch_length": mean_patch_length(model.records),
                "on_the_way": [
                    {**record, "training_seconds": model.seconds_until(step_of(record))}
                    for record in model.evaluations
                ],
                "results": [result_to_json(result, KIND) for result in model.results],
            }
            for model in reports
        ]


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
