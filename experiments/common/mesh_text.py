"""A mesh as a flag gives it."""

from __future__ import annotations

import re

from lst_jax.settings import quote
from lst_jax.sharding import MESH_AXES, MeshConfig

_SIZE = re.compile(r"-?[0-9]+")  # -1 for what is left


def parse_mesh(text: str) -> MeshConfig:
    """Returns `data=1,fsdp=256,tensor=1`; axes that are not named have their default size.

    Raises:
      ValueError: it is not of that form.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, text.split(",")):
        name, _, size = item.partition("=")
        if name not in MESH_AXES or name in sizes or not _SIZE.fullmatch(size):
            axes = ",".join(f"{axis}=SIZE" for axis in MESH_AXES)
            raise ValueError(f"mesh is {quote(text)}, expected {axes}")
        sizes[name] = int(size)
    return MeshConfig(**sizes)
