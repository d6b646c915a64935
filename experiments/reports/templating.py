"""Reports are templates: the files beside this module, in Jinja's language.

Text that goes into an HTML template is escaped unless it is marked as HTML; a name that is not
given is an error.
"""

from __future__ import annotations

import base64
import functools
import pathlib
from typing import TYPE_CHECKING, Any

from lst_jax.extras import import_extra

if TYPE_CHECKING:
    import jinja2

_DIRECTORY = pathlib.Path(__file__).with_name("templates")


@functools.cache
def environment(directory: pathlib.Path = _DIRECTORY) -> jinja2.Environment:
    """Returns the environment that all templates of a folder share."""
    jinja = import_extra("demo", "jinja2")
    made = jinja.Environment(
        loader=jinja.FileSystemLoader(directory, encoding="utf-8"),
        autoescape=jinja.select_autoescape(("html",)),
        undefined=jinja.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters["data_uri"] = sound_uri
    return made


def sound_uri(wav: bytes) -> str:
    """Returns the bytes of a wav file as an address that has them in it."""
    return "data:audio/wav;base64," + base64.b64encode(wav).decode()


def render(name: str, **values: Any) -> str:
    """Returns the template of a file name with values in it."""
    return environment().get_template(name).render(**values)
