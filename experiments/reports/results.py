"""Writes the pages of docs/results from the result files of the benchmarks.

    python -m experiments.reports.results

No figure on these pages is typed by hand. A test holds that they are what this program writes.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.benchmarks.job_runner import last_run, read_records
from experiments.common import cli
from experiments.common.gin_steps import read_config
from experiments.reports import model_results, speed_results, study_results
from experiments.reports.markdown import Record, gib, page, table
from experiments.studies.study_config import read_study, study_files
from lst_jax.files import write_file

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = _ROOT / "experiments" / "benchmarks" / "results"
PAGES = _ROOT / "docs" / "results"
# What study files require, of which pages say nothing.
_REQUIRED = ("CORPUS='CORPUS'", "PAIRS=('PAIRS',)", "RECOGNIZER='RECOGNIZER'")

_MODELS = ("420m", "630m", "810m", "1b", "1_1b", "1_4b", "1_8b", "7b")
_CONTENTS = {
    "models.md": "sizes of the model files",
    "demo.md": "story completion of the demo's models",
    "speech.md": "recognition and synthesis on the built-in corpus",
    "alignment.md": "word ends of aligners on voices held out and on real sentences",
    "studies.md": "the paper's questions, a study file each, and what each costs",
    "conventions.md": "what the published model's conventions do to the loss",
    "aot.md": "training steps compiled for TPU pods: memory, FLOPs, traffic",
    "cpu.md": "data pipeline, attention, training step, decoding, porting and digests on CPUs",
    "encoders.md": "speech encoders on a CPU: speed, FLOPs, units in bfloat16, feeding, memory",
    "voices.md": "vocoders: real-time factor, and what a recognizer hears of them",
    "gpus.md": "GPUs: kernels, memory, and what was timed",
}


def main(argv: list[str]) -> None:
    """Writes every page."""
    cli.check_no_arguments(argv)
    for name, text in pages().items():
        write_file(PAGES / name, text)


def pages(results: pathlib.Path = RESULTS) -> dict[str, str]:
    """Returns the pages by file name, made from the files in a directory of results."""

    def read(name: str) -> Record:
        return json.loads((results / f"{name}.json").read_text(encoding="utf-8"))

    def read_if(name: str) -> Record | None:
        return read(name) if (results / f"{name}.json").exists() else None

    models = {
        name: read_config([f"experiments/configs/models/{name}.gin"], []).model for name in _MODELS
    }
    return {
        "index.md": page("index", contents=_CONTENTS),
        "models.md": model_results.models_page(models),
        "demo.md": model_results.demo_page(read("demo")),
        "speech.md": model_results.speech_page(read("demo_asr"), read("demo_tts")),
        "alignment.md": model_results.alignment_page(read("train_ctc"), read("alignment")),
        "studies.md": study_results.studies_page(
            {file.stem: read_study([str(file)], _REQUIRED) for file in study_files()},
            read("study_bills")["bills"],
            {
                path.stem: json.loads(path.read_text(encoding="utf-8"))
                for path in sorted((results / "studies").glob("*.json"))
            },
        ),
        "conventions.md": model_results.conventions_page(read("conventions")),
        "aot.md": speed_results.aot_page(read("aot"), read_if("encoder_aot")),
        "cpu.md": speed_results.cpu_page(
            read("data_throughput"),
            read("attention"),
            read("train_step_cpu"),
            read("decode"),
            read("porting"),
            read("checkpoint_digests"),
            read_if("cpu_step"),
        ),
        "encoders.md": speed_results.encoders_page(
            read("speech_encoder"),
            read_if("speech_feed"),
        ),
        "voices.md": speed_results.voices_page(
            read_if("vocoder_speed"), read_if("voice_quality"), read_if("voice_recordings")
        ),
        "gpus.md": gpu_results(results),
    }


def gpu_results(results: pathlib.Path) -> str:
    """Returns the page of GPU results, made from the files in a directory of results."""
    kernels, plan = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
        for path in (results / "gpu_kernels.json", results / "gpu_plan.json")
    )
    runs = sorted((results / "accelerator").glob("*.jsonl"))
    return gpu_page(kernels, plan, {path.name: last_run(read_records(path)) for path in runs})


def gpu_page(
    kernels: Record | None, plan: Record | None, runs: Mapping[str, Sequence[Record]]
) -> str:
    """Returns the page of GPU results.

    Args:
      kernels: of `experiments.benchmarks.gpu_kernels`; None where there are none.
      plan: of `experiments.benchmarks.gpu_plan`; None where there is none.
      runs: records of `experiments.benchmarks.accelerator`, by the name of the file.
    """
    return page(
        "gpus",
        runs=[_run_values(name, records) for name, records in runs.items()],
        kernels=kernels,
        kernel_table=_kernels(kernels) if kernels else "",
        plan=plan,
        plan_table=_plan(plan) if plan else "",
    )


def _kernels(kernels: Record) -> str:
    columns = {
        "kernel": lambda x: x["kernel"],
        "head width": lambda x: x["width"],
        "registers a thread": lambda x: x["registers"],
        "spilled bytes": lambda x: x["spilled_bytes"],
        "shared memory, bytes": lambda x: f"{x['shared_memory_bytes']:,}",
    }
    return table(columns, kernels["results"])


def _plan(plan: Record) -> str:
    columns = {
        "model": lambda x: x["model"],
        "remat": lambda x: x["remat"],
        "one row": lambda x: gib(x["one_row_bytes"]),
        "each further row": lambda x: gib(x["further_row_bytes"]),
    }
    for gpu, limit in plan["limit_bytes"].items():
        columns[f"rows on one {gpu.upper()} ({gib(limit)})"] = lambda x, gpu=gpu: x["rows"][gpu]
    return table(columns, plan["results"])


def _run_values(name: str, records: Sequence[Record]) -> dict[str, Any]:
    """Returns the header and the texts of a run of the accelerator benchmark, a stage each."""
    header, *records = records
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["status"] == "ok":
            found.setdefault(record["stage"], []).append(record)
    parts = [make(found[stage]) for stage, make in _STAGES.items() if stage in found]
    bad = [x for x in records if x["status"] in ("failed", "cut off", "skipped")]
    if bad:
        columns = {
            "did not end well": lambda x: f"{x['stage']}: {x['job']}",
            "how": lambda x: x["status"],
            "why": lambda x: x.get("error") or x.get("reason"),
        }
        parts.append(table(columns, bad))
    return {"name": name, "header": header, "parts": parts}


def _device(records: Sequence[Record]) -> str:
    record = records[0]
    return (
        f"A product of two {record['product_size']:,}² matrices in bfloat16 runs at "
        f"{record['product_flops_per_second'] / 1e12:.0f} TFLOP/s, a copy moves "
        f"{record['copied_bytes_per_second'] / 1e12:.2f} TB/s. MFU is over "
        f"{record['peak_flops_per_second'] / 1e12:.0f} TFLOP/s ({record['peak_source']}).\n"
    )


def _numerics(records: Sequence[Record]) -> str:
    columns = {
        "backend": lambda x: x["backend"],
        "dtype": lambda x: x["dtype"],
        "head width": lambda x: x["width"],
        "largest relative error": lambda x: (
            f"{float(x['worst']):.1e}" if "worst" in x else f"not supported: {x['unsupported']}"
        ),
    }
    chosen = {
        "auto for": lambda x: f"{x['dtype']}, heads of {x['width']}",
        "takes": lambda x: x["auto"],
    }
    backends = table(columns, [x for x in records if "backend" in x])
    return backends + table(chosen, [x for x in records if "auto" in x])


def _step(records: Sequence[Record]) -> str:
    columns = {
        "model": lambda x: x["model"],
        "remat": lambda x: x["remat"],
        "rows": lambda x: x["rows"],
        "step": lambda x: f"{x['step']['median_ms']:.0f} ms",
        "patches/s": lambda x: f"{x['patches_per_second']:,.0f}",
        "tokens/s": lambda x: f"{x['tokens_per_second']:,.0f}",
        "MFU": lambda x: f"{x['mfu']:.1%}",
        "planned": lambda x: gib(x["memory"]["planned_peak"]),
    }
    return table(columns, [x for x in records if "patches_per_second" in x])


def _parts(records: Sequence[Record]) -> str:
    columns = {
        "part": lambda x: x["part"],
        "time": lambda x: f"{x['median_ms']:.1f} ms",
        "share": lambda x: f"{x['share']:.1%}",
        "MFU": lambda x: "" if x["mfu"] is None else f"{x['mfu']:.1%}",
    }
    record = records[0]
    title = f"Parts of the step, {record['model']}, {record['rows']} rows, {record['remat']}:"
    return f"{title}\n\n{table(columns, record['parts'])}"


def _attention(records: Sequence[Record]) -> str:
    columns = {
        "attention": lambda x: x["attention"],
        "backend": lambda x: x["backend"],
        "the same function": lambda x: "yes" if x["exact"] else "no, documents left out",
        "forward": lambda x: f"{x['forward_ms']:.2f} ms",
        "and backward": lambda x: f"{x['forward_backward_ms']:.2f} ms",
        "temporaries": lambda x: gib(x["forward_backward_temp_bytes"]),
        "TFLOP/s of what is read": lambda x: f"{x['model_flops_per_second'] / 1e12:.1f}",
    }
    return table(columns, records)


def _decoding(records: Sequence[Record]) -> str:
    columns = {
        "model": lambda x: f"{x['preset']}, {x['model']}",
        "rows": lambda x: x["rows"],
        "prompt": lambda x: f"{x['prompt_seconds']:g} s",
        "first unit": lambda x: f"{1e3 * x['first_unit_seconds']:.0f} ms",
        "units/s": lambda x: f"{x['units_per_second']:,.0f}",
    }
    return table(columns, records)


def _trace(records: Sequence[Record]) -> str:
    columns = {"kernel": lambda x: f"`{x[0][:80]}`", "a step": lambda x: f"{x[1]:.2f} ms"}
    heaviest = list(records[0]["kernels_ms_per_step"].items())[:15]
    return table(columns, heaviest)


def _convergence(records: Sequence[Record]) -> str:
    record = records[0]
    low, high = (record["last_tenth"][dtype] for dtype in ("bfloat16", "float32"))
    return (
        f"{record['preset']}, {record['steps']} steps on the same batches: loss of the last tenth "
        f"{low:.4f} in bfloat16, {high:.4f} in float32; largest difference of a step "
        f"{record['largest_difference']:.3f} nats.\n"
    )


_STAGES: dict[str, Callable[[Sequence[Record]], str]] = {
    "device": _device,
    "numerics": _numerics,
    "step": _step,
    "parts": _parts,
    "attention": _attention,
    "decoding": _decoding,
    "convergence": _convergence,
    "trace": _trace,
}


if __name__ == "__main__":
    cli.run_main(main)
