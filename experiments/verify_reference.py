r"""Whether the model computes what the published implementation computed.

    python -m experiments.verify_reference --case=tests/testdata/golden_static

reads a case (its files: `lst_jax/porting/reference_case.py`), runs the model forward and backward
in float32 and prints one JSON line with the differences. The exit status is 0 where they are within
what float32 arithmetic explains, 1 otherwise.
"""

from __future__ import annotations

import dataclasses
import json
import sys

from absl import flags

from experiments.common import cli
from experiments.common.paths import define_path
from lst_jax.model.attention import BACKENDS
from lst_jax.porting.reference_case import TOLERANCE, compare, read_case

_CASE = define_path("case", "Folder of the case.", required=True)
_ATTENTION = flags.DEFINE_enum("attention", "auto", sorted(BACKENDS), "Attention backend.")


def main(argv: list[str]) -> None:
    """Compares as the flags say."""
    cli.check_no_arguments(argv)
    differences = compare(read_case(_CASE.value), _ATTENTION.value)
    print(json.dumps(dataclasses.asdict(differences)), flush=True)
    if not differences.within(TOLERANCE):
        sys.exit(1)


if __name__ == "__main__":
    cli.run_main(main)
