"""Joining the processes of a run on several hosts, from flags or the environment."""

from __future__ import annotations

import os

import jax
from absl import flags

from lst_jax.settings import quote

flags.disclaim_key_flags()  # they are those of the binary that asks for them


_ADDRESS = "coordinator_address"
_COUNT = "num_processes"
_INDEX = "process_id"
_VARIABLES = {name: f"JAX_{name.upper()}" for name in (_ADDRESS, _COUNT, _INDEX)}


def define_flags() -> None:
    """Defines `--multihost` and what says who and where the processes are."""
    flags.DEFINE_bool(
        "multihost",
        False,
        "Join the other processes of a cluster first. What the three flags below leave open comes "
        "from the environment: Cloud TPU, Slurm, Open MPI, Kubernetes.",
    )
    flags.DEFINE_string(
        _ADDRESS, None, f"HOST:PORT of process 0; default: ${_VARIABLES[_ADDRESS]}."
    )
    flags.DEFINE_integer(
        _COUNT, None, f"Processes of the run; default: ${_VARIABLES[_COUNT]}.", lower_bound=1
    )
    flags.DEFINE_integer(
        _INDEX, None, f"Number of this process, from 0; default: ${_VARIABLES[_INDEX]}.", 0
    )


def join_processes() -> None:
    """Initializes `jax.distributed` where a flag asks for it; comes before any other use of JAX.

    Raises:
      ValueError: flags and environment do not say enough, or contradict each other.
    """
    given = [name for name in _VARIABLES if flags.FLAGS[name].value is not None]
    if not given and not flags.FLAGS["multihost"].value:
        return
    address = flags.FLAGS[_ADDRESS].value
    if address is None:
        address = os.environ.get(_VARIABLES[_ADDRESS])
    count, index = _number(_COUNT), _number(_INDEX)
    if address is not None and not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{_ADDRESS} is {quote(address)}, expected HOST:PORT")
    if count is not None and index is not None and index >= count:
        raise ValueError(f"{_INDEX} is {index}, expected 0 … {_COUNT} - 1 = {count - 1}")
    try:
        jax.distributed.initialize(address, count, index)
    except ValueError as error:
        raise ValueError(
            f"no cluster in the environment that JAX knows ({error}), expected "
            + ", ".join(f"--{name}" for name in _VARIABLES)
        ) from error


def _number(name: str) -> int | None:
    """Returns the value of a flag, or else of its variable in the environment."""
    value = flags.FLAGS[name].value
    text = os.environ.get(_VARIABLES[name])
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise ValueError(f"{_VARIABLES[name]} is {quote(text)}, expected a number")
    return int(text)
