"""The verbs of `experiments.study`."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import pathlib
import re
import socket
from collections.abc import Sequence

from experiments.common.cli import ExitCode
from experiments.common.gin_steps import step_config
from experiments.common.mesh_text import parse_mesh
from experiments.studies.cell_results import (
    collect,
    format_csv,
    format_status,
    metric_text,
    pilot_spread,
)
from experiments.studies.cells import RESULT, Workdir, configure
from experiments.studies.fitting import (
    ArmFit,
    fit_study,
    fits_to_json,
    format_fits,
    format_predictions,
)
from experiments.studies.paired_statistics import smallest_difference
from experiments.studies.plan import (
    Plan,
    format_plan,
    load_plan,
    read_steps,
    save_plan,
    with_seconds,
)
from experiments.studies.running import (
    Children,
    StoppedError,
    measure_step,
    owner,
    pinned,
    run_cells,
)
from experiments.studies.study_config import Cell, Study, read_study
from lst_jax.extras import check_extra
from lst_jax.files import format_json, write_files, write_json
from lst_jax.settings import given, list_names, quote, require

_DEVICE = re.compile(r"[0-9]{1,4}(,[0-9]{1,4})*")
_SHARE = re.compile(r"([0-9]{1,6})/([0-9]{1,6})")


@dataclasses.dataclass(frozen=True)
class StudyOptions:
    """What flags say besides the study; see `experiments.study`."""

    share: str | None = None
    names: tuple[str, ...] = ()
    threads: int | None = None
    device: str | None = None
    max_hours: float | None = None
    measure: bool = True
    pilot: str | None = None
    topology: str | None = None
    mesh: str = ""
    size: float | None = None
    flops: float | None = None


class StudyCommands:
    """A study in its workdir; each verb is a method that returns the exit code."""

    def __init__(
        self,
        gin_files: Sequence[str],
        gin_bindings: Sequence[str],
        workdir: pathlib.Path,
        options: StudyOptions,
    ) -> None:
        """Reads the study.

        Raises:
          OSError, ValueError: it is not valid, or an option names no cell of it.
        """
        expected, device = "numbers of accelerators, such as 0 or 0,1", options.device
        require(device is None or bool(_DEVICE.fullmatch(device)), "device", device, expected)
        self._study = read_study(gin_files, gin_bindings)
        self._workdir = Workdir(workdir.absolute())
        self._options = options
        self._chosen = choose_cells(self._study, options.share, options.names)

    def plan(self) -> ExitCode:
        """Prints the bill; measures a step of each arm where none is known."""
        options, power = self._options, self._format_power()
        plan = load_plan(self._study, self._workdir, self._machine())
        if options.topology:
            plan = self._on_chips(plan, options.topology)
        elif options.measure:
            with Children(options.device) as children, pinned(options.threads, self._workdir):
                try:
                    plan = self._measured(plan, children)
                except StoppedError:
                    return ExitCode.STOPPED
        if not options.topology:
            save_plan(plan, self._workdir, self._machine())
        unit = f"chip-hours, {options.topology}" if options.topology else "hours"
        print(format_plan(plan, self._scored(), unit))
        print(power)
        self._check_hours(plan)
        return ExitCode.DONE

    def run(self) -> ExitCode:
        """Runs what is missing."""
        plan, options = load_plan(self._study, self._workdir, self._machine()), self._options
        with Children(options.device) as children, pinned(options.threads, self._workdir):
            try:
                if options.max_hours is not None:
                    plan = self._measured(plan, children)
                    self._check_hours(plan)
                save_plan(plan, self._workdir, self._machine())
                failed = run_cells(
                    self._chosen,
                    plan.steps,
                    self._workdir,
                    children,
                    lambda: self._write(plan),
                    plan.branches,
                )
            except StoppedError as stopped:
                print(f"stopped by {stopped}; the same command continues", flush=True)
                return ExitCode.STOPPED
        print(self._write(plan), flush=True)
        if failed:
            print(f"{len(failed)} cells failed: {list_names(failed)}", flush=True)
        return ExitCode.OUR_ERROR if failed else ExitCode.DONE

    def status(self) -> ExitCode:
        """Prints what has become of every cell."""
        results = collect(self._study, read_steps(self._study, self._workdir), self._workdir)
        names = [cell.name for cell in self._study.cells()]
        owners = {name: owner(self._workdir.claim(name)) for name in names}
        print(format_status(results, owners))
        return ExitCode.DONE

    def report(self) -> ExitCode:
        """Writes and prints what is found so far."""
        check_extra("demo", "jinja2", "matplotlib")
        steps = read_steps(self._study, self._workdir)
        fits = []
        with contextlib.suppress(ValueError):  # no cell with a loss
            fits = self._fits()
        print(self._write_results(steps, fits))
        return ExitCode.DONE

    def fit(self) -> ExitCode:
        """Prints and writes what the scored cells say of size, data and FLOPs."""
        fits = self._fits()
        print(format_fits(fits))
        print(f"fits: {write_json(self._workdir.root / 'fits.json', fits_to_json(fits))}")
        return ExitCode.DONE

    def predict(self) -> ExitCode:
        """Prints what a run of a size and budget would reach."""
        size = given(self._options.size, "size", "parameters of the model to predict")
        flops = given(self._options.flops, "flops", "training FLOPs of the run to predict")
        print(format_predictions(self._fits(), size, flops))
        return ExitCode.DONE

    def _fits(self) -> list[ArmFit]:
        steps = read_steps(self._study, self._workdir)
        return fit_study(collect(self._study, steps, self._workdir))

    def _machine(self) -> str:
        """Returns what tells the steps' times here from those elsewhere."""
        cores = "all cores" if self._options.threads is None else f"{self._options.threads} cores"
        return f"{socket.gethostname()}, {cores}"

    def _scored(self) -> list[str]:
        cells = self._study.cells()
        return [c.name for c in cells if (self._workdir.cell(c) / RESULT).exists()]

    def _measured(self, plan: Plan, children: Children) -> Plan:
        """Returns the plan with the seconds of a step of every group that has cells to run."""
        seconds, scored = {}, self._scored()
        for cell in self._study.cells():
            known = plan.costs[cell.group].step_seconds
            if known is None and cell.group not in seconds and cell.name not in scored:
                print(f"measuring a step of {cell.group}", flush=True)
                seconds[cell.group] = measure_step(cell, children)
        return dataclasses.replace(plan, costs=with_seconds(plan.costs, seconds))

    def _on_chips(self, plan: Plan, topology: str) -> Plan:
        """Returns the plan with the chip-seconds of a step, as the compiler sees it."""
        from experiments.aot.compile import compile_step  # which needs libtpu

        seconds = {}
        for cell in self._study.cells():
            if cell.group in seconds:
                continue
            print(f"compiling a step of {cell.group} for {topology}", flush=True)
            config = step_config(configure(cell, plan.steps[cell.name]))
            report = compile_step(config, topology, parse_mesh(self._options.mesh))
            if not report["fits"]:
                raise ValueError(f"{cell.group} does not fit into the memory of {topology}")
            size = 1
            for count in report["setup"]["mesh"].values():
                size *= count
            seconds[cell.group] = size * report["roofline"]["step_seconds"]
        return dataclasses.replace(plan, costs=with_seconds(plan.costs, seconds))

    def _check_hours(self, plan: Plan) -> None:
        limit, scored = self._options.max_hours, self._scored()
        left = [cell for cell in self._chosen if cell.name not in scored]
        hours = plan.hours(left)
        if limit is None:
            return
        if hours is None:
            raise ValueError(f"max_hours is {limit}, expected a plan with hours: --measure")
        if hours > limit:
            raise ValueError(f"max_hours is {limit}, expected {hours:.3g}, the bill, or more")

    def _format_power(self) -> str:
        study, pilot = self._study, self._options.pilot
        metric, seeds = study.primary.metric, len(study.seeds)
        if pilot is None:
            return "the smallest difference that the study can see: unknown without --pilot"
        if seeds < 2:
            return "one seed: the study can see no difference"
        spread = pilot_spread(pathlib.Path(pilot), metric)
        least = smallest_difference(spread, seeds)
        return (
            f"{seeds} seeds can see a difference of {metric_text(metric, least)} in {metric} "
            f"(80 % power; differences of the pilot's seeds spread by "
            f"{metric_text(metric, spread)})"
        )

    def _write(self, plan: Plan) -> str:
        return self._write_results(plan.steps)

    def _write_results(self, steps: dict[str, int], fits: Sequence[ArmFit] = ()) -> str:
        """Writes results, and the page where what it takes is installed; returns a summary."""
        results, root = collect(self._study, steps, self._workdir), self._workdir.root
        write_files(
            {root / "results.json": format_json(results), root / "results.csv": format_csv(results)}
        )
        if not all(importlib.util.find_spec(name) for name in ("jinja2", "matplotlib")):
            return f"results: {root / 'results.json'}"
        from experiments.studies.report import write_report  # which imports what the extra brings

        return f"report: {write_report(results, root, fits)}"


def choose_cells(study: Study, share: str | None, names: Sequence[str]) -> list[Cell]:
    """Returns the cells that a worker may take.

    Args:
      study: with all cells.
      share: "I/N", of every N cells the I-th; None: all.
      names: of cells; none: all.

    Raises:
      ValueError: a name or share is none.
    """
    cells = study.cells()
    known = [cell.name for cell in cells]
    for name in names:
        if name not in known:
            raise ValueError(f"cell is {quote(name)}, expected one of {list_names(known)}")
    if share is None:
        return [cell for cell in cells if not names or cell.name in names]
    match = _SHARE.fullmatch(share)
    if names or not match or not 1 <= int(match[1]) <= int(match[2]):
        raise ValueError(f"cells is {quote(share)}, expected I/N with 1 ≤ I ≤ N, without --cell")
    return cells[int(match[1]) - 1 :: int(match[2])]
