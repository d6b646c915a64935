"""What a study is: arms, seeds, budgets, a protocol, and the comparison named in advance.

A study is a Gin file (`experiments/configs/studies`) of these classes. An arm is what Gin files and
bindings add to the study's own, so that each of its cells is an ordinary training run.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import gin

from data_pipelines.microworld.corpus import TEST_SETS, MicroworldPaths
from data_pipelines.training.data_config import Share
from experiments.common import gin_config
from experiments.studies.measures import KINDS, Measure
from lst_jax.evaluation.story_completion import DIRECTIONS, Direction
from lst_jax.local_paths import PathText, local_path
from lst_jax.settings import (
    Fraction,
    PositiveFloat,
    PositiveInt,
    Seed32,
    configuration,
    list_names,
    quote,
    require,
)

BudgetUnit = Literal["steps", "patches", "tokens", "flops", "speech_hours", "optimal"]
Protocol = Literal["compute", "data", "flops", "own"]

_NAME = re.compile(r"(?a:\w[\w.]*)")
# Macros that a cell's place in the study decides.
_GIVEN = (
    *("NUM_STEPS", "SEED", "DATA_SEED", "EVAL_EVERY", "EVAL_STORIES", "HELD_OUT_SHARE"),
    *("INITIAL_CHECKPOINT", "INITIAL_STATE"),
)


@configuration
class StudyData:
    """What models are trained and tested on.

    Attributes:
      files: Gin files of the data.
      bindings: `NAME=VALUE`, where the records are.
      stories: files of story completion, the test sets.
      unit_rate: plain units a second of speech.
    """

    files: tuple[str, ...]
    bindings: tuple[str, ...]
    stories: tuple[PathText, ...] = ()
    unit_rate: PositiveFloat = 25.0


def corpus_folder(
    root: str,
    file: str = "experiments/configs/data/speech_text.gin",
    sets: tuple[str, ...] = TEST_SETS,
    unit_rate: float = 25.0,
    unit_vocabulary: str | None = None,
) -> StudyData:
    """Returns the data of a folder laid out as that of the built-in corpus.

    Args:
      root: the folder, as `python -m experiments.demo` makes in its workdir's `corpus`.
      file: Gin file of the data.
      sets: test sets, files of its `test_sets`.
      unit_rate: plain units a second.
      unit_vocabulary: file in the folder that joins units or drops their repeats; None: neither.
    """
    paths = MicroworldPaths(local_path(root, "CORPUS").absolute())
    macros = {
        "TOKENIZER": paths.tokenizer,
        "SPEECH_RECORDS": paths.speech_records,
        "TEXT_RECORDS": paths.text_records,
    }
    if unit_vocabulary is not None:
        macros["UNIT_VOCABULARY"] = paths.root / unit_vocabulary
    return StudyData(
        files=(file,),
        bindings=tuple(f"{name}={str(path)!r}" for name, path in macros.items()),
        stories=tuple(str(paths.root / "test_sets" / f"{name}.jsonl") for name in sets),
        unit_rate=float(unit_rate),
    )


def corpus_file(root: str, name: str) -> str:
    """Returns the path of a file of such a folder."""
    return str(local_path(root, "CORPUS").absolute() / name)


def flag(name: str, value: Any) -> str:
    """Returns `--NAME=VALUE`, for a measure's flag whose value a macro has.

    Raises:
      ValueError: the macro has none.
    """
    require(value is not None, f"--{name}", value, "a value, by a macro of the study")
    return f"--{name}={value}"


def binding(name: str, value: Any) -> str:
    """Returns `NAME=VALUE`, for an arm's binding whose value a macro has."""
    return f"{name}={value!r}"


@configuration
class Arm:
    """What one model of a study adds to the others' settings.

    Attributes:
      name: letters, digits, dots and underscores.
      files: Gin files, after the study's.
      bindings: `NAME=VALUE`, after the study's.
      data: in place of the study's, where the arm's units are others.
      same_flops_as: name of an arm whose training FLOPs this one spends, whatever the protocol
        makes of the others' budgets; None: the protocol's.
    """

    name: str
    files: tuple[str, ...] = ()
    bindings: tuple[str, ...] = ()
    data: StudyData | None = None
    same_flops_as: str | None = None

    def __post_init__(self) -> None:
        expected = "letters, digits, dots and underscores"
        require(bool(_NAME.fullmatch(self.name)), "Arm.name", self.name, expected)
        _check_bindings(self.bindings, f"Arm.bindings of {self.name}")


