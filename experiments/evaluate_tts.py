r"""What a recognizer understands of speech made by models fine-tuned for synthesis.

    python -m experiments.evaluate_tts --checkpoint=runs/tts_lst --checkpoint=runs/tts_baseline \
        --recognizer=lst:runs/asr_lst --data=test.jsonl --output=tts.json

prints a line per model, and one for what the recognizer understands of the data's own speech, and
writes the same, with every utterance, as JSON. In place of a model any recognizer hears what the
vocoder makes of the units, `--recognizer=pocketsphinx --vocoder=mel:encoder.npz`; what there is,
`experiments/common/recognizers.py` lists.
"""

from __future__ import annotations

import dataclasses

from absl import flags

from experiments.common import cli, sampling_flags, speech_evaluation
from experiments.common.encoders import check_same_encoder, define_specification, open_speech
from experiments.common.recognizers import UnitRecognizer, hear, make_recognizer, model_recognizer
from lst_jax.evaluation.answer_rates import error_cells, error_rates, judge
from lst_jax.inference.trained_model import open_trained_model
from lst_jax.inference.transcription import synthesize

speech_evaluation.define_flags()
define_specification("recognizer", "What hears the speech, such as lst:RUN.", required=True)
define_specification("encoder", "The units' encoder: its own vocoder speaks.")
define_specification("vocoder", "What speaks, in place of the encoder's own.")
sampling_flags.define_flags(temperature=0.0, top_p=1.0, max_seconds=30.0)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    cli.check_no_arguments(argv)
    sampling, max_units = sampling_flags.sampling(), sampling_flags.max_units()
    evaluation = speech_evaluation.SpeechEvaluation()
    given, judged = flags.FLAGS.recognizer, flags.FLAGS.checkpoint
    _, vocoder = open_speech(flags.FLAGS.encoder, flags.FLAGS.vocoder, judged)
    recognizer = make_recognizer(given, _load_model, vocoder)
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
    evaluation.finish(
        recognizer=given,
        sampling=dataclasses.asdict(sampling),
        own_speech=dataclasses.asdict(own),
    )


def _load_model(checkpoint: str) -> UnitRecognizer:
    saved = open_trained_model(checkpoint, flags.FLAGS.tokenizer)
    for judged in flags.FLAGS.checkpoint:
        made_by = open_trained_model(judged, flags.FLAGS.tokenizer)
        expected = saved.description.encoder_fingerprint
        found = made_by.description.encoder_fingerprint
        check_same_encoder(f"model {judged}", found, expected, checkpoint)
    return model_recognizer(saved.load(), flags.FLAGS.batch_rows)


if __name__ == "__main__":
    cli.run_main(main)
