"""The network's inner operations, written for few passes over memory on a CPU: gathering, dropout, short
convolution, causal attention.

All work in the type of the values they are given (float32, or bfloat16 where the machine multiplies it faster); sums
over many rows are kept in float32. On a GPU torch's own kernels are as fast, and are used instead.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 128
_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16, torch.float32: torch.int32}


def linear(values: Tensor, layer: nn.Linear) -> Tensor:
    """``layer`` in the type of ``values``."""
    return F.linear(values, layer.weight.to(values.dtype), layer.bias.to(values.dtype))


def norm(values: Tensor, layer: nn.LayerNorm) -> Tensor:
    """``layer`` in the type of ``values``; its means and deviations are computed in float32."""
    weight, bias = layer.weight.to(values.dtype), layer.bias.to(values.dtype)
    return F.layer_norm(values, layer.normalized_shape, weight, bias, layer.eps)


# ------------------------------------------------------------------------------------------------------------- gather


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, rows: Tensor, kind: torch.dtype) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.shape = table.shape
        return F.embedding(rows, table.to(kind))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        flat = gradients[0].reshape(-1, ctx.shape[1]).float()
        return flat.new_zeros(ctx.shape).index_add_(0, rows.reshape(-1), flat), None, None


def gather(table: Tensor, rows: Tensor, kind: torch.dtype) -> Tensor:
    """Rows of a float32 table as ``kind``; their gradients are added up in float32."""
    return cast(Tensor, cast(Any, _Gather.apply)(table, rows, kind))


# ------------------------------------------------------------------------------------------------------------ dropout


def _keep(values: Tensor, threshold: int) -> Tensor:
    """A bit mask in the integer type as wide as ``values``: all ones where kept, 0 with chance ``threshold`` / 256."""
    words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64, device=values.device).random_(-(2**63), None)
    drawn = words.view(torch.int8)[: values.numel()].view(values.shape).to(_INTEGERS[values.dtype])
    return drawn.sub_(threshold - 128).bitwise_right_shift_(15).bitwise_not_()


def _masked(values: Tensor, keep: Tensor) -> Tensor:
    return values.contiguous().view(keep.dtype).bitwise_and(keep).view(values.dtype)


class _DropoutAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, residual: Tensor | None, branch: Tensor, threshold: int) -> Tensor:
        keep = _keep(branch, threshold)
        ctx.scale = 256 / (256 - threshold)
        ctx.save_for_backward(keep)
        masked = _masked(branch, keep)
        return masked.mul_(ctx.scale) if residual is None else torch.add(residual, masked, alpha=ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (keep,) = ctx.saved_tensors
        into_branch = _masked(gradients[0], keep).mul_(ctx.scale)
        return gradients[0] if ctx.needs_input_grad[0] else None, into_branch, None


def dropout_add(residual: Tensor | None, branch: Tensor, rate: float, training: bool) -> Tensor:
    """``residual + dropout(branch)``, or the dropout alone.

    On a CPU the rate is rounded to 1/256 and drawn as bytes, several times cheaper than torch's own.
    """
    threshold = min(round(rate * 256), 255)
    if not training or threshold == 0:
        return branch if residual is None else residual + branch
    if branch.device.type != "cpu":
        dropped = F.dropout(branch, rate)
        return dropped if residual is None else residual + dropped
    return cast(Tensor, cast(Any, _DropoutAdd.apply)(residual, branch, threshold))


# -------------------------------------------------------------------------------------------------- short convolution


class _MixRecent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, taps: Tensor) -> Tensor:
        mixed = values.clone()
        for back, tap in enumerate(taps.to(values.dtype), start=1):
            mixed[:, back:].addcmul_(values[:, :-back], tap)
        ctx.save_for_backward(values, taps)
        return mixed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, taps = ctx.saved_tensors
        (gradient,) = gradients
        into, into_taps = gradient.clone(), torch.empty_like(taps)
        for back, tap in enumerate(taps.to(values.dtype), start=1):
            into[:, :-back].addcmul_(gradient[:, back:], tap)
            torch.sum(gradient[:, back:] * values[:, :-back], (0, 1), dtype=taps.dtype, out=into_taps[back - 1])
        return into, into_taps


def mix_recent(values: Tensor, taps: Tensor) -> Tensor:
    """A causal depthwise convolution beside the identity: yₜ = xₜ + Σⱼ tapsⱼ ∘ xₜ₋ⱼ, j from 1.

    Args:
        values: (batch, length, width).
        taps: (how many positions back, width).
    """
    return cast(Tensor, cast(Any, _MixRecent.apply)(values, taps))


# ---------------------------------------------------------------------------------------------------------- attention


def _edges(length: int) -> list[int]:
    """Bounds of blocks of rows of nearly equal size, at most ``BLOCK``."""
    count = -(-length // BLOCK)
    return [length * block // count for block in range(count + 1)]


def _future(start: int, stop: int, like: Tensor) -> Tensor:
    """(rows, stop) −inf where a row of [start, stop) must not look, else 0."""
    mask = torch.full((stop - start, stop), -math.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(start + 1)


class _CausalAttention(torch.autograd.Function):
    """Attention of a block of rows reads the columns up to its last one only; probabilities are kept for the way back.

    With P the probabilities, O = P V and G the gradient of O: ∂V = Pᵀ G, ∂S = P ∘ (G Vᵀ − rowsum(P ∘ G Vᵀ)).
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor | None) -> Tensor:
        batch, length, _, heads, width = parts.shape
        flat = parts.permute(2, 0, 3, 1, 4).reshape(3, batch * heads, length, width)
        query, key, value = flat
        edges = _edges(length)
        result = parts.new_empty(batch, length, heads, width)
        kept = []
        for start, stop in pairwise(edges):
            added = _future(start, stop, parts)
            if bias is not None:
                added = (added + bias[:, start:stop, :stop]).to(parts.dtype).repeat(batch, 1, 1)
            scores = torch.baddbmm(added, query[:, start:stop], key[:, :stop].mT, alpha=1 / math.sqrt(width))
            shares = torch.softmax(scores, -1, out=scores)
            result[:, start:stop] = torch.bmm(shares, value[:, :stop]).view(batch, heads, -1, width).transpose(1, 2)
            kept.append(shares)
        ctx.edges, ctx.bias = edges, None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(flat, *kept)
        return result.view(batch, length, heads * width)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        flat, *kept = ctx.saved_tensors
        (query, key, value), (_, rows, length, width) = flat, flat.shape
        batch = len(gradients[0])
        into = gradients[0].view(batch, length, -1, width).transpose(1, 2).reshape(rows, length, width)
        flat_gradient = torch.empty_like(flat)
        to_query, to_key, to_value = flat_gradient
        to_bias = None if ctx.bias is None else into.new_zeros(ctx.bias[0], dtype=torch.float32)
        for shares, (start, stop) in reversed(list(zip(kept, pairwise(ctx.edges), strict=True))):
            above = into[:, start:stop]
            slope = torch._softmax_backward_data(torch.bmm(above, value[:, :stop].mT), shares, -1, shares.dtype)
            to_query[:, start:stop] = torch.bmm(slope, key[:, :stop])
            if stop == length:
                torch.bmm(shares.mT, above, out=to_value)
                torch.bmm(slope.mT, query[:, start:stop], out=to_key)
            else:
                to_value[:, :stop] += torch.bmm(shares.mT, above)
                to_key[:, :stop] += torch.bmm(slope.mT, query[:, start:stop])
            if to_bias is not None:
                to_bias[:, start:stop, :stop] = slope.view(batch, -1, stop - start, stop).sum(0, dtype=torch.float32)
        flat_gradient[:2].mul_(1 / math.sqrt(width))
        parts_gradient = flat_gradient.view(3, batch, -1, length, width).permute(1, 3, 0, 2, 4).contiguous()
        return parts_gradient, None if to_bias is None else to_bias.to(ctx.bias[1])


def attend(parts: Tensor, bias: Tensor | None = None) -> Tensor:
    """Causal attention.

    Args:
        parts: (batch, length, 3, heads, head width) queries, keys and values.
        bias: (heads, length, length) added to the scores; its values above the diagonal are not read.

    Returns:
        (batch, length, heads · head width).
    """
    if parts.device.type == "cpu":
        return cast(Tensor, cast(Any, _CausalAttention.apply)(parts, bias))
    batch, length = parts.shape[:2]
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    if bias is None:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    else:
        mask = (_future(0, length, parts) + bias).to(parts.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return mixed.transpose(1, 2).reshape(batch, length, -1)
