"""Story completion: the ending with the highest model likelihood wins.

The protocol of the paper for HellaSwag (four endings), StoryCloze and TopicStoryCloze (two), in
any of four directions: prompt and endings as speech (S) or text (T). The example files are JSON
lines, one example a line:

    {"id": "17", "set": "StoryCloze",
     "prompt": {"text": "Ann lost her key.", "units": [3, 3, 99, …]},
     "endings": [{"text": "She looked for it.", "units": […]}, {"text": …, "units": …}],
     "label": 0}

`label` is the index of the right ending. `set` is any name; examples are reported by set. A set
may have any number of endings, two or more, and different examples may differ. `text` or `units`
may be absent (or null) where no requested direction reads it. Other fields are ignored.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from lst_jax.evaluation import jsonl
from lst_jax.evaluation.choices import Choice, ChoiceKind, ChoiceResults, evaluate_choices
from lst_jax.evaluation.choices import format_table as choices_table
from lst_jax.inference.scoring import Continuation, Logits, ScoringShape
from lst_jax.inference.trained_model import TrainedModel
from lst_jax.settings import quote
from lst_jax.vocabulary import TextTokenizer, Vocabulary

# Prompt-ending modalities: S is speech, T is text.
Direction = Literal["S-S", "T-T", "S-T", "T-S"]  # modality of the prompt, and of the endings
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)


@dataclasses.dataclass(frozen=True, eq=False)
class Passage:
    """A prompt or an ending.

    Attributes:
      text: its words, or None where the file has none.
      units: (U,) int32 raw speech units, or None where the file has none.
    """

    text: str | None
    units: np.ndarray | None


@dataclasses.dataclass(frozen=True, eq=False)
class StoryExample(jsonl.Example):
    """A story with its possible endings.

    Attributes:
      prompt: the beginning of the story.
      endings: two or more endings.
      label: index of the right ending.
    """

    prompt: Passage
    endings: tuple[Passage, ...]
    label: int


KIND = ChoiceKind(group="direction", label="label", whole_sets=False)


def read_story_examples(
    paths: Sequence[str | pathlib.Path], unit_count: int, encoder_fingerprint: str | None = None
) -> tuple[StoryExample, ...]:
    """Reads and checks example files (format: see the module).

    Args:
      paths: JSONL files.
      unit_count: number of speech units.
      encoder_fingerprint: of the encoder of the model's units, see `jsonl.read_examples`.

    Raises:
      OSError, ValueError: see `jsonl.read_examples`; or a line has a missing field, an empty prompt
        or ending, fewer than two endings, or a label that names no ending.
    """
    return jsonl.read_examples(paths, unit_count, _parse_example, encoder_fingerprint)


def _parse_example(fields: Mapping[str, Any], unit_count: int, origin: str) -> StoryExample:
    prompt = _parse_passage(jsonl.field(fields, "prompt", dict), "prompt", unit_count)
    values = jsonl.field(fields, "endings", list)
    if len(values) < 2:
        raise ValueError(f"endings has {len(values)} entries; expected two or more")
    endings = []
    for i, value in enumerate(values):
        if not isinstance(value, dict):
            raise ValueError(f"endings[{i}] is {jsonl.show(value)}; expected an object")
        endings.append(_parse_passage(value, f"endings[{i}]", unit_count))
    label = jsonl.field(fields, "label", int)
    if not 0 <= label < len(endings):
        raise ValueError(
            f"label is {jsonl.show(label)}; expected 0 … {len(endings) - 1}, an ending's index"
        )
    return StoryExample(
        example_id=jsonl.field(fields, "id", str),
        set_name=jsonl.field(fields, "set", str),
        prompt=prompt,
        endings=tuple(endings),
        label=label,
        origin=origin,
    )


def _parse_passage(fields: Mapping[str, Any], name: str, unit_count: int) -> Passage:
    text, units = fields.get("text"), fields.get("units")
    if text is None and units is None:
        raise ValueError(f"{name} has neither text nor units; expected one or both")
    if text is not None and not (isinstance(text, str) and text.strip()):
        raise ValueError(f"{name}.text is {jsonl.show(text)}; expected a string with words")
    if text is not None:
        jsonl.check_unicode(f"{name}.text", text)
    if units is None:
        return Passage(text, None)
    return Passage(text, jsonl.parse_units(units, f"{name}.units", unit_count))


def parse_direction(direction: str) -> tuple[str, str]:
    """Splits "S-T" into ("S", "T"): the modality of the prompt and that of the endings."""
    if direction not in DIRECTIONS:
        raise ValueError(
            f"direction is {quote(direction)}; expected one of {', '.join(DIRECTIONS)}"
        )
    prompt, ending = direction.split("-")
    return prompt, ending


def build_continuations(
    example: StoryExample, direction: str, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> list[Continuation]:
    """Returns the token sequences whose endings compete.

    Given are bos, the mode token of the prompt, the prompt and, only where the modality changes,
    the mode token of the ending; scored are the ending's tokens. So prompt and ending of the same
    modality are one segment: one run of units, or one text in which the ending starts a new word.
    There is no eos: an ending need not end the document.

    Args:
      example: the story.
      direction: one of `DIRECTIONS`.
      vocabulary: the id space of the model.
      tokenizer: its text tokenizer.

    Returns:
      One continuation per ending.

    Raises:
      ValueError: the example has no text (or units) where the direction reads it; names where the
        example was read.
    """
    prompt_modality, ending_modality = parse_direction(direction)
    mode_ids = {"S": vocabulary.speech_mode_id, "T": vocabulary.text_mode_id}

    def encode(passage: Passage, modality: str, name: str) -> np.ndarray:
        where = f"{example.origin}: example {quote(example.example_id)}, {name}"
        try:
            return _encode(passage, modality, vocabulary, tokenizer)
        except ValueError as error:
            raise ValueError(f"{where}, for direction {direction}: {error}") from error

    switch = [] if prompt_modality == ending_modality else [mode_ids[ending_modality]]
    prompt = np.concatenate(
        [
            np.array([vocabulary.bos_id, mode_ids[prompt_modality]], np.int32),
            encode(example.prompt, prompt_modality, "prompt"),
            np.array(switch, np.int32),
        ]
    )
    return [
        Continuation(prompt, encode(ending, ending_modality, f"endings[{i}]"))
        for i, ending in enumerate(example.endings)
    ]


def _encode(
    passage: Passage, modality: str, vocabulary: Vocabulary, tokenizer: TextTokenizer
) -> np.ndarray:
    """Returns the token ids (T,) int32 of a passage as speech or text, T ≥ 1."""
    if modality == "S":
        if passage.units is None:
            raise ValueError("it has no units")
        return vocabulary.units_to_ids(passage.units)
    if passage.text is None:
        raise ValueError("it has no text")
    # Every passage starts a new word for the tokenizer, so pieces do not depend on the prompt.
    pieces = tokenizer.encode(passage.text.strip())
    if not pieces.size:
        raise ValueError(f"its text {quote(passage.text)} has no pieces")
    return pieces


def evaluate_story_completion(
    trained: TrainedModel,
    examples: Sequence[StoryExample],
    *,
    directions: Sequence[str] = DIRECTIONS,
    shape: ScoringShape | None = None,
    logits: Logits = "all",
    progress: Callable[[int, int], None] | None = None,
) -> ChoiceResults:
    """Measures the accuracy of a model on story-completion examples (rules: see `choices`).

    Args:
      trained: the model, with its tokenizer.
      examples: what to evaluate, of any number of sets.
      directions: entries of `DIRECTIONS`, each once.
      shape: shape of the batches.
      logits: see `score_continuations`.
      progress: called after every batch with the number of batches done and in all.

    Returns:
      One table entry per set and direction, and the scores of every example.

    Raises:
      ValueError: no examples or directions, a direction twice, an example without the text or
        units of a direction, a sequence longer than a row, or scores that are not finite.
    """
    if not examples:
        raise ValueError("examples is empty; expected at least one")
    if not directions or len(set(directions)) != len(directions):
        raise ValueError(f"directions is {list(directions)}; expected one or more, each once")
    tokenizer = trained.text_tokenizer
    choices = [
        Choice(
            set_name=example.set_name,
            example_id=example.example_id,
            group=direction,
            candidates=build_continuations(example, direction, trained.vocabulary, tokenizer),
            label=example.label,
        )
        for example in examples
        for direction in directions
    ]
    return evaluate_choices(trained, choices, KIND, shape=shape, logits=logits, progress=progress)


def format_table(results: ChoiceResults) -> str:
    """Returns an aligned table, numbers in percent: a line per set and direction."""
    return choices_table(results, lambda direction: direction.replace("-", "→"))
