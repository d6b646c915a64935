"""Trains a small wav2vec 2.0 model with a CTC head, to align and to recognize.

    python -m experiments.train_ctc --gin_file=experiments/configs/ctc/small.gin --workdir=runs/ctc

It learns the built-in corpus' sentences, spoken by many voices whose word and phoneme times are
known, or your recordings, in any language: `--gin.RECORDINGS=recordings.jsonl`, a line each

    {"audio": "a.flac", "text": "what is said", "words": [{"word": …, "start_s": …, "end_s": …}, …]}

of a few seconds (at most `ROW_S`). `words` may be missing. The last tenth, at most `HELD_OUT`, is
measured and not learned.

The workdir gets `model/`, a directory of Hugging Face's for `--aligner=ctc:WORKDIR/model` and
`--recognizer=…`, and `results.json`: how far word ends are off in recordings held out, and error
rates of transcripts. Everything else is as in `experiments.train`: starting again with the same
workdir continues, to the same bits.
"""

from __future__ import annotations

import sys

from experiments.common import cli, gin_config
from experiments.common.ctc_experiment import MODEL, run_ctc_experiment
from experiments.common.paths import define_path
from experiments.common.speech_training import run_training_binary

gin_config.define_flags()
_WORKDIR = define_path("workdir", "Directory of the run.", required=True)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    run_training_binary("train_ctc", run_ctc_experiment, _WORKDIR.value, MODEL)


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
