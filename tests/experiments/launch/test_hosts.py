import pytest

from experiments.aot.topologies import tpu_devices
from experiments.launch.hosts import parse_topology


@pytest.mark.parametrize(
    ("text", "shape", "devices", "hosts"),
    [
        ("v5p:8x8x4", "4x8x8", 256, 64),
        ("v5p:1x2x2", "2x2x1", 4, 1),
        ("v5p:16x16x24", "16x16x24", 6144, 1536),
        ("v5e:2x4", "2x4", 8, 1),
        ("v5e:16x8", "8x16", 128, 32),
        ("v6e:1x1", "1x1", 1, 1),
        ("v6e:4x4", "4x4", 16, 4),
        ("h100:2x8", "2x8", 16, 2),
    ],
)
def test_a_topology_has_the_shape_and_hosts_that_the_cloud_has(text, shape, devices, hosts):
    found = parse_topology(text)
    assert (found.shape, found.devices, found.hosts) == (shape, devices, hosts)
    assert found.devices_of_host * found.hosts == devices


def test_accelerator_types_count_what_the_cloud_counts():
    """Cores for v5p, chips for the others."""
    names = {"v5p:4x8x8": "v5p-512", "v5e:16x16": "v5litepod-256", "v6e:4x4": "v6e-16"}
    assert {x: parse_topology(x).accelerator_type for x in names} == names


@pytest.mark.parametrize(
    ("text", "slices", "expected"),
    [
        ("", 1, "expected CHIP:SHAPE with a chip of v5e, v5p, v6e"),
        ("v9:4x4", 1, "'v9:4x4', expected CHIP:SHAPE"),
        ("v5p", 1, "a shape of v5p: 2x2x1, 2x2x2"),
        ("v5p:4x4", 1, "a shape of v5p"),
        ("v5p:4x4x6", 1, "multiples of 4"),
        ("v5p:16x24x24", 1, "up to 16x16x24"),
        ("v5e:2x8", 1, "a shape of v5e: one of 1x1"),
        ("v6e:4x4x4", 1, "a shape of v6e"),
        ("v6e:0x4", 1, "a shape of v6e"),
        ("v6e:4x4\n", 1, "a shape of v6e"),
        ("h100:8", 1, "h100:NODESxGPUS"),
        ("h100:1x17", 1, "at most 16 GPUs"),
        ("h100:1x8", 2, "in one slice"),
    ],
)
def test_what_there_is_not_is_refused(text, slices, expected):
    with pytest.raises(ValueError, match=expected):
        parse_topology(text, slices)


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_libtpu_has_as_many_devices_and_hosts():
    for text in ("v5e:4x4", "v5e:16x16", "v6e:8x16", "v5p:2x2x1", "v5p:2x4x4", "v5p:4x8x12"):
        hosts, devices = parse_topology(text), tpu_devices(text)
        assert len(devices) == hosts.devices
        assert len({device.process_index for device in devices}) == hosts.hosts
