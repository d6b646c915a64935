r"""Starts a run, or a study, where the accelerators are; `--dry_run` prints what would start it.

    python -m experiments.launch --target=jobset --topology=v5p:4x8x8 \
        --gin_file=models/1b.gin --gin_file=data/speech_text.gin --gin_file=runs/pretrain.gin \
        --gin.TOKENIZER=/mnt/lst/tokenizer.model --gin.SPEECH_RECORDS=/mnt/lst/speech \
        --gin.TEXT_RECORDS=/mnt/lst/text --workdir=/mnt/lst/runs/first \
        --image=us-docker.pkg.dev/my-project/lst/lst:1 --volume=claim:lst --dry_run

| target             | what is made                                             | who takes it     |
|--------------------|----------------------------------------------------------|------------------|
| `container`        | container file of TPUs or GPUs with all that a run needs | `docker build`   |
| `jobset`           | a JobSet of one or several TPU slices                    | `kubectl create` |
| `xpk`              | a command line of xpk                                    | `xpk`            |
| `queued_resources` | a script that asks for TPU VMs which start the run       | `gcloud`         |
| `slurm`            | a batch script that is requeued until the run is done    | `sbatch`         |

The Gin files of a study make an array job of Slurm, or a JobSet a cell. Mesh, rows and paths are
checked against the accelerators before anything is started. `docs/launching.md` has all.
"""

from __future__ import annotations

import sys

import jax
from absl import flags

from experiments.common import cli, gin_config
from experiments.common.paths import define_path
from experiments.launch.hosts import parse_topology
from experiments.launch.launch_plan import LaunchOptions, plan_launch
from experiments.launch.targets import TARGETS, check_target, render, submit
from lst_jax.extras import check_extra


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    gin_config.define_flags()
    flags.DEFINE_enum("target", None, list(TARGETS), "What starts the run.", required=True)
    flags.DEFINE_string(
        "topology", None, "Chip and shape: v5p:4x8x8, a slice; h100:2x8, nodes.", required=True
    )
    flags.DEFINE_integer("slices", 1, "TPU slices of that shape.", 1, 1024)
    define_path("workdir", "Directory of the run or the study, as hosts name it.", required=True)
    define_path("shared", "Folder that all hosts see; default: /mnt/lst.")
    flags.DEFINE_string("volume", None, "What is mounted there: claim:NAME or nfs:SERVER:/EXPORT.")
    flags.DEFINE_string("name", None, "Name of the launch; default: the workdir's last folder.")
    flags.DEFINE_string("image", None, "Container image of the run.")
    flags.DEFINE_multi_string("env", [], "NAME=VALUE, a variable of each process.")
    flags.DEFINE_integer("restarts", 20, "Starts after the first, at most.", 0, 10_000)
    flags.DEFINE_integer("hours", 24, "Time of a Slurm job.", 1, 10_000)
    flags.DEFINE_bool("spot", False, "Take spot capacity, which may be taken back.")
    flags.DEFINE_string("project", None, "Project of Google Cloud.")
    flags.DEFINE_string("zone", None, "Zone of Google Cloud.")
    flags.DEFINE_string("cluster", None, "Cluster of xpk.")
    flags.DEFINE_bool("dry_run", False, "Print, and start nothing.")


def main(argv: list[str]) -> None:
    """Renders a launch, and starts it or prints it."""
    cli.check_no_arguments(argv)
    check_extra("demo", "jinja2")
    jax.config.update("jax_platforms", "cpu")  # of what is checked here
    values = flags.FLAGS
    options = LaunchOptions(
        target=values.target,
        workdir=values.workdir,
        shared=values.shared or "/mnt/lst",
        name=values.name,
        image=values.image,
        volume=values.volume,
        env=tuple(values.env),
        restarts=values.restarts,
        hours=values.hours,
        spot=values.spot,
        project=values.project,
        zone=values.zone,
        cluster=values.cluster,
    )
    hosts = parse_topology(values.topology, values.slices)
    check_target(hosts, options)
    plan = plan_launch(values.gin_file, values.gin_binding, hosts, options)
    if values.dry_run:
        print(render(plan), end="")
    else:
        submit(plan)


if __name__ == "__main__":
    define_flags()
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
