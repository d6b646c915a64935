"""The binary on the smallest of pods, and what it says of mistakes."""

import json
import os
import re

import jax
import pytest

from experiments.aot import compile as aot
from experiments.aot.compile import compile_step
from experiments.aot.report_lines import format_table, totals_by_kind
from experiments.aot.topologies import tpu_devices
from experiments.aot_compile import parse_options
from experiments.common.gin_steps import read_config
from experiments.common.mesh_text import parse_mesh
from lst_jax.hardware import tpu_chip
from lst_jax.sharding import MeshConfig, make_mesh
from tests.binaries import run_binary

pytestmark = pytest.mark.slow

TINY = "experiments/configs/models/tiny.gin"
RUN = "experiments/configs/runs/tiny.gin"
# The unpatched baseline has less to compile.
BASELINE = "experiments/configs/runs/baseline.gin"
SMALL = (
    *("NUM_LAYERS_GLOBAL=2", "DIM_GLOBAL=256", "NUM_HEADS_GLOBAL=2", "DTYPE=bfloat16"),
    *("BATCH_ROWS=3", "NUM_PATCHES=128"),
)
MESH = MeshConfig(data=2, fsdp=2)


@pytest.fixture(scope="module")
def config():
    return read_config([TINY, RUN, BASELINE], SMALL, text_size=1000, attention="dense")


@pytest.fixture(scope="module")
def report(config):
    """Of two slices, with devices along every mesh axis."""
    return compile_step(config, "v5e:2x2", MeshConfig(2, 2, 2), num_slices=2)


@pytest.mark.tpu_compile
def test_the_step_is_compiled_at_the_shapes_of_the_run(report):
    setup = report["setup"]
    assert setup["mesh"] == {"data": 2, "fsdp": 2, "tensor": 2}
    assert (setup["patches_per_row"], setup["tokens_per_row"]) == (128, 128)
    assert setup["rows"] == 4  # 3, and as many more as make every device's rows as many
    assert report["partitioner_warnings"] == []


@pytest.mark.tpu_compile
def test_memory_is_set_against_the_chips(report):
    memory = report["memory"]
    assert memory["hbm"] == 16 * 2**30
    assert 0 < memory["arguments"] < memory["peak"] < memory["hbm"]
    assert report["fits"]


@pytest.mark.tpu_compile
def test_every_figure_of_the_roofline_follows_from_the_work(report):
    work, roofline = report["work"], report["roofline"]
    assert work["not_counted"] == []
    chip = roofline["chip"]
    assert roofline["seconds"]["compute"] == work["flops"] / chip["flops_per_second"]
    assert roofline["seconds"]["memory"] == work["memory_bytes"] / chip["memory_bandwidth"]
    sent = work["collective_bytes"]
    between = {kind: size for kind, size in sent.items() if kind.endswith(" between slices")}
    assert between, "data is split over slices, so gradients must cross the network"
    network = sum(between.values())
    assert roofline["seconds"]["network"] == network / chip["network_bandwidth"]
    collectives = report["schedule"]["collectives"]
    within = sum(x["seconds"] for x in collectives if not x["crosses_slices"])
    assert roofline["seconds"]["interconnect"] == pytest.approx(within)
    assert within >= (sum(sent.values()) - network) / chip["interconnect_bandwidth"]
    assert roofline["step_seconds"] == max(roofline["seconds"].values())
    mfu = work["model_flops"] / roofline["step_seconds"] / chip["flops_per_second"]
    assert roofline["mfu"] == pytest.approx(mfu)
    assert roofline["mfu_without_overlap"] < roofline["mfu"]


@pytest.mark.tpu_compile
def test_the_schedule_lies_between_perfect_overlap_and_none(report):
    work, roofline, schedule = report["work"], report["roofline"], report["schedule"]
    assert roofline["mfu_without_overlap"] <= schedule["mfu"] <= roofline["mfu"]
    sent = {kind: x.sent_bytes for kind, x in totals_by_kind(schedule["collectives"]).items()}
    assert sent == pytest.approx(work["collective_bytes"])
    exposed = sum(x["exposed_seconds"] for x in schedule["collectives"])
    assert schedule["exposed_seconds"] == pytest.approx(exposed)


@pytest.mark.tpu_compile
def test_flops_are_the_models_beside_padding_and_whole_squares(report):
    """Dense attention computes every pair, and 1502 ids are padded to 1536."""
    assert 1.0 < report["work"]["flops"] / report["work"]["model_flops"] < 1.2


@pytest.mark.tpu_compile
def test_the_table_says_how_every_figure_was_made(report):
    lines = format_table(report).splitlines()
    for name in ("arguments", "temporaries", "peak", "model FLOPs", "HBM traffic", "step", "MFU"):
        (line,) = [line for line in lines if line.startswith(name + "  ")]
        assert len(re.split(r"  +", line)) == 3, line
    for x in report["schedule"]["collectives"]:
        (line,) = [line for line in lines if line.startswith(f"  {x['name']}  ")]
        assert line.endswith("beside products" if x["beside_products"] else "beside no product")
    assert json.loads(json.dumps(report)) == report


@pytest.mark.tpu_compile
def test_a_step_that_does_not_fit_says_by_how_much_and_what_would_help(config):
    report = aot._compile(config, "v5e:2x2", MESH, 1, 5000, None) | {"remedy": "dots"}
    memory = report["memory"]
    assert not report["fits"]
    assert memory["limit"] < memory["hbm"] == 16 * 2**30
    assert memory["exceeded_by"] == pytest.approx(memory["peak"] - memory["limit"], abs=1)
    assert memory["exceeded_by"] > 0
    peak, excess = format_table(report).splitlines()[1:]
    assert peak.endswith("GiB  at least; the compiler has 15.75 GiB of 16.00 GiB of HBM")
    assert f"{memory['exceeded_by'] / 2**30:.2f} GiB" in excess
    assert excess.endswith("too much; it fits with remat dots")


