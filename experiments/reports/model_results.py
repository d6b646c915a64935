"""Pages about models: sizes, the demo's accuracies, recognition and synthesis, conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.reports.tables import (
    Record,
    interval_text,
    page,
    percent_with_interval,
    source,
    table,
)
from lst_jax.config import ModelConfig, baseline_of
from lst_jax.evaluation.tables import format_percent
from lst_jax.model.models import count_parameters


def models_page(configs: Mapping[str, ModelConfig]) -> str:
    """Returns the sizes of model files, by the name of the file."""
    columns = {
        "file": lambda x: x[0],
        "width local / global": lambda x: f"{x[1].dim_local} / {x[1].dim_global}",
        "layers enc / global / dec": lambda x: (
            f"{x[1].num_layers_encoder} / {x[1].num_layers_global} / {x[1].num_layers_decoder}"
        ),
        "heads": lambda x: x[1].num_heads_global,
        "LST": lambda x: f"{count_parameters(x[1]):,}",
        "baseline": lambda x: f"{count_parameters(baseline_of(x[1])):,}",
    }
    ids = f"{next(iter(configs.values())).vocab_size:,}"
    text = [
        "Parameters of the files in `experiments/configs/models`, counted from the configurations,"
        f" with the {ids} ids of Llama 2's tokenizer and 502 units. The baseline is what"
        " `runs/baseline.gin` makes of the same file.",
        "",
        "The paper prints layers and heads of its 1B model only. The widths of the others are ours,"
        " chosen to meet the sizes of its scaling study. Every patch has k = 2 latent vectors, so"
        " the global width is twice the local one.",
        "",
    ]
    return page("Model sizes", text, table(columns, configs.items()))


def demo_page(demo: Record, further: Record, earlier: Record) -> str:
    """Returns the page of the demo.

    Args:
      demo: of `experiments.demo`, with what was run where.
      further: accuracies of an earlier run's checkpoints on further items.
      earlier: of another run, as `demo`.
    """
    names = [model["model"] for model in demo["models"]]
    return page(
        "Demo results",
        [
            f"`{demo['command']}`",
            "",
            f"{demo['machine']}; {demo['date']}, Python {demo['python']}, jax {demo['jax']}; "
            f"{source('demo.json')}. Installation took {demo['install_seconds']} s, the rest "
            f"{_minutes(demo['run_seconds'])}.",
            "",
            "Accuracy in percent with its 95 % Wilson interval; prompt → ending, S speech, T text. "
            "Bold: the interval lies above chance.",
            "",
        ],
        _accuracies(demo["models"]),
        _apart(demo["models"]),
        _costs(demo["models"]),
        [
            "The budget is compute-controlled: equal steps and equal patches a step. For the "
            "baseline a token is a patch, so the LST sees more tokens with the same patches.",
            "",
            "The demo mixes more speech than the paper's 1:2 and leaves half of the utterances "
            "whole. In speech, minutes of training teach the topic of a story, not who did what "
            "to whom. Bags of words and endings alone stay at chance on these sets; a rule that "
            "takes the ending mentioned last does not (`data_pipelines/microworld/stories.py` "
            "says how far it gets).",
            "",
            "## Items that no choice has seen",
            "",
            "The demo's settings (speakers, mixture, batch, steps) were chosen while looking at "
            "the items above. So the checkpoints of an earlier run were scored on further items "
            f"({source('demo_further_items.json')}, "
            f"`{further['scored_with']}`, {further['date']}).",
            "",
        ],
        _further(further["results"]),
        [
            "Here, at two million parameters and one training run each, the baseline is ahead of "
            "the LST in speech on topics. The paper's gains are at hundreds of times this size, "
            "and this demo does not show them.",
            "",
            "## Another run",
            "",
            f"How much of this is noise: {earlier['what']} ({source('demo_earlier_run.json')}, "
            f"{_minutes(earlier['run_seconds'])}).",
            "",
        ],
        _noise(earlier["models"], demo["models"], names),
    )


def _accuracies(models: Sequence[Record]) -> list[str]:
    columns = {
        "set": lambda x: x[0]["set_name"],
        "direction": lambda x: x[0]["direction"].replace("-", "→"),
        "chance": lambda x: f"{100 * x[0]['chance']:.0f}",
        "n": lambda x: x[0]["n"],
    }
    for i, model in enumerate(models):
        columns[model["model"]] = lambda x, i=i: _accuracy(x[i])
    return table(columns, zip(*(model["results"] for model in models), strict=True))


def _accuracy(result: Record) -> str:
    text = percent_with_interval(result["accuracy"], result["interval"])
    return f"**{text}**" if result["interval"][0] > result["chance"] else text


def _apart(models: Sequence[Record]) -> list[str]:
    """Which results of two models have intervals without a common point."""
    first, second = models
    apart = [
        f"{a['set_name']} {a['direction'].replace('-', '→')}"
        for a, b in zip(first["results"], second["results"], strict=True)
        if a["interval"][1] < b["interval"][0] or b["interval"][1] < a["interval"][0]
    ]
    if not apart:
        return ["In no line do the intervals of the two models lie apart.", ""]
    return [f"The intervals of the two models lie apart in {', '.join(apart)}.", ""]


def _costs(models: Sequence[Record]) -> list[str]:
    columns = {
        "model": lambda x: x["model"],
        "parameters": lambda x: f"{x['parameters']:,}",
        "steps": lambda x: x["training"]["step"],
        "patches": lambda x: f"{x['training']['total_patches']:,}",
        "tokens": lambda x: f"{x['training']['total_tokens']:,}",
        "speech units": lambda x: f"{x['training']['total_speech_units']:,}",
        "mean patch": lambda x: f"{x['mean_patch_length']:.2f}",
        "PFLOPs": lambda x: f"{x['training']['total_flops'] / 1e15:.4f}",
        "time": lambda x: _minutes(x["training"]["total_seconds"]),
    }
    return table(columns, models)


def _further(results: Sequence[Record]) -> list[str]:
    sets = list(dict.fromkeys(x["set"] for x in results))
    models = list(dict.fromkeys((x["model"], x["direction"]) for x in results))
    found = {(x["model"], x["direction"], x["set"]): x for x in results}
    columns = {"model": lambda x: x[0], "direction": lambda x: x[1]}
    for name in sets:
        columns[f"{name} (n = {found[(*models[0], name)]['n']})"] = lambda x, name=name: (
            f"{found[(*x, name)]['accuracy']} {interval_text(*found[(*x, name)]['interval'])}"
        )
    return table(columns, models)


def _noise(earlier: Sequence[Record], later: Sequence[Record], names: Sequence[str]) -> list[str]:
    rows = [
        (name, a, b)
        for name, old, new in zip(names, earlier, later, strict=True)
        for a, b in zip(old["results"], new["results"], strict=True)
        if a["direction"] in ("S-S", "T-T")
    ]
    columns = {
        "model": lambda x: x[0],
        "set": lambda x: x[1]["set_name"],
        "direction": lambda x: x[1]["direction"].replace("-", "→"),
        "earlier run": lambda x: format_percent(x[1]["accuracy"]),
        "this run": lambda x: format_percent(x[2]["accuracy"]),
    }
    return table(columns, rows)


def _minutes(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds} s"


def speech_page(asr: Record, tts: Record) -> str:
    """Returns the page of recognition and synthesis by fine-tuned models."""
    rows = [
        (f"recognition, {_kind(x)}", x["errors"], x["context_patches"], x["context_tokens"])
        for x in asr["results"]
    ]
    rows += [
        (f"synthesis, {_kind(x)}", x["errors"], x["generation_patches"], x["generation_tokens"])
        for x in tts["results"]
    ]
    rows.append(("the stories' own speech", tts["own_speech"], None, None))
    columns = {
        "": lambda x: x[0],
        "WER": lambda x: percent_with_interval(x[1]["wer"]["rate"], x[1]["wer"]["interval"]),
        "CER": lambda x: percent_with_interval(x[1]["cer"]["rate"], x[1]["cer"]["interval"]),
        "patches": lambda x: "" if x[2] is None else f"{x[2]:,}",
        "a token": lambda x: "" if x[2] is None else f"{x[2] / x[3]:.2f}",
    }
    sampling = ", ".join(f"{k} {v}" for k, v in tts["sampling"].items() if v is not None)
    count = len(asr["results"][0]["errors"]["utterances"])
    return page(
        "Recognition and synthesis",
        [
            "Both of the demo's models, fine-tuned with `runs/asr.gin` or `runs/tts.gin` and then "
            "`runs/demo_finetune.gin`, the baseline in rows long enough for two stories. The data "
            f"are the first {count} held-out stories of the demo. Recognition is greedy "
            f"({source('demo_asr.json')}). Synthesis samples ({sampling}) and is heard by the "
            f"recognizer of the first line ({source('demo_tts.json')}).",
            "",
            "Percent of words and characters, in lower case without punctuation, with 95 % "
            "bootstrap intervals over utterances. Patches are those of the speech: of the context "
            "in recognition, of what is generated in synthesis.",
            "",
        ],
        table(columns, rows),
        [
            "One run each, at two million parameters. Patches are the paper's measure of cost. "
            "The LST saw more tokens with fewer patches, and recognizes better. Its own speech is "
            "understood less well than the baseline's, which computes every unit in its large "
            "transformer.",
            "",
            "Fine-tuned on whole stories alone, the models expect whole stories: of a prompt "
            "without its ending a recognizer makes up the ending.",
            "",
        ],
    )


def _kind(result: Record) -> str:
    return "LST" if result["model"] == "LatentSpeechTextTransformer" else "baseline"


_CONVENTIONS = {
    "residual added twice": ("a cross-attention's residual is added", "once", "twice"),
    "cross-attention across documents": (
        *("cross-attention reads", "its document", "other documents, too"),
    ),
    "patches visible one token early": (
        *("a patch is used", "once proven complete", "one token early"),
    ),
}


def conventions_page(report: Record) -> str:
    """Returns what the published model's conventions do to the loss."""
    columns = {
        "setting": lambda x: _CONVENTIONS[x["variant"]][0],
        "here": lambda x: _CONVENTIONS[x["variant"]][1],
        "published": lambda x: _CONVENTIONS[x["variant"]][2],
        "text, published − here": lambda x: _gap(x["text_gap"]),
        "speech, published − here": lambda x: _gap(x["speech_gap"]),
    }
    variants = [x for x in report["results"] if x["variant"] in _CONVENTIONS]
    seeds = len(next(iter(report["runs"].values())))
    return page(
        "The published model's conventions",
        [
            f"The tiny model on the built-in corpus, {report['steps']} steps, {seeds} seeds, the "
            "same batches for all: nats a target, mean of the last third, ± standard error over "
            f"the seeds. `{report['command']}`; {source('conventions.json')}.",
            "",
        ],
        table(columns, variants),
        [
            "What follows from this is on the page [differences](../differences.md).",
        ],
    )


def _gap(values: Sequence[float]) -> str:
    mean, error = values
    return f"{mean:+.3f} ± {error:.3f}".replace("-", "−")
