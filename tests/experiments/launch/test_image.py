"""The steps of the image of TPUs, each as a builder takes it, without a container."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from experiments.launch.targets import render
from tests.binaries import ROOT
from tests.experiments.launch import launches
from tests.experiments.train_commands import SETTINGS
from tests.test_version1 import VERSION1

pytestmark = pytest.mark.manifests


def steps(text):
    """Instructions of a container file, and their arguments."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line.split(" ", 1) for line in lines if line and not line.startswith("#")]


def test_an_image_trains_without_a_network(tmp_path):
    image, venv, shared = (tmp_path / name for name in ("opt", "venv", "shared"))
    image.mkdir()
    shutil.copytree(VERSION1, shared)
    settings = SETTINGS | {
        "TOKENIZER": shared / "tokenizer.model",
        "SPEECH_RECORDS": shared / "speech_records",
        "TEXT_RECORDS": shared / "text_records",
        **{"UNIT_COUNT": 20, "NUM_STEPS": 2, "WARMUP_STEPS": 1, "CHECKPOINT_EVERY": 2},
    }
    plan = launches.plan(
        *("container", "v5e:1x1"),
        bindings=[f"{name}={value}" for name, value in settings.items()],
        **{"shared": str(shared), "workdir": f"{shared}/first"},
    )
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    environment = os.environ | {"PATH": f"{venv}/bin:/usr/bin:/bin", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = ""  # one device, as the topology has
    for instruction, arguments in steps(render(plan)):
        arguments = arguments.replace("/opt/lst", str(image))
        if instruction == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
                copy(ROOT / source, image / target)
        elif instruction == "RUN":
            subprocess.run(arguments, shell=True, cwd=image, env=environment, check=True)
        elif instruction == "ENV":
            environment |= dict(word.split("=", 1) for word in shlex.split(arguments))
        else:
            assert instruction in ("FROM", "WORKDIR")
    command = ["unshare", "--map-root-user", "--net", *plan.jobs[0].command]
    subprocess.run(command, cwd=image, env=environment, check=True)
    assert (shared / "first" / "checkpoints" / "2").is_dir()
