r"""Continues text, speech or units with a trained model.

    python -m experiments.generate --checkpoint=runs/demo/lst --text='tom went to the'
    python -m experiments.generate --checkpoint=runs/demo/lst --wav=story.wav --continue_as=speech \
        --encoder=built_in --output=continued

`--text`, `--wav` and `--units` may be given several times; `--prompts` is a JSON-lines file of
objects with one of `text`, `wav` and `units`, and an `id` if wanted. A continuation is of its
prompt's modality, of the other (`--continue_as=text`, `speech`), or of both as the model chooses
(`any`). With models that are fine-tuned for it, `--wav … --continue_as=text` transcribes and
`--text … --continue_as=speech` speaks. Every continuation is printed when it is there; `--output`
gets `continuations.jsonl`, and a wav file of each that has speech where there is a vocoder:
`--vocoder`, or the encoder's own.
"""

from __future__ import annotations

from absl import flags

from experiments.common import cli, sampling_flags
from experiments.common.continuations import (
    TEXT_TOKENS,
    ContinuationWriter,
    check_output,
    continuation_limits,
    make_batches,
)
from experiments.common.encoders import define_specification, open_speech
from experiments.common.paths import define_path, define_paths
from experiments.common.prompts import KINDS, make_prompt, read_prompts
from lst_jax.inference.generation import generate, make_decoder, prompt_documents
from lst_jax.inference.segments import split_segments
from lst_jax.inference.trained_model import load_trained_model

_CHECKPOINT = define_path(
    "checkpoint", "Workdir of a run (its last checkpoint) or WORKDIR/STEP.", required=True
)
_TOKENIZER = define_path(
    "tokenizer", "The run's SentencePiece model, where it is no longer at its place."
)
flags.DEFINE_multi_string("text", [], "A prompt of text.")
define_paths("wav", "A prompt of speech, a wav file.")
flags.DEFINE_multi_string("units", [], "A prompt of units, such as 3,17,17.")
_PROMPTS = define_paths("prompts", "JSONL file of prompts.")
_CONTINUE_AS = flags.DEFINE_enum(
    "continue_as", "same", ["same", "text", "speech", "any"], "Modality of the continuation."
)
define_specification("encoder", "The units' encoder, such as mel:FILE: for wav in.")
define_specification("vocoder", "For wav out; by default the encoder's own, if it has one.")
_OUTPUT = define_path("output", "New directory for JSON lines and wav files.")
_SAMPLES = flags.DEFINE_integer("samples", 1, "Continuations of each prompt.", 1, 2**16)
_MAX_TOKENS = flags.DEFINE_integer(
    "max_tokens",
    None,
    f"Tokens of a continuation; by default {TEXT_TOKENS} of text, and what --max_seconds hold.",
    lower_bound=1,
    upper_bound=2**20,
)
sampling_flags.define_flags(temperature=0.7, top_p=0.95, max_seconds=10.0)
_SEED = flags.DEFINE_integer(
    "seed", 0, "Of the draws; continuation i has seed + i.", lower_bound=0, upper_bound=2**31
)
_BATCH_ROWS = flags.DEFINE_integer(
    "batch_rows", 8, "Rows of a batch, at most.", lower_bound=1, upper_bound=2**20
)


def main(argv: list[str]) -> None:
    """Generates as the flags say."""
    cli.check_no_arguments(argv)
    sampling, max_units = sampling_flags.sampling(), sampling_flags.max_units()
    check_output(_OUTPUT.value)
    given = read_prompts({kind: flags.FLAGS[kind].value or [] for kind in KINDS}, _PROMPTS.value)
    encoder, vocoder = open_speech(flags.FLAGS.encoder, flags.FLAGS.vocoder, [_CHECKPOINT.value])
    trained = load_trained_model(_CHECKPOINT.value, _TOKENIZER.value)
    prompts = [make_prompt(prompt, trained, encoder, _CONTINUE_AS.value) for prompt in given]
    decoder = make_decoder(trained.model, trained.vocabulary, trained.patching)
    # All are checked before the first is continued.
    prompt_documents(
        decoder,
        [prompt.tokens for prompt in prompts],
        trained.context_patches,
        [prompt.given.origin for prompt in prompts],
    )
    writer = ContinuationWriter(_OUTPUT.value, vocoder)
    samples = [prompt for prompt in prompts for _ in range(_SAMPLES.value)]
    for batch, rows in make_batches(samples, _BATCH_ROWS.value):
        modality = batch[0][1].modality
        generations = generate(
            trained,
            [prompt.tokens for _, prompt in batch],
            sampling=sampling,
            limits=continuation_limits(
                modality, _MAX_TOKENS.value, max_units, trained.context_patches
            ),
            modality=modality,
            seeds=[_SEED.value + number for number, _ in batch],
            batch_rows=trained.mesh.size * -(-rows // trained.mesh.size),
        )
        for (number, prompt), generation in zip(batch, generations, strict=True):
            segments = split_segments(generation.tokens, trained.vocabulary, trained.text_tokenizer)
            writer.write(number % _SAMPLES.value, prompt, segments, generation)


if __name__ == "__main__":
    cli.run_main(main)