@configuration
class Comparison:
    """A difference that a study measures, of two arms over the same seeds.

    Attributes:
      arm: which is measured,
      against: and what against.
      metric: `SET/DIRECTION`, accuracy of story completion; `SET+SET/DIRECTION`, its mean over
        sets; `mean/DIRECTION`, over all of them; `KIND/NAME` of a measure (`studies.measures`); or,
        of held-out records, `speech`, nats a second of speech, or `text`, bits a byte of text
        (lower is better).
      model: size that it is measured at; None: the study's last.
      budget: at which; None: the study's largest.
    """

    arm: str
    against: str
    metric: str
    model: str | None = None
    budget: PositiveFloat | None = None

    def __post_init__(self) -> None:
        name, slash, direction = self.metric.partition("/")
        known = direction in DIRECTIONS if slash else name in LOSSES
        known |= name in KINDS and bool(direction)
        expected = f"SET/DIRECTION, mean/DIRECTION, speech, text, or {'/…, '.join(KINDS)}/…"
        require(bool(name) and known, "Comparison.metric", self.metric, expected)
        require(self.arm != self.against, "Comparison.against", self.against, "another arm")


LOSSES = ("speech", "text")


@configuration
class Study:
    """A study. Its cells are all of models × arms × budgets × seeds.

    Attributes:
      name: of its reports.
      question: that it answers, a sentence.
      paper: what the paper reports.
      data: what all arms are trained and tested on.
      files: Gin files of model and run, after those of the data.
      bindings: `NAME=VALUE` for all cells.
      arms: what is compared, strategies for instance.
      models: sizes, each of them with every arm; none: that of `files` alone.
      seeds: of parameters and data, fixed in number before the run. The cells of one seed see the
        same data.
      budgets: amounts, ascending.
      budget_unit: what they count. "optimal": multiples of the compute-optimal rule (30 tokens a
        parameter, two of three of text).
      protocol: what a budget, that of the arm `reference`, makes of the others: "compute", the same
        steps and patches a step; "data", the same speech and text; "flops", the same training
        FLOPs; "own", each arm's own budget (with "flops", an isoFLOP grid).
      reference: name of an arm; None: the first.
      directions: of story completion.
      measures: what cells are measured by besides, each kind at most once.
      primary: the one comparison that is not corrected.
      secondary: further ones, corrected together (Holm).
      held_out_share: share of the records that the losses are measured on.
      held_out_batches: batches of them.
      evaluations: how often a run is measured on the way, the end included; 1: at the end alone.
      decay: share of each budget's steps that are a decay from the constant learning rate of one
        run that all budgets of a model, arm and seed share; None: every budget is a separate run.
      plan_batches: batches that a step's cost is measured on.
    """

    name: str
    data: StudyData
    files: tuple[str, ...]
    arms: tuple[Arm, ...]
    budgets: tuple[PositiveFloat, ...]
    primary: Comparison
    question: str = ""
    paper: str = ""
    bindings: tuple[str, ...] = ()
    models: tuple[Arm, ...] = ()
    seeds: tuple[Seed32, ...] = (0, 1, 2)
    budget_unit: BudgetUnit = "steps"
    protocol: Protocol = "compute"
    reference: str | None = None
    directions: tuple[Direction, ...] = ("S-S", "T-T")
    measures: tuple[Measure, ...] = ()
    secondary: tuple[Comparison, ...] = ()
    held_out_share: Share = 0.02
    held_out_batches: PositiveInt = 8
    evaluations: PositiveInt = 1
    decay: Fraction | None = None
    plan_batches: PositiveInt = 16

    def __post_init__(self) -> None:
        _check_bindings(self.bindings, "Study.bindings")
        for name in ("arms", "budgets", "seeds", "directions"):
            require(bool(getattr(self, name)), f"Study.{name}", getattr(self, name), "one or more")
        ascending = list(self.budgets) == sorted(self.budgets)
        require(ascending, "Study.budgets", self.budgets, "amounts in ascending order")
        kinds = [measure.kind for measure in self.measures]
        require(len(set(kinds)) == len(kinds), "Study.measures", kinds, "kinds that differ")
        names = [arm.name for arm in self.arms]
        require(self.reference in (None, *names), "Study.reference", self.reference, _one_of(names))
        by_protocol = [arm.name for arm in self.arms if arm.same_flops_as is None]
        for arm in self.arms:
            value = arm.same_flops_as
            good = value in (None, *by_protocol)
            require(good, f"Arm.same_flops_as of {arm.name}", value, _one_of(by_protocol))
        good = self.reference_arm.same_flops_as is None
        require(good, "Study.reference", self.reference_arm.name, _one_of(by_protocol))
        for comparison in (self.primary, *self.secondary):
            self._check_comparison(comparison)
        if self.decay is not None:
            require(0 < self.decay < 1, "Study.decay", self.decay, "a share inside 0 … 1")
        self._check_cells()

    def _check_cells(self) -> None:
        """Checks that no two cells have one name, which is made of these."""
        parts: dict[str, list[Any]] = {
            "arms": [arm.name for arm in self.arms],
            "budgets": [f"{budget:g}" for budget in self.budgets],
            "models": [arm.name for arm in self.models],
            "seeds": list(self.seeds),
        }
        for name, values in parts.items():
            differ = len(set(values)) == len(values)
            require(differ, f"Study.{name}", values, "no two alike")

    def _check_comparison(self, comparison: Comparison) -> None:
        names = [arm.name for arm in self.arms]
        for field in ("arm", "against"):
            value = getattr(comparison, field)
            require(value in names, f"Comparison.{field}", value, _one_of(names))
        models = [arm.name for arm in self.models]
        value = comparison.model
        require(value in (None, *models), "Comparison.model", value, _one_of(models))
        value = comparison.budget
        require(value in (None, *self.budgets), "Comparison.budget", value, _one_of(self.budgets))
        name, _, direction = comparison.metric.partition("/")
        if name in KINDS:
            measures = {measure.kind: measure for measure in self.measures}
            expected = f"one of the kinds of Study.measures, {', '.join(measures) or 'none'}"
            require(name in measures, "Comparison.metric", comparison.metric, expected)
            measures[name].check_metric(direction)
            return
        require(
            direction in ("", *self.directions),
            "Comparison.metric",
            comparison.metric,
            f"a direction of Study.directions, {', '.join(self.directions)}",
        )

    @property
    def reference_arm(self) -> Arm:
        """Returns the arm whose budgets are given."""
        return next(arm for arm in self.arms if self.reference in (None, arm.name))

    def cells(self) -> list[Cell]:
        """Returns all cells, in the order in which they run: whole seeds, small budgets first."""
        axes = itertools.product(self.seeds, self.budgets, self.models or (None,), self.arms)
        return [Cell(model, arm, budget, seed, self) for seed, budget, model, arm in axes]


