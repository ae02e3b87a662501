"""Softmax over the catalogue, or over a sample of it, with its gradient computed on the way forward, in chunks.

The matrix of scores (positions, candidates) never exists as a whole: memory is one chunk of it, and nothing is computed
twice. Users and items have unit length, so a score is at most 1/τ, and exp of it needs no maximum subtracted as long as
τ is at least 0.0125 (1/τ = 80), which the configuration sees to.

Over a sample, candidate j stands for ``weights[j]`` items (the inverse of how often it is expected to be drawn: the
log-Q correction of Bengio and Senécal, 2008), a position's own target is always a candidate, with weight 1, and a drawn
candidate that is the target is not counted a second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 1024
GRAIN = 128
"""Positions, and a sample's candidates, are padded to a multiple of this with weight 0: a matrix product of a shape not
seen before is costly to prepare, and kept in memory."""
CHUNK_SCORES = 2**24


@dataclass(frozen=True, slots=True)
class Sample:
    """Candidates of a sampled softmax.

    ``rows`` (m,) of the item vectors, ``weights`` (m,) float32, and ``hits`` (n,) for each position the candidate that
    is its target, −1 for none.
    """

    rows: Tensor
    weights: Tensor
    hits: Tensor


@dataclass(frozen=True, slots=True)
class Seen:
    """What each position has seen: ``inputs`` (batch, length) rows of the item vectors up to the position itself.

    ``places`` (n,) are the positions, as indices into batch · length.
    """

    inputs: Tensor
    places: Tensor


class _Softmax(torch.autograd.Function):
    """Weighted mean of log Σⱼ exp sⱼ − sₜ, with s = u·vⱼ/τ. With p the softmax: ∂u = (Σⱼ pⱼ vⱼ − vₜ)/τ, and so on."""

    @staticmethod
    def forward(
        ctx: Any,
        users: Tensor,
        items: Tensor,
        targets: Tensor,
        shares: Tensor,
        temperature: float,
        sample: Sample | None,
        seen: Seen | None,
        low: bool,
    ) -> Tensor:
        kind = torch.bfloat16 if low else users.dtype
        candidates = (items if sample is None else items[sample.rows]).to(kind)
        weighted = candidates if sample is None else (candidates * sample.weights[:, None]).to(kind)
        own_vectors = items[targets]
        own = (users * own_vectors).sum(-1) / temperature
        scaled = (users / temperature).to(kind)
        user_gradient = torch.empty_like(users)
        item_gradient = candidates.new_zeros(candidates.shape, dtype=users.dtype)
        sums = torch.empty_like(own)
        for start, stop in _chunks(len(users), len(candidates)):
            scores = (scaled[start:stop] @ candidates.T).exp_()
            if seen is not None:
                _leave_out_seen(scores, seen, slice(start, stop), targets[start:stop, None])
            if sample is None:
                total = scores.sum(-1).to(users.dtype)
            else:
                _leave_out(scores, sample.hits[start:stop])
                total = (scores @ sample.weights.to(kind)).to(users.dtype) + own[start:stop].exp()
            share = (shares[start:stop] / total)[:, None]
            user_gradient[start:stop] = (scores @ weighted).to(users.dtype) * share
            item_gradient += scores.T @ (users[start:stop] * share).to(kind)
            sums[start:stop] = total
        slope = -shares if sample is None else shares * ((own.exp() / sums) - 1)
        user_gradient.addcmul_(own_vectors, slope[:, None])
        if sample is not None:
            spread = torch.zeros_like(items)
            item_gradient = spread.index_add_(0, sample.rows, item_gradient * sample.weights[:, None])
        item_gradient.index_add_(0, targets, users * slope[:, None])
        ctx.save_for_backward(user_gradient.div_(temperature), item_gradient.div_(temperature))
        return ((sums.log() - own) * shares).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        user_gradient, item_gradient = ctx.saved_tensors
        return user_gradient * gradients[0], item_gradient * gradients[0], None, None, None, None, None, None


def _chunks(users: int, candidates: int) -> list[tuple[int, int]]:
    size = min(CHUNK, max(1, CHUNK_SCORES // (candidates * GRAIN)) * GRAIN)
    return [(start, min(start + size, users)) for start in range(0, users, size)]


def _leave_out(scores: Tensor, hits: Tensor) -> None:
    """Set each row's score in column ``hits`` to zero, where there is one."""
    rows = torch.nonzero(hits >= 0)[:, 0]
    scores[rows, hits[rows]] = 0


def _leave_out_seen(scores: Tensor, seen: Seen, part: slice, targets: Tensor) -> None:
    """Set the scores of what the positions of ``part`` have seen to zero, except of their targets (rows, 1)."""
    length = seen.inputs.shape[1]
    places = seen.places[part]
    rows = seen.inputs[places // length]
    future = torch.arange(length, device=rows.device) > (places % length)[:, None]
    own = scores.gather(1, targets)
    scores.scatter_(1, torch.where(future, rows[:, :1], rows), 0).scatter_(1, targets, own)


def catalogue_loss(
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    weights: Tensor | None = None,
    sample: Sample | None = None,
    seen: Seen | None = None,
    low: bool = False,
) -> Tensor:
    """Mean cross entropy of ``targets`` (n,) under softmax(users · itemsᵀ / temperature).

    Args:
        users: (n, width) float32, unit length.
        items: (items, width) float32, unit length.
        targets: (n,) rows of ``items``.
        temperature: at least 0.0125.
        weights: (n,) of the mean over positions; all equal without.
        sample: candidates to estimate the softmax over the whole catalogue from; without, ``items`` is the catalogue.
        seen: leave out of each position's softmax the items it has seen, except its target; not with a sample.
        low: multiply, and take exp, in bfloat16. Against float32 the gradients differ by about 0.1 %.
    """
    shares = torch.full((len(users),), 1 / len(users), device=users.device) if weights is None else weights
    missing = -len(users) % GRAIN
    users, targets = F.pad(users, (0, 0, 0, missing)), F.pad(targets, (0, missing))
    shares = F.pad(shares / shares.sum(), (0, missing))
    if sample is not None:
        few = (0, -len(sample.rows) % GRAIN)
        hits = F.pad(sample.hits, (0, missing), value=-1)
        sample = Sample(F.pad(sample.rows, few), F.pad(sample.weights, few), hits)
    if seen is not None:
        seen = Seen(seen.inputs, F.pad(seen.places, (0, missing)))
    return cast(Tensor, cast(Any, _Softmax.apply)(users, items, targets, shares, temperature, sample, seen, low))
