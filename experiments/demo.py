r"""The whole road in one command: corpus, training, evaluation, report.

    python -m experiments.demo --workdir=runs/demo

builds the built-in corpus (spoken short stories), trains the LST with the curriculum and the
unpatched baseline twice, for equal steps and patches and for equal FLOPs, measures story completion
in all four directions, fine-tunes the LST to transcribe and to speak, and writes `report.html`.
`--minutes` is what all of it may take: a step is timed first, and the lengths that follow are kept
in `plan.json`. What was interrupted continues where it was, with the same lengths, when the same
command is given again. Training is that of `experiments.train` with the Gin files in
`demonstration/stages.py`; `--gin.NAME=VALUE` changes a setting of all models. On CPUs rows are
parted among two devices, a core each; with an odd `BATCH_ROWS` set `JAX_NUM_CPU_DEVICES=1`.
"""

from __future__ import annotations

import os
import pathlib
import sys

import jax
from absl import flags

from data_pipelines.microworld.corpus import MicroworldConfig
from data_pipelines.speech.registry import open_vocoder
from experiments.common import cli, gin_config
from experiments.common.encoders import define_specification
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.extras import check_extra
from lst_jax.settings import PositiveFloat, validate_value
from lst_jax.training.loop import NonFiniteLossError

# CPU devices that the rows of every batch divide among; one a core is faster than one for all.
_CPU_DEVICES = 2

gin_config.define_flags()
_WORKDIR = define_path("workdir", "Directory of the demo.", required=True)
_SPEECH_STORIES = flags.DEFINE_integer(
    "speech_stories", MicroworldConfig.speech_stories, "Training stories that are spoken."
)
_TEXT_STORIES = flags.DEFINE_integer(
    "text_stories", MicroworldConfig.text_stories, "Training stories given as text."
)
_TEST_ITEMS = flags.DEFINE_integer("test_items", 400, "Items of each test set.")
_VOCODER = define_specification("vocoder", "What speaks, in place of the built-in voice.")
_MINUTES = flags.DEFINE_float(
    "minutes", 15.0, "Minutes that it may take on this machine; the steps follow."
)


def main(argv: list[str]) -> None:
    """Runs the stages that are not done yet."""
    cli.check_no_arguments(argv)
    check_extra("demo", "espeakng_loader", "jinja2", "matplotlib", "sklearn", "threadpoolctl")
    from experiments.demonstration.stages import Demo  # which imports what the extra brings

    validate_value(PositiveFloat, _MINUTES.value, "--minutes")
    xla_flags = os.environ.get("XLA_FLAGS", "")
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in xla_flags:
        jax.config.update("jax_num_cpu_devices", min(_CPU_DEVICES, len(os.sched_getaffinity(0))))
    workdir = pathlib.Path(_WORKDIR.value)
    config = MicroworldConfig(
        speech_stories=_SPEECH_STORIES.value,
        text_stories=_TEXT_STORIES.value,
        test_items=_TEST_ITEMS.value,
        fit_stories=min(MicroworldConfig.fit_stories, _SPEECH_STORIES.value),
    )
    check_writable(workdir)
    if _VOCODER.value is not None:
        open_vocoder(_VOCODER.value)  # what is wrong with it is known before the rest is made
    given = flags.FLAGS
    demo = Demo(workdir, config, _MINUTES.value, given.gin_file, given.gin_binding, _VOCODER.value)
    try:
        finished = demo.run()
    except NonFiniteLossError as error:
        cli.end_with_error(error, cli.ExitCode.NOT_FINITE)
    if not finished:
        print("stopped; the same command continues", flush=True)
        sys.exit(int(cli.ExitCode.STOPPED))


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
