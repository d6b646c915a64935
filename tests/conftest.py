"""Shared settings of the test suite: the CPU platform with eight virtual devices.

Most of the suite's time is XLA's, which compiles many small programs that run once. So it does
without the passes that make programs fast, a sixth of the time for a gradient; binaries that
tests start run with XLA's own settings, as a user runs them.

A virtual device waits for the others at every collective; on a busy machine longer than the
40 seconds after which XLA gives up by default.
"""

import importlib.metadata
import importlib.util
import os

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
)
# XLA ends the process over a flag that it does not know, and this one went with jaxlib 0.11.
_OLD_FLAGS = ("--xla_cpu_use_fusion_emitters=false",)

_JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
if _JAXLIB < (0, 11):
    _FLAGS += _OLD_FLAGS

# Files that this environment cannot run, each with the lane that does.
collect_ignore = []
if _JAXLIB < (0, 11):  # no interpreter for Mosaic GPU kernels yet: lane `accelerator`
    collect_ignore += ["lst_jax/model/test_mosaic_gpu_attention.py"]
if importlib.util.find_spec("torch") is None:  # `.ci/run` installs it, and lane `floor`
    _PORTING = ("test_port.py", "test_torch_model.py", "test_reference_case.py")
    collect_ignore += [f"lst_jax/porting/{name}" for name in _PORTING]
    collect_ignore += ["experiments/test_porting_binaries.py"]

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])
