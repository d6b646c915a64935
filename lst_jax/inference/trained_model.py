"""A model as its run left it: what evaluation, generation and the demo start from."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import flax.linen as nn
import jax

from lst_jax.checkpoints.description import (
    ModelDescription,
    check_tokenizer,
    read_description,
)
from lst_jax.checkpoints.layout import find_checkpoint
from lst_jax.model.models import build_model
from lst_jax.patching import PatchingConfig, Visibility
from lst_jax.settings import given
from lst_jax.sharding import DEFAULT_RULES, LogicalRules, make_mesh
from lst_jax.vocabulary import TextTokenizer, Vocabulary


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """A model with all that is needed to use it: the argument of inference and evaluation.

    Attributes:
      model: `LatentSpeechTextTransformer` or `TokenTransformer`.
      params: its parameters, on `mesh`.
      mesh: of the devices, which the rows of batches are spread over. In a run of several processes
        all call what takes this model with the same arguments.
      vocabulary: the id space.
      patching: how it was trained. With strategy "none" every token is a patch; with any other,
        patches are static with its `patch_size`, as no alignment exists at test time.
      visibility: its visibility rule; "reference" for checkpoints of the published implementation.
      tokenizer: the text tokenizer; None where there is none, which is enough for token ids.
      context_patches: patch slots of the rows that it was trained on, the longest context that it
        knows; None where its description does not say.
      checkpoint: directory that the parameters came from, whose name is the step; None where they
        came from elsewhere.
      rules: logical axis to mesh axes.
    """

    model: nn.Module
    params: Any
    mesh: jax.sharding.Mesh
    vocabulary: Vocabulary
    patching: PatchingConfig
    visibility: Visibility = "causal"
    tokenizer: TextTokenizer | None = None
    context_patches: int | None = None
    checkpoint: pathlib.Path | None = None
    rules: LogicalRules = DEFAULT_RULES

    @property
    def step(self) -> int:
        """Returns the optimizer updates that made the parameters.

        Raises:
          ValueError: they came from no checkpoint.
        """
        return int(given(self.checkpoint, "checkpoint", "a step's directory").name)

    @property
    def text_tokenizer(self) -> TextTokenizer:
        """Returns the tokenizer.

        Raises:
          ValueError: there is none.
        """
        return given(self.tokenizer, "tokenizer", "the model's text tokenizer")


@dataclasses.dataclass(frozen=True)
class SavedModel:
    """A run's model before its parameters are read, which takes long.

    Attributes:
      path: what was named, a workdir or a step of it.
      checkpoint: directory of the step, or of a workdir's last; where that one is damaged or
        deleted meanwhile, another is loaded.
      description: of the run.
      tokenizer: the text tokenizer.
    """

    path: pathlib.Path
    checkpoint: pathlib.Path
    description: ModelDescription
    tokenizer: TextTokenizer

    def load(
        self, mesh: jax.sharding.Mesh | None = None, rules: LogicalRules = DEFAULT_RULES
    ) -> TrainedModel:
        """Reads the parameters.

        Args:
          mesh: that they are placed on; None is all devices on axis fsdp.
          rules: logical axis to mesh axes.

        Raises:
          FileNotFoundError: there are none.
          OSError: they cannot be read.
          ValueError: they are damaged or were deleted meanwhile, or the mesh does not divide the
            model's axes.
        """
        # Orbax is needed here alone, not where a model is made in memory.
        from lst_jax.checkpoints.params import restore_step_params

        description, data = self.description, self.description.data
        mesh = make_mesh() if mesh is None else mesh
        params, checkpoint = restore_step_params(self.path, mesh, rules, description)
        return TrainedModel(
            model=build_model(description.model),
            params=params,
            mesh=mesh,
            vocabulary=description.vocabulary,
            tokenizer=self.tokenizer,
            patching=given(data.patching, "patching", "that of the run"),
            visibility=given(data.visibility, "visibility", "that of the run"),
            context_patches=data.patches_per_row,
            checkpoint=checkpoint,
            rules=rules,
        )


def open_trained_model(
    path: str | pathlib.Path, tokenizer_path: str | pathlib.Path | None = None
) -> SavedModel:
    """Reads what a run's model is, so that inputs can be checked before its parameters are read.

    Args:
      path: a workdir (its last checkpoint is taken), or workdir/step.
      tokenizer_path: where the run's tokenizer is now; None is where it was.

    Raises:
      FileNotFoundError: there is no run, checkpoint or tokenizer.
      ValueError: the tokenizer is not the run's, or the run's description lacks something.
    """
    checkpoint = find_checkpoint(path)
    description = read_description(checkpoint)
    data = description.data
    missing = [name for name in ("patching", "visibility") if getattr(data, name) is None]
    if missing:
        raise ValueError(f"{path}: model.json has no {', '.join(missing)} under data")
    tokenizer_path = tokenizer_path or data.tokenizer
    if tokenizer_path is None:
        raise ValueError(f"{path} does not say which tokenizer it was trained with; give one")
    tokenizer = TextTokenizer(tokenizer_path)
    check_tokenizer(tokenizer, description)
    return SavedModel(pathlib.Path(path), checkpoint, description, tokenizer)


def load_trained_model(
    path: str | pathlib.Path, tokenizer_path: str | pathlib.Path | None = None
) -> TrainedModel:
    """Rebuilds a model from what its run wrote, on all devices; see `open_trained_model`.

    Raises:
      FileNotFoundError, ValueError: see `open_trained_model` and `SavedModel.load`.
    """
    return open_trained_model(path, tokenizer_path).load()
