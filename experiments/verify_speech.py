r"""Whether models of speech and alignment compute what an oracle computed.

    python -m experiments.verify_speech --case=tests/testdata/speech/tiny_hubert

reads a case, a folder of a model or vocoder, or a file of alignments
(`experiments/inspection/speech_cases.py` says of what), and prints one JSON line:

| key                                          | what                                         |
|----------------------------------------------|----------------------------------------------|
| masked_hidden, unmasked_hidden, alone_hidden | largest absolute difference of hidden states |
| masked_logits, unmasked_logits, alone_logits | of logits                                    |
| units_equal                                  | share of frames with a clear unit that agree |
| alignment_score                              | largest absolute difference of path scores   |
| alignment_spans_equal                        | share of unique paths that agree             |
| waveform                                     | largest absolute difference of waveforms     |
| durations_equal                              | share of durations that agree                |
| compared                                     | arrays that were compared                    |

A key is there if something was compared under it. The exit status is 0 where all is within what
float32 arithmetic explains, 4 where it is not, 2 where the case is not as it should be.
"""

from __future__ import annotations

import json
import sys

from experiments.common import cli
from experiments.common.paths import define_path
from experiments.inspection.speech_cases import verify_case
from lst_jax.local_paths import local_path

_CASE = define_path("case", "Folder or file of the case.", required=True)


def main(argv: list[str]) -> None:
    """Compares as the flag says."""
    cli.check_no_arguments(argv)
    comparison = verify_case(local_path(_CASE.value))
    print(json.dumps({**comparison.results, "compared": comparison.compared}), flush=True)
    if not comparison.equal:
        sys.exit(int(cli.ExitCode.DIFFERENT))


if __name__ == "__main__":
    cli.run_main(main)
