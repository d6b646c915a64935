"""The tables of the compiled pods, from reports that are given."""

import copy
import json

import pytest

from experiments.benchmarks.aot_tables import (
    CONFIGURATIONS,
    MESHES,
    PODS,
    REMAT,
    TUNING,
    WEAK_SCALING,
    format_schedules,
    format_tables,
    selected,
)

REPORT = {
    "setup": {"mesh": {"data": 1, "fsdp": 256, "tensor": 1}, "rows": 256},
    "memory": {"peak": 8 * 2**30, "hbm": 16 * 2**30},
    "fits": True,
    "partitioner_warnings": [],
    "work": {
        "model_flops": 40e12,
        "flops": 44e12,
        "memory_bytes": 2e11,
        "collective_bytes": {"all-gather": 12e9, "all-reduce": 6e9},
    },
    "schedule": {
        "operation_seconds": 0.11,
        "exposed_seconds": 0.03,
        "step_seconds": 0.14,
        "mfu": 0.62,
        "collectives": [
            {
                "name": name,
                "kind": kind,
                "crosses_slices": crosses,
                "torus_axes": None,
                "beside_products": beside,
                "turns": 25.0,
                "sent_bytes": 3e9,
                "seconds": 0.02,
                "exposed_seconds": 0.01,
            }
            for name, kind, crosses, beside in (
                ("all-gather-start", "all-gather", False, True),
                ("all-gather.1", "all-gather", False, False),
                ("send", "all-reduce", True, False),
            )
        ],
    },
    "roofline": {
        "seconds": {"compute": 0.1, "memory": 0.06, "interconnect": 0.03},
        "step_seconds": 0.1,
        "mfu": 0.87,
        "mfu_without_overlap": 0.45,
    },
}


def rows(text):
    lines = [line for line in text.splitlines() if line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def tables(reports):
    return [rows(table) for table in format_tables(reports).split("\n\n")]


def test_every_configuration_is_compiled_once_and_has_its_rows():
    names = [pod.name for pod in CONFIGURATIONS]
    groups = (PODS, WEAK_SCALING, REMAT, MESHES, TUNING)
    assert len(names) == len(set(names))
    assert set(names) == {pod.name for group in groups for pod in group}
    found = tables(dict.fromkeys(names, REPORT))
    assert [len(table) - 2 for table in found] == [len(group) for group in groups]
    assert len({len(row) for table in found for row in table}) == 1
    first = dict(zip(found[0][0], found[0][2], strict=True))
    assert (first["MFU"], first["peak GiB"]) == ("87%", "8.0 of 16")
    assert first["as scheduled"] == "62%"
    assert first["ms of FLOPs / HBM / links"] == "100 / 60 / 30"


def test_a_pod_that_does_not_fit_says_what_would():
    reports = {pod.name: REPORT for pod in CONFIGURATIONS}
    large = copy.deepcopy(REPORT)
    large |= {"fits": False, "remedy": "full"}
    del large["work"], large["roofline"], large["partitioner_warnings"]
    reports[PODS[0].name] = json.loads(json.dumps(large))
    table = tables(reports)[0]
    assert "does not fit; remat full does" in table[2]
    assert len(table[2]) == len(table[0])


def test_collectives_are_summed_by_kind_over_their_turns():
    found = rows(format_schedules({PODS[0].name: REPORT}))
    gathers, reductions = (dict(zip(found[0], row, strict=True)) for row in found[2:])
    assert (gathers["collectives"], reductions["collectives"]) == (
        "all-gather",
        "all-reduce between slices",
    )
    assert (gathers["transfers"], gathers["beside products"], gathers["GB sent"]) == (
        *("50", "25"),
        "6.00",
    )
    times = ("ms", "hidden ms", "exposed ms", "ms of operations", "ms of the step")
    assert [gathers[name] for name in times] == ["40.0", "20.0", "20.0", "110.0", "140.0"]


def test_a_report_without_a_schedule_has_none_in_the_tables():
    earlier = copy.deepcopy(REPORT)
    del earlier["schedule"]
    table = tables({PODS[0].name: earlier})[0]
    assert dict(zip(table[0], table[2], strict=True))["as scheduled"] == "–"
    assert len(rows(format_schedules({PODS[0].name: earlier}))) == 2


def test_configurations_are_chosen_by_a_part_of_their_names():
    assert selected("") == list(CONFIGURATIONS)
    assert {pod.model for pod in selected("7b v5p")} == {"7b"}
    with pytest.raises(ValueError, match="only is '9b', expected a part of a name such as"):
        selected("9b")
