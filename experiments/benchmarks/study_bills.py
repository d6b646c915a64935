r"""What every study under experiments/configs/studies takes: cells, steps, patches, tokens, FLOPs.

    python -m experiments.benchmarks.study_bills --corpus=runs/demo/corpus \
        --gin.PAIRS="('pairs.jsonl',)" --gin.RECOGNIZER="'lst:RUN'" \
        --output=experiments/benchmarks/results/study_bills.json

Nothing is trained: each study is planned on the corpus, in which the unit vocabularies that
`arms.gin` names must be.
"""

from __future__ import annotations

import pathlib

from absl import flags

from experiments.common import cli
from experiments.common.paths import define_path
from experiments.studies.plan import make_plan
from experiments.studies.study_config import read_study, study_files
from lst_jax.files import write_json
from lst_jax.strict_json import read_json_object

_CORPUS = define_path("corpus", "Folder of the built-in corpus.", required=True)
_OUTPUT = define_path("output", "JSON file for the results.", required=True)
_GIN_BINDING = flags.DEFINE_multi_string("gin_binding", [], "What studies require: NAME=VALUE.")
_STUDIES = flags.DEFINE_multi_string("study", [], "Name of a study; all where none is given.")


def main(argv: list[str]) -> None:
    """Plans as the flags say."""
    cli.check_no_arguments(argv)
    output = pathlib.Path(_OUTPUT.value)
    # Of some studies: those of the others stay.
    bills = read_json_object(output)["bills"] if _STUDIES.value and output.exists() else {}
    for file in study_files():
        if _STUDIES.value and file.stem not in _STUDIES.value:
            continue
        bindings = [f"CORPUS={_CORPUS.value!r}", *_GIN_BINDING.value]
        plan = make_plan(read_study([str(file)], bindings))
        cells = [
            (plan.costs[cell.group].step, plan.steps[cell.name]) for cell in plan.study.cells()
        ]
        bills[file.stem] = {
            "steps": sum(steps for _, steps in cells),
            **{
                name: round(sum(steps * getattr(step, name) for step, steps in cells))
                for name in ("patches", "tokens", "flops")
            },
        }
        print(file.stem, bills[file.stem], flush=True)
    write_json(output, {"bills": dict(sorted(bills.items()))})


if __name__ == "__main__":
    cli.run_main(main)
