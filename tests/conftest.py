"""Shared settings of the test suite: the CPU platform with eight virtual devices.

Most of the suite's time is XLA's, which compiles many small programs that run once. So it does
without the passes that make programs fast, a sixth of the time for a gradient, and without
threads that share the work on one program; binaries that tests start run with XLA's own settings,
as a user runs them.

Shapes are checked in every call, also in the binaries (`lst_jax.shapes`).

A virtual device waits for the others at every collective; on a busy machine longer than the
40 seconds after which XLA gives up by default.
"""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import re
from collections.abc import Iterator

import pytest

_FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_terminate_timeout_seconds=600",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_llvm_disable_expensive_passes=true",
)
# XLA ends the process over a flag that it does not know, and this one went with jaxlib 0.11.
_OLD_FLAGS = ("--xla_cpu_use_fusion_emitters=false",)

_JAXLIB = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
if _JAXLIB < (0, 11):
    _FLAGS += _OLD_FLAGS

# No interpreter for Mosaic GPU kernels yet; lane `accelerator` runs them.
collect_ignore = ["lst_jax/model/test_mosaic_gpu_attention.py"] if _JAXLIB < (0, 11) else []
# Lane `speech` has the package.
if not importlib.util.find_spec("transformers"):
    collect_ignore.append("data_pipelines/speech/test_transformers.py")

# Tests with one of these markers need a package that the README's install brings. An environment
# without it leaves them out: Python 3.13 torch, which is gigabytes there, macOS and ARM libtpu.
# Real recordings are heard in lane `speech`, which alone has transformers, the oracle.
_PACKAGES = {"torch": "torch", "tpu_compile": "libtpu", "recordings": "transformers"}
_PACKAGES["manifests"] = "kubeflow_trainer_api"  # which lane `launch` has, with linters
_PACKAGES["buckets"] = "gcsfs"  # which lane `buckets` has
_LEFT_OUT = [name for name, package in _PACKAGES.items() if not importlib.util.find_spec(package)]
_WHOLE_FILE = re.compile(rf"^pytestmark = .*\bmark\.({'|'.join(_LEFT_OUT)})\b", re.MULTILINE)

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("LST_JAX_CHECK_SHAPES", "1")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS])

from tests.programs import shared_programs  # noqa: E402  after the settings above


@pytest.fixture(scope="session", autouse=True)
def programs() -> Iterator[None]:
    """Compiles each program once."""
    with shared_programs():
        yield


def pytest_collection_finish() -> None:
    """Looks for garbage less often and not in what was imported: it is a quarter of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Names a case of bytes by its argument: bytes may hold the time at which they were made."""
    return argname if isinstance(val, bytes | bytearray) else None


def pytest_ignore_collect(collection_path: pathlib.Path) -> bool | None:
    """Leaves a file out that is marked as a whole: it imports the missing package at its head."""
    if not _LEFT_OUT or collection_path.suffix != ".py":
        return None
    return bool(_WHOLE_FILE.search(collection_path.read_text(encoding="utf-8"))) or None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out single tests."""
    left_out = {item for item in items if any(map(item.get_closest_marker, _LEFT_OUT))}
    if left_out:
        config.hook.pytest_deselected(items=[*left_out])
        items[:] = [item for item in items if item not in left_out]
