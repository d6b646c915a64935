r"""Word and character error rates of models fine-tuned for recognition.

    python -m experiments.evaluate_asr --checkpoint=runs/asr_lst --checkpoint=runs/asr_baseline \
        --data=test.jsonl --output=asr.json

prints a line per model and writes the same, with every utterance, as JSON. The data are spoken
texts (`docs/formats.md`); texts are normalized before they are compared
(`lst_jax/evaluation/error_rates.py`); costs are in units (`lst_jax/evaluation/answer_rates.py`).
"""

from __future__ import annotations

from absl import flags

from experiments.common import cli, speech_evaluation
from lst_jax.evaluation.answer_rates import judge
from lst_jax.inference.transcription import transcribe

speech_evaluation.define_flags()
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 256, "Text tokens of an answer.", 1, 2**20)


def main(argv: list[str]) -> None:
    """Evaluates as the flags say."""
    cli.check_no_arguments(argv)
    evaluation = speech_evaluation.SpeechEvaluation()
    utterances = [item.units for item in evaluation.spoken]
    for trained in evaluation.models():
        answers = transcribe(
            trained,
            utterances,
            max_tokens=_MAX_TOKENS.value,
            batch_rows=flags.FLAGS.batch_rows,
            names=[item.origin for item in evaluation.spoken],
        )
        texts = [answer.text for answer in answers]
        evaluation.add(trained, judge(evaluation.spoken, texts, answers))
    evaluation.finish()


if __name__ == "__main__":
    cli.run_main(main)
