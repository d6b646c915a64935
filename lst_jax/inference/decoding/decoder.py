"""What the decoding loop asks of a model: the Protocol of `LSTDecoder` and `TokenDecoder`."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np
from jax import Array

from lst_jax.batch import Batch
from lst_jax.model.models import LatentSpeechTextTransformer, TokenTransformer
from lst_jax.patching import Document, PatchingConfig
from lst_jax.shapes import Bool, Float, Int, Int32
from lst_jax.vocabulary import Vocabulary


class State(Protocol):
    """Rows that have read some tokens; a NamedTuple of arrays with the rows first, and a cache.

    Attributes:
      cache: rings, see `caches`.
      length: (B,) int32, tokens read.
    """

    @property
    def cache(self) -> Any: ...

    @property
    def length(self) -> Int32[Array, " B"]: ...

    def _asdict(self) -> dict[str, Any]: ...

    def _replace(self, **changes: Any) -> Any: ...


S = TypeVar("S", bound=State)


class Decoder(Protocol[S]):
    """Decodes with one kind of model; hashable, as compiled functions are kept for each.

    A token is first read (`read`), then decoded (`decode`), which gives the next one. A row whose
    newest token has completed patches waits between the two until `run_patch` has run for each.

    Attributes:
      model: the model.
      vocabulary: its id space.
      patching: how it was trained; patches are static with this `patch_size`, or single tokens
        with the strategy "none".
      has_global_steps: whether the global transformer has steps besides those of tokens.
    """

    @property
    def model(self) -> LatentSpeechTextTransformer | TokenTransformer: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    @property
    def patching(self) -> PatchingConfig: ...

    has_global_steps: ClassVar[bool]

    def document(self, tokens: Int[np.ndarray, " T"]) -> Document:
        """Returns tokens (T,) in the patches that decoding them one by one would make."""
        ...

    def most_patches(self, num_tokens: int, speech: bool) -> int:
        """Returns how many patches tokens may begin, all of them speech but for the last or not."""
        ...

    def most_tokens(self, num_patches: int) -> int:
        """Returns how many tokens a number of patches may hold."""
        ...

    def prefill(self, params: Any, batch: Batch, capacity: int) -> S:
        """Reads prompts in one pass.

        Args:
          params: of the model.
          batch: B rows of one document each, or none.
          capacity: patches that the rows may have later on.

        Returns:
          The state of B rows that have read, and run all complete patches of, their prompts.
        """
        ...

    def decode(
        self, params: Any, state: S, active: Bool[Array, " B"]
    ) -> tuple[Float[Array, "B d"], S]:
        """Predicts the token after the newest one.

        Args:
          params: of the model.
          state: of B rows.
          active: (B,) bool; rows that are to be decoded, and do not wait.

        Returns:
          Hidden states (B, width), of meaning in the active rows, and the state with their caches.
        """
        ...

    def read(
        self, params: Any, state: S, tokens: Int32[Array, " B"], active: Bool[Array, " B"]
    ) -> S:
        """Takes the next token (B,) of every active row, and sees which patches it completes."""
        ...

    def is_waiting(self, state: S) -> Bool[Array, " B"]:
        """Returns (B,) bool: rows with complete patches that have not run; they cannot decode."""
        ...

    def run_patch(self, params: Any, state: S, active: Bool[Array, " B"]) -> S:
        """Runs the global transformer on the first patch that every active row waits for."""
        ...

    def patches_begun(self, state: S) -> Int32[Array, " B"]:
        """Returns how many patches each row has begun, (B,) int32."""
        ...
