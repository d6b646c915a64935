"""What `experiments.compare_losses` does: its sides, their runs, and what it says of them."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import tempfile
from collections.abc import Sequence

from experiments.common.mesh_text import parse_mesh
from experiments.inspection.loss_comparison import (
    RecordedLosses,
    compare,
    format_parting,
    read_recorded,
    write_recorded,
)
from experiments.inspection.loss_runs import (
    HERE,
    Losses,
    RunSettings,
    find_code,
    platform_in_use,
    train_side,
)
from lst_jax.settings import require

_OLDER_INSTRUCTION_SET = "SSE4_2"


@dataclasses.dataclass(frozen=True)
class GateOptions:
    """What the flags say.

    Attributes:
      steps: that each side trains; None: 20.
      files, bindings: Gin files and `NAME=VALUE`s of both sides.
      own_bindings: of side A, and of side B.
      meshes: of side A, and of side B, as text; None: the Gin files'.
      tolerance: largest relative difference that counts as equal.
      json: whether the result is printed as JSON.
      record: file that gets the losses of the only side.
    """

    steps: int | None = None
    files: Sequence[str] = ()
    bindings: Sequence[str] = ()
    own_bindings: tuple[Sequence[str], Sequence[str]] = ((), ())
    meshes: tuple[str | None, str | None] = (None, None)
    tolerance: float = 0.0
    json: bool = False
    record: str | None = None


def run(sides: Sequence[str], options: GateOptions) -> bool:
    """Compares two sides, or records one, and prints what came out.

    Args:
      sides: names of the sides.
      options: see there.

    Returns:
      Whether the sides are equal, or the losses recorded.

    Raises:
      OSError, ValueError: a side is not there or cannot run.
    """
    if options.record is not None:
        require(len(sides) == 1, "sides", list(sides), "one to record")
        record(sides[0], _side_settings(_shared_settings(options), options, 0), options.record)
        return True
    require(len(sides) == 2, "sides", list(sides), f"two: commits, {HERE} or files of losses")
    files = [side for side in sides if _is_file(side)]
    require(len(files) < 2, "sides", list(sides), "at most one file of losses")
    shared, tolerance = _shared_settings(options), options.tolerance
    known: dict[str, Losses] = {}
    if files:
        recorded = read_recorded(files[0])
        if options.steps or options.files or options.bindings:
            raise ValueError("a file of losses brings its --steps, --gin_file and --gin.NAME=VALUE")
        shared = recorded.settings
        known[files[0]], allowed = recorded.find(platform_in_use())
        tolerance = max(tolerance, allowed)
    settings = [_side_settings(shared, options, index) for index in (0, 1)]
    a, b = (
        known[side] if side in known else _train(index, side, settings[index])
        for index, side in enumerate(sides)
    )
    parting = compare(a, b)
    equal = parting.largest <= tolerance
    if options.json:
        report = {"sides": list(sides), "equal": equal, "tolerance": tolerance}
        print(json.dumps(report | parting._asdict()))
    else:
        print(format_parting(parting, tolerance, [int(record["step"]) for record in a]))
    return equal


def record(side: str, settings: RunSettings, path: str) -> None:
    """Puts the losses of a side into a file, in place of those of this platform."""
    losses = _train(0, side, settings)
    older = _train(0, side, settings, _OLDER_INSTRUCTION_SET)
    entry = {
        "platform": platform_in_use(),
        "instruction_set_difference": compare(losses, older).largest,
        "losses": losses,
    }
    recorded = read_recorded(path) if pathlib.Path(path).exists() else RecordedLosses(settings, [])
    if recorded.settings != settings:
        recorded = RecordedLosses(settings, [])
    write_recorded(path, recorded.replace(entry))
    print(f"recorded {len(losses)} steps in {path}")


def _is_file(side: str) -> bool:
    return side.endswith(".json")


def _shared_settings(options: GateOptions) -> RunSettings:
    settings = RunSettings(steps=20 if options.steps is None else options.steps)
    bindings = tuple(options.bindings)
    if options.files:
        return dataclasses.replace(settings, files=tuple(options.files), bindings=bindings)
    return dataclasses.replace(settings, bindings=(*settings.bindings, *bindings))


def _side_settings(shared: RunSettings, options: GateOptions, index: int) -> RunSettings:
    mesh = options.meshes[index]
    return dataclasses.replace(
        shared,
        bindings=(*shared.bindings, *options.own_bindings[index]),
        mesh=shared.mesh if mesh is None else parse_mesh(mesh),
    )


def _train(index: int, side: str, settings: RunSettings, *instruction_set: str) -> Losses:
    name = "AB"[index]
    print(f"side {name}: {side}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory() as directory:
        place = pathlib.Path(directory)
        try:
            code = find_code(side, place / "code")
            return train_side(code, settings, place / "run", *instruction_set)
        except ValueError as error:
            message = str(error)
        raise ValueError(f"side {name} ({side}): {message}")
