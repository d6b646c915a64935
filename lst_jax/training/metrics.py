"""What a run reports: sums of steps become one record, written to three places.

Sums are kept apart from ratios, so that a record over several steps weighs every token alike, and
they travel with the checkpoints, so that a resumed run reports what an uninterrupted one would.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

import tensorboardX

from lst_jax.hardware import PeakRate

Record = dict[str, int | float | None]


@dataclasses.dataclass(frozen=True)
class RateContext:
    """What rates are shares of.

    Attributes:
      patch_slots: patch slots of a batch, B · P.
      token_slots: token slots of a batch, B · N.
      num_devices: devices of the mesh.
      peak: of one device.
      num_steps: of the whole run, for the time that is left.
    """

    patch_slots: int
    token_slots: int
    num_devices: int
    peak: PeakRate
    num_steps: int


@dataclasses.dataclass
class Progress:
    """Totals of a run and the sums since its last record.

    Attributes:
      patches: patches trained on (the paper's tables say units; the baseline's are tokens).
      tokens: tokens trained on, text and speech.
      speech_units: speech units among them.
      flops: model FLOPs, forward and backward.
      seconds: wall time of training, over all restarts.
      window: sums over the steps since the last record.
    """

    patches: int = 0
    tokens: int = 0
    speech_units: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    window: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, sums: Mapping[str, float], seconds: float) -> None:
        """Adds a step.

        Args:
          sums: of the step, as `trainer.train_step` returns them, on the host.
          seconds: since the step before was finished.
        """
        self.patches += int(sums["patches"])
        self.tokens += int(sums["tokens"])
        self.speech_units += int(sums["speech_units"])
        self.flops += float(sums["flops"])
        self.seconds += seconds
        for name, value in {**sums, "seconds": seconds, "steps": 1}.items():
            self.window[name] = self.window.get(name, 0) + float(value)

    def take_record(self, step: int, context: RateContext) -> Record:
        """The record of the steps since the last one, which ends the window.

        Args:
          step: updates made.
          context: of the rates.

        Returns:
          `step`; mean losses in nats a token; gradient norm and learning rate, means over the
          steps; mean patch length of speech in units; shares between 0 and 1; rates; seconds; and
          the totals of the run. None where there was nothing to take a mean of.
        """
        window, self.window = self.window, {}
        steps, seconds = window["steps"], window["seconds"]
        flops_per_second = window["flops"] / seconds
        peak = context.num_devices * context.peak.flops_per_second
        return {
            "step": step,
            "loss": _ratio(
                window["text_nll"] + window["speech_nll"],
                window["text_weight"] + window["speech_weight"],
            ),
            "loss_text": _ratio(window["text_nll"], window["text_weight"]),
            "loss_speech": _ratio(window["speech_nll"], window["speech_weight"]),
            "gradient_norm": window["gradient_norm"] / steps,
            "learning_rate": window["learning_rate"] / steps,
            "mean_patch_length": _ratio(window["speech_units"], window["speech_patches"]),
            "aligned_fraction": _ratio(window["aligned_examples"], window["speech_examples"]),
            "patch_padding": 1 - window["patches"] / (steps * context.patch_slots),
            "token_padding": 1 - window["tokens"] / (steps * context.token_slots),
            "patches_per_second": window["patches"] / seconds,
            "tokens_per_second": window["tokens"] / seconds,
            "mfu": flops_per_second / peak,
            "step_seconds": seconds / steps,
            "eta_seconds": (context.num_steps - step) * seconds / steps,
            "total_patches": self.patches,
            "total_tokens": self.tokens,
            "total_speech_units": self.speech_units,
            "total_flops": self.flops,
            "total_seconds": self.seconds,
        }


class Writer(Protocol):
    """Where records go."""

    def write(self, record: Record) -> None:
        """Takes the record of `record["step"]`."""
        ...

    def close(self) -> None:
        """Lets go of files."""
        ...


class ConsoleWriter:
    """One line a record."""

    def __init__(self, num_steps: int, stream: TextIO | None = None) -> None:
        self._num_steps = num_steps
        self._stream = stream or sys.stdout

    def write(self, record: Record) -> None:
        """Prints the record."""
        print(format_record(record, self._num_steps), file=self._stream, flush=True)

    def close(self) -> None:
        """The stream is not this writer's."""


class JsonlWriter:
    """One JSON object a line in `metrics.jsonl`; the file reads as if the run never stopped."""

    def __init__(self, path: str | pathlib.Path, start_step: int) -> None:
        """Opens the file to append, without the lines that the run is about to write again.

        Args:
          path: of the file.
          start_step: updates made before; records of later steps are dropped, and so is a line
            that a crash left half written.
        """
        path = pathlib.Path(path)
        if path.exists():
            lines = path.read_text().splitlines()
            kept = [line for line in lines if _is_record_until(line, start_step)]
            partial = path.with_suffix(".jsonl.partial")
            partial.write_text("".join(line + "\n" for line in kept))
            partial.replace(path)
        self._file = path.open("a")

    def write(self, record: Record) -> None:
        """Appends the record."""
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardWriter:
    """Scalars of every record as TensorBoard events."""

    def __init__(self, directory: str | pathlib.Path, start_step: int) -> None:
        """Opens a new event file that hides what older ones hold after `start_step`."""
        self._writer = tensorboardX.SummaryWriter(str(directory), purge_step=start_step + 1)

    def write(self, record: Record) -> None:
        """Adds every number of the record as a scalar."""
        for name, value in record.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Writes what is buffered."""
        self._writer.close()


def open_writers(
    workdir: str | pathlib.Path, start_step: int, num_steps: int
) -> tuple[Writer, ...]:
    """Console, `metrics.jsonl` and TensorBoard's `events` under the workdir."""
    workdir = pathlib.Path(workdir)
    return (
        ConsoleWriter(num_steps),
        JsonlWriter(workdir / "metrics.jsonl", start_step),
        TensorBoardWriter(workdir / "events", start_step),
    )


def read_records(workdir: str | pathlib.Path) -> list[Record]:
    """The records of a run, in the order of steps.

    Raises:
      FileNotFoundError: the workdir has none.
    """
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def format_record(record: Record, num_steps: int) -> str:
    """The console's line of a record."""
    fields = [
        f"step {record['step']}/{num_steps}",
        f"loss {_number(record['loss'], '.3f')} (text {_number(record['loss_text'], '.3f')}, "
        f"speech {_number(record['loss_speech'], '.3f')})",
        f"grad {record['gradient_norm']:.2f}",
        f"lr {record['learning_rate']:.2e}",
        f"{_rate(record['patches_per_second'])} patches/s",
        f"{_rate(record['tokens_per_second'])} tokens/s",
        f"MFU {record['mfu']:.1%}",
        f"padding {record['patch_padding']:.1%} of patches {record['token_padding']:.1%} of tokens",
        f"patch {_number(record['mean_patch_length'], '.2f')}",
        f"aligned {_number(record['aligned_fraction'], '.0%')}",
        f"{record['step_seconds']:.3g} s/step",
        f"ETA {format_duration(record['eta_seconds'])}",
    ]
    return "  ".join(fields)


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds, `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _rate(value: float) -> str:
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def _is_record_until(line: str, step: int) -> bool:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(record, dict) and record.get("step", step + 1) <= step
