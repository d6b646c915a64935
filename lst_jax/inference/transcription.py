"""Recognition and synthesis of speech by generation, with models fine-tuned for it.

The question stands before the answer as in training: bos `<s>` units `<t>` asks for the text (ASR),
bos `<t>` text `<s>` for the units (TTS). The answer ends at eos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from lst_jax.inference.generation import (
    Generation,
    GenerationLimits,
    generate,
    make_decoder,
    prompt_documents,
)
from lst_jax.inference.sampling import Modality, SamplingConfig
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.shapes import Int, Int32, check_shapes
from lst_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, eq=False)
class Answer:
    """What a model made of a question.

    Attributes:
      text: recognized; empty for synthesis.
      units: (U,) int32 synthesized; empty for recognition.
      question_tokens: tokens of the prompt.
      question_patches: its patches, steps of the global transformer; for the baseline, its tokens.
      answer_patches: patches that the tokens made add to them, the last one's too, though no step
        is taken for it any more.
      generation: the tokens made, and the steps that they took.
    """

    text: str
    units: Int32[np.ndarray, " U"]
    question_tokens: int
    question_patches: int
    answer_patches: int
    generation: Generation


@check_shapes
def transcribe(
    trained: TrainedModel,
    utterances: Sequence[Int[np.ndarray, " U"]],
    *,
    max_tokens: int = 256,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
) -> list[Answer]:
    """Returns the text of utterances, the most probable piece at each step.

    Args:
      trained: fine-tuned for recognition.
      utterances: units, (U,) each with U ≥ 1.
      max_tokens: of a text, at most.
      batch_rows: rows of a batch.
      names: what errors call the utterances; None is `utterances[0]` and so on.

    Raises:
      ValueError: see `generate`; an utterance is empty or holds a unit out of range.
    """
    vocabulary = trained.vocabulary
    names = names or [f"utterances[{i}]" for i in range(len(utterances))]
    prompts = [
        _question(
            vocabulary.speech_mode_id,
            _not_empty(name, vocabulary.units_to_ids(units)),
            vocabulary.text_mode_id,
            vocabulary,
        )
        for name, units in zip(names, utterances, strict=True)
    ]
    limits = GenerationLimits(max_tokens, max_patches=trained.context_patches)
    return _answer(trained, names, prompts, "text", SamplingConfig(), limits, None, batch_rows)


def synthesize(
    trained: TrainedModel,
    texts: Sequence[str],
    *,
    sampling: SamplingConfig,
    max_units: int = 750,
    seeds: Sequence[int] | None = None,
    batch_rows: int = 8,
    names: Sequence[str] | None = None,
) -> list[Answer]:
    """Returns the units that say texts.

    Args:
      trained: fine-tuned for synthesis.
      texts: with words.
      sampling: how units are drawn.
      max_units: speech ids of an answer, at most; 750 units are 30 s at 25 a second.
      seeds: one for each text; None counts from 0.
      batch_rows: rows of a batch.
      names: what errors call the texts; None is `texts[0]` and so on.

    Raises:
      ValueError: see `generate`; a text has no pieces.
    """
    vocabulary, tokenizer = trained.vocabulary, trained.text_tokenizer
    names = names or [f"texts[{i}]" for i in range(len(texts))]
    prompts = [
        _question(
            vocabulary.text_mode_id,
            _not_empty(name, tokenizer.encode(text.strip())),
            vocabulary.speech_mode_id,
            vocabulary,
        )
        for name, text in zip(names, texts, strict=True)
    ]
    # One token more, for eos.
    limits = GenerationLimits(
        max_units + 1, max_units=max_units, max_patches=trained.context_patches
    )
    return _answer(trained, names, prompts, "speech", sampling, limits, seeds, batch_rows)


def _not_empty(name: str, tokens: np.ndarray) -> np.ndarray:
    if not len(tokens):
        raise ValueError(f"{name} is empty, expected something to answer")
    return tokens


def _question(
    mode: int, tokens: np.ndarray, answer_mode: int, vocabulary: Vocabulary
) -> np.ndarray:
    return np.array([vocabulary.bos_id, mode, *tokens, answer_mode], np.int32)


def _answer(
    trained: TrainedModel,
    names: Sequence[str],
    prompts: Sequence[np.ndarray],
    modality: Modality,
    sampling: SamplingConfig,
    limits: GenerationLimits,
    seeds: Sequence[int] | None,
    batch_rows: int,
) -> list[Answer]:
    vocabulary, tokenizer = trained.vocabulary, trained.text_tokenizer
    decoder = make_decoder(trained.model, vocabulary, trained.patching)
    # All are checked before the first is answered.
    questions = prompt_documents(decoder, prompts, limits.max_patches, names)
    seeds = list(range(len(prompts))) if seeds is None else list(seeds)
    # Rows of a batch are as long as the longest.
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    generations = generate(
        trained,
        [prompts[i] for i in order],
        sampling=sampling,
        limits=limits,
        modality=modality,
        seeds=[seeds[i] for i in order],
        batch_rows=batch_rows,
    )
    answers: dict[int, Answer] = {}
    for i, generation in zip(order, generations, strict=True):
        made = generation.tokens[generation.tokens != vocabulary.eos_id]
        speech = modality == "speech"
        whole = decoder.document(np.concatenate([prompts[i], generation.tokens]))
        patches = questions[i].num_patches
        answers[i] = Answer(
            text="" if speech else tokenizer.decode(made).strip(),
            units=vocabulary.ids_to_units(made) if speech else np.zeros(0, np.int32),
            question_tokens=len(prompts[i]),
            question_patches=patches,
            answer_patches=whole.num_patches - patches,
            generation=generation,
        )
    return [answers[i] for i in range(len(prompts))]
