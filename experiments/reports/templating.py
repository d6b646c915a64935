"""Reports are templates: the files beside this module, in Jinja's language.

Text that goes into an HTML template is escaped unless it is marked as HTML; a name that is not
given is an error.
"""

from __future__ import annotations

import base64
import functools
import pathlib
from typing import Any

import jinja2

_DIRECTORY = pathlib.Path(__file__).with_name("templates")


@functools.cache
def environment() -> jinja2.Environment:
    """Returns the environment that all templates share."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_DIRECTORY, encoding="utf-8"),
        autoescape=jinja2.select_autoescape(("html",)),
        undefined=jinja2.StrictUndefined,
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
