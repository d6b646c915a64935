"""Flags that name files and folders; all of them pass through `lst_jax.local_paths.local_path`."""

from __future__ import annotations

import os
from typing import Any

from absl import flags

from lst_jax.local_paths import local_path
from lst_jax.settings import quote

flags.disclaim_key_flags()  # they are those of the binary that asks for them


class PathParser(flags.ArgumentParser):
    """Refuses what can be no local path while the flags are parsed, before anything is done."""

    syntactic_help = "a local path"

    def parse(self, argument: str) -> str:
        """Returns the path as text."""
        return str(local_path(argument, "it"))

    def flag_type(self) -> str:
        """Returns the name of the type in the help."""
        return "path"

    def paths(self, value: str) -> list[str]:
        """Returns the paths in a value of the flag: the value."""
        return [value]


def define_path(name: str, help_text: str, *, required: bool = False) -> flags.FlagHolder[Any]:
    """Defines a flag of one path; None where it is not given."""
    return flags.DEFINE(PathParser(), name, None, help_text, required=required)


def define_paths(name: str, help_text: str, *, required: bool = False) -> flags.FlagHolder[Any]:
    """Defines a flag of paths, or of patterns, that may be given several times."""
    default = None if required else []
    serializer = flags.ArgumentSerializer()
    return flags.DEFINE_multi(PathParser(), serializer, name, default, help_text, required=required)


def check_output_is_no_input() -> None:
    """Checks, once the flags are parsed, that the output is none of the other paths.

    Raises:
      ValueError: it is one, perhaps through a link, and would be replaced after it was read.
    """
    output = flags.FLAGS["output"].value if "output" in flags.FLAGS else None
    if output is None:
        return
    for name, flag in flags.FLAGS.flag_values_dict().items():
        paths = getattr(flags.FLAGS[name].parser, "paths", None)
        if name == "output" or paths is None or flag is None:
            continue
        values = flag if isinstance(flag, list) else [flag]
        for path in [path for value in values for path in paths(value)]:
            if os.path.realpath(path) == os.path.realpath(output):
                raise ValueError(f"--output is {quote(output)}, expected another than --{name}")
