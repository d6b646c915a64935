import dataclasses
import io
import json
import sys
from unittest import mock

import jax
import pytest

from lst_jax.hardware import PeakRate, peak_rate
from lst_jax.training.metrics import (
    Progress,
    RateContext,
    format_duration,
    format_record,
    read_records,
)
from lst_jax.training.writers import (
    ConsoleWriter,
    JsonlWriter,
    TensorBoardWriter,
    open_clu,
    open_wandb,
    read_scalars,
)
from tests.disks import files_of_at_most

CONTEXT = RateContext(100, 200, num_devices=2, peak=PeakRate(1e3, "test"), num_steps=10)


def step_sums(**changes) -> dict:
    sums = {
        "text_nll": 20.0,
        "speech_nll": 60.0,
        "text_weight": 10.0,
        "speech_weight": 20.0,
        "patches": 50,
        "tokens": 150,
        "speech_units": 120,
        "speech_patches": 30,
        "speech_examples": 4,
        "aligned_examples": 1,
        "flops": 1000.0,
        "gradient_norm": 2.0,
        "learning_rate": 1e-3,
    }
    return sums | changes


def test_a_record_weighs_every_token_alike():
    progress = Progress()
    progress.add(step_sums(), 2.0)
    progress.add(step_sums(text_nll=100.0, text_weight=90.0, gradient_norm=4.0), 3.0)
    record = progress.take_record(2, CONTEXT)
    assert record["loss_text"] == (20 + 100) / (10 + 90)
    assert record["loss_speech"] == 3.0
    assert record["loss"] == (120 + 120) / 140
    assert record["gradient_norm"] == 3.0
    assert record["mean_patch_length"] == 4.0
    assert record["aligned_fraction"] == 0.25
    assert record["patch_padding"] == 0.5
    assert record["token_padding"] == 0.25
    assert record["patches_per_second"] == 20.0
    assert record["tokens_per_second"] == 60.0
    assert record["mfu"] == pytest.approx(400 / 2000)
    assert record["step_seconds"] == 2.5
    assert record["eta_seconds"] == 20.0
    assert (record["total_patches"], record["total_tokens"]) == (100, 300)
    assert progress.window == {}


def test_every_number_of_a_record_is_that_of_its_name():
    """No two sums are alike, of two windows; so no number can stand for another."""
    names = [*step_sums()]
    steps = [
        {name: float(7 * i + 11 * j + i * j + 3) for j, name in enumerate(names)} for i in range(4)
    ]
    progress = Progress()
    seconds, pauses = [0.5, 0.75, 2.0, 1.0], [10.0, 20.0, 40.0]
    progress.add(steps[0], seconds[0])
    progress.take_record(1, CONTEXT)
    for sums, time, pause in zip(steps[1:], seconds[1:], pauses, strict=True):
        progress.add_pause(pause)
        progress.add(sums, time)
    window = {name: sum(sums[name] for sums in steps[1:]) for name in names}
    total = {name: sum(sums[name] for sums in steps) for name in names}
    nll = window["text_nll"] + window["speech_nll"]
    assert progress.take_record(4, CONTEXT) == pytest.approx(
        {
            "step": 4,
            "loss": nll / (window["text_weight"] + window["speech_weight"]),
            "loss_text": window["text_nll"] / window["text_weight"],
            "loss_speech": window["speech_nll"] / window["speech_weight"],
            "gradient_norm": window["gradient_norm"] / 3,
            "learning_rate": window["learning_rate"] / 3,
            "mean_patch_length": window["speech_units"] / window["speech_patches"],
            "aligned_fraction": window["aligned_examples"] / window["speech_examples"],
            "patch_padding": 1 - window["patches"] / (3 * 100),
            "token_padding": 1 - window["tokens"] / (3 * 200),
            "patches_per_second": window["patches"] / 3.75,
            "tokens_per_second": window["tokens"] / 3.75,
            "mfu": window["flops"] / 3.75 / (2 * 1e3),
            "step_seconds": 3.75 / 3,
            "pause_seconds": 70.0,
            "eta_seconds": (10 - 4) * 3.75 / 3,
            "total_patches": total["patches"],
            "total_tokens": total["tokens"],
            "total_speech_units": total["speech_units"],
            "total_flops": total["flops"],
            "total_seconds": 4.25 + 70,
        }
    )