class Cell(NamedTuple):
    """One training run of a study with its evaluation.

    Attributes:
      model: its size, None where the study has one.
      arm: what it adds.
      budget: amount, in the study's unit.
      seed: of parameters and data.
      study: that it belongs to.
    """

    model: Arm | None
    arm: Arm
    budget: float
    seed: int
    study: Study

    @property
    def group(self) -> str:
        """Returns the name of the model and the arm, which share a step's cost."""
        return f"{self.model.name}-{self.arm.name}" if self.model else self.arm.name

    @property
    def trunk(self) -> str:
        """Returns the name of the run that the budgets of a model, arm and seed may share."""
        return f"{self.group}-seed{self.seed}"

    @property
    def name(self) -> str:
        """Returns the name of the cell, which its folder has."""
        return f"{self.group}-{self.budget:g}{self.study.budget_unit}-seed{self.seed}"

    @property
    def data(self) -> StudyData:
        """Returns what it is trained and tested on."""
        return self.arm.data or self.study.data

    def settings(self) -> tuple[list[str], list[str]]:
        """Returns Gin files and bindings, without the length of the run."""
        study, data = self.study, self.data
        parts = [self.arm] if self.model is None else [self.model, self.arm]
        files = [*data.files, *study.files, *(file for part in parts for file in part.files)]
        bindings = [*data.bindings, *study.bindings]
        bindings += [binding for part in parts for binding in part.bindings]
        return files, [*bindings, f"SEED={self.seed}", f"DATA_SEED={self.seed}"]


def read_study(files: Sequence[str], bindings: Sequence[str]) -> Study:
    """Returns the study of Gin files.

    Args:
      files: paths, later ones win.
      bindings: `NAME=VALUE` each.

    Raises:
      OSError, ValueError: a file is missing, or a value is not valid.
    """
    gin_config.parse(files, bindings)
    with gin_config.calling_gin():
        return gin.get_configurable("Study")()


def _check_bindings(bindings: Sequence[str], name: str) -> None:
    for binding in bindings:
        macro = binding.partition("=")[0].strip()
        if macro in _GIVEN:
            raise ValueError(f"{name} is {quote(binding)}, expected none of {list_names(_GIVEN)}")


def _one_of(names: Sequence[Any]) -> str:
    return f"one of {list_names(map(str, names)) or 'no names'}"


STUDIES = pathlib.Path(__file__).resolve().parents[1] / "configs" / "studies"


def study_files() -> list[pathlib.Path]:
    """Returns the studies of this project, without the files that they include."""
    files = sorted(STUDIES.glob("*.gin"))
    return [file for file in files if "\nStudy.name = " in file.read_text(encoding="utf-8")]


gin.external_configurable(corpus_folder)
gin.external_configurable(binding)
gin.external_configurable(corpus_file)
gin.external_configurable(flag)
for _configurable in (StudyData, Arm, Comparison, Measure, Study):
    gin.external_configurable(_configurable)
