"""Trains a model, or continues a run that is in the workdir.

    python -m experiments.train --gin_file=experiments/configs/models/tiny.gin \\
        --gin_file=experiments/configs/data/speech_text.gin \\
        --gin_file=experiments/configs/runs/tiny.gin \\
        --gin.TOKENIZER=tokenizer.model --gin.SPEECH_RECORDS=records/speech \\
        --gin.TEXT_RECORDS=records/text --workdir=runs/tiny

The workdir gets `config.gin` (every setting used), `model.json`, `checkpoints/`, `metrics.jsonl`
and TensorBoard's `events/`. Starting again with the same workdir continues. SIGTERM, SIGINT,
SIGUSR1 and SIGHUP save and end; the exit code is 0 only when the last step is done (`common/cli.py`
has all).
`experiments/configs/runs/baseline.gin` as the last file trains the unpatched baseline instead.

On several hosts the same command runs on each, with `--multihost` where JAX knows the cluster
(Cloud TPU, Slurm, …), else with `--coordinator_address=HOST:PORT --num_processes=2
--process_id=0`. The workdir is one that all of them see. Each reads its own share of the data; a
run may continue on another number of hosts, or on another mesh.
"""

from __future__ import annotations

import pathlib
import sys

import gin
import jax
from absl import flags

from experiments.common import cli, distributed, gin_config
from experiments.common.experiment import run_experiment
from experiments.common.outputs import check_writable
from experiments.common.paths import define_path
from lst_jax.training.lock import WorkdirLockedError
from lst_jax.training.loop import NonFiniteLossError
from lst_jax.training.profiler import ProfilerWindow, parse_steps

gin_config.define_flags()
distributed.define_flags()
_WORKDIR = define_path("workdir", "Directory of the run.", required=True)
_COMPILATION_CACHE_DIR = define_path(
    "compilation_cache_dir", "Where compiled programs are kept between starts."
)
_PROFILE_STEPS = flags.DEFINE_string(
    "profile_steps",
    None,
    "FIRST:LAST, steps to trace, both included; the trace is in the workdir's profile/, for xprof "
    "or TensorBoard.",
)


def main(argv: list[str]) -> None:
    """Trains as the flags say."""
    cli.check_no_arguments(argv)
    workdir = pathlib.Path(_WORKDIR.value)
    hooks = []
    if _PROFILE_STEPS.value is not None:
        hooks.append(ProfilerWindow(workdir / "profile", *parse_steps(_PROFILE_STEPS.value)))
    gin_config.parse_flags()
    if _COMPILATION_CACHE_DIR.value:
        enable_compilation_cache(_COMPILATION_CACHE_DIR.value)
    distributed.join_processes()
    experiment = gin_config.build_experiment()
    check_writable(workdir)
    try:
        result = run_experiment(experiment, workdir, gin.operative_config_str, hooks)
    except NonFiniteLossError as error:
        cli.end_with_error(error, cli.ExitCode.NOT_FINITE)
    except WorkdirLockedError as error:
        cli.end_with_error(error, cli.ExitCode.LOCKED)
    step = int(result.state.step)
    how = "finished" if result.finished else f"stopped by {result.signal}"
    if jax.process_index() == 0:
        checkpoint = workdir / "checkpoints" / str(step)
        print(f"{how} after step {step}; checkpoint {checkpoint}", flush=True)
    if not result.finished:
        sys.exit(int(cli.ExitCode.STOPPED))


def enable_compilation_cache(directory: str) -> None:
    """Keeps every compiled program in `directory`, however short its compilation was."""
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(directory).absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    sys.argv = gin_config.rewrite_arguments(sys.argv)
    cli.run_main(main)
