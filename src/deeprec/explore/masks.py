"""Which tokens a batch of logits may not choose: one mask for the engines and for what scores their tokens later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


def barred(held: Mapping[int, Sequence[int]], logits: torch.Tensor) -> torch.Tensor:
    """True where a row of ``logits`` may not write a token, like them (rows, vocabulary).

    ``held``: row → the tokens it may write. Rows that are not named, or may write nothing of the vocabulary, are free.
    """
    rows, vocabulary = logits.shape
    cells = [(row, token) for row, tokens in held.items() for token in tokens if 0 <= token < vocabulary]
    mask = torch.zeros((rows, vocabulary), dtype=torch.bool, device=logits.device)
    if cells:
        places, tokens = torch.tensor(cells, device=logits.device).T
        mask[places] = True
        mask[places, tokens] = False
    return mask
