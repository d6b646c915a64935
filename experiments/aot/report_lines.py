"""What a compiled step takes, as lines of quantity, value and how the value was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class KindTotal(NamedTuple):
    """The collectives of one kind in a step.

    Attributes:
      transfers: how many there are, over all turns of loops.
      beside_products: those of them between whose start and end matrix products run.
      sent_bytes: that a device sends.
      seconds: of the transfers.
      exposed_seconds: the part that the device waits for.
    """

    transfers: float
    beside_products: float
    sent_bytes: float
    seconds: float
    exposed_seconds: float


def totals_by_kind(collectives: Sequence[Mapping[str, Any]]) -> dict[str, KindTotal]:
    """Returns the sums of a report's `schedule.collectives`, by kind in alphabetical order."""
    totals: dict[str, KindTotal] = {}
    for x in sorted(collectives, key=_kind):
        beside = x["turns"] if x["beside_products"] else 0.0
        sizes = (x["sent_bytes"], x["seconds"], x["exposed_seconds"])
        before = totals.get(_kind(x), KindTotal(0.0, 0.0, 0.0, 0.0, 0.0))
        added = zip(before, (x["turns"], beside, *sizes), strict=True)
        totals[_kind(x)] = KindTotal(*(a + b for a, b in added))
    return totals


def _kind(collective: Mapping[str, Any]) -> str:
    return collective["kind"] + (" between slices" if collective["crosses_slices"] else "")


def format_table(report: dict[str, Any]) -> str:
    """Returns the report as lines of quantity, value and how the value was made."""
    lines = [_header(report), *_memory_lines(report)]
    if report["fits"] and "work" in report:
        lines += [*_work_lines(report), *_roofline_lines(report), *_schedule_lines(report)]
        lines += _compilation_lines(report)
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
            _milli(seconds),
            f"estimate: at the {roofline['chip']['name']}'s rate",
        )
        for name, seconds in roofline["seconds"].items()
    ]
    serial = f"{roofline['mfu_without_overlap']:.1%} if nothing overlapped"
    return [
        *lines,
        (
            "step",
            _milli(roofline["step_seconds"]),
            f"estimate: the largest, {roofline['bound']}",
        ),
        ("MFU", f"{roofline['mfu']:.1%}", f"model FLOPs over that time; {serial}"),
    ]


def _schedule_lines(report: dict[str, Any]) -> list[_Line]:
    schedule = report["schedule"]
    totals = totals_by_kind(schedule["collectives"])
    return [
        (
            "operations",
            _milli(schedule["operation_seconds"]),
            "estimate: as scheduled, the larger of compute and HBM of each",
        ),
        *((f"{kind} exposed", *_exposed(total)) for kind, total in totals.items()),
        *((f"  {x['name']}", *_transfer(x)) for x in schedule["collectives"]),
        (
            "step as scheduled",
            _milli(schedule["step_seconds"]),
            "estimate: operations, and what is exposed",
        ),
        ("MFU as scheduled", f"{schedule['mfu']:.1%}", "model FLOPs over that time"),
    ]


def _exposed(total: KindTotal) -> tuple[str, str]:
    how = f"of {_milli(total.seconds)}; {total.transfers:,.0f} transfers"
    return _milli(total.exposed_seconds), f"{how}, {total.beside_products:,.0f} beside products"


def _transfer(x: Mapping[str, Any]) -> tuple[str, str]:
    where = "beside products" if x["beside_products"] else "beside no product"
    links = f", along {x['torus_axes']} axes of the torus" if x["torus_axes"] else ""
    how = f"of {_milli(x['seconds'])}; {x['turns']:,.0f} ×{links}, {where}"
    return _milli(x["exposed_seconds"]), how


def _compilation_lines(report: dict[str, Any]) -> list[_Line]:
    warnings = report["partitioner_warnings"]
    return [
        ("compilation", f"{report['compile_seconds']:.0f} s", "on this machine"),
        ("warnings", str(len(warnings)), "involuntary full rematerialization (compiler's log)"),
        *(("", "", warning) for warning in warnings),
    ]


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _giga(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _tera(flops: float) -> str:
    return f"{flops / 1e12:.2f} TFLOP"
