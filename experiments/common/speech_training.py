"""What the trainings beside the LST share: their binary, the workdir's description, its results."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import gin
import jax

from experiments.common import cli, gin_config
from experiments.common.machine import device_name, process_age
from experiments.common.outputs import check_writable, leaving_nothing
from lst_jax.files import write_json
from lst_jax.settings import quote, require
from lst_jax.sharding import MeshConfig, make_mesh, row_share
from lst_jax.speech.interfaces import Rejection
from lst_jax.strict_json import read_json_object
from lst_jax.training.hooks import Batches, Hook, Trainable
from lst_jax.training.lock import WorkdirLockedError
from lst_jax.training.log import report
from lst_jax.training.loop import NonFiniteLossError, TrainResult, train
from lst_jax.training.step import TrainingConfig

RESULTS = "results.json"
_CACHED_CLIPS = 4096
_MOST_HELD_OUT = 0.1  # share of given recordings


def run_training_binary(
    configurable: str,
    run: Callable[[Any, pathlib.Path, Callable[[], str]], TrainResult],
    directory: str | None,
    made: str,
) -> None:
    """Trains as Gin says, shows the results, and ends with the exit code of how it ended.

    Args:
      configurable: name of the experiment in Gin files.
      run: trains an experiment in a workdir; the third argument gives the settings used.
      directory: the workdir.
      made: what the run makes, a folder of the workdir.
    """
    assert directory is not None  # the flag is required
    workdir = pathlib.Path(directory)
    gin_config.parse_flags()
    with gin_config.calling_gin():
        experiment = gin.get_configurable(configurable)()
    check_writable(workdir)
    try:
        with leaving_nothing(workdir):
            result = run(experiment, workdir, gin.operative_config_str)
    except NonFiniteLossError as error:
        cli.end_with_error(error, cli.ExitCode.NOT_FINITE)
    except WorkdirLockedError as error:
        cli.end_with_error(error, cli.ExitCode.LOCKED)
    if not result.finished:
        print(f"stopped by {result.signal} after step {int(result.state.step)}", flush=True)
        sys.exit(int(cli.ExitCode.STOPPED))
    print((workdir / RESULTS).read_text(), end="")
    print(f"the {made} is in {workdir / made}", flush=True)


def make_own_mesh(config: MeshConfig, kind: str) -> jax.sharding.Mesh:
    """Returns the mesh of a run that has one process.

    Raises:
      ValueError: it has several.
    """
    mesh = make_mesh(config)
    require(row_share(mesh).count == 1, "processes", row_share(mesh).count, f"one, for {kind}")
    return mesh


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A JSON file in the workdir that says whose checkpoints are there; the loop's `Description`.

    Attributes:
      name: of the file.
      values: JSON values and tuples of them.
    """

    name: str
    values: Mapping[str, Any]

    def check(self, workdir: pathlib.Path) -> None:
        """Checks that a workdir has none or the same.

        Raises:
          ValueError: it has another.
        """
        path = workdir / self.name
        if not path.exists():
            return
        there = read_json_object(path)
        for name, value in _as_lists(self.values).items():
            if there.get(name) != value:
                raise ValueError(
                    f"{path}: {name} is {quote(there.get(name))}, expected {quote(value)}, that of "
                    "this run"
                )

    def write(self, workdir: pathlib.Path) -> None:
        """Writes the file."""
        write_json(workdir / self.name, self.values)


def _as_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _as_lists(x) for name, x in value.items()}
    return [_as_lists(x) for x in value] if isinstance(value, list | tuple) else value


class SpeechExperiment(Protocol):
    """What a run is determined by, beside its model."""

    @property
    def training(self) -> TrainingConfig: ...

    def settings(self) -> dict[str, Any]:
        """Returns what the record of starts holds besides the training."""
        ...


def train_model(
    trainable: Trainable,
    experiment: SpeechExperiment,
    batches: Batches,
    workdir: pathlib.Path,
    mesh: jax.sharding.Mesh,
    description: ModelFile,
    finish: Callable[[TrainResult], tuple[dict[str, Any], Any]],
    config_text: Callable[[], str] | None,
    hooks: Sequence[Hook],
) -> TrainResult:
    """Trains, or continues to train, in a workdir; then makes its model and `results.json` there.

    Args:
      trainable, batches, mesh, config_text, hooks: see `lst_jax.training.loop.train`.
      experiment: of the run.
      workdir: of the run.
      description: of the model.
      finish: writes the model, and returns facts of the training and what was measured.

    Raises:
      OSError, ValueError: files are missing or settings do not fit together.
      NonFiniteLossError: see `lst_jax.training.loop.train`.
    """
    began = time.monotonic()
    result = train(
        trainable,
        experiment.training,
        batches,
        workdir,
        mesh,
        description=description,
        settings=experiment.settings(),
        config_text=config_text,
        hooks=hooks,
    )
    progress = result.progress.to_json()
    earlier = max(progress["seconds"] - (time.monotonic() - began), 0.0)  # starts before this
    if result.finished and not (workdir / RESULTS).exists():
        facts, measured = finish(result)
        training = {
            "steps": experiment.training.num_steps,
            **facts,
            "audio_hours": progress["audio_seconds"] / 3600,
            "training_seconds": progress["seconds"],
            "device": device_name(),
            "cores": len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count(),
            "seconds": process_age() + earlier,
        }
        write_json(workdir / RESULTS, {"training": training, "held_out": measured})
    return result


def count_held_out(wanted: int, recordings: int, name: str) -> int:
    """Returns how many of the recordings that a user gives are measured and not learned.

    Raises:
      ValueError: none is left to learn.
    """
    count = min(wanted, int(_MOST_HELD_OUT * recordings))
    require(recordings > count, name, recordings, "recordings to train on")
    return count


def keep_clips(read: Callable[[int], Any]) -> Callable[[int], Any]:
    """Returns a reader of clips by number that keeps many, and gives None where there is none.

    Args:
      read: returns the clip of a number, or why there is none, which is reported.
    """

    @functools.lru_cache(maxsize=_CACHED_CLIPS)
    def kept(index: int) -> Any:
        clip = read(index)
        if isinstance(clip, Rejection):
            report(f"recording {index} is left out: {clip.reason}")
            return None
        return clip

    return kept
