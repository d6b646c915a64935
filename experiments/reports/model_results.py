"""Pages about models: sizes, the demo's accuracies, recognition and synthesis, conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.reports.demo_text import describe_results, read_seed_spread
from experiments.reports.markdown import (
    Record,
    page,
    percent_with_interval,
    table,
)
from lst_jax.config import ModelConfig, baseline_of
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
    return page("models", ids=ids, sizes=table(columns, configs.items()))


def demo_page(demo: Record) -> str:
    """Returns the page of the demo.

    Args:
      demo: of `experiments.demo`, with what was run where.
    """
    return page(
        "demo",
        demo=demo,
        spread=read_seed_spread(),
        minutes=_minutes,
        accuracies=_accuracies(demo["models"]),
        sentences=describe_results(demo["models"], demo.get("covers_seeds", False)),
        costs=_costs(demo["models"]),
    )


def _accuracies(models: Sequence[Record]) -> str:
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


def _costs(models: Sequence[Record]) -> str:
    columns = {
        "model": lambda x: x["model"],
        "parameters": lambda x: f"{x['parameters']:,}",
        "steps": lambda x: x["training"]["step"],
        "patches": lambda x: f"{x['training']['total_patches']:,}",
        "tokens": lambda x: f"{x['training']['total_tokens']:,}",
        "speech units": lambda x: f"{x['training']['total_speech_units']:,}",
        "mean patch": lambda x: f"{x['mean_patch_length']:.2f}",
        "PFLOPs": lambda x: f"{x['training']['total_flops'] / 1e15:.4f}",
        # Of steps alone, where the run has measured that.
        "time": lambda x: _minutes(x.get("training_seconds", x["training"]["total_seconds"])),
    }
    return table(columns, models)


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
    return page("speech", count=count, sampling=sampling, errors=table(columns, rows))


def alignment_page(trained: Record, compare: Record) -> str:
    """Returns the page of the small CTC model and of aligners on real sentences."""
    ends = {
        "words": lambda x: x["words"],
        "median": lambda x: f"{x['median_ms']:.0f} ms",
        "95 % within": lambda x: f"{x['p95_ms']:.0f} ms",
        "within 100 ms": lambda x: f"{x['within_100_ms']:.1%}",
    }
    columns = {
        "": lambda x: x["name"],
        "sentences": lambda x: x["recordings"],
        **ends,
        "WER of letters": lambda x: f"{x['wer']:.1%}",
        "CER": lambda x: f"{x['cer']:.1%}",
        "WER of words": lambda x: f"{x['listed_wer']:.1%}",
        "CER of them": lambda x: f"{x['listed_cer']:.1%}",
        "refused": lambda x: x["rejected"],
    }
    held_out = [{"name": name, **x} for name, x in trained["held_out"].items()]
    pairs = {"": lambda x: x["one"], "and": lambda x: x["other"], **ends}
    return page(
        "alignment",
        train=trained["training"],
        compare=compare,
        held_out=table(columns, held_out),
        pairs=table(pairs, compare["pairs"]),
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
    return page("conventions", report=report, seeds=seeds, gaps=table(columns, variants))


def _gap(values: Sequence[float]) -> str:
    mean, error = values
    return f"{mean:+.3f} ± {error:.3f}".replace("-", "−")
