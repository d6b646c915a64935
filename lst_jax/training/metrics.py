"""What a run reports: sums of steps become one record.

Sums are kept apart from ratios, so that a record over several steps weighs every token alike, and
they travel with the checkpoints, so that a resumed run reports what an uninterrupted one would.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

from lst_jax.hardware import PeakRate
from lst_jax.training.hooks import Record

# Only records of evaluations have it; the others are of training.
EVALUATION_SECONDS = "evaluation_seconds"
METRICS_FILE = "metrics.jsonl"


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
          sums: of the step, as `step.make_train_step` returns them, on the host.
          seconds: since the step before was finished, without what `add_pause` is told of.
        """
        self.patches += int(sums["patches"])
        self.tokens += int(sums["tokens"])
        self.speech_units += int(sums["speech_units"])
        self.flops += float(sums["flops"])
        self.seconds += seconds
        for name, value in {**sums, "seconds": seconds, "steps": 1}.items():
            self.window[name] = self.window.get(name, 0) + float(value)

    def add_pause(self, seconds: float) -> None:
        """Adds seconds that the run took and no step did: compilation, evaluation, saving."""
        self.seconds += seconds
        self.window["pause_seconds"] = self.window.get("pause_seconds", 0) + seconds

    def take_record(self, step: int, context: RateContext) -> Record:
        """Returns the record of the steps since the last one, which ends the window.

        Args:
          step: updates made.
          context: of the rates.

        Returns:
          `step`; mean losses in nats a token; gradient norm and learning rate, means over the
          steps; mean patch length of speech in units; shares between 0 and 1; rates; seconds; and
          the totals of the run. None where there was nothing to take a mean of. Rates and
          `step_seconds` leave out `pause_seconds`, the time since the last record that went into
          compilation, evaluation and checkpoints; `total_seconds` has all of it.
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
            "pause_seconds": window.get("pause_seconds", 0.0),
            "eta_seconds": (context.num_steps - step) * seconds / steps,
            "total_patches": self.patches,
            "total_tokens": self.tokens,
            "total_speech_units": self.speech_units,
            "total_flops": self.flops,
            "total_seconds": self.seconds,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON values."""
        return dataclasses.asdict(self)


def evaluation_record(step: int, metrics: Mapping[str, float], seconds: float) -> Record:
    """Returns the record of an evaluation; metrics that are not finite are None in it."""
    finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
    return {"step": step, **finite, EVALUATION_SECONDS: seconds}


def is_evaluation(record: Record) -> bool:
    """Returns whether a record is an evaluation's, not of training."""
    return EVALUATION_SECONDS in record


def read_records(workdir: str | pathlib.Path) -> list[Record]:
    """Returns the records of a run's training, in the order of steps.

    Raises:
      FileNotFoundError: the workdir has none.
    """
    return [record for record in read_all_records(workdir) if not is_evaluation(record)]


def read_evaluations(workdir: str | pathlib.Path) -> list[Record]:
    """Returns the records of a run's evaluations, in the order of steps.

    Raises:
      FileNotFoundError: the workdir has no records.
    """
    return [record for record in read_all_records(workdir) if is_evaluation(record)]


def read_all_records(workdir: str | pathlib.Path) -> list[Record]:
    """Returns the records of training and evaluations, in the order in which they were written.

    Raises:
      FileNotFoundError: the workdir has none.
    """
    text = (pathlib.Path(workdir) / METRICS_FILE).read_text()
    return [json.loads(line) for line in text.splitlines()]


def format_record(record: Record, num_steps: int) -> str:
    """Returns the console's line of a record: of a language model's training, or of any other."""
    if "loss_text" not in record:
        return _format_names(record, num_steps)
    eta = record["eta_seconds"]
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
        f"ETA {'–' if eta is None else format_duration(eta)}",
    ]
    return "  ".join(fields)


def _format_names(record: Record, num_steps: int) -> str:
    fields = (f"{name} {_number(value, '.4g')}" for name, value in record.items() if name != "step")
    return "  ".join((f"step {record['step']}/{num_steps}", *fields))


def format_duration(seconds: float) -> str:
    """Returns hours, minutes and seconds, `h:mm:ss`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


def _number(value: float | None, spec: str) -> str:
    return "–" if value is None else format(value, spec)


def _rate(value: float | None) -> str:
    if value is None:
        return "–"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"
