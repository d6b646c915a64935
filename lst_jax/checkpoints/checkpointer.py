"""Checkpoints of a run, written by Orbax, and the description a model is rebuilt from.

A workdir holds

    model.json                 what the model is: configuration, vocabulary, tokenizer, row shape
    checkpoints/<step>/params     parameters, in chunks of a layer
    checkpoints/<step>/optimizer  optimizer moments and the step
    checkpoints/<step>/data       states of the Grain iterators, one file for each process
    checkpoints/<step>/progress   totals of the run so far, JSON

A step's directory gets its name only when it is complete, so one that a crash left half written
is never read. Saving copies the state off the devices and writes it in the background.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import grain
import grain.checkpoint
import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils

from lst_jax.checkpoints.train_state import TrainState, param_shapes
from lst_jax.config import LSTConfig, ModelConfig, TokenTransformerConfig
from lst_jax.sharding import DEFAULT_RULES, LogicalRules
from lst_jax.vocabulary import TextTokenizer, Vocabulary

# Settings of how a model is computed, which a run may change on the way.
_EXECUTION_FIELDS = ("dtype", "remat", "attention")

_CHECKPOINTS = "checkpoints"
_PARAMS = "params"
_UNREADABLE = "unreadable_checkpoints"
_DESCRIPTION = "model.json"
_CHUNK_BYTES = 2**26  # of a stored chunk of parameters, at most
_STATE_FILE = re.compile(r"process_\d+-of-(\d+)\.json")  # as Grain names them
_MODEL_KINDS = {kind.__name__: kind for kind in (LSTConfig, TokenTransformerConfig)}

# What reading a damaged step raises: missing or unreadable files, metadata and arrays cut short.
# Others, such as too little memory, say nothing of the step.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)

IteratorState = dict[str, Any]
MergeStates = Callable[[Sequence[IteratorState]], IteratorState]
_Restored = tuple[TrainState, dict[str, Any], list[IteratorState]]


class UnreadableCheckpointError(ValueError):
    """What is stored of a checkpoint is missing or damaged."""


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """All that evaluation needs besides the parameters.

    Attributes:
      model: configuration of the model.
      vocabulary: the id space it was trained on.
      tokenizer_fingerprint: SHA-256 of the text tokenizer's file (`TextTokenizer.fingerprint`);
        None where a ported checkpoint does not tell.
      data: what else a reader may want to know of the rows it was trained on, as JSON values (for
        instance the patching, the row shape, the tokenizer's path).
    """

    model: ModelConfig
    vocabulary: Vocabulary
    tokenizer_fingerprint: str | None
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.model.vocab_size != self.vocabulary.size:
            raise ValueError(
                f"vocab_size is {self.model.vocab_size}, expected {self.vocabulary.size}, the size "
                f"of {self.vocabulary}"
            )


def check_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Checks that a run of this description may be, or go on, in a workdir.

    Raises:
      ValueError: the workdir has checkpoints of another model, vocabulary or tokenizer.
    """
    path = pathlib.Path(workdir) / _DESCRIPTION
    steps = pathlib.Path(workdir) / _CHECKPOINTS
    if path.exists() and any(step.name.isdigit() for step in steps.glob("*")):
        _check_same(path, read_description(workdir), description)


def write_description(workdir: str | pathlib.Path, description: ModelDescription) -> None:
    """Writes `model.json`.

    Raises:
      ValueError: see `check_description`.
    """
    check_description(workdir, description)
    path = pathlib.Path(workdir) / _DESCRIPTION
    if jax.process_index() == 0:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".json.partial")
        partial.write_text(json.dumps(description_to_json(description), indent=2) + "\n")
        partial.replace(path)


def read_description(path: str | pathlib.Path) -> ModelDescription:
    """The description of the run that wrote `path`, a workdir or a step's directory in it.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one that this version can read.
    """
    workdir = pathlib.Path(path).absolute()
    if workdir.parent.name == _CHECKPOINTS and workdir.name.isdigit():
        workdir = workdir.parent.parent
    file = workdir / _DESCRIPTION
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file; expected the workdir of a run")
    return description_from_file(file)


def description_to_json(description: ModelDescription) -> dict[str, Any]:
    """A description as JSON values."""
    fields = dataclasses.asdict(description)
    fields["model"] = {"kind": type(description.model).__name__, **fields["model"]}
    return fields


def description_from_file(file: pathlib.Path) -> ModelDescription:
    """The description in a JSON file that holds what `description_to_json` made.

    Raises:
      ValueError: it is not one that this version can read.
    """
    try:
        fields = json.loads(file.read_text(encoding="utf-8"))
        model = dict(fields["model"])
        fields["model"] = _MODEL_KINDS[model.pop("kind")](**model)
        fields["vocabulary"] = Vocabulary(**fields["vocabulary"])
        return ModelDescription(**fields)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} does not describe a model: {error!r}") from error


