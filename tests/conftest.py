"""Shared settings of the test suite: the CPU platform with eight virtual devices.

A virtual device waits for the others at every collective; on a busy machine longer than the
40 seconds after which XLA gives up by default.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "")
        + " --xla_force_host_platform_device_count=8"
        + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
    )
