"""What a policy that has learnt from histories expects to come next: its opinion of each title, beside the TRM's.

The compact prompt ends a history with an open line (``explore.prompt``); the probabilities of the title that stands
there are the opinion. It takes a policy that holds each title as one token, as the tiny one does. The opinion is had
from the weights as they were after the histories, where the start's artifact keeps them (``HISTORIES``): what follows
in a warm start teaches to explore, and blurs it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.config import ExploreConfig
from deeprec.errors import PolicyError
from deeprec.explore.loading import HISTORIES, load_policy
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import TitleBook
from deeprec.types import Example, Opinion

if TYPE_CHECKING:
    import torch


class OwnOpinion:
    """A model's opinion; an ``Opinion``. It reads a history once, so the model must not change as long as it is asked.

    Raises:
        PolicyError: the tokenizer does not hold each title as one token.
    """

    def __init__(self, model: Any, tokenizer: Any, titles: TitleBook, explore: ExploreConfig) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._prompts = PromptBuilder(explore, titles)
        self._ids = _title_ids(titles, tokenizer)
        self._last: dict[str, Any] = {}

    def __call__(self, examples: Sequence[Example], candidates: Sequence[Sequence[str]]) -> list[list[float]]:
        """Log-likelihoods, in nats, of each example's candidates as the next line of its history."""
        import torch

        rows = [self._prompts.unfinished(example.history) for example in examples]
        self._read([row for row in dict.fromkeys(rows) if row not in self._last])
        hidden = torch.stack([self._last[row] for row in rows])
        with torch.no_grad():
            likely = self._model.get_output_embeddings()(hidden).float().log_softmax(dim=-1).cpu()
        return [likely[place, [self._ids[item] for item in items]].tolist() for place, items in enumerate(candidates)]

    def _read(self, rows: Sequence[str]) -> None:
        """Keep the last hidden state of each row: lessons come back to a history, and reading it costs most of them."""
        import torch

        if not rows:
            return
        ids = [self._tokenizer.encode(row, add_special_tokens=False) for row in rows]
        padded = torch.zeros((len(ids), max(map(len, ids))), dtype=torch.long)
        for place, row in enumerate(ids):
            padded[place, : len(row)] = torch.tensor(row)
        last = torch.tensor([len(row) - 1 for row in ids])
        device = next(self._model.parameters()).device
        with torch.no_grad():
            hidden = self._model.base_model(input_ids=padded.to(device), use_cache=False).last_hidden_state
            self._last.update(zip(rows, hidden[torch.arange(len(ids)), last.to(device)], strict=True))


def open_opinion(start: Path, titles: TitleBook, explore: ExploreConfig) -> Opinion:
    """The opinion of a start's artifact, with its weights after the histories where it keeps them.

    Raises:
        ArtifactError: there is no policy artifact, or a file differs from its hash.
        PolicyError: it cannot be loaded, its prompt is not the compact one, or a title is not one token.
    """
    if explore.prompt != "compact":
        raise PolicyError(
            f"explore.prompt is {explore.prompt!r}, and only the compact one leaves a line open for a title"
        )
    actor = load_policy(start, dtype="float32")
    actor.model.load_state_dict(read_histories(start), strict=False)
    return OwnOpinion(actor.model.eval(), actor.tokenizer, titles, explore)


def read_histories(start: Path) -> dict[str, torch.Tensor]:
    """A start's parameters after its histories, by name; none where it has learnt from none."""
    from safetensors.torch import load_file

    kept = Path(start) / HISTORIES
    return load_file(kept) if kept.is_file() else {}


def _title_ids(titles: TitleBook, tokenizer: Any) -> dict[str, int]:
    """Item id → the token of its title."""
    items = [item.item_id for item in titles.catalogue.items]
    encoded = [tokenizer.encode(titles.title(item), add_special_tokens=False) for item in items]
    if any(len(tokens) != 1 for tokens in encoded):
        raise PolicyError(
            "only a policy whose titles are one token each, the tiny one, has an opinion of the next title; for a warm "
            "start of another one set policy.warm_start.judge to 'lists'"
        )
    return {item: tokens[0] for item, tokens in zip(items, encoded, strict=True)}
