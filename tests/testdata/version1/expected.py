"""Writes what the code of commit 564c667 reads from its data: `expected.json` (see README.md)."""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from data_pipelines.training_dataset import DataConfig, SourceConfig, make_training_dataset

from data_pipelines.records import open_records
from lst_jax.checkpoints import read_description, restore_params
from lst_jax.patching import PatchingConfig
from lst_jax.sharding import make_mesh

root = pathlib.Path(sys.argv[1])


def digest(array):
    header = f"{array.dtype}{array.shape}".encode()
    return hashlib.sha256(header + np.ascontiguousarray(array).tobytes()).hexdigest()


def describe(record):
    return {
        name: value.tolist() if isinstance(value, np.ndarray) else value
        for name, value in vars(record).items()
    }


expected = {
    name: [describe(record) for record in open_records(root / name)]
    for name in ("speech_records", "text_records")
}
for run in ("lst_run", "baseline_run"):
    leaves = jax.tree_util.tree_leaves_with_path(restore_params(root / run, make_mesh()))
    expected[run] = {jax.tree_util.keystr(path): digest(np.asarray(x)) for path, x in leaves}
config = DataConfig(
    (
        SourceConfig(f"{root}/speech_records", "speech"),
        SourceConfig(f"{root}/text_records", "text"),
    ),
    batch_size=2,
    patches_per_row=32,
    tokens_per_row=64,
    patching=PatchingConfig("mixed"),
)
batches = iter(make_training_dataset(config, read_description(root / "lst_run").vocabulary))
expected["batches"] = [
    {
        name: digest(array)
        for name, array in sorted(vars(next(batches)).items())
        if name != "num_patches"
    }
    for _ in range(4)
]
(root / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")
