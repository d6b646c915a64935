r"""Measures the HiFi-GAN vocoder of the published size on one core: seconds for a second of speech.

    pip install torch
    taskset -c 0 python -m experiments.benchmarks.vocoder_speed \
        --output=experiments/benchmarks/results/vocoder_speed.json

Random weights, 25 Hz units, 16 kHz, float32. PyTorch computes the same with the same weights, by
its own convolutions, and takes turns; ratios are of medians. `taskset` gives both one core.
"""

from __future__ import annotations

import functools
import os
import statistics
import time
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from absl import flags

from data_pipelines.speech.hifigan_checkpoints import HiFiGANWeights, torch_tensors
from data_pipelines.speech.hifigan_vocoder import HiFiGANVocoder
from experiments.common import cli
from experiments.common.machine import command_line, cpu_model, versions
from experiments.common.outputs import check_output, keep_results
from experiments.common.paths import define_path
from lst_jax.evaluation.tables import format_rows
from lst_jax.extras import import_extra
from lst_jax.speech.hifigan import HiFiGAN
from lst_jax.speech.hifigan_config import HiFiGANConfig


def random_vocoder(config: HiFiGANConfig, seed: int = 0) -> HiFiGANWeights:
    """Returns a vocoder of one voice with random weights."""
    params = HiFiGAN(config).init(jax.random.key(seed), np.zeros((1, 1), np.int32))
    return HiFiGANWeights(config, jax.device_get(nn.unbox(params)))


def torch_speech(
    torch: Any, config: HiFiGANConfig, weights: dict[str, Any], units: Any
) -> np.ndarray:
    """Returns the waveform of units as PyTorch's convolutions make it, of blocks of kind "1"."""
    functional = torch.nn.functional

    def convolve(x: Any, name: str, dilation: int = 1) -> Any:
        kernel, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        padding = dilation * (kernel.shape[2] // 2)
        return functional.conv1d(x, kernel, bias, padding=padding, dilation=dilation)

    with torch.no_grad():
        x = convolve(weights["dict.weight"][units].T[None], "conv_pre")
        number = 0
        stages = zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True)
        for i, (rate, taps) in enumerate(stages):
            kernel, bias = weights[f"ups.{i}.weight"], weights[f"ups.{i}.bias"]
            x = functional.leaky_relu(x, 0.1)
            x = functional.conv_transpose1d(x, kernel, bias, rate, (taps - rate) // 2)
            total = 0
            for dilations in config.resblock_dilation_sizes:
                y = x
                for k, dilation in enumerate(dilations):
                    name = f"resblocks.{number}.convs"
                    z = convolve(functional.leaky_relu(y, 0.1), f"{name}1.{k}", dilation)
                    y = y + convolve(functional.leaky_relu(z, 0.1), f"{name}2.{k}")
                total, number = total + y, number + 1
            x = total / len(config.resblock_dilation_sizes)
        return torch.tanh(convolve(functional.leaky_relu(x, 0.01), "conv_post"))[0, 0].numpy()


def measure(config: HiFiGANConfig, seconds: list[int], rounds: int) -> list[dict[str, Any]]:
    """Returns times of utterances, ours in pieces as the vocoder speaks them."""
    torch = import_extra("torch", "torch")
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    trained = random_vocoder(config)
    vocoder = HiFiGANVocoder(trained)
    weights = {name: torch.tensor(x) for name, x in torch_tensors(trained).items()}
    rng = np.random.default_rng(0)
    results = []
    for length in seconds:
        units = rng.integers(0, config.num_embeddings, round(length * config.frame_rate))
        sides = {
            "ours": functools.partial(vocoder.speak, units),
            "theirs": functools.partial(torch_speech, torch, config, weights, torch.tensor(units)),
        }
        made = {name: run() for name, run in sides.items()}
        times: dict[str, list[float]] = {name: [] for name in sides}
        cpu_seconds = []
        for _ in range(rounds):
            for name, run in sides.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                run()
                times[name].append(time.perf_counter() - start)
                if name == "ours":
                    cpu_seconds.append(time.process_time() - cpu_start)
        factors = {name: statistics.median(x) / length for name, x in times.items()}
        results.append(
            {
                "seconds": length,
                "real_time_factor": factors["ours"],
                "fastest": min(times["ours"]) / length,
                "cpu_real_time_factor": statistics.median(cpu_seconds) / length,
                "torch_real_time_factor": factors["theirs"],
                "speed": factors["theirs"] / factors["ours"],
                "largest_difference": float(np.abs(made["ours"] - made["theirs"]).max()),
            }
        )
    return results


def define_flags() -> None:
    """Defines the flags of the binary, so that importing this module defines none."""
    flags.DEFINE_integer("rounds", 7, "Turns of each side.", lower_bound=1)
    flags.DEFINE_multi_integer("seconds", [2, 10, 30], "Of an utterance.", lower_bound=1)
    define_path("output", "JSON file to write the results to.")


def main(argv: list[str]) -> None:
    """Measures and reports."""
    cli.check_no_arguments(argv)
    check_output(flags.FLAGS.output)
    load = os.getloadavg()[0]
    values = {
        "command": command_line("vocoder_speed"),
        "device": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "rounds": flags.FLAGS.rounds,
        "load_average_before": round(load, 2),
        "versions": versions("jax", "jaxlib", "torch"),
        "results": measure(HiFiGANConfig(), flags.FLAGS.seconds, flags.FLAGS.rounds),
    }
    keep_results(flags.FLAGS.output, values, lambda: _table(values["results"]))


def _table(results: list[dict[str, Any]]) -> str:
    rows = [["seconds", "real-time factor", "of CPU time", "PyTorch's", "speed", "difference"]]
    names = ("real_time_factor", "cpu_real_time_factor", "torch_real_time_factor")
    for x in results:
        factors = [f"{x[name]:.3f}" for name in names]
        difference = f"{x['largest_difference']:.1e}"
        rows.append([str(x["seconds"]), *factors, f"{x['speed']:.2f}", difference])
    return format_rows(rows, 1)


if __name__ == "__main__":
    define_flags()
    cli.run_main(main)
