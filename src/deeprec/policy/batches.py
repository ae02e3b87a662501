"""Padded micro-batches of trajectories, and the log-probabilities a model gives the tokens its policy wrote.

Prompts (batch, P) are padded on the left, completions (batch, C) on the right. Nothing here knows the trainer beyond
the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from deeprec.explore.masks import Choices, hold_
from deeprec.types import Trajectory

_COMPLETION_KEYS = (
    "completion_ids",
    "completion_mask",
    "tool_mask",
    "sampling_per_token_logps",
    "old_per_token_logps",
    "ref_per_token_logps",
    "importance_sampling_ratio",
)


Allowed = Sequence[Choices]
"""For each row: place in the completion → what an answer rule allowed there (``explore.answers``)."""

Held = Callable[[Trajectory], Choices]
"""The same of one trajectory (``AnswerRules.allowed``)."""


def own_logprobs(
    model: Any,
    ids: torch.Tensor,
    attention: torch.Tensor,
    own: torch.Tensor,
    *,
    temperature: float,
    allowed: Allowed = (),
    whole: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (without gradient) of the policy's own completion tokens, 0 elsewhere.

    ``ids`` and ``attention`` (batch, P + C), ``own`` (batch, C); both results (batch, C) in nats. Where ``allowed``
    names a place, they are those among the tokens allowed there. ``whole`` calls the model's own forward, as wrapped
    and sharded models need, and so computes logits at every place of the completion.
    """
    width = own.shape[1]
    if whole:
        logits = model(input_ids=ids, attention_mask=attention, use_cache=False, logits_to_keep=width + 1).logits
        logits = logits[:, -width - 1 : -1][own]
    else:
        hidden = model.base_model(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        logits = model.get_output_embeddings()(hidden[:, -width - 1 : -1][own])
    logits = logits.float()
    if allowed:
        logits = hold_(logits, places(own, allowed))
    logps = (logits / temperature).log_softmax(dim=-1)
    chosen = logps.gather(1, ids[:, -width:][own][:, None]).squeeze(1)
    given = logps.detach()
    spread = -(given.exp() * given.clamp(min=torch.finfo(given.dtype).min)).sum(dim=-1)
    empty = chosen.new_zeros(own.shape)
    return empty.masked_scatter(own, chosen), empty.masked_scatter(own, spread)


def places(own: torch.Tensor, allowed: Allowed) -> Choices:
    """What is ``allowed`` by the order of the true cells of ``own`` (batch, C)."""
    return {
        order: allowed[row][place] for order, (row, place) in enumerate(own.nonzero().tolist()) if place in allowed[row]
    }


def by_length(batches: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in the same number of equal batches, shortest completions first."""
    whole = {
        key: torch.cat([batch[key] for batch in batches])
        for key, value in batches[0].items()
        if isinstance(value, torch.Tensor) and value.ndim
    }
    order = torch.chunk(torch.argsort(whole["completion_mask"].sum(dim=1), stable=True), len(batches))
    return [
        {**batch, **{key: value[rows] for key, value in whole.items()}}
        for batch, rows in zip(batches, order, strict=True)
    ]


def trim(inputs: dict[str, Any]) -> dict[str, Any]:
    """Cut padding columns down to the longest prompt and the longest completion of this micro-batch."""
    prompt = int(inputs["prompt_mask"].sum(dim=1).max())
    completion = int(inputs["completion_mask"].sum(dim=1).max())
    trimmed = dict(inputs)
    for key in ("prompt_ids", "prompt_mask"):
        trimmed[key] = inputs[key][:, -prompt:]
    for key in _COMPLETION_KEYS:
        if inputs.get(key) is not None:
            trimmed[key] = inputs[key][:, :completion]
    return trimmed
