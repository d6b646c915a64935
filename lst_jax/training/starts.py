"""The record of a run's starts: with what settings, from which step, and what changed.

`starts.jsonl` in the workdir gets one object a line for every start. A restart says in one line
each what differs from the start before, and refuses what could not take effect.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from lst_jax.differences import ABSENT, differences
from lst_jax.files import append_line
from lst_jax.settings import quote
from lst_jax.strict_json import parse_json
from lst_jax.training.log import report

STARTS = "starts.jsonl"

Settings = Mapping[str, Any]

# What only a run's first start uses.
_FIXED = (
    "TrainingConfig.seed",
    "TrainingConfig.initial_checkpoint",
    "TrainingConfig.initial_state",
)
# What earlier versions called an experiment's own settings: as Gin files do.
_EARLIER = {
    "train.": "Experiment.",
    "train_ctc.": "CTCExperiment.",
    "train_vocoder.": "VocoderExperiment.",
}


def flatten_settings(*configurations: Any) -> dict[str, Any]:
    """Returns every setting of configuration dataclasses as JSON, by `Class.field`."""
    settings: dict[str, Any] = {}
    for configuration in configurations:
        _flatten(type(configuration).__name__, configuration, settings)
    return settings


def _flatten(name: str, value: Any, settings: dict[str, Any]) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _flatten(f"{name}.{field.name}", getattr(value, field.name), settings)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _flatten(f"{name}[{index}]", item, settings)
    else:
        settings[name] = _as_json(value)


def _as_json(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return getattr(value, "__name__", None) or str(value)


def check_restart(workdir: pathlib.Path, settings: Settings, step: int, num_steps: int) -> None:
    """Checks that a restart's settings can take effect.

    Args:
      workdir: of the run.
      settings: of this start.
      step: that the run has reached.
      num_steps: of the whole run, by these settings.

    Raises:
      OSError: `starts.jsonl` cannot be read.
      ValueError: names the setting, its value, and what it was.
    """
    if num_steps < step:
        raise ValueError(
            f"TrainingConfig.num_steps is {num_steps}, expected at least {step}, which the run in "
            f"{workdir} has reached"
        )
    last = _last_settings(workdir)
    for name in _FIXED:
        old, new = last.get(name, ABSENT), settings.get(name, ABSENT)
        if ABSENT not in (old, new) and old != new:
            raise ValueError(
                f"{name} is {quote(new)}, expected {quote(old)}, with which the run in {workdir} "
                f"began: at step {step} another has no effect"
            )


def report_changes(workdir: pathlib.Path, settings: Settings) -> None:
    """Says in one line each what differs from the start before."""
    last = _last_settings(workdir)
    if not last:
        return
    for name, old, new in sorted(differences(last, settings), key=lambda x: x.name):
        before, now = (("none" if value is ABSENT else quote(value)) for value in (old, new))
        report(f"changed: {name} is {now}, was {before}")


def add_start(
    workdir: pathlib.Path, settings: Settings, step: int, config: str | None = None
) -> None:
    """Appends this start to the record.

    Args:
      workdir: of the run.
      settings: of this start.
      step: that it goes on from.
      config: the same as a file, which may say more.
    """
    start = {"step": step, "time": time.time(), "settings": dict(settings), "config": config}
    append_line(workdir / STARTS, json.dumps(start, allow_nan=False))


def read_starts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the starts of a run in their order; none where an earlier version made it."""
    try:
        lines = (workdir / STARTS).read_bytes().splitlines()
    except FileNotFoundError:
        return []
    starts = []
    for line in lines:
        try:
            start = parse_json(line)
        except ValueError:
            continue  # a crash left it half written
        if isinstance(start, dict) and isinstance(start.get("settings"), dict):
            starts.append(start)
    return starts


def _last_settings(workdir: pathlib.Path) -> Settings:
    starts = read_starts(workdir)
    settings = starts[-1]["settings"] if starts else {}
    return {_present_name(name): value for name, value in settings.items()}


def _present_name(name: str) -> str:
    """Returns what this version calls a setting of an earlier one."""
    for earlier, present in _EARLIER.items():
        if name.startswith(earlier):
            return present + name.removeprefix(earlier)
    return name
