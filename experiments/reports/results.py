"""Writes the pages of docs/results from the result files of the benchmarks.

    python -m experiments.reports.results

No figure on these pages is typed by hand. A test holds that they are what this program writes.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from experiments.benchmarks.job_runner import last_run, read_records
from experiments.common import cli

_ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
RESULTS = _ROOT / "experiments" / "benchmarks" / "results"
PAGES = _ROOT / "docs" / "results"

_GIB = 2.0**30
_NOTE = "<!-- Written by python -m experiments.reports.results; do not edit. -->"

Record = Mapping[str, Any]


def main(argv: list[str]) -> None:
    """Writes every page."""
    cli.check_no_arguments(argv)
    PAGES.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (PAGES / name).write_text(page, encoding="utf-8")


def pages(results: pathlib.Path = RESULTS) -> dict[str, str]:
    """Returns the pages by file name, made from the files in a directory of results."""
    runs = sorted((results / "accelerator").glob("*.jsonl"))
    return {
        "gpus.md": gpu_page(
            json.loads((results / "gpu_kernels.json").read_text(encoding="utf-8")),
            json.loads((results / "gpu_plan.json").read_text(encoding="utf-8")),
            {path.name: last_run(read_records(path)) for path in runs},
        )
    }


def gpu_page(kernels: Record, plan: Record, runs: Mapping[str, Sequence[Record]]) -> str:
    """Returns the page of GPU results.

    Args:
      kernels: of `experiments.benchmarks.gpu_kernels`.
      plan: of `experiments.benchmarks.gpu_plan`.
      runs: records of `experiments.benchmarks.accelerator`, by the name of the file.
    """
    lines = [_NOTE, "", "# GPU results", ""]
    for name, records in runs.items():
        lines += _run_section(name, records)
    if not runs:
        lines += ["Nothing has been timed on a GPU yet. What follows was compiled for GPUs.", ""]
    lines += ["## Kernels, compiled for sm_90a", *_made_by(kernels)]
    columns = {
        "kernel": lambda x: x["kernel"],
        "head width": lambda x: x["width"],
        "registers a thread": lambda x: x["registers"],
        "spilled bytes": lambda x: x["spilled_bytes"],
        "shared memory, bytes": lambda x: f"{x['shared_memory_bytes']:,}",
    }
    lines += _table(columns, kernels["results"])
    lines += ["## Rows of a batch that fit, compiled", *_made_by(plan)]
    lines += [
        "A row has 4,096 patches and 5,632 tokens. The limit is 95 % of the card's memory.",
        "",
    ]
    columns = {
        "GPU": lambda x: x["gpu"],
        "model": lambda x: x["model"],
        "remat": lambda x: x["remat"],
        "one row": lambda x: _gib(x["one_row_bytes"]),
        "each further row": lambda x: _gib(x["further_row_bytes"]),
        "limit": lambda x: _gib(x["limit_bytes"]),
        "rows": lambda x: x["rows"],
    }
    lines += _table(columns, plan["results"])
    return "\n".join(lines).rstrip() + "\n"


def _run_section(name: str, records: Sequence[Record]) -> list[str]:
    """A run of the accelerator benchmark: its tables, in the order of the stages."""
    header, *records = records
    versions = ", ".join(f"{package} {v}" for package, v in header["versions"].items())
    lines = [
        f"## {header['device']}, {header['started'][:10]}",
        "",
        f"Driver {header['driver']}, Python {header['python']}, {versions}. Records: "
        f"`experiments/benchmarks/results/accelerator/{name}`, by `{header['command']}`.",
        "",
    ]
    found: dict[str, list[Record]] = {}
    for record in records:
        if record["status"] == "ok":
            found.setdefault(record["stage"], []).append(record)
    for stage, make in _STAGES.items():
        if stage in found:
            lines += make(found[stage])
    bad = [x for x in records if x["status"] in ("failed", "cut off", "skipped")]
    if bad:
        columns = {
            "did not end well": lambda x: f"{x['stage']}: {x['job']}",
            "how": lambda x: x["status"],
            "why": lambda x: x.get("error") or x.get("reason"),
        }
        lines += _table(columns, bad)
    return lines


def _device(records: Sequence[Record]) -> list[str]:
    record = records[0]
    return [
        f"A product of two {record['product_size']:,}² matrices in bfloat16 runs at "
        f"{record['product_flops_per_second'] / 1e12:.0f} TFLOP/s, a copy moves "
        f"{record['copied_bytes_per_second'] / 1e12:.2f} TB/s. MFU is over "
        f"{record['peak_flops_per_second'] / 1e12:.0f} TFLOP/s ({record['peak_source']}).",
        "",
    ]


def _numerics(records: Sequence[Record]) -> list[str]:
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
    return [
        *_table(columns, [x for x in records if "backend" in x]),
        *_table(chosen, [x for x in records if "auto" in x]),
    ]


def _step(records: Sequence[Record]) -> list[str]:
    columns = {
        "model": lambda x: x["model"],
        "remat": lambda x: x["remat"],
        "rows": lambda x: x["rows"],
        "step": lambda x: f"{x['step']['median_ms']:.0f} ms",
        "patches/s": lambda x: f"{x['patches_per_second']:,.0f}",
        "tokens/s": lambda x: f"{x['tokens_per_second']:,.0f}",
        "MFU": lambda x: f"{x['mfu']:.1%}",
        "planned": lambda x: _gib(x["memory"]["planned_peak"]),
    }
    return _table(columns, [x for x in records if "patches_per_second" in x])


def _parts(records: Sequence[Record]) -> list[str]:
    columns = {
        "part": lambda x: x["part"],
        "time": lambda x: f"{x['median_ms']:.1f} ms",
        "share": lambda x: f"{x['share']:.1%}",
        "MFU": lambda x: "" if x["mfu"] is None else f"{x['mfu']:.1%}",
    }
    record = records[0]
    title = f"Parts of the step, {record['model']}, {record['rows']} rows, {record['remat']}:"
    return [title, "", *_table(columns, record["parts"])]


def _attention(records: Sequence[Record]) -> list[str]:
    columns = {
        "attention": lambda x: x["attention"],
        "backend": lambda x: x["backend"],
        "the same function": lambda x: "yes" if x["exact"] else "no, documents left out",
        "forward": lambda x: f"{x['forward_ms']:.2f} ms",
        "and backward": lambda x: f"{x['forward_backward_ms']:.2f} ms",
        "temporaries": lambda x: _gib(x["forward_backward_temp_bytes"]),
        "TFLOP/s of what is read": lambda x: f"{x['model_flops_per_second'] / 1e12:.1f}",
    }
    return _table(columns, records)


def _decoding(records: Sequence[Record]) -> list[str]:
    columns = {
        "model": lambda x: f"{x['preset']}, {x['model']}",
        "rows": lambda x: x["rows"],
        "prompt": lambda x: f"{x['prompt_seconds']:g} s",
        "first unit": lambda x: f"{1e3 * x['first_unit_seconds']:.0f} ms",
        "units/s": lambda x: f"{x['units_per_second']:,.0f}",
    }
    return _table(columns, records)


def _trace(records: Sequence[Record]) -> list[str]:
    columns = {"kernel": lambda x: f"`{x[0][:80]}`", "a step": lambda x: f"{x[1]:.2f} ms"}
    heaviest = list(records[0]["kernels_ms_per_step"].items())[:15]
    return _table(columns, heaviest)


def _convergence(records: Sequence[Record]) -> list[str]:
    record = records[0]
    low, high = (record["last_tenth"][dtype] for dtype in ("bfloat16", "float32"))
    return [
        f"{record['preset']}, {record['steps']} steps on the same batches: loss of the last tenth "
        f"{low:.4f} in bfloat16, {high:.4f} in float32; largest difference of a step "
        f"{record['largest_difference']:.3f} nats.",
        "",
    ]


_STAGES: dict[str, Callable[[Sequence[Record]], list[str]]] = {
    "device": _device,
    "numerics": _numerics,
    "step": _step,
    "parts": _parts,
    "attention": _attention,
    "decoding": _decoding,
    "convergence": _convergence,
    "trace": _trace,
}


def _made_by(report: Record) -> list[str]:
    versions = ", ".join(f"{package} {v}" for package, v in report["versions"].items())
    return ["", f"`{report['command']}`, {versions}.", ""]


def _table(columns: Mapping[str, Callable[[Any], Any]], rows: Iterable[Any]) -> list[str]:
    """A Markdown table, and an empty line; nothing where there are no rows."""
    body = [[str(show(row)).replace("|", "\\|") for show in columns.values()] for row in rows]
    if not body:
        return []
    cells = [list(columns), ["---"] * len(columns), *body]
    return [*(f"| {' | '.join(line)} |" for line in cells), ""]


def _gib(size: float) -> str:
    return f"{size / _GIB:.2f} GiB"


if __name__ == "__main__":
    cli.run_main(main)
