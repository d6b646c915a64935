"""The tables of the compiled pods, from reports that are given."""

import copy
import json

from experiments.benchmarks.aot_tables import (
    CONFIGURATIONS,
    MESHES,
    PODS,
    REMAT,
    WEAK_SCALING,
    format_tables,
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
    groups = (PODS, WEAK_SCALING, REMAT, MESHES)
    assert len(names) == len(set(names))
    assert set(names) == {pod.name for group in groups for pod in group}
    found = tables(dict.fromkeys(names, REPORT))
    assert [len(table) - 2 for table in found] == [len(group) for group in groups]
    assert len({len(row) for table in found for row in table}) == 1
    first = dict(zip(found[0][0], found[0][2], strict=True))
    assert (first["MFU"], first["peak GiB"]) == ("87%", "8.0 of 16")
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
