"""The encoder file that a binary is given, held to the models whose units it is for."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipelines.speech.units import MelKMeansEncoder
from lst_jax.checkpoints.description import read_description
from lst_jax.checkpoints.layout import find_checkpoint


def load_encoder(path: str | None, checkpoints: Sequence[str]) -> MelKMeansEncoder | None:
    """Reads an encoder, before any parameters are, which takes long.

    Args:
      path: of its file; None where none is given.
      checkpoints: runs, or steps of them.

    Raises:
      OSError: a file cannot be read.
      ValueError: the file is no encoder's, or its units are not those of a model.
    """
    if path is None:
        return None
    encoder = MelKMeansEncoder.load(path)
    for checkpoint in checkpoints:
        model = read_description(find_checkpoint(checkpoint))
        encoder.check_units(model.vocabulary.unit_count, model.encoder_fingerprint, path)
    return encoder
