"""Documents of the downstream tasks: recognition and synthesis of speech.

An utterance becomes bos, question, answer, eos, where question and answer are each led by their
mode token: `<s>` units `<t>` text for recognition (ASR), `<t>` text `<s>` units for synthesis
(TTS). Only the answer, and the eos after it, is predicted.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from data_pipelines.records.storage import Utterance
from data_pipelines.training.interleaving import BY_WORDS, Draft, speech_draft
from lst_jax.patching import PatchingConfig
from lst_jax.vocabulary import Vocabulary

Task = Literal["asr", "tts"]


def task_draft(
    utterance: Utterance,
    task: Task,
    vocabulary: Vocabulary,
    patching: PatchingConfig = BY_WORDS,
    align: bool = False,
    noise_rng: np.random.Generator | None = None,
) -> Draft:
    """Returns the document of an utterance as a task.

    Args:
      utterance: with its units and its text.
      task: "asr" asks for the text, "tts" for the units.
      vocabulary: the id space.
      patching: see `speech_draft`.
      align: see `speech_draft`.
      noise_rng: see `speech_draft`.

    Raises:
      ValueError: the utterance has no words.
    """
    if not len(utterance.pieces):
        raise ValueError(
            f"utterance {utterance.file_id!r} has no words, expected records with transcripts for "
            f"the task {task}"
        )
    speech = speech_draft(utterance, vocabulary, None, patching, align, noise_rng)
    text = np.array([vocabulary.text_mode_id, *utterance.pieces], np.int32)
    # bos and eos of the speech document take the text between them, behind or before the speech.
    place = len(speech.tokens) - 1 if task == "asr" else 1
    tokens = np.insert(speech.tokens, place, text)
    answer = place + 1 if task == "asr" else place + len(text) + 1
    if speech.aligned_lengths is None:
        return Draft(tokens, answer_begin=answer)
    patch = len(speech.aligned_lengths) - 1 if task == "asr" else 1
    lengths = np.insert(speech.aligned_lengths, patch, np.ones_like(text))
    return Draft(tokens, lengths, answer)
