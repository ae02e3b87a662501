"""Softmax over the whole catalogue, with its gradient computed on the way forward, in chunks.

The matrix of scores (positions, catalogue) never exists as a whole: memory is ``CHUNK`` rows of it, and nothing is
computed twice.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

CHUNK = 512


class _CatalogueSoftmax(torch.autograd.Function):
    """Mean negative log-likelihood of the targets. With p the softmax of s = u·vᵀ/τ: ∂/∂s = (p − onehot)/n."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor, targets: Tensor, temperature: float, low: bool) -> Tensor:
        kind = torch.bfloat16 if low else users.dtype
        catalogue = items.to(kind)
        user_gradient = torch.empty_like(users)
        item_gradient = torch.zeros_like(items)
        scale = 1 / (temperature * len(users))
        total = users.new_zeros(())
        for start in range(0, len(users), CHUNK):
            part, wanted = users[start : start + CHUNK].to(kind), targets[start : start + CHUNK, None]
            logs = torch.log_softmax((part @ catalogue.T).float().div_(temperature), -1)
            total -= logs.gather(1, wanted).sum()
            slope = logs.exp_().scatter_add_(1, wanted, logs.new_full(wanted.shape, -1.0)).to(kind)
            user_gradient[start : start + CHUNK] = (slope @ catalogue).float() * scale
            item_gradient += (slope.T @ part).float() * scale
        ctx.save_for_backward(user_gradient, item_gradient)
        return total / len(users)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, item_gradient = ctx.saved_tensors
        return user_gradient * gradients[0], item_gradient * gradients[0], None, None, None


def catalogue_loss(users: Tensor, items: Tensor, targets: Tensor, temperature: float, *, low: bool = False) -> Tensor:
    """Mean cross entropy of ``targets`` (n,) under softmax(users · itemsᵀ / temperature).

    Args:
        users: (n, width) float32, unit length.
        items: (items, width) float32, unit length.
        low: multiply in bfloat16 (sums and the softmax itself stay in float32).
    """
    apply = cast(Any, _CatalogueSoftmax.apply)
    return cast(Tensor, apply(users, items, targets, temperature, low))
