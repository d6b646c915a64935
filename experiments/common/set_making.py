"""What the binaries that make evaluation sets share: flags, counts, resumable output."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from absl import flags

from data_pipelines.evaluation_sets.items import ITEMS, Load, ReleasedSet, write_set
from data_pipelines.speech.registry import open_encoder
from experiments.common.encoders import define_specification
from experiments.common.outputs import check_writable, make_progress_printer
from experiments.common.paths import define_path
from lst_jax.speech.interfaces import UnitEncoder

flags.disclaim_key_flags()  # they are those of the binary that asks for them


def define_flags(input_help: str) -> None:
    """Defines the flags that all these binaries have."""
    define_path("input", input_help, required=True)
    define_specification("encoder", "Makes the units: KIND:ARGUMENT,OPTION=VALUE.", required=True)
    define_path("output", "Folder of the items.", required=True)
    flags.DEFINE_bool("subset", False, "The input may have other counts than were published.")
    flags.DEFINE_float(
        "max_reject_share", 0.01, "Largest share of items that are rejected.", 0.0, 1.0
    )
    flags.DEFINE_integer("items_per_part", 50, "Items that are made together.", 1, 2**20)


def make_set(
    read: Callable[[pathlib.Path], ReleasedSet],
    make_load: Callable[[UnitEncoder], Load],
    settings: dict[str, Any],
) -> None:
    """Makes a set as the flags say and prints a summary.

    Args:
      read: says which items there are, of the input's path.
      make_load: what gives the waveforms of an item at the encoder's rate.
      settings: what decides the items besides input and encoder, as JSON values.

    Raises:
      ImportError, OSError, ValueError: what the user can mend.
    """
    source, output = pathlib.Path(flags.FLAGS.input), pathlib.Path(flags.FLAGS.output)
    check_writable(output)
    found = read(source)
    if not flags.FLAGS.subset:
        found.check_count(source)
    encoder = open_encoder(flags.FLAGS.encoder)
    items_per_part = flags.FLAGS.items_per_part
    settings |= {
        "set": found.name,
        "input": found.fingerprint,
        "encoder": encoder.fingerprint,
        "items_per_part": items_per_part,
    }
    items, rejects = write_set(
        output,
        found.drafts,
        settings,
        make_load(encoder),
        encoder,
        items_per_part=items_per_part,
        max_reject_share=flags.FLAGS.max_reject_share,
        progress=make_progress_printer("items"),
    )
    print(f"{output / ITEMS} has {items:,} items of {found.name}; {rejects:,} were rejected")