class Checkpointer:
    """Saves and restores the state of one run under its workdir."""

    def __init__(self, workdir: str | pathlib.Path, keep: int = 2) -> None:
        """Opens (and makes) the workdir.

        Args:
          workdir: of the run.
          keep: number of latest checkpoints that stay.

        Raises:
          ValueError: `keep` is not positive.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, expected at least 1 checkpoint")
        self.workdir = pathlib.Path(workdir).absolute()
        self._keep = keep
        self._manager = self._open()

    @property
    def directory(self) -> pathlib.Path:
        """Where the steps' directories are."""
        return self.workdir / _CHECKPOINTS

    def latest_step(self) -> int | None:
        """Step of the last complete checkpoint; None before the first."""
        return self._manager.latest_step()

    def step_directory(self, step: int) -> pathlib.Path:
        """Where the checkpoint of `step` is."""
        return step_directory(self.workdir, step)

    def save(
        self,
        state: TrainState,
        iterator: grain.DatasetIterator,
        progress: Mapping[str, Any],
    ) -> None:
        """Starts to save everything a restart needs; returns once the state is copied.

        Args:
          state: after `state.step` updates.
          iterator: that has yielded the batches of exactly these updates.
          progress: JSON values.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params, params_save_args(state.params)),
            optimizer=ocp.args.StandardSave({"step": state.step, "opt_state": state.opt_state}),
            data=grain.checkpoint.CheckpointSave(iterator),
            progress=ocp.args.JsonSave(dict(progress)),
        )
        self._manager.save(int(state.step), args=items)

    def restore(
        self,
        shapes: TrainState,
        iterator: grain.DatasetIterator,
        merge_states: MergeStates | None = None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores the last checkpoint that can be read, and the iterator with it.

        A checkpoint that cannot be read is moved to `unreadable_checkpoints` and the one before
        it is tried.

        Args:
          shapes: tree of `jax.ShapeDtypeStruct` with shardings.
          iterator: set to where it was.
          merge_states: makes one state, that the iterator of any process can be set to, from those
            that the processes saved. None sets each to the state that it saved itself, and so
            wants as many processes as then.

        Returns:
          `(state, progress)`, or None where nothing was saved yet.

        Raises:
          ValueError: there are checkpoints and none can be read, or the iterator is of another
            pipeline than the one saved, or there are more or fewer processes than then.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        for step in steps:
            restored, failure = self._try_to_read(step, shapes)
            if not _any_process(restored is None):
                state, progress, states = restored
                iterator.set_state((merge_states or _own_state)(states))
                return state, progress
            reason = failure or f"{self.step_directory(step)} cannot be read by another process"
            logging.warning("checkpoint %s", reason)
            if step == steps[-1]:
                raise ValueError(
                    f"no checkpoint in {self.directory} can be read (steps {steps[::-1]}); {reason}"
                ) from failure
            self._set_aside(step)
        return None

    def reached_preemption(self, step: int) -> bool:
        """Whether the cluster asked the processes of a multi-host run to stop at this step."""
        return self._manager.reached_preemption(step)

    def wait(self) -> None:
        """Returns when every save has been committed."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the background threads."""
        self._manager.close()

    def _open(self) -> ocp.CheckpointManager:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self.directory, options=options)

    def _try_to_read(
        self, step: int, shapes: TrainState
    ) -> tuple[_Restored | None, UnreadableCheckpointError | None]:
        """What `_read` returns, or why it cannot."""
        try:
            with reading_checkpoint(self.step_directory(step)):
                return self._read(step, shapes), None
        except UnreadableCheckpointError as error:
            return None, error

    def _read(self, step: int, shapes: TrainState) -> _Restored:
        """State, progress and the iterators' states; reads all before anything is changed."""
        states = _read_iterator_states(self.step_directory(step) / "data")
        optimizer = {"step": shapes.step, "opt_state": shapes.opt_state}
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(shapes.params),
                optimizer=ocp.args.StandardRestore(optimizer),
                progress=ocp.args.JsonRestore(),
            ),
        )
        state = TrainState(
            step=restored.optimizer["step"],
            params=restored.params,
            opt_state=restored.optimizer["opt_state"],
        )
        return state, restored.progress, states

    def _set_aside(self, step: int) -> None:
        """Moves a step out of the way: its name is needed when training reaches it again."""
        if jax.process_index() == 0:
            target = self.workdir / _UNREADABLE
            target.mkdir(exist_ok=True)
            number = len(list(target.iterdir()))
            self.step_directory(step).rename(target / f"{step}.{number}")
        _any_process(False)  # wait until it is gone
        self._manager.reload()


def _is_damage(error: Exception) -> bool:
    """Whether the error is one that reading a damaged step raises."""
    return isinstance(_unwrapped(error), _READ_ERRORS)


