"""Latent Speech-Text Transformer in JAX and Flax.

The names below are the library's front; each is imported when it is first used, so that programs
that need the vocabulary and patching alone never load JAX.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; a test holds it to the table below
    from lst_jax.batch import Batch as Batch
    from lst_jax.checkpoints.params import restore_params as restore_params
    from lst_jax.config import LSTConfig as LSTConfig
    from lst_jax.config import TokenTransformerConfig as TokenTransformerConfig
    from lst_jax.config import baseline_of as baseline_of
    from lst_jax.evaluation.minimal_pairs import evaluate_minimal_pairs as evaluate_minimal_pairs
    from lst_jax.evaluation.story_completion import (
        evaluate_story_completion as evaluate_story_completion,
    )
    from lst_jax.inference.generation import GenerationLimits as GenerationLimits
    from lst_jax.inference.generation import generate as generate
    from lst_jax.inference.sampling import SamplingConfig as SamplingConfig
    from lst_jax.inference.scoring import score_continuations as score_continuations
    from lst_jax.inference.trained_model import TrainedModel as TrainedModel
    from lst_jax.inference.trained_model import load_trained_model as load_trained_model
    from lst_jax.inference.transcription import synthesize as synthesize
    from lst_jax.inference.transcription import transcribe as transcribe
    from lst_jax.model.attention import attend as attend
    from lst_jax.model.flops import training_flops as training_flops
    from lst_jax.model.key_ranges import KeyRange as KeyRange
    from lst_jax.model.losses import token_nll as token_nll
    from lst_jax.model.models import LatentSpeechTextTransformer as LatentSpeechTextTransformer
    from lst_jax.model.models import TokenTransformer as TokenTransformer
    from lst_jax.model.models import build_model as build_model
    from lst_jax.model.models import count_parameters as count_parameters
    from lst_jax.patching import Document as Document
    from lst_jax.patching import PatchingConfig as PatchingConfig
    from lst_jax.patching import fill_row as fill_row
    from lst_jax.patching import patch_document as patch_document
    from lst_jax.porting.port import open_checkpoint as open_checkpoint
    from lst_jax.porting.port import write_checkpoint as write_checkpoint
    from lst_jax.training.loop import train as train
    from lst_jax.training.lst import train_lst as train_lst
    from lst_jax.vocabulary import TextTokenizer as TextTokenizer
    from lst_jax.vocabulary import Vocabulary as Vocabulary

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
    "Batch": "batch",
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
    "TrainedModel": "inference.trained_model",
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

__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("lst-jax")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
