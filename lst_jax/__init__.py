"""Latent Speech-Text Transformer in JAX and Flax.

The names below are the library's front; each is imported when it is first used, so that data
workers, which need the vocabulary and patching alone, never load JAX.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "LSTConfig": "config",
    "TokenTransformerConfig": "config",
    "baseline_of": "config",
    "Vocabulary": "vocabulary",
    "TextTokenizer": "vocabulary",
    "PatchingConfig": "patching",
    "Document": "patching",
    "patch_document": "patching",
    "fill_row": "patching",
    "KeyRange": "model.key_ranges",
    "attend": "model.attention",
    "LatentSpeechTextTransformer": "model.models",
    "TokenTransformer": "model.models",
    "build_model": "model.models",
    "count_parameters": "model.models",
    "token_nll": "model.losses",
    "training_flops": "model.flops",
    "train": "training.loop",
    "train_lst": "training.lst",
    "restore_params": "checkpoints.params",
    "open_checkpoint": "porting.port",
    "write_checkpoint": "porting.port",
    "load_trained_model": "inference.trained_model",
    "generate": "inference.generation",
    "GenerationLimits": "inference.generation",
    "SamplingConfig": "inference.sampling",
    "transcribe": "inference.transcription",
    "synthesize": "inference.transcription",
    "score_continuations": "inference.scoring",
    "evaluate_story_completion": "evaluation.story_completion",
    "evaluate_minimal_pairs": "evaluation.minimal_pairs",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
