"""Which tokens a batch of logits may choose, and what speaks for each: one rule for engines and the trainer."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Choices = Mapping[int, Mapping[int, float]]
"""Row → the tokens it may write → what is added to the logit of each, in nats."""


def hold_(logits: torch.Tensor, held: Choices) -> torch.Tensor:
    """Give −∞ to what a row of ``logits`` (rows, vocabulary) may not write and add to what it may, in place.

    To be done before logits are divided by a temperature. Rows that are not named, or may write nothing of the
    vocabulary, are left alone.
    """
    rows, vocabulary = logits.shape
    cells = [
        (row, token, more) for row, tokens in held.items() for token, more in tokens.items() if 0 <= token < vocabulary
    ]
    if not cells:
        return logits
    places, tokens, more = zip(*cells, strict=True)
    row, column = torch.tensor(places, device=logits.device), torch.tensor(tokens, device=logits.device)
    barred = torch.zeros((rows, vocabulary), dtype=torch.bool, device=logits.device)
    barred[row] = True
    barred[row, column] = False
    logits.masked_fill_(barred, -torch.inf)
    if any(more):
        logits.index_put_((row, column), torch.tensor(more, dtype=logits.dtype, device=logits.device), accumulate=True)
    return logits