def test_losses_of_a_modality_that_is_absent_are_null():
    progress = Progress()
    progress.add(
        step_sums(speech_nll=0.0, speech_weight=0.0, speech_units=0, speech_patches=0)
        | {"speech_examples": 0, "aligned_examples": 0},
        1.0,
    )
    record = progress.take_record(1, CONTEXT)
    assert record["loss_speech"] is None
    assert record["mean_patch_length"] is None
    assert record["aligned_fraction"] is None
    assert "speech –" in format_record(record, 10)


def test_progress_survives_a_restart_within_a_window():
    straight, resumed = Progress(), Progress()
    for _ in range(3):
        straight.add(step_sums(), 0.1)
    resumed.add(step_sums(), 0.1)
    resumed = Progress(**json.loads(json.dumps(dataclasses.asdict(resumed))))
    for _ in range(2):
        resumed.add(step_sums(), 0.1)
    assert resumed == straight
    assert resumed.take_record(3, CONTEXT) == straight.take_record(3, CONTEXT)


def test_the_file_reads_as_if_the_run_had_never_stopped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 8, "lo')
    writer = JsonlWriter(path, start_step=4)
    writer.write({"step": 6, "loss": 1.0})
    writer.close()
    assert read_records(tmp_path) == [{"step": 2}, {"step": 4}, {"step": 6, "loss": 1.0}]


def test_a_run_from_step_zero_starts_a_new_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n[1]\n')
    JsonlWriter(path, start_step=0).close()
    assert path.read_text() == ""


def test_a_full_disk_leaves_no_half_of_a_record(tmp_path):
    """The first part of a line would fit."""
    path = tmp_path / "metrics.jsonl"
    writer = JsonlWriter(path, start_step=0)
    writer.write({"step": 1})
    with files_of_at_most(path.stat().st_size + 5), pytest.raises(OSError) as error:
        writer.write({"step": 2, "loss": 1.0})
    assert error.value.filename == str(path)
    writer.write({"step": 3})
    writer.close()
    assert read_records(tmp_path) == [{"step": 1}, {"step": 3}]


def test_no_record_holds_what_is_not_json(tmp_path):
    writer = JsonlWriter(tmp_path / "metrics.jsonl", start_step=0)
    with pytest.raises(ValueError):
        writer.write({"step": 1, "loss": float("nan")})
    writer.close()


def test_console_and_tensorboard_get_every_record(tmp_path):
    progress = Progress()
    progress.add(step_sums(), 2.0)
    record = progress.take_record(1, CONTEXT)
    stream = io.StringIO()
    for writer in (ConsoleWriter(10, stream), TensorBoardWriter(tmp_path, start_step=0)):
        writer.write(record)
        writer.close()
    line = stream.getvalue()
    assert line.startswith("step 1/10  loss 2.667 (text 2.000, speech 3.000)")
    assert line.endswith("ETA 0:00:18\n")
    (events,) = tmp_path.iterdir()
    assert b"loss_speech" in events.read_bytes()


def test_durations_are_hours_minutes_seconds():
    assert [format_duration(s) for s in (0, 59.6, 3725)] == ["0:00:00", "0:01:00", "1:02:05"]


@pytest.mark.parametrize(
    ("rate", "shown"),
    [
        (999.0, "999 "),
        (1000.0, "1k "),
        (999_000.0, "999k "),
        (1e6, "1M "),
        (2.5e9, "2.5G "),
        (0.5, "0.5 "),
    ],
)
def test_rates_are_shown_with_a_letter_from_each_thousand_on(rate, shown):
    progress = Progress()
    progress.add(step_sums(patches=rate, tokens=2 * rate), 1.0)
    progress.window |= {"patches": rate}
    line = format_record(progress.take_record(1, CONTEXT), 10)
    assert f"  {shown}patches/s" in line


class FakeDevice:
    platform = "gpu"

    def __init__(self, kind: str) -> None:
        self.device_kind = kind


@pytest.mark.parametrize(
    "kind, rate",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
    ],
)
def test_accelerators_are_known_by_name(kind, rate):
    assert peak_rate(FakeDevice(kind)).flops_per_second == rate


