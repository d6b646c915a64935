"""What a study will cost: steps, patches, tokens and FLOPs of every cell, and hours.

A step's cost is counted on batches of the arm's own data pipeline, the training's first ones of a
run that is as short: its curriculum goes from the first batch to the last. The FLOPs are those of
`lst_jax.model.flops`, exact for their documents.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gin

from data_pipelines.training.data_config import effective_settings
from data_pipelines.training.dataset import make_training_dataset
from experiments.studies.cells import RESULT, Workdir, configure
from experiments.studies.measures import KINDS
from experiments.studies.protocols import (
    Branch,
    StepCost,
    compute_controlled,
    compute_optimal_steps,
    data_controlled,
    flop_controlled,
    savings,
    step_cost,
    steps_of_budget,
    trunk_branches,
)
from experiments.studies.study_config import LOSSES, Arm, Cell, Study
from lst_jax.differences import differences
from lst_jax.evaluation.story_completion import read_story_examples
from lst_jax.evaluation.tables import format_rows
from lst_jax.files import write_json
from lst_jax.model.models import count_parameters
from lst_jax.settings import list_names, quote, require
from lst_jax.strict_json import read_json_object
from lst_jax.training.optimizers import learning_rate_schedule

# Share of its patches that a row may leave empty (`DataConfig.largest_gap`), and so a step.
_GAP = 0.05


class GroupCost(NamedTuple):
    """What a step of a model and arm costs.

    Attributes:
      step: means of one optimizer step.
      parameters: of the model.
      step_seconds: measured, or estimated for a chip; None: neither yet.
    """

    step: StepCost
    parameters: int
    step_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class Plan:
    """A study with its bill.

    Attributes:
      study: that is planned.
      costs: by `Cell.group`.
      steps: optimizer steps by cell.
      identity: of the study, its files and its data, as JSON values: a change of any is seen.
    """

    study: Study
    costs: Mapping[str, GroupCost]
    steps: dict[str, int]
    identity: Mapping[str, Any]

    @functools.cached_property
    def branches(self) -> dict[str, Branch]:
        """Returns the decays of the cells whose budgets share a run; none where they do not."""
        return find_branches(self.study, self.steps)

    def trained(self, cell: Cell) -> int:
        """Returns the steps that a cell adds: all, or its decay and its part of a shared run."""
        branch = self.branches.get(cell.name)
        if branch is None:
            return self.steps[cell.name]
        before = [b.start for b in _siblings(cell, self.branches) if b.start < branch.start]
        return branch.decay_steps + branch.start - max(before, default=0)

    def hours(self, cells: Sequence[Cell]) -> float | None:
        """Returns the hours that cells train for; None where a step's seconds are not known."""
        seconds = [self.costs[cell.group].step_seconds for cell in cells]
        if any(value is None for value in seconds):
            return None
        pairs = zip(cells, seconds, strict=True)
        return sum(self.trained(cell) * (value or 0.0) for cell, value in pairs) / 3600


def make_plan(study: Study) -> Plan:
    """Counts what a study's cells take.

    Raises:
      OSError, ValueError: a file or record is missing, a setting is not valid, a metric is not
        measured, or the protocol cannot be met.
    """
    costs: dict[str, GroupCost] = {}
    identity: dict[str, Any] = {"study": json.loads(json.dumps(dataclasses.asdict(study)))}
    sets: dict[str, Any] = {}
    for cell in study.cells():
        if cell.group in costs:
            continue
        with _naming(cell.group):
            costs[cell.group], identity[cell.group] = _measure_cost(cell, sets)
    identity["stories"] = sets
    names = ["mean", *(name for path in study.data.stories for name in sets[path]["sets"])]
    for comparison in (study.primary, *study.secondary):
        _check_metric(study, comparison.metric, names)
    steps = plan_steps(study, costs)
    branches, data = find_branches(study, steps), {}
    for cell in study.cells():
        with _naming(cell.name):
            experiment = configure(cell, steps[cell.name])
            branch = branches.get(cell.name)
            # The run that is shared ends at a branch, and its warm-up before.
            length = branch.start if branch else steps[cell.name]
            learning_rate_schedule(experiment.optimizer, length)
            if branch:
                settings = effective_settings(dataclasses.asdict(experiment.data))
                changed = next(differences(data.setdefault(cell.trunk, settings), settings), None)
                if changed:
                    raise ValueError(
                        f"{changed.name} is {quote(changed.new)}, expected {quote(changed.old)}, as"
                        " in the smaller budget: they share a run (Study.decay)"
                    )
    return Plan(study, costs, steps, identity)


