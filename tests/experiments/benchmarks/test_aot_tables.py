"""The tables of the compiled pods, from reports that are given."""

import copy
import json

from experiments.benchmarks.aot_tables import PODS, WEAK_SCALING, format_tables

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


def test_every_pod_is_compiled_once_and_has_its_row():
    names = [pod.name for pod in dict.fromkeys((*PODS, *WEAK_SCALING))]
    assert len(names) == len(set(names)) == len(PODS) + len(WEAK_SCALING) - 1
    table = rows(format_tables(dict.fromkeys(names, REPORT)))
    assert len(table) == 2 + len(PODS) + 2 + len(WEAK_SCALING)
    pods, scaling = table[: 2 + len(PODS)], table[2 + len(PODS) :]
    for part in (pods, scaling):
        assert len({len(row) for row in part}) == 1
    assert dict(zip(*(pods[i] for i in (0, 2)), strict=True))["MFU"] == "87%"
    assert dict(zip(*(scaling[i] for i in (0, 2)), strict=True))["links GB"] == "18.0"


def test_a_pod_that_does_not_fit_says_what_would():
    reports = dict.fromkeys([pod.name for pod in (*PODS, *WEAK_SCALING)], REPORT)
    large = copy.deepcopy(REPORT)
    large |= {"fits": False, "remedy": "full"}
    del large["work"], large["roofline"], large["partitioner_warnings"]
    reports[PODS[0].name] = json.loads(json.dumps(large))
    table = rows(format_tables(reports))
    assert "does not fit; remat full does" in table[2]
    assert len(table[2]) == len(table[0])
