r"""Speaks an evaluation set that is published as text, for `experiments.evaluate`.

    python -m experiments.make_spoken_set --input=hellaswag_val.jsonl --synthesizer=espeak \
        --encoder=built_in --output=data/hellaswag

reads HellaSwag or StoryCloze (`data_pipelines/evaluation_sets/texts.py`), speaks every prompt and
every ending apart, and makes items of their units and texts, for all four directions. Several
`--synthesizer` are voices of which each item gets one, chosen by `--seed`. `--output` gets
`items.jsonl`, `rejects.jsonl` with a reason for what became no item, and `settings.json`. The same
command goes on where a killed one was.
"""

from __future__ import annotations

from absl import flags

from data_pipelines.evaluation_sets.items import Load, speak_texts
from data_pipelines.evaluation_sets.texts import read_texts
from data_pipelines.speech.registry import open_synthesizer
from experiments.common import cli, set_making
from experiments.common.encoders import define_specifications
from lst_jax.speech.interfaces import UnitEncoder

set_making.define_flags("File of HellaSwag or StoryCloze: JSON lines, or CSV.")
_SYNTHESIZERS = define_specifications(
    "synthesizer", "Speaks: KIND:ARGUMENT,OPTION=VALUE; several are voices.", required=True
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the choice among voices.", 0, 2**32 - 1)


def main(argv: list[str]) -> None:
    """Makes the set as the flags say."""
    cli.check_no_arguments(argv)

    def make_load(encoder: UnitEncoder) -> Load:
        synthesizers = [open_synthesizer(text) for text in _SYNTHESIZERS.value]
        return speak_texts(synthesizers, _SEED.value, encoder)

    settings = {"synthesizers": _SYNTHESIZERS.value, "seed": _SEED.value}
    set_making.make_set(read_texts, make_load, settings)


if __name__ == "__main__":
    cli.run_main(main)
