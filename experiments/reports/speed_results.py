"""Pages about speed and memory: compiled pods, and what was measured on CPUs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from experiments.benchmarks.aot_tables import XLA_OPTIONS, format_schedules, format_tables
from experiments.reports.markdown import Record, gib, page, table

_MIB = 2.0**20


def aot_page(report: Record, encoder: Record | None) -> str:
    """Returns the page of training steps, and of the encoder of units, compiled for TPUs."""
    reports = report["reports"]
    pods, scaling, policies, meshes, tuning = format_tables(reports).split("\n\n")
    setup = next(iter(reports.values()))["setup"]
    versions = ", ".join(f"{name} {version}" for name, version in setup["versions"].items())
    return page(
        "aot",
        report=report,
        setup=setup,
        versions=versions,
        pods=pods,
        scaling=scaling,
        policies=policies,
        meshes=meshes,
        tuning=tuning,
        overlap=" ".join(f"--{name}={value}" for name, value in XLA_OPTIONS["overlap"].items()),
        schedules=format_schedules(reports),
        encoder=encoder,
        encoding=_encoding(encoder) if encoder else "",
    )


def _encoding(encoder: Record) -> str:
    columns = {
        "chip": lambda x: x["chip"],
        "products": lambda x: x["dtype"],
        "GFLOP a second of audio": lambda x: f"{x['flops'] / seconds / 1e9:.1f}",
        "HBM traffic a second of audio": lambda x: gib(x["memory_bytes"] / seconds),
        "temporaries": lambda x: gib(x["temporary_bytes"]),
        "time of products": lambda x: f"{x['compute_seconds'] * 1e3:.1f} ms",
        "of memory": lambda x: f"{x['memory_seconds'] * 1e3:.1f} ms",
        "hours of audio an hour, at most": lambda x: f"{x['hours_an_hour']:,.0f}",
    }
    seconds = encoder["rows"] * encoder["seconds"]
    return table(columns, encoder["results"])


def encoders_page(report: Record, feed: Record | None) -> str:
    """Returns the page of the speech encoder beside transformers' PyTorch, and of its feeding."""
    times = {
        "batch": lambda x: f"{x['rows']} × {x['seconds']} s",
        "part": lambda x: x["part"],
        "here": lambda x: f"{x['ours_ms']:,.0f} ms",
        "PyTorch": lambda x: f"{x['theirs_ms']:,.0f} ms",
        "speed, PyTorch's is 1": lambda x: f"{x['speed']:.2f}",
        "largest difference": lambda x: f"{x['largest_difference']:.1e}",
    }
    flops = {
        "part": lambda x: x["part"],
        "products": lambda x: f"{x['products'] / 1e9:.2f} G",
        "everything, by XLA's count": lambda x: f"{x['xla'] / 1e9:.2f} G",
    }
    return page(
        "encoders",
        report=report,
        times=table(times, report["results"]),
        flops=table(flops, report["flops_per_second"]),
        feed=feed,
        fed=table(_FED, feed["results"]) if feed else "",
        gib=gib,
    )


_FED = {
    "model": lambda x: x["model"],
    "processes that decode": lambda x: x["workers"],
    "recordings": lambda x: x["recordings"],
    "times real time": lambda x: f"{x['times_real_time']:.1f}",
    "share of time that the encoder waits": lambda x: f"{x['waiting']:.0%}",
}


def voices_page(speed: Record | None, voices: Record | None, read: Record | None) -> str:
    """Returns the page of vocoders: how fast one is, and how a trained one sounds.

    Args:
      speed: of `experiments.benchmarks.vocoder_speed`; None where there is none.
      voices: of `experiments.benchmarks.voice_quality`.
      read: of `experiments.benchmarks.voice_recordings`.
    """
    factors = {
        "speech": lambda x: f"{x['seconds']} s",
        "real-time factor": lambda x: f"{x['real_time_factor']:.3f}",
        "the fastest turn": lambda x: f"{x['fastest']:.3f}",
        "of CPU time": lambda x: f"{x['cpu_real_time_factor']:.3f}",
        "PyTorch's": lambda x: f"{x['torch_real_time_factor']:.3f}",
        "speed, PyTorch's is 1": lambda x: f"{x['speed']:.2f}",
        "largest difference": lambda x: f"{x['largest_difference']:.1e}",
    }
    sound = {
        "voice": lambda x: x["voice"],
        "WER": lambda x: f"{x['wer']:.1%}",
        "CER": lambda x: f"{x['cer']:.1%}",
        "mel distance": lambda x: f"{x['mel_distance']:.3f}",
    }
    return page(
        "voices",
        speed=speed,
        voices=voices,
        factors=table(factors, speed["results"]) if speed else "",
        comparison=table(sound, voices["results"]) if voices else "",
        read=read,
        heard=_heard_again(read["results"]) if read else "",
    )


