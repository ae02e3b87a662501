"""Which tokens a batch of logits may choose, and what speaks for each: one rule for engines and the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch

Choices = Mapping[int, Mapping[int, float]]
"""Row → the tokens it may write → what is added to the logit of each, in nats."""


def hold_(logits: torch.Tensor, held: Choices) -> torch.Tensor:
    """Give −∞ to what a row of ``logits`` (rows, vocabulary) may not write and add to what it may, in place.

    To be done before logits are divided by a temperature. Rows that are not named, or may write nothing of the
    vocabulary, are left alone.
    """
    rows = torch.tensor(list(held), dtype=torch.long).repeat_interleave(
        torch.tensor([len(tokens) for tokens in held.values()], dtype=torch.long)
    )
    columns = torch.tensor(list(chain.from_iterable(held.values())), dtype=torch.long)
    more = torch.tensor(list(chain.from_iterable(tokens.values() for tokens in held.values())), dtype=logits.dtype)
    known = (columns >= 0) & (columns < logits.shape[1])
    if not known.all():
        rows, columns, more = rows[known], columns[known], more[known]
    if not len(rows):
        return logits
    cells = rows.to(logits.device), columns.to(logits.device)
    chosen = logits[cells] + more.to(logits.device)
    logits[torch.unique_consecutive(rows).to(logits.device)] = -torch.inf
    logits[cells] = chosen
    return logits
