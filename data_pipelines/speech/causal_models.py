"""Causal language models of Hugging Face: `transformers:DIR`, a folder with model and tokenizer."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from data_pipelines.speech.registry import check_options, path_argument
from lst_jax.settings import one_line, quote, require
from lst_jax.speech.interfaces import TextScore


class CausalModel:
    """A model of transformers, which PyTorch computes in float32."""

    def __init__(self, folder: str) -> None:
        """Loads a folder; nothing is fetched, and no code of it is run.

        Raises:
          ImportError: PyTorch or transformers is missing.
          ValueError: the folder has no causal model with its tokenizer.
        """
        try:
            torch, transformers = map(importlib.import_module, ("torch", "transformers"))
        except ModuleNotFoundError as error:
            raise ImportError(f"no {error.name}, expected torch and transformers") from error
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
        except Exception as error:  # transformers raises many kinds for what is no model
            reason = f"expected a folder of a causal model: {error}"
            raise ValueError(one_line(f"transformers is {quote(folder)}, {reason}")) from error
        self._torch, self._model = torch, model.float().eval()
        self._longest = getattr(model.config, "max_position_embeddings", None)

    def score(self, texts: Sequence[str]) -> list[TextScore]:
        """See `LanguageModel.score`; a text begins with the tokenizer's bos, if it has one."""
        return [self._score(text) for text in texts]

    def _score(self, text: str) -> TextScore:
        torch, bos = self._torch, self._tokenizer.bos_token_id
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = ids if bos is None else [bos, *ids]
        if self._longest is not None:
            require(len(ids) <= self._longest, "tokens of a text", len(ids), f"≤ {self._longest}")
        if len(ids) < 2:
            return TextScore(0.0, 0)
        tokens = torch.tensor([ids])
        with torch.no_grad():
            logits = self._model(tokens).logits[0, :-1].float()
        chosen = torch.log_softmax(logits, -1).gather(1, tokens[0, 1:, None])
        return TextScore(float(chosen.double().sum()), len(ids) - 1)


def open_causal_model(argument: str, options: Mapping[str, str]) -> CausalModel:
    """Opens `transformers:DIR`."""
    check_options("transformers", options, ())
    return CausalModel(str(path_argument("transformers", argument, "a folder of Hugging Face's")))
