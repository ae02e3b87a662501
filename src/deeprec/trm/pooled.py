"""Sentence encoders of the common form, with Transformers alone: a transformer, and the mean of its tokens' states.

The library sentence-transformers reads every form, and takes three seconds of a core to import, in every server and
task that encodes a text. What is read here gives the same vectors (``tests/unit/trm/test_pooled.py``); ``is_pooled``
says which directories are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.types import FloatArray

_FORM = ["Transformer", "Pooling"]


def is_pooled(place: Path) -> bool:
    """Whether a sentence-transformers directory is of the form that ``PooledEncoder`` reads."""
    try:
        modules = [(one["type"].rpartition(".")[2], one["path"]) for one in _read(place / "modules.json")]
        if modules and modules[-1][0] == "Normalize":
            modules.pop()
        if [kind for kind, _ in modules] != _FORM or modules[0][1]:
            return False
        pooling = _read(place / modules[1][1] / "config.json")
        settings = _read(place / "sentence_bert_config.json")
        prompts = _read(place / "config_sentence_transformers.json")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
    plain = not settings.get("do_lower_case") and set(settings) <= {"max_seq_length", "do_lower_case"}
    return modes == ["pooling_mode_mean_tokens"] and plain and prompts.get("default_prompt_name") is None


class PooledEncoder:
    """The encoder in a directory that ``is_pooled``, on the accelerator when there is one.

    Raises:
        OSError, ValueError: Transformers cannot read it.
    """

    def __init__(self, place: Path) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._tokenizer: Any = AutoTokenizer.from_pretrained(str(place))
        self._model: Any = AutoModel.from_pretrained(str(place)).to(self._device).eval()
        most = _read(place / "sentence_bert_config.json").get("max_seq_length")
        self._most = most or min(self._tokenizer.model_max_length, self._model.config.max_position_embeddings)

    def encode(self, texts: Sequence[str], batch: int) -> FloatArray:
        """(texts, width) float32, not of unit length: the mean over each text's tokens."""
        import torch

        order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
        found: list[FloatArray] = []
        with torch.inference_mode():
            for start in range(0, len(order), batch):
                part = [texts[row] for row in order[start : start + batch]]
                tokens = self._tokenizer(
                    part, padding=True, truncation=True, max_length=self._most, return_tensors="pt"
                ).to(self._device)
                states = self._model(**tokens).last_hidden_state.float()
                mask = tokens["attention_mask"].unsqueeze(-1).float()
                found.append(((states * mask).sum(1) / mask.sum(1).clamp(min=1e-9)).cpu().numpy())
        vectors = np.concatenate(found)
        return vectors[np.argsort(order)]


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
