"""Builds the built-in corpus: spoken short stories, their text, and test sets made from them.

    python -m experiments.build_corpus --speech_stories=20000 --test_items=1000 --output=corpus

A study names the folder with `--gin.CORPUS`. What is there of an interrupted build stays, and the
same command goes on. It needs the `demo` extra.
"""

from __future__ import annotations

from absl import flags

from data_pipelines.microworld.corpus import MicroworldConfig
from experiments.common import cli
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.extras import check_extra

_OUTPUT = define_path("output", "Directory of the corpus.", required=True)
_SPEECH_STORIES = flags.DEFINE_integer(
    "speech_stories", MicroworldConfig.speech_stories, "Training stories that are spoken."
)
_TEXT_STORIES = flags.DEFINE_integer(
    "text_stories", MicroworldConfig.text_stories, "Training stories given as text."
)
_TEST_ITEMS = flags.DEFINE_integer(
    "test_items", MicroworldConfig.test_items, "Items of each test set."
)
_SEED = flags.DEFINE_integer("seed", MicroworldConfig.seed, "Of stories, voices and clustering.")
_NUM_WORKERS = flags.DEFINE_integer("num_workers", 2, "Processes; changes no byte.", 1, 1024)


def main(argv: list[str]) -> None:
    """Builds what is missing."""
    cli.check_no_arguments(argv)
    check_extra("demo", "espeakng_loader", "sklearn", "threadpoolctl")
    from data_pipelines.microworld.build import build_corpus  # which imports what the extra brings

    config = MicroworldConfig(
        seed=_SEED.value,
        text_stories=_TEXT_STORIES.value,
        speech_stories=_SPEECH_STORIES.value,
        test_items=_TEST_ITEMS.value,
        fit_stories=min(MicroworldConfig.fit_stories, _SPEECH_STORIES.value),
    )
    check_writable(_OUTPUT.value)
    paths = build_corpus(config, _OUTPUT.value, processes=_NUM_WORKERS.value)
    print(f"wrote {paths.root}; what it adds up to is in {paths.stats}", flush=True)


if __name__ == "__main__":
    cli.run_main(main)
