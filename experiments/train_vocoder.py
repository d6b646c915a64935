r"""Trains a HiFi-GAN vocoder of units, against discriminators.

    python -m experiments.train_vocoder --gin_file=experiments/configs/vocoder/small.gin \\
        --gin.ENCODER="'built_in'" --workdir=runs/voice

It learns the built-in corpus' sentences, or recordings of your own in any layout that
`experiments.prepare_speech` reads, their speakers each a voice:

    --gin.RECORDINGS="'LibriTTS/train-clean-100'" --gin.FORMAT="'folder'"

`vocoder/small.gin` is for minutes on two CPU cores, `vocoder/published.gin` has the published
sizes. Units are the encoder's, or `--gin.UNITS=` names those that are there. The last tenth, at
most `HELD_OUT`, is measured and not learned.

The workdir gets `vocoder/`, for `--vocoder=hifigan:WORKDIR/vocoder`, and `results.json`: how far
log mels are off in recordings held out. Everything else is as in `experiments.train`: starting
again with the same workdir continues, to the same bits.
"""

from __future__ import annotations

import sys

from experiments.common import cli, gin_config
from experiments.common.paths import define_path
from experiments.common.speech_training import run_training_binary
from experiments.common.vocoder_experiment import VOCODER, run_vocoder_experiment

gin_config.define_flags()
_WORKDIR = define_path("workdir", "Directory of the run.", required=True)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    run_training_binary("train_vocoder", run_vocoder_experiment, _WORKDIR.value, VOCODER)


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
