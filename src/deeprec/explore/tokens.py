"""The text side of every engine: a policy directory's tokenizer as the ``Policy`` port wants it.

Token ids are the truth between the loop and an engine. Text becomes ids here and ids become text here, with the
tokenizer as it is saved with the policy and never with one that an engine or a server loads for itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from deeprec.errors import PolicyError
from deeprec.types import Generation

FINGERPRINT = "deeprec-"
"""How a policy artifact's fingerprint begins, by which ``deeprec serve policy`` names the model that it serves."""
SERVED = "deeprec-policy"
"""The other name of that model, the same for every policy."""


class TokenizedPolicy(ABC):
    """``encode``, ``decode`` and ``eos_id`` of a Hugging Face tokenizer; engines add ``start``."""

    def __init__(self, tokenizer: Any) -> None:
        if tokenizer.eos_token_id is None:
            raise PolicyError("the policy's tokenizer has no end-of-text token; set its eos_token")
        self.tokenizer = tokenizer

    @abstractmethod
    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        """Begin a batch. A prompt of no tokens is refused with PolicyError."""

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence the engine takes, prompt and what is written; 0 where that is not known."""
        return 0

    def close(self) -> None:  # noqa: B027
        """Give back what the engine holds besides this process's own memory; nothing is generated afterwards."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; nothing is added around it."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None or backend.truncation is not None or backend.padding is not None:
            return list(self.tokenizer.encode(text, add_special_tokens=False))
        return list(backend.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, markup included, with no clean-up of spaces."""
        return str(
            self.tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    @property
    def eos_id(self) -> int:
        return int(self.tokenizer.eos_token_id)
