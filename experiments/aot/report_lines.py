"""What a compiled step takes, as lines of quantity, value and how the value was made."""

from __future__ import annotations

from typing import Any


def format_table(report: dict[str, Any]) -> str:
    """Returns the report as lines of quantity, value and how the value was made."""
    lines = [_header(report), *_memory_lines(report)]
    if report["fits"] and "work" in report:
        lines += [*_work_lines(report), *_roofline_lines(report)]
    widths = [max(len(line[i]) for line in lines) for i in (0, 1)]
    return "\n".join(
        f"{name:{widths[0]}}  {value:>{widths[1]}}  {how}".rstrip() for name, value, how in lines
    )


_Line = tuple[str, str, str]


def _header(report: dict[str, Any]) -> _Line:
    setup = report["setup"]
    mesh = " ".join(f"{axis}={size}" for axis, size in setup["mesh"].items())
    slices = f"{setup['slices']} × " if setup["slices"] > 1 else ""
    what = f"{setup['rows']} rows of {setup['patches_per_row']} patches, remat "
    return f"{slices}{setup['topology']}", mesh, what + setup["model"]["remat"]


def _memory_lines(report: dict[str, Any]) -> list[_Line]:
    memory = report["memory"]
    peak = ("peak", _gib(memory["peak"]), f"of {_gib(memory['hbm'])} of HBM")
    if "limit" in memory:  # the compiler gave up at the first figure that is too large
        how = f"at least; the compiler has {_gib(memory['limit'])} of {_gib(memory['hbm'])} of HBM"
        peak = (*peak[:2], how)
    if "exceeded_by" in memory:
        remedy = report.get("remedy")
        advice = f"it fits with remat {remedy}" if remedy else "no remat policy makes it fit"
        excess = _gib(memory["exceeded_by"])
        return [peak, ("does not fit", excess, f"too much; {advice}")]
    made = "memory_analysis(), a device"
    lines = [(name, _gib(memory[name]), made) for name in ("arguments", "outputs", "temporaries")]
    sum_of = "; arguments + outputs - aliased + temporaries + code"
    return [*lines, (*peak[:2], peak[2] + sum_of)]


def _work_lines(report: dict[str, Any]) -> list[_Line]:
    work = report["work"]
    share = work["flops"] / work["model_flops"]
    lines = [
        ("model FLOPs", _tera(work["model_flops"]), "analytic, real tokens, a device"),
        ("FLOPs", _tera(work["flops"]), f"HLO, loops by their turns; {share:.3f} of the model's"),
        ("traced", _tera(work["traced_flops"]), "jaxpr without kernels, a device's even share"),
        ("in kernels", _tera(work["kernel_flops"]), "estimate: blocks visited in a typical batch"),
        (
            "HBM traffic",
            _giga(work["memory_bytes"]),
            "estimate: operands and results of the HLO's instructions",
        ),
    ]
    lines += [
        (kind, _giga(sent), "estimate: HLO, sent by a device in a ring")
        for kind, sent in work["collective_bytes"].items()
    ]
    lines += [("not counted", "", name) for name in work["not_counted"]]
    return lines


def _roofline_lines(report: dict[str, Any]) -> list[_Line]:
    roofline = report["roofline"]
    lines = [
        (
            f"time of {name}",
            f"{1e3 * seconds:.1f} ms",
            f"estimate: at the {roofline['chip']['name']}'s rate",
        )
        for name, seconds in roofline["seconds"].items()
    ]
    serial = f"{roofline['mfu_without_overlap']:.1%} if nothing overlapped"
    warnings = report["partitioner_warnings"]
    return [
        *lines,
        (
            "step",
            f"{1e3 * roofline['step_seconds']:.1f} ms",
            f"estimate: the largest, {roofline['bound']}",
        ),
        ("MFU", f"{roofline['mfu']:.1%}", f"model FLOPs over that time; {serial}"),
        ("compilation", f"{report['compile_seconds']:.0f} s", "on this machine"),
        ("warnings", str(len(warnings)), "involuntary full rematerialization (compiler's log)"),
        *(("", "", warning) for warning in warnings),
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP"
