"""Pages about speed and memory: compiled pods, and what was measured on CPUs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.benchmarks.aot_tables import format_tables
from experiments.reports.tables import Record, page, source, table

_MIB = 2.0**20


def aot_page(report: Record) -> str:
    """Returns the page of training steps compiled for TPU pods."""
    reports = report["reports"]
    pods, scaling, policies, meshes = format_tables(reports).split("\n\n")
    setup = next(iter(reports.values()))["setup"]
    versions = ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    return page(
        "Pods, compiled ahead of time",
        [
            f"`{report['command']}`, {versions}; {source('aot.json')}. One row of "
            f"{setup['patches_per_row']:,} patches and {setup['tokens_per_row']:,} tokens for "
            "each part of the batch, which is a chip where tensor = 1.",
            "",
            "**None of this is a measurement.** MFU counts the model's FLOPs alone, over the "
            'largest of the three times, as if they overlapped perfectly; "without overlap" is '
            "over their sum. A real step lies between them at best. HBM traffic counts operands "
            "and results of the compiled instructions and is an estimate, as are the links. The "
            "kernels' work is that of a typical batch.",
            "",
            pods,
            "",
            "## The same rows a chip",
            "",
            "FLOPs a chip stay the same. On 16 chips the compiler gathers parameters in loops "
            "interleaved with the products, which read and write partial results, so there is "
            "more HBM traffic.",
            "",
            scaling,
            "",
            "## Remat policies",
            "",
            "`none` keeps every activation, `dots` the results of matrix products, `full` the "
            "layers' inputs. What is above the model's FLOPs without remat is attention's blocks "
            "at the edges of intervals, and the padding of widths.",
            "",
            policies,
            "",
            "## Meshes",
            "",
            "The last one has two slices. Its links are those within a slice and the network "
            "between them.",
            "",
            meshes,
        ],
    )


def cpu_page(
    data: Record, attention: Record, step: Record, decoding: Record, porting: Record
) -> str:
    """Returns the page of what was measured on CPUs, one section for each benchmark."""
    return page(
        "Measured on CPUs",
        [f"Two cores of an {data['cpu']}.", ""],
        _data(data),
        _attention(attention),
        _step(step),
        _decoding(decoding),
        _porting(porting),
    )


def _heading(title: str, report: Record, file: str) -> list[str]:
    versions = [f"{name} {version}" for name, version in report.get("versions", {}).items()]
    return [
        f"## {title}",
        "",
        "; ".join([f"`{report['command']}`", *versions, source(file)]) + ".",
        "",
    ]


def _data(report: Record) -> list[str]:
    shape = report["shape"]
    columns = {
        "strategy": lambda x: x["strategy"],
        "worker processes": lambda x: x["num_workers"],
        "tokens/s": lambda x: f"{x['tokens_per_second'] / 1e6:.2f} M",
        "real patch slots": lambda x: f"{x['patch_slots_real']:.1%}",
        "real token slots": lambda x: f"{x['token_slots_real']:.1%}",
        "tokens a patch": lambda x: f"{x['tokens_per_patch']:.2f}",
    }
    return [
        *_heading("Records to batches", report, "data_throughput.json"),
        f"Batches of {shape['batch_size']} rows of {shape['patches_per_row']:,} patches and "
        f"{shape['tokens_per_row']:,} tokens, speech and text mixed {shape['mixture']}. "
        "0 worker processes: one core. `curriculum` is its aligned phase, `none` the unpatched "
        "baseline.",
        "",
        *table(columns, report["results"]),
    ]


def _attention(report: Record) -> list[str]:
    columns = {
        "row": lambda x: "packed documents" if x["documents"] == "packed" else "one document",
        "attention": lambda x: x["attention"],
        "tokens": lambda x: f"{x['tokens']:,}",
        "forward": lambda x: f"{x['forward']:.1f} ×",
        "forward and backward": lambda x: f"{x['forward_backward']:.1f} ×",
        "memory grows": lambda x: (
            f"{x['blocked_memory_growth']:.1f} × as tokens grow {x['tokens_growth']:.0f} ×"
        ),
    }
    shape = report["shape"]
    return [
        *_heading("Blocked against dense attention", report, "attention.json"),
        f"How many times as fast the blocked backend is, in {shape['dtype']}, with one head and "
        f"windows of {shape['window']}. Dense backward passes over ten seconds were timed once.",
        "",
        *table(columns, report["blocked_against_dense"]),
    ]


def _step(report: Record) -> list[str]:
    (result,) = report["results"]
    parts = {
        "part": lambda x: x["part"],
        "time": lambda x: f"{x['median_ms']:.0f} ms",
        "share": lambda x: f"{x['share']:.0%}",
    }
    # Files of before the units of speech and the patches were told apart have the older key.
    rate = result.get("patches_per_second", result.get("units_per_second"))
    total = result["breakdown"]["sum_ms"]
    median = result["step"]["median_ms"]
    return [
        *_heading("The training step", report, "train_step_cpu.json"),
        f"The tiny shape, {result['rows']} rows, {report['configuration']['model']['dtype']}: "
        f"{median:.0f} ms a step, {rate:,.0f} patches/s, MFU {result['mfu']:.0%} of what a matrix "
        f"product reaches here. The parts, each timed alone, add up to {total:.0f} ms:",
        "",
        *table(parts, result["breakdown"]["parts"]),
    ]


def _decoding(report: Record) -> list[str]:
    columns = {
        "model": lambda x: x["model"],
        "rows": lambda x: x["rows"],
        "prompt": lambda x: f"{x['prompt_seconds']:g} s",
        "first unit": lambda x: f"{x['first_unit_seconds']:.1f} s",
        "units/s": lambda x: f"{x['units_per_second']:.1f}",
        "global steps a unit": lambda x: f"{x['global_steps_per_unit']:.2f}",
        "caches": lambda x: f"{x['cache_bytes'] / _MIB:.0f} MiB",
    }
    units = report["results"][0]["units"] // report["results"][0]["rows"]
    order = sorted(
        report["results"], key=lambda x: (x["model"] == "baseline", x["rows"], x["prompt_seconds"])
    )
    return [
        *_heading("Decoding", report, "decode.json"),
        f"The 420m shape with random parameters in {report['model']['dtype']} against its "
        f"unpatched baseline; {units:,} units of speech a row after the prompt.",
        "",
        *table(columns, order),
        *_ratios(report["ratios"]),
    ]


def _ratios(ratios: Mapping[str, float]) -> list[str]:
    rows = list(ratios.items())
    columns = {
        "at 30 s and eight rows": lambda x: x[0],
        "ratio": lambda x: f"{x[1]:.2f}" if x[1] < 100 else f"{x[1]:.0f}",
    }
    return [
        *table(columns, rows),
        '"Recomputed" runs the whole sequence again for every unit.',
        "",
    ]


def _porting(report: Record) -> list[str]:
    rows: Sequence[Record] = report["ports"]
    before = ["orbax", *(x["to"] for x in rows[:-1])]
    columns = {
        "from": lambda x: x[0],
        "to": lambda x: x[1]["to"],
        "largest resident set": lambda x: f"{x[1]['peak_gb']:.2f} GB",
        "time": lambda x: f"{x[1]['seconds']:.0f} s",
    }
    bitwise = "bitwise equal" if report["round_trip_bitwise"] else "not bitwise equal"
    name = report["gin_file"].rpartition("/")[2].removesuffix(".gin")
    return [
        *_heading("Porting checkpoints", report, "porting.json"),
        f"The {name} shape in float32, {report['model_gb']:.2f} GB; after the round trip "
        f"{bitwise}.",
        "",
        *table(columns, list(zip(before, rows, strict=True))),
    ]