def plan_steps(study: Study, costs: Mapping[str, GroupCost]) -> dict[str, int]:
    """Returns the optimizer steps of every cell, by the study's protocol.

    Raises:
      ValueError: the protocol cannot be met.
    """
    steps: dict[tuple[str, float], int] = {}
    for model, budget in itertools.product(study.models or (None,), study.budgets):
        cells = {arm.name: Cell(model, arm, budget, 0, study) for arm in study.arms}
        group_costs = {name: costs[cell.group] for name, cell in cells.items()}
        step_costs = {name: cost.step for name, cost in group_costs.items()}
        reference = study.reference_arm.name
        with _naming(f"budget {budget:g} {study.budget_unit}" + _of_model(model)):
            if study.protocol == "own":
                found = {name: _steps_of(study, budget, cost) for name, cost in group_costs.items()}
            else:
                length = _steps_of(study, budget, group_costs[reference])
                if study.protocol == "compute":
                    found = compute_controlled(step_costs, length, _GAP)
                elif study.protocol == "data":
                    found = data_controlled(step_costs, reference, length)
                else:
                    found = flop_controlled(step_costs, reference, length)
            for arm in study.arms:
                if (other := arm.same_flops_as) is not None:
                    pair = {name: step_costs[name] for name in (other, arm.name)}
                    found[arm.name] = flop_controlled(pair, other, found[other])[arm.name]
        steps |= {(cells[name].group, budget): count for name, count in found.items()}
    return {cell.name: steps[cell.group, cell.budget] for cell in study.cells()}


def find_branches(study: Study, steps: Mapping[str, int]) -> dict[str, Branch]:
    """Returns where each cell leaves the run that its budgets share; none without `Study.decay`.

    Raises:
      ValueError: a budget is too short, or two are of as many steps.
    """
    if study.decay is None:
        return {}
    found: dict[str, Branch] = {}
    trunks: dict[str, list[Cell]] = {}
    for cell in study.cells():
        trunks.setdefault(cell.trunk, []).append(cell)
    for name, cells in trunks.items():
        with _naming(name):
            branches = trunk_branches([steps[cell.name] for cell in cells], study.decay)
        found |= {cell.name: branch for cell, branch in zip(cells, branches, strict=True)}
    return found


def _siblings(cell: Cell, branches: Mapping[str, Branch]) -> list[Branch]:
    """Returns the branches of the run that a cell's budgets share."""
    return [branches[c.name] for c in cell.study.cells() if c.trunk == cell.trunk]


def earlier_starts(cell: Cell, branches: Mapping[str, Branch]) -> list[int]:
    """Returns the steps at which branches leave the shared run, up to the cell's own."""
    own = branches[cell.name].start
    return sorted(b.start for b in _siblings(cell, branches) if b.start <= own)


def _steps_of(study: Study, amount: float, cost: GroupCost) -> int:
    if study.budget_unit == "optimal":
        optimal = compute_optimal_steps(cost.parameters, cost.step)
        return steps_of_budget(amount * optimal, "steps", cost.step)
    return steps_of_budget(amount, study.budget_unit, cost.step)


def _of_model(model: Arm | None) -> str:
    return f" of model {model.name}" if model else ""


