"""Properties of the binary that fits units."""

import json

import numpy as np
import pytest

from data_pipelines.speech.audio import write_wav
from data_pipelines.speech.hubert_encoder import open_hubert
from data_pipelines.speech.hugging_face import write_model
from tests.binaries import run_binary
from tests.data_pipelines.speech.test_hubert_encoder import MODEL, RATE, speech

pytestmark = [pytest.mark.slow, pytest.mark.multiprocess]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fit")
    write_model(folder / "model", MODEL)
    for i in range(6):
        write_wav(folder / "audio" / f"{i % 2}" / f"{i}.wav", speech(0.5 + i / 10), RATE)
    write_wav(folder / "audio" / "short.wav", speech(0.005), RATE)
    return folder


def fit(folder, output, **changes):
    given = {
        "audio": folder / "audio",
        "features": f"hubert:{folder}/model,layer=1,pad=5",
        "unit_count": 9,
        "output": output,
        **changes,
    }
    return run_binary("experiments.fit_units", *(f"--{name}={x}" for name, x in given.items()))


def test_fitted_units_are_taken_by_the_encoder_and_do_not_depend_on_workers(tmp_path, folder):
    done = fit(folder, tmp_path / "a.json")
    assert "9 units" in done.stdout and "1 recordings are too short" in done.stdout
    fit(folder, tmp_path / "b.json", num_workers=5)
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))
    encoder = open_hubert(str(folder / "model"), {"set": str(tmp_path / "a.json")})
    (units,) = encoder.encode([speech(0.8)])
    assert encoder.unit_count == 9 and len(units) == 80 and units.max() < 9
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["pad_samples"] == 5 and values["layer"] == 1
    values["model_sha256"] = "0" * 64
    (tmp_path / "a.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="model_sha256 is"):
        open_hubert(str(folder / "model"), {"set": str(tmp_path / "a.json")})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"unit_count": 5000}, "number of frames is 450, expected at least 5000"),
        ({"audio": "nowhere"}, "nowhere, expected a folder"),
        ({"features": "mel:a.npz"}, "--features is 'mel:a.npz', expected hubert:DIR"),
        ({"output": "units"}, "--output is"),
    ],
)
def test_what_cannot_be_fitted_is_refused_in_a_line(tmp_path, folder, changes, reason):
    changes = {k: tmp_path / v if k in ("audio", "output") else v for k, v in changes.items()}
    done = fit(
        folder,
        **{"output": tmp_path / "a.json", **changes},
    )
    assert done.returncode == 2 and reason in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
