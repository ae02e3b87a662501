"""The network at inference: each history's encoding at its newest item, and nothing that is not needed for it.

``Trm.encode`` is written for training: padded batches, every position, a way back. Here histories of all lengths lie
one after the other, so that only attention sees padding; the last layer is computed where it is read, which is the
newest item and, for its second convolution, ``TAPS`` items before it. Float32, in evaluation, on any device.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from deeprec.trm.functions import linear, norm
from deeprec.trm.model import TAPS, Layer, Trm


class Packed:
    """Where sequences lie that follow one another, given their (batch,) lengths, none of which is 0.

    Attributes:
        positions: (rows,) of each row in its own sequence.
        padded: (batch, longest) the row at each position; what is beyond the end repeats the last one.
        rows_of_padded: (rows,) the other way, into batch · longest.
        near: (batch, TAPS + 1) rows of the newest positions, oldest first; the first row where there are fewer.
        near_positions: (batch, TAPS + 1) the same in their own sequences.
        before: (batch, TAPS + 1, 1) where there are fewer.
    """

    def __init__(self, lengths: Tensor) -> None:
        device, longest = lengths.device, int(lengths.max())
        ends = lengths.cumsum(0)
        starts = (ends - lengths)[:, None]
        order = torch.arange(longest, device=device)
        self.padded = starts + torch.minimum(order, lengths[:, None] - 1)
        rows = torch.arange(int(ends[-1]), device=device)
        sequence = torch.repeat_interleave(torch.arange(len(lengths), device=device), lengths)
        self.positions = rows - starts[sequence, 0]
        self.rows_of_padded = sequence * longest + self.positions
        back = torch.arange(TAPS, -1, -1, device=device)
        self.near_positions = (lengths[:, None] - 1 - back).clamp(min=0)
        self.near = starts + self.near_positions
        self.before = (lengths[:, None] - 1 < back)[..., None]
        self._reaches = [(self.positions[step:] >= step)[:, None] for step in range(1, TAPS + 1)]

    def mix_recent(self, values: Tensor, taps: Tensor) -> Tensor:
        """``functions.mix_recent`` within each sequence, of (rows, width)."""
        mixed = values.clone()
        for back, (tap, reaches) in enumerate(zip(taps, self._reaches, strict=True), start=1):
            mixed[back:].addcmul_(values[:-back] * reaches, tap)
        return mixed


def encode_newest(model: Trm, rows: Tensor, lengths: Tensor, table: Tensor) -> Tensor:
    """History encodings at the last item of each history.

    Args:
        rows: (items,) of ``table``, history after history, oldest item first.
        lengths: (batch,) items of each, at least 1 and at most ``trm.max_length``.
        table: (n, width) item vectors.

    Returns:
        (batch, width) float32.
    """
    packed = Packed(lengths)
    states = F.embedding(rows, table) + F.embedding(packed.positions, model.positions.weight)
    *layers, last = (cast(Layer, layer) for layer in model.layers)
    for layer in layers:
        states = _everywhere(layer, states, packed)
    return cast(Tensor, model.norm_history(_newest(last, states, packed)))


def _everywhere(layer: Layer, states: Tensor, packed: Packed) -> Tensor:
    """(rows, width) → (rows, width)."""
    width = states.shape[1]
    mixed = packed.mix_recent(norm(states, layer.norm_attention), layer.taps_attention)
    parts = linear(mixed, layer.project)[packed.padded].view(*packed.padded.shape, 3, layer.heads, -1)
    query, key, value = parts.permute(2, 0, 3, 1, 4)
    mask = _causal(layer.nearness, parts.shape[1])
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2)
    attended = attended.reshape(-1, width)[packed.rows_of_padded]
    states = states + linear(attended * torch.sigmoid(linear(mixed, layer.gate_attention)), layer.merge)
    return _inner(layer, states, packed.mix_recent(norm(states, layer.norm_inner), layer.taps_inner))


def _newest(layer: Layer, states: Tensor, packed: Packed) -> Tensor:
    """(rows, width) → (batch, width): keys and values everywhere, queries at the newest positions."""
    width, batch = states.shape[1], len(packed.near)
    mixed = packed.mix_recent(norm(states, layer.norm_attention), layer.taps_attention)
    weight, bias, heads = layer.project.weight, layer.project.bias, (layer.heads, width // layer.heads)
    read = mixed[packed.near]
    query = F.linear(read, weight[:width], bias[:width]).view(batch, -1, *heads).transpose(1, 2)
    others = F.linear(mixed, weight[width:], bias[width:])[packed.padded].view(*packed.padded.shape, 2, *heads)
    key, value = others.permute(2, 0, 3, 1, 4)
    distances = packed.near_positions[..., None] - torch.arange(key.shape[2], device=states.device)
    mask = layer.nearness[:, distances.clamp(min=0)].masked_fill_(distances < 0, -math.inf).transpose(0, 1)
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(-2)
    near = states[packed.near] + linear(attended * torch.sigmoid(linear(read, layer.gate_attention)), layer.merge)
    normed = norm(near, layer.norm_inner).masked_fill(packed.before, 0.0)
    weights = torch.cat([layer.taps_inner.flip(0), layer.taps_inner.new_ones(1, width)])
    return _inner(layer, near[:, -1], (normed * weights).sum(1)).view(batch, width)


def _inner(layer: Layer, states: Tensor, mixed: Tensor) -> Tensor:
    return states + linear(F.silu(linear(mixed, layer.gate_inner)) * linear(mixed, layer.widen), layer.narrow)


def _causal(nearness: Tensor, length: int) -> Tensor:
    """(1, heads, length, length) what is added to the scores: by how far back a position is, −inf for later ones.

    Each row is the next one shifted, so all are windows of one: from the farthest to the nearest, then −inf.
    """
    later = nearness.new_full((len(nearness), length - 1), -math.inf)
    return torch.cat([nearness[:, :length].flip(1), later], 1).unfold(1, length, 1).flip(1)[None]
