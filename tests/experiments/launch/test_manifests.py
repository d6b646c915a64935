"""Launches as others read them: Kubernetes' and JobSet's models, ShellCheck, hadolint."""

import re
import subprocess

import pytest
import yaml
from kubeflow_trainer_api import models

from experiments.launch.targets import render
from tests.experiments.launch import launches

pytestmark = pytest.mark.manifests


@pytest.mark.parametrize("name", [x for x in launches.EVERY if x.startswith("jobset")])
def test_jobsets_are_what_the_models_take_with_no_field_more(name):
    for jobset in yaml.safe_load_all(render(launches.EVERY[name]())):
        read = models.JobsetV1alpha2JobSet.from_dict(jobset)
        assert read.to_dict() == jobset  # which passes over fields that it does not know


def test_a_misspelled_field_is_noticed():
    jobset = yaml.safe_load(render(launches.plan()).replace("backoffLimit", "backofLimit"))
    assert models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict() != jobset


@pytest.mark.parametrize("name", [x for x in launches.EVERY if re.match("xpk|queued|slurm", x)])
def test_scripts_pass_bash_and_shellcheck(name, tmp_path):
    file = tmp_path / "script.sh"
    file.write_text(text := render(launches.EVERY[name]()))
    inner = re.search(r"<<'STARTUP'\n(.*)^STARTUP$", text, re.DOTALL | re.MULTILINE)
    for script in filter(None, [text, inner and inner[1]]):
        file.write_text(script)
        subprocess.run(["bash", "-n", file], check=True)
        # In single quotes are values, which a shell is to leave alone.
        command = ["shellcheck", "--norc", "--exclude=SC1003,SC2016", file]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", [x for x in launches.EVERY if x.startswith("container")])
def test_container_files_pass_hadolint(name, tmp_path):
    file = tmp_path / "Dockerfile"
    file.write_text(render(launches.EVERY[name]()))
    done = subprocess.run(["hadolint", "--no-color", file], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
