"""Where two lists of losses part, and the file of losses that every commit is held to.

The file has an entry for each set of versions that it was recorded with. On these versions and
instruction set losses must be equal bit for bit. Elsewhere XLA may order sums otherwise; there the
largest relative difference allowed is four times the largest that was measured between entries, or
between an entry's instruction set and an older one.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.inspection.loss_runs import MEASURES, Losses, RunSettings
from lst_jax.files import write_json
from lst_jax.settings import quote, validate_fields

_ALLOWANCE = 4.0
_VERSION = 1


class Parting(NamedTuple):
    """How far two lists of losses are apart.

    Attributes:
      first: `(step, measure, a, b)` of the first values that are not equal; None: all are.
      differences: the largest relative difference of each step's measures.
      largest: of them all.
    """

    first: tuple[int, str, float | None, float | None] | None
    differences: list[float]
    largest: float


def compare(a: Losses, b: Losses) -> Parting:
    """Compares two runs step by step.

    Raises:
      ValueError: they have other steps.
    """
    steps = [[record["step"] for record in losses] for losses in (a, b)]
    if steps[0] != steps[1]:
        counts = " and ".join(str(len(numbers)) for numbers in steps)
        raise ValueError(f"the sides have {counts} steps, expected the same ones")
    pairs = list(zip(a, b, strict=True))
    differences = [
        max(relative_difference(one[name], other[name]) for name in MEASURES)
        for one, other in pairs
    ]
    parted = (
        (int(one["step"]), name, one[name], other[name])
        for one, other in pairs
        for name in MEASURES
        if one[name] != other[name]
    )
    return Parting(next(parted, None), differences, max(differences, default=0.0))


def relative_difference(a: float | None, b: float | None) -> float:
    """Returns |a − b| over the larger one; infinite where only one is there."""
    if a == b:
        return 0.0
    if a is None or b is None:
        return float("inf")
    return abs(a - b) / max(abs(a), abs(b))


@dataclasses.dataclass(frozen=True)
class RecordedLosses:
    """A file of losses.

    Attributes:
      settings: what was trained.
      entries: of each platform: `platform` (`loss_runs.platform_in_use`), `losses`, and
        `instruction_set_difference`, the largest relative difference to a run with an older set.
    """

    settings: RunSettings
    entries: list[dict[str, Any]]

    def find(self, platform: Mapping[str, Any]) -> tuple[Losses, float]:
        """Returns the losses to compare with and the relative difference that is allowed.

        Bitwise (0) where there is an entry for the platform; else those of the last entry.
        """
        for entry in self.entries:
            if entry["platform"] == platform:
                return entry["losses"], 0.0
        return self.entries[-1]["losses"], self.allowed_difference()

    def allowed_difference(self) -> float:
        """Returns the relative difference that is allowed on a platform without an entry."""
        measured = [entry["instruction_set_difference"] for entry in self.entries]
        pairs = itertools.combinations([entry["losses"] for entry in self.entries], 2)
        return _ALLOWANCE * max(*measured, *(compare(a, b).largest for a, b in pairs), 0.0)

    def replace(self, entry: dict[str, Any]) -> RecordedLosses:
        """Returns the file with an entry in place of the one of its platform."""
        others = [old for old in self.entries if old["platform"] != entry["platform"]]
        return RecordedLosses(self.settings, [*others, entry])


def read_recorded(path: str | pathlib.Path) -> RecordedLosses:
    """Reads a file of losses.

    Raises:
      OSError, ValueError: there is none, or it is not one of this version.
    """
    values = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    version = values.get("version") if isinstance(values, dict) else None
    if version != _VERSION:
        raise ValueError(f"{path}: version is {quote(version)}, expected {_VERSION}")
    settings = validate_fields(RunSettings, values["settings"], path)
    return RecordedLosses(settings, values["entries"])


def write_recorded(path: str | pathlib.Path, recorded: RecordedLosses) -> None:
    """Writes a file of losses, one line a step."""
    values = {"version": _VERSION, "settings": dataclasses.asdict(recorded.settings)}
    write_json(path, values | {"entries": recorded.entries})


def format_parting(parting: Parting, tolerance: float, steps: Sequence[int]) -> str:
    """Returns what a comparison found, in lines."""
    if parting.first is None:
        return f"equal bit for bit over {len(steps)} steps"
    step, name, a, b = parting.first
    lines = [f"they part at step {step}: {name} is {a!r} and {b!r}", "step  relative difference"]
    lines += [
        f"{step:>4}  {difference:.3g}"
        for step, difference in zip(steps, parting.differences, strict=True)
    ]
    within = "within" if parting.largest <= tolerance else "above"
    lines.append(f"largest {parting.largest:.3g}, {within} the tolerance of {tolerance:.3g}")
    return "\n".join(lines)