def _heard_again(results: list[Record]) -> str:
    """Returns what is heard of recordings, and in how many as much as by Griffin-Lim."""
    voices: dict[tuple[str, str], list[Record]] = {}
    for x in results:
        voices.setdefault((x["units"], x["voice"]), []).append(x)
    lines = []
    for (units, voice), heard in voices.items():
        sums = {name: sum(x[name] for x in heard) for name in ("words", "right", "same")}
        pairs = zip(heard, voices[units, "mel"], strict=True)
        lines.append(
            {
                **{"units": units, "voice": voice, "recordings": len(heard), **sums},
                "as many": sum(x["same"] >= y["same"] for x, y in pairs),
                "mel distance": statistics.fmean(x["mel_distance"] for x in heard),
            }
        )
    columns = {
        "units": lambda x: x["units"],
        "voice": lambda x: x["voice"],
        "recordings": lambda x: x["recordings"],
        "words": lambda x: x["words"],
        "words heard": lambda x: x["right"],
        "words heard as in the original": lambda x: x["same"],
        "recordings with as many of these as Griffin-Lim": lambda x: x["as many"],
        "mel distance": lambda x: f"{x['mel distance']:.3f}",
    }
    return table(columns, lines)


def cpu_page(
    data: Record,
    attention: Record,
    step: Record,
    decoding: Record,
    porting: Record,
    digests: Record,
    against: Record | None,
) -> str:
    """Returns the page of what was measured on CPUs, one section for each benchmark that ran."""
    (result,) = step["results"]
    return page(
        "cpu",
        data=data,
        throughput=_throughput(data),
        attention=attention,
        speedups=_speedups(attention),
        step=step,
        result=result,
        # Files of before the units of speech and the patches were told apart have the older key.
        rate=result.get("patches_per_second", result.get("units_per_second")),
        parts=_parts(result),
        against=against,
        ratios_of_steps=_ratios_of_steps(against) if against else "",
        decoding=decoding,
        units=decoding["results"][0]["units"] // decoding["results"][0]["rows"],
        rates=_decoding_rates(decoding),
        ratios=_ratios(decoding["ratios"]),
        porting=porting,
        ported=porting["gin_file"].rpartition("/")[2].removesuffix(".gin"),
        ports=_ports(porting["ports"]),
        digests=digests,
    )


def _throughput(report: Record) -> str:
    columns = {
        "strategy": lambda x: x["strategy"],
        "worker processes": lambda x: x["num_workers"],
        "tokens/s": lambda x: f"{x['tokens_per_second'] / 1e6:.2f} M",
        "real patch slots": lambda x: f"{x['patch_slots_real']:.1%}",
        "real token slots": lambda x: f"{x['token_slots_real']:.1%}",
        "tokens a patch": lambda x: f"{x['tokens_per_patch']:.2f}",
    }
    return table(columns, report["results"])


def _speedups(report: Record) -> str:
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
    return table(columns, report["blocked_against_dense"])


def _parts(result: Record) -> str:
    columns = {
        "part": lambda x: x["part"],
        "time": lambda x: f"{x['median_ms']:.0f} ms",
        "share": lambda x: f"{x['share']:.0%}",
    }
    return table(columns, result["breakdown"]["parts"])


def _ratios_of_steps(report: Record) -> str:
    columns = {
        "shape": lambda x: x["shape"],
        "step": lambda x: f"{x['median_ms']['now']:,.0f} ms",
        report["against"]: lambda x: f"{x['median_ms']['before']:,.0f} ms",
        "ratio": lambda x: f"{x['ratio']:.2f}",
        "rows on two devices": _ratio_of_split,
        "attention alone": lambda x: _milliseconds(x, "attention"),
        "products alone": lambda x: f"{x['median_ms']['products']:,.0f} ms",
        "of the step": lambda x: f"{x['products_share']:.0%}",
        "losses differ by": lambda x: f"{x['largest_relative_difference_of_losses']:.0e}",
    }
    return table(columns, report["results"])


def _ratio_of_split(result: Record) -> str:
    ratio = result.get("ratio_of_split")
    return "—" if ratio is None else f"{_milliseconds(result, 'split')}, {ratio:.2f}"


def _milliseconds(result: Record, side: str) -> str:
    return f"{result['median_ms'][side]:,.0f} ms" if side in result["median_ms"] else "—"


def _decoding_rates(report: Record) -> str:
    columns = {
        "model": lambda x: x["model"],
        "rows": lambda x: x["rows"],
        "prompt": lambda x: f"{x['prompt_seconds']:g} s",
        "first unit": lambda x: f"{x['first_unit_seconds']:.1f} s",
        "units/s": lambda x: f"{x['units_per_second']:.1f}",
        "global steps a unit": lambda x: f"{x['global_steps_per_unit']:.2f}",
        "caches": lambda x: f"{x['cache_bytes'] / _MIB:.0f} MiB",
    }
    order = sorted(
        report["results"], key=lambda x: (x["model"] == "baseline", x["rows"], x["prompt_seconds"])
    )
    return table(columns, order)


def _ratios(ratios: Mapping[str, float]) -> str:
    rows = list(ratios.items())
    columns = {
        "at 30 s and eight rows": lambda x: x[0],
        "ratio": lambda x: f"{x[1]:.2f}" if x[1] < 100 else f"{x[1]:.0f}",
    }
    return table(columns, rows)


def _ports(rows: Sequence[Record]) -> str:
    before = ["orbax", *(x["to"] for x in rows[:-1])]
    columns = {
        "from": lambda x: x[0],
        "to": lambda x: x[1]["to"],
        "largest resident set": lambda x: f"{x[1]['peak_gb']:.2f} GB",
        "time": lambda x: f"{x[1]['seconds']:.0f} s",
    }
    return table(columns, list(zip(before, rows, strict=True)))
