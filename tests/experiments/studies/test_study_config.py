"""Study files: what they mean, and what of them is refused."""

import itertools

import pytest

from experiments.studies.study_config import Study, read_study, study_files

PILOT = "experiments/configs/studies/pilot.gin"


def read(*bindings, file=PILOT):
    return read_study([file], ["CORPUS=corpus", *bindings])


@pytest.mark.parametrize("file", study_files(), ids=lambda file: file.stem)
def test_every_study_file_is_a_study_of_that_name(file):
    study = read("PAIRS=('pairs.jsonl',)", "RECOGNIZER='cat'", file=str(file))
    assert (study.name, bool(study.question)) == (file.stem, True)


def test_cells_are_all_combinations_and_whole_seeds_come_first():
    study = read("SEEDS=(4, 5)", "Study.budgets=(10, 20)", "Study.models=(@base/Arm(),)")
    cells = [(cell.seed, cell.budget, cell.arm.name) for cell in study.cells()]
    assert cells == list(itertools.product((4, 5), (10.0, 20.0), ("base", "curriculum")))
    assert study.cells()[0].name == "base-base-10steps-seed4"


def test_cells_of_a_seed_differ_in_their_arm_alone():
    base, curriculum = (cell.settings() for cell in read().cells()[:2])
    assert base[1] == curriculum[1] and {"SEED=0", "DATA_SEED=0"} <= set(base[1])
    assert base[0] == [*curriculum[0], "experiments/configs/runs/baseline.gin"]


def test_an_arm_may_have_data_of_its_own():
    data = ("corpus_folder.root='other'", "curriculum/Arm.data=@corpus_folder()")
    study: Study = read(*data, "DATA=@one/corpus_folder()", "one/corpus_folder.root='one'")
    base, curriculum = study.cells()[:2]
    assert "/one/" in base.data.stories[0] and "/other/" in curriculum.data.stories[0]


@pytest.mark.parametrize(
    "binding, message",
    [
        ("SEEDS=(0, 0)", r"Study.seeds is \[0, 0\], expected no two alike"),
        ("curriculum/Arm.name='base'", "another arm|Study.arms is|one of base"),
        ("Study.budgets=(3, 2)", "ascending"),
        ("Study.budget_unit='days'", "'steps', 'patches'"),
        ("Study.protocol='fair'", "'compute', 'data'"),
        ("Study.axis=3", "'axis'"),
        ("Study.reference='x'", "one of base, curriculum"),
        ("primary/Comparison.arm='x'", "one of base, curriculum"),
        ("primary/Comparison.against='curriculum'", "another arm"),
        ("primary/Comparison.metric='accuracy'", "SET/DIRECTION"),
        ("primary/Comparison.metric='mean/T-S'", "S-S, T-T"),
        ("primary/Comparison.metric='asr/wer'", "one of the kinds of Study.measures, none"),
        ("primary/Comparison.budget=7", "one of 1000.0"),
        ("primary/Comparison.model='7b'", "no names"),
        ("Study.bindings=('SEED=3',)", "expected none of NUM_STEPS"),
        ("base/Arm.name='a b'", "letters, digits"),
        ("Study.arms=()", "one or more"),
        ("base/Arm.same_flops_as='curriculum'", "Study.reference is 'base'"),
        ("curriculum/Arm.same_flops_as='x'", "Arm.same_flops_as of curriculum"),
        ("Study.decay=1.0", "inside 0"),
    ],
)
def test_what_is_no_study_is_refused(binding, message):
    with pytest.raises(ValueError, match=message):
        read(binding)