def test_what_the_compiler_says_of_memory_is_understood():
    error = jax.errors.JaxRuntimeError(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    )
    failed = aot._does_not_fit(error, tpu_chip("TPU v5 lite"))
    assert failed["memory"]["exceeded_by"] == 4.75 * 2**30
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        aot._does_not_fit(jax.errors.JaxRuntimeError("INTERNAL: no"), tpu_chip("TPU v5 lite"))


def test_the_first_policy_that_fits_is_named(config, monkeypatch):
    def compile_(config, *_):
        return {"fits": config.model.remat == "full"}

    monkeypatch.setattr(aot, "_compile", compile_)
    assert compile_step(config, "v5e:2x2", MESH) == {"fits": False, "remedy": "full"}
    monkeypatch.setattr(aot, "_compile", lambda *_: {"fits": False})
    assert compile_step(config, "v5e:2x2", MESH) == {"fits": False, "remedy": None}


def test_lines_that_the_compiler_writes_past_python_are_captured(capfd):
    with aot._captured_stderr() as lines:
        os.write(2, b"[SPMD] Involuntary full rematerialization. The compiler\nmore\n")
    os.write(2, b"after\n")
    assert lines == ["[SPMD] Involuntary full rematerialization. The compiler", "more"]
    assert capfd.readouterr().err == "after\n"


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
    "topology, mesh, rows, message",
    [
        ("v5e:3x5", MESH, None, "topology is 'v5e:3x5', expected a chip and a shape"),
        ("v0:2x2", MESH, None, "topology is 'v0:2x2', expected a chip and a shape"),
        ("", MESH, None, "topology is '', expected a chip and a shape"),
        ("v5e:2x2\udc80", MESH, None, r"topology is .v5e:2x2\\udc80., expected a chip and a shape"),
        ("v5e:2x2", MeshConfig(data=3), None, "expected sizes that fill 4 devices"),
        ("v5e:2x2", MeshConfig(tensor=4, fsdp=4), None, "expected sizes that fill 4 devices"),
    ],
)
def test_pods_and_meshes_that_do_not_exist_are_one_line(config, topology, mesh, rows, message):
    with pytest.raises(ValueError, match=message) as error:
        compile_step(config, topology, mesh, rows_per_device=rows)
    assert "\n" not in str(error.value)


def test_a_configuration_without_a_model_is_an_error():
    with pytest.raises(ValueError, match=r"Experiment\.model is not set, expected a model file"):
        read_config([], [])


@pytest.mark.multiprocess
def test_the_binary_reports_mistakes_in_one_line():
    arguments = ("--topology=v5e:2x2", "--gin_file=nowhere.gin")
    done = run_binary("experiments.aot_compile", *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: Gin file nowhere.gin: no such file in ")


@pytest.mark.tpu_compile
def test_slices_differ_along_data_or_else_along_fsdp():
    devices = tpu_devices("v5e:2x2", 2)
    for sizes, slices in (
        ((2, 4, 1), [[0] * 4, [1] * 4]),
        ((1, 8, 1), [[0, 0, 0, 0, 1, 1, 1, 1]]),
        ((4, 2, 1), [[0, 0], [0, 0], [1, 1], [1, 1]]),
    ):
        mesh = make_mesh(MeshConfig(*sizes), devices)
        assert [[x.slice_index for x in row] for row in mesh.devices[..., 0]] == slices
    with pytest.raises(ValueError, match="data or fsdp to be a multiple of the 2 slices"):
        make_mesh(MeshConfig(1, 1, 8), devices)


@pytest.mark.parametrize(
    "text, mesh",
    [
        ("", MeshConfig()),
        ("data=2,fsdp=4,tensor=2", MeshConfig(2, 4, 2)),
        ("tensor=8", MeshConfig(tensor=8)),
        ("fsdp=-1,data=2", MeshConfig(data=2)),
    ],
)
def test_mesh_axes_are_read(text, mesh):
    assert parse_mesh(text) == mesh


@pytest.mark.parametrize("text", ["fsdp", "fsdp=", "fsdp=x", "fsdp=2,fsdp=2", "data:2", "=2"])
def test_meshes_of_another_form_are_an_error(text):
    with pytest.raises(ValueError, match="expected data=SIZE,fsdp=SIZE,tensor=SIZE"):
        parse_mesh(text)


def test_options_of_the_compiler_are_read():
    assert parse_options(["xla_a=true", "xla_b=1"]) == {"xla_a": "true", "xla_b": "1"}


@pytest.mark.parametrize("text", ["", "xla_a", "xla_a=", "--xla_a=1", "a=1", "xla_a=1=2"])
def test_options_of_another_form_are_an_error(text):
    with pytest.raises(ValueError, match=r"xla_option is .*, expected xla_NAME=VALUE"):
        parse_options([text])


@pytest.mark.tpu_compile
@pytest.mark.parametrize("options", [{"xla_no_such": "1"}, {"xla_tpu_scoped_vmem_limit_kib": "x"}])
def test_an_option_that_xla_does_not_take_is_one_line(config, options):
    with pytest.raises(ValueError, match="expected options that XLA takes") as error:
        compile_step(config, "v5e:2x2", MESH, compiler_options=options)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300