def _unwrapped(error: Exception) -> BaseException:
    """The error itself; Orbax puts one of reading a part of an array into a bare Exception."""
    return error.__cause__ if type(error) is Exception and error.__cause__ else error


def _read_iterator_states(directory: pathlib.Path) -> list[IteratorState]:
    """The states that the processes saved, in their order."""
    files = [path for path in directory.iterdir() if _STATE_FILE.fullmatch(path.name)]
    counts = {int(_STATE_FILE.fullmatch(path.name)[1]) for path in files}
    if counts != {len(files)}:
        raise FileNotFoundError(f"{directory}: states of {len(files)} of {counts} processes")
    names = [f"process_{index}-of-{len(files)}.json" for index in range(len(files))]
    return [json.loads((directory / name).read_text()) for name in names]


def _any_process(condition: bool) -> bool:
    """Whether it holds on any process; all of them ask."""
    if jax.process_count() == 1:
        return condition
    return bool(multihost_utils.process_allgather(np.array(condition)).any())


def _own_state(states: Sequence[IteratorState]) -> IteratorState:
    """What this process saved."""
    if len(states) != jax.process_count():
        raise ValueError(
            f"the checkpoint was saved by {len(states)} processes; expected as many as there are, "
            f"{jax.process_count()}, where their iterators' states cannot be merged"
        )
    return states[jax.process_index()]


def restore_params(
    path: str | pathlib.Path, mesh: jax.sharding.Mesh, rules: LogicalRules = DEFAULT_RULES
) -> Any:
    """The parameters of a run, on any mesh.

    Args:
      path: a workdir (its last checkpoint is read) or a step's directory in it.
      mesh: that the parameters are placed on.
      rules: logical axis to mesh axes.

    Returns:
      The parameter tree of `read_description(path).model`.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      ValueError: the mesh does not divide the model's axes, or the parameters are not of the
        description's shape, or damaged.
    """
    checkpoint = find_checkpoint(path)
    shapes = param_shapes(read_description(checkpoint).model, mesh, rules)
    directory = params_directory(checkpoint)
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: no such directory; expected a run's parameters")
    with ocp.StandardCheckpointer() as reader:
        with reading_checkpoint(directory):
            stored = stored_tree(reader, directory)
        _check_shapes(stored, shapes, directory)
        with reading_checkpoint(directory):
            return reader.restore(directory, shapes)


def stored_tree(reader: ocp.StandardCheckpointer, directory: pathlib.Path) -> Any:
    """The tree of what is stored, of metadata in place of arrays."""
    metadata = reader.metadata(directory).item_metadata
    if metadata is None:
        raise ValueError("its metadata are missing or damaged")
    return metadata.tree


@contextlib.contextmanager
def reading_checkpoint(directory: pathlib.Path) -> Iterator[None]:
    """Turns what a damaged checkpoint raises into an `UnreadableCheckpointError` that names it.

    Orbax warns that the part of a step lacks what only the whole of it has; it is not heard.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity(min(verbosity, logging.ERROR))
    try:
        yield
    except Exception as error:
        if not _is_damage(error):
            raise
        reason = " ".join(str(_unwrapped(error)).split())[:300]
        raise UnreadableCheckpointError(f"{directory} cannot be read: {reason}") from error
    finally:
        logging.set_verbosity(verbosity)


def _check_shapes(stored: Any, expected: Any, directory: pathlib.Path) -> None:
    """Checks that stored parameters are those that `model.json` describes."""
    stored, expected = map(_shapes_by_name, (stored, expected))
    for name in sorted(stored.keys() | expected.keys()):
        if stored.get(name) != expected.get(name):
            raise ValueError(
                f"{directory} is not of the model that model.json describes: {name} has shape "
                f"{stored.get(name, 'none')} there, expected {expected.get(name, 'none')}"
            )


def _shapes_by_name(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {".".join(entry.key for entry in path): leaf.shape for path, leaf in leaves}


def restore_initial_params(
    path: str | pathlib.Path,
    description: ModelDescription,
    mesh: jax.sharding.Mesh,
    rules: LogicalRules = DEFAULT_RULES,
) -> Any:
    """Reads the parameters that another run, described by `description`, starts from.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP of a run with the same model; it may
        have been computed in another way (type, remat, attention). Another visibility, patch size
        or place of `<s>` is warned of.
      description: of the run that starts.
      mesh: whose devices they are placed on.
      rules: logical axis to mesh axes.

    Raises:
      FileNotFoundError: there is no run or no checkpoint.
      ValueError: it is of another model, vocabulary or tokenizer.
    """
    there = read_description(find_checkpoint(path))
    if there.tokenizer_fingerprint is None:  # ported, so nobody knows
        there = dataclasses.replace(there, tokenizer_fingerprint=description.tokenizer_fingerprint)
    difference = _description_difference(there, description)
    if difference:
        raise ValueError(
            f"checkpoint {path} to start from is of another model than this run: {difference}"
        )
    for name, old, new in _changed_conventions(there.data, description.data):
        logging.warning(
            "checkpoint %s was trained with %s %r, this run has %r", path, name, old, new
        )
    return restore_params(path, mesh, rules)


def _changed_conventions(
    there: Mapping[str, Any], here: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Name and both values of what a model has learnt to rely on, where they differ."""
    for name in ("visibility", "patching.patch_size", "patching.join_speech_mode"):
        first, _, second = name.partition(".")
        old, new = there.get(first), here.get(first)
        if second:
            old, new = ((value or {}).get(second) for value in (old, new))
        if None not in (old, new) and old != new:
            yield name, old, new


