r"""A checkpoint from one format to another: Orbax, safetensors, PyTorch.

    python -m experiments.port_checkpoint --input=runs/1b --output=exported/1b --to=safetensors

The input is a run's workdir (its last step) or one of its steps, a folder of safetensors, or a
consolidated PyTorch folder; it is told by its files. Tensors are moved one at a time, bit by bit,
unless `--dtype` converts them. The kinds of checkpoint: `lst_jax/porting/port.py`.
"""

from __future__ import annotations

import collections
import signal
from typing import cast

import jax
from absl import flags
from tqdm import tqdm

from experiments.common import cli
from experiments.common.paths import define_path
from lst_jax.checkpoints.reading import read_newest
from lst_jax.porting.port import (
    KINDS,
    MAX_SHARD_BYTES,
    Checkpoint,
    Kind,
    open_checkpoint,
    write_checkpoint,
)
from lst_jax.porting.published_config import published_differences
from lst_jax.porting.tensors import DTYPES, TensorSpec

_INPUT = define_path("input", "Checkpoint to read.", required=True)
_OUTPUT = define_path("output", "New folder to write.", required=True)
_TO = flags.DEFINE_enum("to", None, KINDS, "Format of the output.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", None, list(DTYPES), "Convert to this type; by default keep.")
_TOKENIZER = define_path(
    "tokenizer", "SentencePiece model to name in the output, where the input names none."
)
_MAX_SHARD_MB = flags.DEFINE_integer(
    "max_shard_mb",
    MAX_SHARD_BYTES // 10**6,
    "Largest safetensors file in 10^6 bytes; as much is in memory at once.",
    lower_bound=1,
    upper_bound=10**6,
)

# A bar for what takes longer than this, in seconds.
_BAR_DELAY_S = 2.0


def main(argv: list[str]) -> None:
    """Ports as the flags say."""
    cli.check_no_arguments(argv)
    jax.config.update("jax_platforms", "cpu")  # an accelerator may be in use, and is not needed
    stopping: list[int] = []
    checkpoint = read_newest(_INPUT.value, lambda: _port(stopping))
    print(_summary(checkpoint), flush=True)
    if _TO.value == "pytorch":
        for difference in published_differences(checkpoint.description):
            print(f"note: the published implementation differs from this model: {difference}")


def _port(stopping: list[int]) -> Checkpoint:
    """Writes what the input is now; exits between two tensors when a signal is in the list."""
    checkpoint = open_checkpoint(_INPUT.value)
    if _TOKENIZER.value:
        checkpoint = checkpoint.with_tokenizer(_TOKENIZER.value)
    if _DTYPE.value:
        checkpoint = checkpoint.cast(_DTYPE.value)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: stopping.append(number))
    # disable=None: no bar where nobody watches.
    with tqdm(
        total=checkpoint.num_bytes, unit="B", unit_scale=True, delay=_BAR_DELAY_S, disable=None
    ) as bar:

        def on_tensor(spec: TensorSpec) -> None:
            # Between two tensors nothing is being written that would be in the way of cleaning up.
            if stopping:
                raise KeyboardInterrupt(signal.Signals(stopping[0]).name)
            bar.update(spec.num_bytes)

        write_checkpoint(
            checkpoint,
            _OUTPUT.value,
            cast(Kind, _TO.value),
            max_shard_bytes=_MAX_SHARD_MB.value * 10**6,
            on_tensor=on_tensor,
        )
    return checkpoint


def _summary(checkpoint: Checkpoint) -> str:
    types = collections.Counter(spec.dtype for spec in checkpoint.specs.values())
    return (
        f"{_OUTPUT.value}: {len(checkpoint.specs)} tensors, {checkpoint.num_bytes / 1e9:.3f} GB"
        f" ({', '.join(sorted(types))}) of step {checkpoint.step}, as {_TO.value}"
    )


if __name__ == "__main__":
    cli.run_main(main)
