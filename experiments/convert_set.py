r"""Makes items of a spoken evaluation set as it was released, for `experiments.evaluate_pairs`.

    python -m experiments.convert_set --set=swuggy --split=dev --input=sLM21 \
        --encoder=hubert:models/mhubert,set=mhubert-base-25hz,quantizer=km.bin --output=data/swuggy

`--output` gets `items.jsonl`, `rejects.jsonl` with a reason for what became no item, and
`settings.json`. The same command goes on where a killed one was. Layouts and counts are in
`data_pipelines/evaluation_sets/released.py`.
"""

from __future__ import annotations

from absl import flags

from data_pipelines.evaluation_sets.items import load_recordings
from data_pipelines.evaluation_sets.released import KINDS, read_released
from experiments.common import cli, set_making

set_making.define_flags("Folder of the set, for ZeroSpeech 2021 the one that has lexical.")
_SET = flags.DEFINE_enum("set", None, list(KINDS), "Which set it is.", required=True)
_SPLIT = flags.DEFINE_enum("split", "test", ["dev", "test"], "Part of the set.")


def main(argv: list[str]) -> None:
    """Converts as the flags say."""
    cli.check_no_arguments(argv)
    set_making.make_set(
        lambda path: read_released(_SET.value, path, _SPLIT.value),
        load_recordings,
        {"split": _SPLIT.value},
    )


if __name__ == "__main__":
    cli.run_main(main)
