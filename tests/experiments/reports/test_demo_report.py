"""Figures of the demo's report."""

import types

import numpy as np
import pytest

from data_pipelines.speech.audio import write_wav
from experiments.reports.demo_report import spectrogram_figure
from experiments.reports.figures import svg


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("loud", [0.0, 0.5])
def test_silence_has_a_spectrogram(tmp_path, loud):
    samples = np.zeros(4000, np.float32)
    samples[:1000] = loud
    write_wav(tmp_path / "a.wav", samples, 16_000)
    clip = types.SimpleNamespace(wav="a.wav", label="a clip")
    assert "<svg" in str(svg(spectrogram_figure([types.SimpleNamespace(clips=[clip])], tmp_path)))
