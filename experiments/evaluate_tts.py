r"""What a recognizer understands of speech made by models fine-tuned for synthesis.

    python -m experiments.evaluate_tts --checkpoint=runs/tts_lst --checkpoint=runs/tts_baseline \
        --recognizer_checkpoint=runs/asr_lst --data=test.jsonl --output=tts.json

prints a line per model, and one for what the recognizer understands of the data's own speech, and
writes the same, with every utterance, as JSON. In place of a model the recognizer may be a command,
`--recognizer_command='transcribe {wav}'` (with `--encoder`, for the vocoder), or a Python function
from the units of utterances to their texts, `--recognizer=package.module:function`.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from data_pipelines.speech.vocoder import MelVocoder
from experiments.common import cli, sampling_flags, speech_evaluation
from experiments.common.encoders import load_encoder
from experiments.common.paths import define_path
from experiments.common.recognizers import (
    Recognizer,
    command_recognizer,
    function_recognizer,
    hear,
    model_recognizer,
)
from lst_jax.evaluation.answer_rates import error_cells, error_rates, judge
from lst_jax.inference.trained_model import load_trained_model
from lst_jax.inference.transcription import synthesize

_RECOGNIZERS = ("recognizer_checkpoint", "recognizer_command", "recognizer")

speech_evaluation.define_flags()
define_path(_RECOGNIZERS[0], "Run that is fine-tuned for recognition.")
flags.DEFINE_string(_RECOGNIZERS[1], None, "Command that prints what it hears in {wav}.")
flags.DEFINE_string(_RECOGNIZERS[2], None, "Python function, package.module:function.")
_ENCODER = define_path("encoder", "The units' encoder.npz, for the vocoder.")
sampling_flags.define_flags(temperature=0.0, top_p=1.0, max_seconds=30.0)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    cli.check_no_arguments(argv)
    sampling, max_units = sampling_flags.sampling(), sampling_flags.max_units()
    given = _given_recognizer()
    evaluation = speech_evaluation.SpeechEvaluation()
    recognizer = _make_recognizer(given)
    for trained in evaluation.models():
        answers = synthesize(
            trained,
            [item.text for item in evaluation.spoken],
            sampling=sampling,
            max_units=max_units,
            batch_rows=flags.FLAGS.batch_rows,
            names=[item.origin for item in evaluation.spoken],
        )
        heard = hear(recognizer, [answer.units for answer in answers])
        evaluation.add(trained, judge(evaluation.spoken, heard, answers))
    own_heard = hear(recognizer, [item.units for item in evaluation.spoken])
    own = error_rates(evaluation.spoken, own_heard)
    count = str(len(evaluation.spoken))
    evaluation.add_row(["the data's own speech", count, *error_cells(own)])
    heard_by = {given: flags.FLAGS[given].value}
    evaluation.finish(
        **heard_by, sampling=dataclasses.asdict(sampling), own_speech=dataclasses.asdict(own)
    )


def _given_recognizer() -> str:
    """Returns the name of the flag that names the recognizer."""
    given = [name for name in _RECOGNIZERS if flags.FLAGS[name].value]
    if len(given) != 1:
        expected = ", ".join(f"--{name}" for name in _RECOGNIZERS)
        raise ValueError(f"recognizers given: {len(given)}, expected exactly one of {expected}")
    return given[0]


def _make_recognizer(flag: str) -> Recognizer:
    value = str(flags.FLAGS[flag].value)
    if flag == "recognizer":
        return function_recognizer(value)
    if flag == "recognizer_command":
        encoder = load_encoder(_ENCODER.value, flags.FLAGS.checkpoint)
        return command_recognizer(value, encoder and MelVocoder.from_encoder(encoder))
    return model_recognizer(
        load_trained_model(value, flags.FLAGS.tokenizer), flags.FLAGS.batch_rows
    )


if __name__ == "__main__":
    cli.run_main(main)