def test_the_peak_of_a_cpu_is_measured_and_said_to_be():
    peak = peak_rate(jax.devices("cpu")[0])
    assert peak.flops_per_second > 1e6
    assert "measured" in peak.source


def in_another_second(monkeypatch, second):
    """Event files are named after the second in which they are made."""
    monkeypatch.setattr("tensorboardX.event_file_writer.time.time", lambda: 1_700_000_000 + second)


def losses(*steps):
    return [{"step": step, "loss": float(step), "none": None} for step in steps]


def shown(directory):
    """Steps in the order of the files, as far as no later session hides them."""
    return sorted(step for name, step in read_scalars(directory) if name == "loss")


def test_a_resumed_session_hides_the_steps_to_come_and_no_other(tmp_path, monkeypatch):
    for second, (start, steps) in enumerate([(0, (1, 2, 3, 4)), (2, (3,))]):
        in_another_second(monkeypatch, second)
        writer = TensorBoardWriter(tmp_path, start)
        for record in losses(*steps):
            writer.write(record)
        writer.close()
    assert shown(tmp_path) == [1, 2, 3]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("start", range(6))
def test_a_session_hides_the_first_step_to_come_at_once(tmp_path, monkeypatch, start):
    """And no step that is made: before it has written any of its own."""
    for second, (step, records) in enumerate([(0, losses(1, 2, 3, 4, 5)), (start, [])]):
        in_another_second(monkeypatch, second)
        writer = TensorBoardWriter(tmp_path, step)
        for record in records:
            writer.write(record)
        writer.close()
    assert shown(tmp_path) == list(range(1, start + 1))


def test_what_a_killed_process_had_in_its_buffer_is_filled_in(tmp_path, monkeypatch):
    in_another_second(monkeypatch, 0)
    writer = TensorBoardWriter(tmp_path, 0)
    for record in losses(1, 2):
        writer.write(record)
    writer.close()
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-5])  # the kill cut the last event
    in_another_second(monkeypatch, 1)
    TensorBoardWriter(tmp_path, 4, losses(1, 2, 3, 4, 5)).close()
    assert shown(tmp_path) == [1, 2, 3, 4]


def test_flushed_events_outlive_the_process(tmp_path):
    writer = TensorBoardWriter(tmp_path, 0)
    for record in losses(1, 2):
        writer.write(record)
    writer.flush()
    assert shown(tmp_path) == [1, 2]
    writer.close()


@pytest.mark.parametrize(
    ("open_writer", "module", "extra"),
    [(open_clu, "clu.metric_writers", "clu"), (open_wandb, "wandb", "wandb")],
)
def test_a_writer_whose_extra_is_not_installed_says_which(
    tmp_path, monkeypatch, open_writer, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, module.partition(".")[0], None)
    with pytest.raises(ImportError, match=rf"'lst-jax\[{extra}\]'"):
        open_writer(tmp_path, 0, 1)


def test_records_go_to_weights_and_biases(tmp_path, monkeypatch):
    run, calls = mock.Mock(), []
    run.log = lambda values, step: calls.append((step, values))
    service = mock.Mock(init=mock.Mock(return_value=run))
    monkeypatch.setitem(sys.modules, "wandb", service)
    writer = open_wandb(tmp_path, 0, 1)
    writer.write({"step": 3, "loss": 2.0, "none": None})
    writer.close()
    assert calls == [(3, {"loss": 2.0})]
    assert service.init.call_args.kwargs["id"] == tmp_path.name
    run.finish.assert_called_once()


def test_records_go_through_common_loop_utils(tmp_path, monkeypatch):
    inner = mock.Mock()
    service = mock.Mock(create_default_writer=mock.Mock(return_value=inner))
    monkeypatch.setitem(sys.modules, "clu", mock.Mock(metric_writers=service))
    monkeypatch.setitem(sys.modules, "clu.metric_writers", service)
    writer = open_clu(tmp_path, 0, 1)
    service.create_default_writer.assert_called_once()
    assert str(tmp_path) in service.create_default_writer.call_args.args[0]
    writer.write({"step": 3, "loss": 2.0, "none": None})
    inner.write_scalars.assert_called_once_with(3, {"loss": 2.0})
    inner.flush.assert_not_called()
    writer.flush()
    inner.flush.assert_called_once_with()
    writer.close()
    inner.close.assert_called_once_with()
