"""What is launched: the commands of a run or of a study's cells, and where they run."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import gin
import jax

from experiments.common import gin_config
from experiments.common.experiment import Experiment, check_on_mesh
from experiments.common.gin_files import ROOT, find_file
from experiments.launch.hosts import Hosts
from experiments.studies.cells import configure
from experiments.studies.study_config import Study, read_study
from lst_jax.settings import require
from lst_jax.sharding import MESH_AXES, mesh_sizes

# What Kubernetes takes as a name (RFC 1123), short enough for the names that JobSet makes of it:
# a pod is NAME-slice-SLICE-HOST-xxxxx.
_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*")
_VOLUME = re.compile(r"claim:(?P<claim>[a-z0-9.-]+)|nfs:(?P<server>[\w.-]+):(?P<export>/[\w./-]*)")
_STEPS = 10**6  # of a cell whose length is not planned yet


@dataclasses.dataclass(frozen=True)
class LaunchOptions:
    """What flags say besides Gin files and accelerators; see `experiments/launch/__main__.py`."""

    target: str
    workdir: str
    shared: str
    name: str | None = None
    image: str | None = None
    volume: str | None = None
    env: tuple[str, ...] = ()
    restarts: int = 20
    hours: int = 24
    spot: bool = False
    project: str | None = None
    zone: str | None = None
    cluster: str | None = None


@dataclasses.dataclass(frozen=True)
class LaunchedJob:
    """What one JobSet, or one task of an array job, runs.

    Attributes:
      name: one that Kubernetes takes.
      command: of each process, without the cells.
      cells: of a study; none: it is a run.
    """

    name: str
    command: tuple[str, ...]
    cells: tuple[str, ...] = ()

    @property
    def cell_flags(self) -> tuple[str, ...]:
        """Returns the flags that name the cells."""
        return tuple(f"--cell={cell}" for cell in self.cells)


@dataclasses.dataclass(frozen=True)
class Launch:
    """A launch; what templates are filled from.

    Attributes:
      options: what flags say.
      hosts: accelerators of each job.
      name: of the launch.
      env: variables of each process.
      volume: what is mounted at the shared folder: `claim`, or `server` and `export`; or nothing.
      jobs: that it is made of.
      extras: of this project, that an image needs.
    """

    options: LaunchOptions
    hosts: Hosts
    name: str
    env: dict[str, str]
    volume: dict[str, str]
    jobs: tuple[LaunchedJob, ...]
    extras: tuple[str, ...]

    @property
    def is_study(self) -> bool:
        """Returns whether the jobs are a study's cells."""
        return bool(self.jobs[0].cells)


def plan_launch(
    files: Sequence[str], bindings: Sequence[str], hosts: Hosts, options: LaunchOptions
) -> Launch:
    """Reads a run or a study, and checks that it can run there.

    Args:
      files: Gin files, of the project or in the shared folder.
      bindings: `NAME=VALUE` each.
      hosts: accelerators of the run, or of each cell of the study.
      options: what flags say.

    Raises:
      OSError, ValueError: something does not fit.
    """
    name, env, volume = _check_options(options)
    # As the processes will name them, whatever folder they start in.
    settings = [f"--gin_file={_file_there(file, options.shared)}" for file in files]
    settings += [f"--gin_binding={binding}" for binding in bindings]
    for argument in (*settings, *options.env, options.workdir):
        require(argument.isprintable(), "argument", argument, "one line of printable characters")
    gin_config.parse(files, bindings)
    is_study = _names_study()
    if is_study:
        study = read_study(files, bindings)
        jobs = tuple(_study_jobs(study, name, settings, hosts, options))
        groups = {cell.group: cell for cell in study.cells()}.values()
        experiments = (configure(cell, _STEPS) for cell in groups)
    else:
        jobs = (LaunchedJob(name, _train_command(settings, hosts, options)),)
        experiments = (gin_config.build_experiment(),)
    extras = {"tpu" if hosts.tpu else "cuda", *(["demo"] if is_study else [])}
    for experiment in experiments:
        _check_experiment(experiment, hosts, options.shared)
        extras.update(x for x in experiment.writers if x in ("clu", "wandb"))
    return Launch(options, hosts, name, env, volume, jobs, tuple(sorted(extras)))


