r"""What a trained model's patches say of words.

    python -m experiments.analyze_patches --checkpoint=runs/lst --records='data/dev/*' \
        --output=runs/lst/patches

draws words that occur often in aligned records and looks at the patch of each: cosine similarity
within and between words, silhouette and t-SNE of what the patch encoder makes; at every layer of
the global transformer, how often a linear probe names a held-out word, and how often the patch
decoder, given nothing but that layer's state, reads the word as text. The same model before
training, and mean unit embeddings, stand beside it. The folder gets `analysis.json`,
`analysis.html`, `tsne.png` and `layers.png`.
"""

from __future__ import annotations

import functools
import os
import pathlib

from absl import flags

from data_pipelines.records.storage import open_records
from experiments.common import cli
from experiments.common.encoders import check_same_encoder
from experiments.common.outputs import check_writable, make_progress_printer
from experiments.common.paths import define_path
from experiments.inspection.patch_analysis import analyze_words
from experiments.inspection.word_patches import SampleConfig, sample_words
from lst_jax.config import LSTConfig
from lst_jax.extras import check_extra
from lst_jax.files import new_directory, refuse_to_replace
from lst_jax.inference.trained_model import SavedModel, open_trained_model
from lst_jax.settings import BatchRows, validate_value
from lst_jax.sharding import batch_mesh_size

_CHECKPOINT = define_path(
    "checkpoint", "Workdir of a run (its last checkpoint) or WORKDIR/STEP.", required=True
)
_RECORDS = define_path(
    "records", "Directory of aligned records, or a pattern for several.", required=True
)
_OUTPUT = define_path("output", "Folder of the results, new or empty.", required=True)
_TOKENIZER = define_path(
    "tokenizer", "The run's SentencePiece model, where it is no longer at its place."
)
_WORDS = flags.DEFINE_integer("words", SampleConfig.words, "Different words, at most.")
_OCCURRENCES = flags.DEFINE_integer("occurrences", SampleConfig.occurrences, "Of each word.")
_MAX_RECORDS = flags.DEFINE_integer(
    "max_records", SampleConfig.max_records, "Utterances that are searched for words."
)
_SEED = flags.DEFINE_integer("seed", SampleConfig.seed, "Of all that is drawn.")
_BATCH_ROWS = flags.DEFINE_integer("batch_rows", 8, "Rows of a batch for each device.")


def main(argv: list[str]) -> None:
    """Analyzes as the flags say."""
    cli.check_no_arguments(argv)
    check_extra("demo", "jinja2", "matplotlib", "sklearn")
    from experiments.reports.patch_report import format_summary, write_patch_report

    config = SampleConfig(_WORDS.value, _OCCURRENCES.value, _MAX_RECORDS.value, _SEED.value)
    validate_value(BatchRows, _BATCH_ROWS.value, "--batch_rows")
    output = pathlib.Path(_OUTPUT.value)
    check_writable(output.parent)
    if os.path.lexists(output):
        refuse_to_replace(output)
    saved = open_trained_model(_CHECKPOINT.value, _TOKENIZER.value)
    _check_patches(saved)
    description = saved.description
    source = open_records(
        _RECORDS.value,
        description.vocabulary,
        fingerprint=description.tokenizer_fingerprint,
        kind="speech",
    )
    check_same_encoder(
        f"records {_RECORDS.value}",
        source.metadata.encoder_fingerprint,
        description.encoder_fingerprint,
        str(saved.path),
    )
    patching, patches = description.data.patching, description.data.patches_per_row or 1024
    assert patching is not None  # `open_trained_model` checks it
    say = functools.partial(print, flush=True)
    say("words of the records")
    sample = sample_words(source, config, patching, description.vocabulary, patches)
    trained = saved.load()
    analysis = analyze_words(
        trained,
        sample,
        seed=config.seed,
        batch_rows=_BATCH_ROWS.value * batch_mesh_size(trained.mesh),
        patches_per_row=patches,
        report=say,
        progress=make_progress_printer,
    )
    say("figures")
    made_from = {
        "checkpoint": str(trained.checkpoint),
        "step": trained.step,
        "records": _RECORDS.value,
        "strategy": patching.strategy,
        "silence": patching.silence,
        "seed": config.seed,
    }
    with new_directory(output, refuse_to_replace) as directory:
        write_patch_report(directory, analysis, made_from)
    print(f"{format_summary(analysis)}\n\nreport: {output / 'analysis.html'}", flush=True)


def _check_patches(saved: SavedModel) -> None:
    if not isinstance(saved.description.model, LSTConfig):
        raise ValueError(
            f"{saved.path} is an unpatched baseline, which has no patches, expected an LST"
        )
    if not saved.description.vocabulary.units.is_plain:
        raise ValueError(f"{saved.path} has joined or deduplicated units, expected plain ones")


if __name__ == "__main__":
    cli.run_main(main)
