"""The targets of a launch: a template each, and the program that takes what is made of it."""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from experiments.common.cli import ExitCode
from experiments.common.gin_files import ROOT
from experiments.launch.hosts import GPUS, TPUS, Hosts
from experiments.launch.launch_plan import Launch, LaunchOptions
from experiments.reports.templating import environment
from lst_jax.settings import given, require

TEMPLATES = pathlib.Path(__file__).with_name("templates")
# Seconds that a run has to save and end: before a Slurm job's time is up, after Kubernetes says so.
SECONDS_TO_SAVE = 300
# Further starts would end there again: a mistake of the user's, a loss that is not finite.
HOPELESS = [int(ExitCode.USER_ERROR), int(ExitCode.NOT_FINITE)]

_IMAGE = re.compile(r"[a-z0-9][\w./:@#+-]{0,254}")
_CLOUD_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")


class LaunchTarget(NamedTuple):
    """What a launch is made into.

    Attributes:
      template: file in `templates`.
      chips: that it starts runs on.
      program: that must be there to launch.
      command: that takes the text from its standard input.
      needs: options that it cannot do without.
      volumes: kinds that it mounts; others mount what they have by themselves.
      has_spot: whether it can ask for spot capacity.
    """

    template: str
    chips: tuple[str, ...]
    program: str
    command: tuple[str, ...]
    needs: tuple[str, ...]
    volumes: tuple[str, ...] = ()
    has_spot: bool = True


TARGETS = {
    "container": LaunchTarget(
        template="Dockerfile",
        chips=(*TPUS, *GPUS),
        program="docker",
        command=("docker", "build", "--file=-", "--tag={image}", str(ROOT)),
        needs=("image",),
        has_spot=False,
    ),
    "jobset": LaunchTarget(
        template="jobset.yaml",
        chips=tuple(TPUS),
        program="kubectl",
        command=("kubectl", "create", "--filename=-"),
        needs=("image",),
        volumes=("claim", "nfs"),
    ),
    "xpk": LaunchTarget(
        template="xpk.sh",
        chips=tuple(TPUS),
        program="xpk",
        command=("bash",),
        needs=("image", "cluster", "project", "zone"),
    ),
    "queued_resources": LaunchTarget(
        template="queued_resources.sh",
        chips=tuple(TPUS),
        program="gcloud",
        command=("bash",),
        needs=("image", "project", "zone"),
        volumes=("nfs",),
    ),
    "slurm": LaunchTarget(
        template="slurm.sh",
        chips=GPUS,
        program="sbatch",
        command=("sbatch",),
        needs=(),
        has_spot=False,
    ),
}


def check_target(hosts: Hosts, options: LaunchOptions) -> None:
    """Checks that a target starts runs on such hosts, and has what it needs.

    Raises:
      ValueError: it does not.
    """
    target = TARGETS[options.target]
    known = ", ".join(target.chips)
    require(
        hosts.kind in target.chips, "topology", hosts.kind, f"a chip of {options.target}: {known}"
    )
    # Google Cloud has no multislice of hosts that are slices themselves.
    joined = hosts.slices == 1 or hosts.hosts > 1 or options.target == "queued_resources"
    require(joined, "slices", hosts.slices, f"1: {hosts.kind}:{hosts.shape} is one host")
    for name in target.needs:
        given(getattr(options, name), name, f"a value: {options.target} needs it")
    kind = (options.volume or "").partition(":")[0]
    mounted = not kind or kind in target.volumes
    kinds = ", ".join(target.volumes) or "none"
    require(mounted, "volume", options.volume, f"one that {options.target} mounts: {kinds}")
    can = target.has_spot or not options.spot
    require(can, "spot", options.spot, f"False: {options.target} asks for no capacity")
    if options.image is not None:
        is_image = bool(_IMAGE.fullmatch(options.image))
        require(is_image, "image", options.image, "a container image, REGISTRY/NAME:TAG")
    for name in ("project", "zone", "cluster"):
        value = getattr(options, name)
        is_name = value is None or bool(_CLOUD_NAME.fullmatch(value))
        require(is_name, name, value, "a name of a-z, 0-9 and -")


def render(plan: Launch) -> str:
    """Returns the text of a launch: a container file, a manifest or a script."""
    made = environment(TEMPLATES)
    made.filters |= {"sh": shlex.quote, "sh_lines": _to_lines}
    made.filters |= {"json": _to_json, "argument": _to_kubernetes}
    return made.get_template(TARGETS[plan.options.target].template).render(
        plan=plan,
        options=plan.options,
        hosts=plan.hosts,
        jobs=plan.jobs,
        seconds_to_save=SECONDS_TO_SAVE,
        hopeless=HOPELESS,
        stopped=int(ExitCode.STOPPED),
    )


def submit(plan: Launch) -> None:
    """Hands a launch to the program that starts it.

    Raises:
      ValueError: the program is not there, or fails.
    """
    target = TARGETS[plan.options.target]
    found = shutil.which(target.program)
    require(found is not None, "path", target.program, "that program on it, or --dry_run")
    command = [part.format(image=plan.options.image) for part in target.command]
    code = subprocess.run(command, input=render(plan), text=True, check=False).returncode
    require(code == 0, f"exit code of {command[0]}", code, "0")


def _to_lines(command: Sequence[str], indent: int) -> str:
    """Returns a command for a shell, each flag on a line of its own."""
    words = [x for x in command if not x.startswith("--")]
    flags = [shlex.quote(x) for x in command if x.startswith("--")]
    return f" \\\n{' ' * indent}".join([shlex.join(words), *flags])


def _to_json(value: object) -> str:
    """Returns a value as JSON, which YAML takes, too."""
    return json.dumps(value, ensure_ascii=False)


def _to_kubernetes(text: str) -> str:
    """Returns an argument in which Kubernetes replaces no `$(VARIABLE)`."""
    return text.replace("$(", "$$(")