def _check_options(options: LaunchOptions) -> tuple[str, dict[str, str], dict[str, str]]:
    """Returns the name, the variables and the volume that the options give."""
    shared = options.shared
    is_folder = shared != "/" and pathlib.PurePath(shared).is_absolute()
    require(is_folder, "shared", shared, "an absolute path other than /")
    check_shared("workdir", options.workdir, shared)
    name = options.name or pathlib.PurePath(options.workdir).name
    expected = "at most 40 of a-z, 0-9 and -, the first of a-z, the last no -"
    require(bool(_NAME.fullmatch(name)), "name", name, f"{expected} (Kubernetes takes no other)")
    for text in options.env:
        require(bool(_VARIABLE.fullmatch(text)), "env", text, "NAME=VALUE")
    env = dict(text.split("=", 1) for text in options.env)
    volume = _VOLUME.fullmatch(options.volume or "")
    is_volume = volume is not None or options.volume is None
    require(is_volume, "volume", options.volume, "claim:NAME or nfs:SERVER:/EXPORT")
    parts = {k: v for k, v in volume.groupdict().items() if v} if volume else {}
    return name, env, parts


def check_shared(setting: str, path: str, shared: str) -> None:
    """Checks that all hosts see a path: it is in the shared folder, or in a bucket.

    Raises:
      ValueError: it is not.
    """
    below = pathlib.PurePath(os.path.normpath(path)).is_relative_to(os.path.normpath(shared))
    expected = f"a path below {shared} (--shared), which all hosts see"
    require("://" in path or below, setting, path, expected)


def _file_there(name: str, shared: str) -> str:
    """Returns a Gin file as hosts name it: images have those of this project."""
    file = find_file(name)
    if file.is_relative_to(ROOT / "experiments"):
        return file.relative_to(ROOT).as_posix()
    check_shared("gin_file", str(file), shared)
    return str(file)


def _names_study() -> bool:
    try:
        gin.query_parameter("Study.name")
    except ValueError:
        return False
    return True


def _train_command(
    settings: Iterable[str], hosts: Hosts, options: LaunchOptions
) -> tuple[str, ...]:
    processes = hosts.slices * (hosts.hosts if hosts.tpu else hosts.devices)
    programs = f"--compilation_cache_dir={options.workdir}/programs"
    flags = [*settings, f"--workdir={options.workdir}", programs]
    return ("python", "-m", "experiments.train", *flags, *["--multihost"][: processes - 1])


def _study_jobs(
    study: Study, name: str, settings: Iterable[str], hosts: Hosts, options: LaunchOptions
) -> Iterable[LaunchedJob]:
    """Yields a job for each cell, or for all cells whose budgets share a run."""
    one = hosts.hosts * hosts.slices == 1
    require(
        one, "topology", f"{hosts.kind}:{hosts.shape}", "one host: a cell of a study runs on it"
    )
    targets = ("container", "jobset", "slurm")
    require(options.target in targets, "target", options.target, f"{', '.join(targets)}: a study")
    groups: dict[str, list[str]] = {}
    for cell in study.cells():
        groups.setdefault(cell.trunk if study.decay else cell.name, []).append(cell.name)
    workdir = f"--workdir={options.workdir}"
    command = ("python", "-m", "experiments.study", "run", *settings, workdir)
    for number, cells in enumerate(groups.values()):
        yield LaunchedJob(f"{name}-{number}", command, tuple(cells))


def _check_experiment(experiment: Experiment, hosts: Hosts, shared: str) -> None:
    """Checks a run's mesh and paths against the hosts."""
    sizes = mesh_sizes(experiment.mesh, hosts.devices * hosts.slices, hosts.slices)
    check_on_mesh(experiment, jax.sharding.AbstractMesh(sizes, MESH_AXES))
    paths = {"tokenizer": experiment.tokenizer, "unit_vocabulary": experiment.unit_vocabulary}
    paths["initial_checkpoint"] = experiment.training.initial_checkpoint
    paths |= {f"sources: {source.path}": source.path for source in experiment.data.sources}
    for setting, path in paths.items():
        if path is not None:
            check_shared(setting.partition(":")[0], path, shared)
