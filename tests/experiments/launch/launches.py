"""Launches of every target, for the tests of this folder."""

import dataclasses

from experiments.launch.hosts import parse_topology
from experiments.launch.launch_plan import LaunchOptions, plan_launch

FILES = ("models/tiny.gin", "data/speech_text.gin", "runs/tiny.gin")
BINDINGS = (
    *("TOKENIZER=/mnt/lst/tokenizer.model", "SPEECH_RECORDS=/mnt/lst/speech"),
    *("TEXT_RECORDS=/mnt/lst/text", "BATCH_ROWS=64"),
)
# What shells, YAML and Kubernetes each might take for something else.
HOSTILE = ('A=it\'s "b" $(X) ${Y} `c` \\', "EMPTY=", "WORD=yes # no", "NUMBER=1")
OPTIONS = LaunchOptions(
    target="jobset",
    workdir="/mnt/lst/runs/first",
    shared="/mnt/lst",
    image="us-docker.pkg.dev/my-project/lst/lst:1",
    env=HOSTILE,
    project="my-project",
    zone="us-east5-a",
    cluster="lst",
)


def plan(target="jobset", topology=None, *, slices=1, files=FILES, bindings=BINDINGS, **options):
    """The plan of a run, on 64 devices where nothing else is asked for."""
    topology = topology or ("h100:8x8" if target == "slurm" else "v5p:4x4x4")
    changed = dataclasses.replace(OPTIONS, target=target, **options)
    return plan_launch(files, bindings, parse_topology(topology, slices), changed)


def study(target, decay=None):
    """The plan of a study of four cells."""
    files = ("studies/pilot.gin",)
    bindings = ["CORPUS=/mnt/lst/corpus", "SEEDS=(0, 1)", "Study.budgets=(10.0, 20.0)"]
    if decay is not None:
        bindings += [f"Study.decay={decay}"]
    topology = "v5p:2x2x1" if target == "jobset" else "h100:1x1"
    return plan(target, topology, files=files, bindings=bindings, workdir="/mnt/lst/pilot")


# Every kind of launch, by name.
EVERY = {
    "container-tpu": lambda: plan("container"),
    "container-gpu": lambda: plan("container", "h100:1x8"),
    "container-study": lambda: study("container"),
    "jobset": plan,
    "jobset-slices": lambda: plan(slices=2, topology="v6e:4x8", volume="claim:lst", spot=True),
    "jobset-nfs": lambda: plan(volume="nfs:10.0.0.2:/lst"),
    "jobset-study": lambda: study("jobset"),
    "xpk": lambda: plan("xpk", "v5e:8x8", spot=True),
    "queued": lambda: plan("queued_resources", "v6e:8x8"),
    "queued-slices": lambda: plan(
        "queued_resources", "v5p:2x4x4", slices=2, spot=True, volume="nfs:10.0.0.2:/lst"
    ),
    "slurm": lambda: plan("slurm", image=None),
    "slurm-image": lambda: plan("slurm"),
    "slurm-study": lambda: study("slurm"),
}