@contextlib.contextmanager
def _naming(what: str) -> Any:
    """Says of what an error is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error


def _measure_cost(cell: Cell, sets: dict[str, Any]) -> tuple[GroupCost, Any]:
    """Returns what a cell's step costs, and what tells its settings and data from others.

    `sets` gets what is known of the files of test sets.
    """
    study = cell.study
    experiment = configure(cell, study.plan_batches)
    settings = hashlib.sha256(gin.config_str().encode()).hexdigest()
    description = experiment.describe()
    make_dataset = functools.partial(
        make_training_dataset,
        experiment.data,
        description.vocabulary,
        fingerprint=description.tokenizer_fingerprint,
        prefetch=0,
    )
    if study.held_out_share:
        make_dataset(held_out=True)  # which refuses a share that leaves no record
    dataset = make_dataset()
    with contextlib.closing(iter(dataset)) as iterator:
        batches = itertools.islice(iterator, study.plan_batches)
        step = step_cost(description.model, description.vocabulary, batches, cell.data.unit_rate)
    for path in cell.data.stories:
        if path not in sets:
            examples = read_story_examples([path], description.vocabulary.unit_count)
            names = dict.fromkeys(example.set_name for example in examples)
            digest = hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()
            sets[path] = {"sets": [*names], "sha256": digest}
    for measure in study.measures:
        measure.check_files(description)
    identity = {"settings": settings, "data": dataset.documents.fingerprint()["config"]}
    return GroupCost(step, count_parameters(description.model)), identity


def _check_metric(study: Study, metric: str, sets: Sequence[str]) -> None:
    """Checks that a study measures a metric."""
    if metric.partition("/")[0] in KINDS:
        return  # `Study` has checked it
    if metric in LOSSES:
        expected = "a study with a held_out_share above 0"
        require(study.held_out_share > 0, "Comparison.metric", metric, expected)
    else:
        names, expected = metric.partition("/")[0].split("+"), f"sets of {', '.join(sets)}"
        known = all(name in sets for name in names) and len({*names}) == len(names)
        require(known and len(sets) > 1, "Comparison.metric", metric, expected)


def load_plan(study: Study, workdir: Workdir, machine: str) -> Plan:
    """Returns a study's plan, with the seconds of steps that were measured before.

    Args:
      study: what is planned.
      workdir: of the study.
      machine: that runs cells, with what a cell may take of it.

    Raises:
      OSError, ValueError: see `make_plan`; or the study is another than that of cells that are
        scored there.
    """
    plan = make_plan(study)
    kept = _read_plan(workdir.plan) if workdir.plan.exists() else {}
    seconds: Mapping[str, float] = {}
    if kept:
        changed = next(differences(kept["identity"], dict(plan.identity)), None)
        scored = sorted(path.parent.name for path in workdir.root.glob(f"cells/*/{RESULT}"))
        if changed and scored:
            raise ValueError(
                f"{changed.name} is {quote(changed.new)}, expected {quote(changed.old)}, as when "
                f"{len(scored)} cells of {workdir.root} were scored, or another workdir"
            )
        seconds = {} if changed else kept["step_seconds"].get(machine, {})
    return dataclasses.replace(plan, costs=with_seconds(plan.costs, seconds))


def read_steps(study: Study, workdir: Workdir) -> dict[str, int]:
    """Returns the steps of a study's cells as they were planned.

    Raises:
      OSError, ValueError: nothing was planned in the workdir, or another study.
    """
    if not workdir.plan.exists():
        raise FileNotFoundError(
            f"{workdir.plan}: no such file, expected a study that `plan` or `run` has planned there"
        )
    kept = _read_plan(workdir.plan)
    here = json.loads(json.dumps(dataclasses.asdict(study)))
    changed = next(differences(kept["identity"]["study"], here), None)
    if changed:
        raise ValueError(
            f"study.{changed.name} is {quote(changed.new)}, expected {quote(changed.old)}, as the "
            f"study in {workdir.root} was planned"
        )
    steps, names = kept["steps"], [cell.name for cell in study.cells()]
    require(set(steps) == {*names}, f"steps in {workdir.plan}", [*steps], f"{list_names(names)}")
    return steps


def _read_plan(path: pathlib.Path) -> dict[str, Any]:
    kept = read_json_object(path)
    objects = [kept.get(name) for name in ("identity", "step_seconds", "steps")]
    try:
        # Plans of earlier versions have numbers beside the machines.
        machines = {k: v for k, v in kept["step_seconds"].items() if isinstance(v, dict)}
        kept["step_seconds"] = machines
        seconds = [x for known in machines.values() for x in known.values() if x]
        good = all(isinstance(x, dict) for x in objects) and "study" in kept["identity"]
        good = good and all(x > 0 for x in (*kept["steps"].values(), *seconds))
    except (AttributeError, KeyError, TypeError):  # something else is in its place
        good = False
    if not good:
        raise ValueError(f"{path} has {list_names(kept)}, expected what `plan` wrote")
    return kept


def with_seconds(
    costs: Mapping[str, GroupCost], seconds: Mapping[str, float | None]
) -> dict[str, GroupCost]:
    """Returns costs with the seconds of a step that are known."""
    return {
        group: cost._replace(step_seconds=seconds.get(group, cost.step_seconds))
        for group, cost in costs.items()
    }


def save_plan(plan: Plan, workdir: Workdir, machine: str) -> None:
    """Writes `plan.json`; what other machines have measured stays."""
    costs = plan.costs.items()
    kept = _read_plan(workdir.plan) if workdir.plan.exists() else {}
    same = kept.get("identity") == plan.identity
    seconds = {group: cost.step_seconds for group, cost in costs}
    write_json(
        workdir.plan,
        {
            "identity": plan.identity,
            "steps": plan.steps,
            "step_seconds": {**(kept["step_seconds"] if same else {}), machine: seconds},
            "costs": {group: dataclasses.asdict(cost.step) for group, cost in costs},
            "parameters": {group: cost.parameters for group, cost in costs},
        },
    )


def format_plan(plan: Plan, done: Sequence[str] = (), unit: str = "hours") -> str:
    """Returns the bill as a table, a line a cell, and the totals.

    Args:
      plan: with its costs.
      done: names of the cells that are scored.
      unit: what hours are of.
    """
    header = ["cell", "parameters", "steps", "patches", "tokens", "FLOPs", unit, ""]
    rows = [header]
    cells = plan.study.cells()
    for cell in cells:
        cost, steps = plan.costs[cell.group], plan.steps[cell.name]
        rows.append(
            [
                cell.name,
                f"{cost.parameters:,}",
                f"{steps:,}",
                *(_amount(steps * getattr(cost.step, x)) for x in ("patches", "tokens", "flops")),
                _hours(plan.hours([cell])),
                "scored" if cell.name in done else "",
            ]
        )
    left = [cell for cell in cells if cell.name not in done]
    totals = [
        sum(plan.steps[c.name] * getattr(plan.costs[c.group].step, name) for c in cells)
        for name in ("patches", "tokens", "flops")
    ]
    steps = f"{sum(plan.steps.values()):,}"
    rows.append(["total", "", steps, *map(_amount, totals), _hours(plan.hours(cells)), ""])
    rest = f"{len(left)} of {len(cells)} cells are left: {_hours(plan.hours(left))} {unit}"
    lines = [*_saved(plan), f"{rest}, training alone"]
    return "\n".join([format_rows(rows, 1), *lines])


def _saved(plan: Plan) -> list[str]:
    """Returns what arms on the same speech and text save of the reference's run (Table 4)."""
    study = plan.study
    if study.protocol != "data":
        return []
    lines, reference = [], study.reference_arm.name
    for model in study.models or (None,):
        budget, seed = study.budgets[-1], study.seeds[0]
        cells = {arm.name: Cell(model, arm, budget, seed, study) for arm in study.arms}
        costs = {name: plan.costs[cell.group].step for name, cell in cells.items()}
        steps = {name: plan.steps[cell.name] for name, cell in cells.items()}
        for name, saved in savings(costs, reference, steps).items():
            if name != reference:
                lines.append(
                    f"{name} saves {saved.patches:.1%} of {reference}'s patches and "
                    f"{saved.flops:.1%} of its FLOPs{_of_model(model)}"
                )
    return lines


def _amount(value: float) -> str:
    return f"{value:.4g}" if value >= 1e7 else f"{value:,.0f}"


def _hours(hours: float | None) -> str:
    return "–" if hours is None or math.isnan(hours) else f"{hours:.3g}"
