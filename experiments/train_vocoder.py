r"""Trains a HiFi-GAN vocoder of units, against discriminators.

    python -m experiments.train_vocoder --gin_file=experiments/configs/vocoder/small.gin \\
        --gin.ENCODER="'mel:runs/demo/corpus/encoder/encoder.npz'" --workdir=runs/voice

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

import pathlib
import sys

import gin

from experiments.common import cli, gin_config
from experiments.common.outputs import check_writable, leaving_nothing
from experiments.common.paths import define_path
from experiments.common.vocoder_experiment import (
    RESULTS,
    VOCODER,
    VocoderExperiment,
    run_vocoder_experiment,
)
from lst_jax.training.lock import WorkdirLockedError
from lst_jax.training.loop import NonFiniteLossError

gin_config.define_flags()
_WORKDIR = define_path("workdir", "Directory of the run.", required=True)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    workdir = pathlib.Path(_WORKDIR.value)
    gin_config.parse_flags()
    with gin_config.calling_gin():
        experiment: VocoderExperiment = gin.get_configurable("train_vocoder")()
    check_writable(workdir)
    try:
        with leaving_nothing(workdir):
            result = run_vocoder_experiment(experiment, workdir, gin.operative_config_str)
    except NonFiniteLossError as error:
        cli.end_with_error(error, cli.ExitCode.NOT_FINITE)
    except WorkdirLockedError as error:
        cli.end_with_error(error, cli.ExitCode.LOCKED)
    if not result.finished:
        print(f"stopped by {result.signal} after step {int(result.state.step)}", flush=True)
        sys.exit(int(cli.ExitCode.STOPPED))
    print((workdir / RESULTS).read_text(), end="")
    print(f"the vocoder is in {workdir / VOCODER}", flush=True)


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