def find_checkpoint(path: str | pathlib.Path) -> pathlib.Path:
    """The directory of a step: the one named, or the last of a workdir.

    Args:
      path: WORKDIR, WORKDIR/STEP or WORKDIR/checkpoints/STEP.

    Raises:
      FileNotFoundError: there is no such run or step.
    """
    workdir, step = pathlib.Path(path).absolute(), None
    if workdir.name.isdigit() and not (workdir / _DESCRIPTION).exists():
        workdir, step = workdir.parent, int(workdir.name)
        workdir = workdir.parent if workdir.name == _CHECKPOINTS else workdir
    if not (workdir / _DESCRIPTION).is_file():
        raise FileNotFoundError(f"{path}: no run there; expected a workdir with a model.json")
    found = (entry.name for entry in (workdir / _CHECKPOINTS).glob("*") if entry.is_dir())
    steps = sorted(int(name) for name in found if name.isdigit())
    if not steps or (step is not None and step not in steps):
        there = ", ".join(map(str, steps)) or "none yet"
        raise FileNotFoundError(f"{path}: no such checkpoint; steps of the run: {there}")
    return workdir / _CHECKPOINTS / str(steps[-1] if step is None else step)


def step_directory(workdir: pathlib.Path, step: int) -> pathlib.Path:
    """Where the checkpoint of `step` is."""
    return workdir / _CHECKPOINTS / str(step)


def params_directory(checkpoint: pathlib.Path) -> pathlib.Path:
    """Where the parameters of a step's directory are."""
    return checkpoint / _PARAMS


def params_save_args(params: Any) -> Any:
    """How Orbax cuts parameters into chunks: by layers, so that one can be read without the others.

    Args:
      params: parameter tree, of arrays or whatever stands for them.

    Returns:
      The same tree of `ocp.SaveArgs`.
    """

    def chunks(path: Any, _: Any) -> ocp.SaveArgs:
        stacked = jax.tree_util.DictKey("layers") in path
        return ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES, shard_axes=(0,) if stacked else ())

    return jax.tree_util.tree_map_with_path(chunks, params)


def check_tokenizer(tokenizer: TextTokenizer, description: ModelDescription) -> None:
    """Checks that a tokenizer is the one that a model was trained with.

    Raises:
      ValueError: it is another, or, where the description names none, of another size.
    """
    expected = description.tokenizer_fingerprint
    if expected is not None and tokenizer.fingerprint != expected:
        raise ValueError(
            f"{tokenizer.model_path} has SHA-256 {tokenizer.fingerprint}; expected {expected}, the "
            "tokenizer of the model"
        )
    if tokenizer.size != description.vocabulary.text_size:
        raise ValueError(
            f"{tokenizer.model_path} has {tokenizer.size} pieces; expected "
            f"{description.vocabulary.text_size}, as the model"
        )


def _check_same(file: pathlib.Path, there: ModelDescription, here: ModelDescription) -> None:
    difference = _description_difference(there, here)
    if difference:
        raise ValueError(
            f"workdir {file.parent} holds a run of another model: {difference}; "
            "give another --workdir, or the settings of that run"
        )


def _description_difference(there: ModelDescription, here: ModelDescription) -> str | None:
    """Says in what two models differ, None where they are the same."""
    for name in ("model", "vocabulary", "tokenizer_fingerprint"):
        difference = _first_difference(getattr(there, name), getattr(here, name), name)
        if difference:
            return difference
    return None


def _first_difference(there: Any, here: Any, name: str) -> str | None:
    """Says in what two values differ, None where they are the same."""
    if type(there) is not type(here):
        return f"{name} is {type(there).__name__} there and {type(here).__name__} here"
    if not dataclasses.is_dataclass(there):
        return None if there == here else f"{name} is {there!r} there and {here!r} here"
    for field in dataclasses.fields(there):
        old, new = getattr(there, field.name), getattr(here, field.name)
        if old != new and field.name not in _EXECUTION_FIELDS:
            return f"{field.name} is {old!r} there and {new!r} here"
    return None
