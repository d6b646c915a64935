"""Binaries from a wheel, in a folder that is no checkout."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.experiments.train_commands import ROOT, SETTINGS
from tests.test_version1 import VERSION1

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """What a wheel installs."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    # Not in the checkout, where the build leaves folders.
    source = folder / "source"
    source.mkdir()
    for name in ("lst_jax", "data_pipelines", "experiments", "pyproject.toml", "README.md"):
        (source / name).symlink_to(ROOT / name)
    (source / "LICENSE").symlink_to(ROOT / "LICENSE")
    subprocess.run([*command, "-w", folder, source], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(installed, folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
    )


def test_a_wheel_trains_from_presets_by_every_name(installed, tmp_path):
    configs = installed / "experiments" / "configs"
    data = {
        "TOKENIZER": VERSION1 / "tokenizer.model",
        "SPEECH_RECORDS": VERSION1 / "speech_records",
        "UNIT_COUNT": 20,
    }
    settings = SETTINGS | data | {"NUM_STEPS": 2, "WARMUP_STEPS": 1, "CHECKPOINT_EVERY": 2}
    (tmp_path / "own.gin").write_text("include 'runs/tiny.gin'\nSEED = 3\n")
    done = run(
        installed,
        tmp_path,
        "experiments.train",
        "--gin_file=experiments/configs/models/tiny.gin",
        f"--gin_file={configs / 'data' / 'speech.gin'}",
        "--gin_file=own.gin",
        *(f"--gin.{name}={value}" for name, value in settings.items()),
        "--workdir=run",
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "2").is_dir()
    assert "SEED = 3" in (tmp_path / "run" / "config.gin").read_text()


def test_what_a_wheel_has_not_is_looked_for_in_its_folders(installed, tmp_path):
    done = run(installed, tmp_path, "experiments.train", "--gin_file=a.gin", "--workdir=run")
    assert done.returncode == 2
    expected = f"no such file in {tmp_path}, {installed}, {installed / 'experiments' / 'configs'}"
    assert done.stderr == f"error: Gin file a.gin: {expected}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_wheel_has_the_built_in_voice(installed):
    folder = installed / "data_pipelines" / "speech" / "built_in"
    assert (folder / "encoder.npz").is_file() and (
        folder / "vocoder" / "model.safetensors"
    ).is_file()
