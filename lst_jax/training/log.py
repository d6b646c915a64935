"""The library's logger: what a run says of itself besides its records.

Binaries show its lines as they are; a program that uses the library sets it up like any other
logger of Python (`logging.getLogger("lst_jax")`), and hears warnings without doing so.
"""

from __future__ import annotations

import logging

import jax

LOGGER = logging.getLogger("lst_jax")


def report(message: str) -> None:
    """Logs a line about the run, on one process."""
    if jax.process_index() == 0:
        LOGGER.info(message)
