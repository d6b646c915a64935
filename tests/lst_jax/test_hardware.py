"""Published figures of chips."""

import types

import jax
import pytest

from lst_jax import hardware
from lst_jax.hardware import check_memory, peak_rate, tpu_chip
from lst_jax.sharding import make_mesh, replicated


@pytest.mark.parametrize(
    ("kind", "name", "gib", "peak"),
    [
        ("TPU v4", "v4", 32, 275e12),
        ("TPU v5 lite", "v5e", 16, 197e12),
        ("TPU v5", "v5p", 95, 459e12),
        ("TPU v6 lite", "v6e", 32, 918e12),
    ],
)
def test_the_figures_of_a_chip_are_those_of_its_data_sheet(kind, name, gib, peak):
    chip = tpu_chip(kind)
    assert (chip.name, chip.memory_bytes, chip.flops_per_second) == (name, gib * 2**30, peak)
    # One JAX device is one chip of these, and both tables agree.
    device = types.SimpleNamespace(device_kind=kind, platform="tpu")
    assert peak_rate(device).flops_per_second == peak
    assert chip.interconnect_bandwidth < chip.memory_bandwidth
    assert chip.network_bandwidth is None or chip.network_bandwidth < chip.interconnect_bandwidth


def test_a_chip_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="device_kind is 'TPU v99', expected one of"):
        tpu_chip("TPU v99")


def test_arrays_larger_than_a_devices_memory_are_refused():
    """Nothing of them is made: XLA would hang, or the system end the process."""
    mesh = make_mesh(devices=jax.devices()[:1])

    def check(bytes_in_all):
        shape = jax.ShapeDtypeStruct((bytes_in_all // 2,), "int8", sharding=replicated(mesh))
        check_memory([shape, shape], mesh, "the state")

    check(2**20)
    with pytest.raises(ValueError, match=r"^the state: 1,125,899\.9 GB on each device, expected"):
        check(2**50)


def test_a_measured_peak_is_that_of_the_fastest_product(monkeypatch):
    times = iter([0, 7, 10, 12, 20, 25, 30, 34, 40, 49])
    clock = types.SimpleNamespace(perf_counter=lambda: next(times))
    monkeypatch.setattr(hardware, "time", clock)
    (cpu, *others) = jax.devices("cpu")
    rate = 2 * 1024**3 / 2
    assert peak_rate(cpu).flops_per_second == rate / (1 + len(others))
    monkeypatch.setattr(hardware, "_measure", lambda device: rate)
    card = types.SimpleNamespace(device_kind="unknown", platform="gpu")
    assert peak_rate(card).flops_per_second == rate
