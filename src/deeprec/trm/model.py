"""The preference-aware TRM as a network (method, section 2).

A causal Transformer (Kang and McAuley, 2018, SASRec) reads item rows; its output at a position is the history encoding
there. A preference is the mean of its phrases' adapted text vectors. ``user = LayerNorm(history + preference)``, where
an absent part is exactly zero, and the score of an item is the cosine of user and item vector over the temperature.
An item vector is its ID embedding plus its adapted text, so an item nobody has interacted with is still reachable.

Sequences are left-aligned and padded on the right; attention is causal, so what is padded never reaches a position
that is read. Rows are indices into the catalogue the model was built with; ``PAD`` may be any valid row.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeprec.config import TrmConfig

PAD = 0
EXPERTS = 8


def dropout(values: Tensor, rate: float, training: bool) -> Tensor:
    """Inverted dropout at ``rate`` rounded to 1/256, drawn as bytes: on a CPU several times cheaper than torch's."""
    threshold = min(round(rate * 256), 255)
    if not training or threshold == 0:
        return values
    words = torch.empty((values.numel() + 7) // 8, dtype=torch.int64, device=values.device).random_(-(2**63), None)
    keep = words.view(torch.uint8)[: values.numel()].view(values.shape) >= threshold
    return values * (keep.to(values.dtype) * (256 / (256 - threshold)))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention; (batch, heads, length, head width) each, and so is the result.

    On a CPU the explicit product is twice as fast, forward and backward, as torch's fused kernel at these sizes.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)
    length, width = query.shape[-2:]
    future = torch.full((length, length), -math.inf, dtype=query.dtype).triu(1)
    flat = [part.reshape(-1, length, width) for part in (query, key, value)]
    scores = torch.baddbmm(future, flat[0], flat[1].transpose(1, 2), alpha=1 / math.sqrt(width))
    return torch.bmm(torch.softmax(scores, -1), flat[2]).view(query.shape)


class Layer(nn.Module):
    """A pre-LN Transformer layer, with dropout on its two residual branches only."""

    def __init__(self, width: int, heads: int, rate: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm_attention, self.norm_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, states: Tensor) -> Tensor:
        """(batch, length, width) → the same shape."""
        batch, length, width = states.shape
        parts = self.project(self.norm_attention(states)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        attended = attend(query, key, value).transpose(1, 2).reshape(batch, length, width)
        states = states + dropout(self.merge(attended), self.rate, self.training)
        inner = self.narrow(F.relu(self.widen(self.norm_inner(states))))
        return states + dropout(inner, self.rate, self.training)


class Adaptor(nn.Module):
    """A mixture of linear experts from text width to TRM width, weighted by a softmax gate on the text."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(text_width, EXPERTS)
        self.experts = nn.Linear(text_width, EXPERTS * width)

    def forward(self, text: Tensor) -> Tensor:
        """(rows, text width) → (rows, width) float32."""
        text = text * math.sqrt(text.shape[1])
        gate = torch.softmax(self.gate(text).float(), -1)
        experts = self.experts(text).view(len(text), EXPERTS, -1)
        return torch.bmm(gate.to(experts.dtype)[:, None], experts)[:, 0].float()


class Trm(nn.Module):
    """The network. ``item_text`` (items, text width) is a constant of the catalogue and is not a parameter."""

    item_text: Tensor

    def __init__(self, config: TrmConfig, item_text: Tensor) -> None:
        super().__init__()
        items, text_width = item_text.shape
        self.config = config
        self.register_buffer("item_text", item_text, persistent=False)
        self.item_ids = nn.Embedding(items, config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.item_adaptor = Adaptor(text_width, config.width)
        self.phrase_adaptor = Adaptor(text_width, config.width)
        self.layers = nn.ModuleList(Layer(config.width, config.heads, config.dropout) for _ in range(config.layers))
        self.norm_history, self.norm_user = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        nn.init.normal_(self.item_ids.weight, std=config.width**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)

    def item_table(self) -> Tensor:
        """(items, width) float32: ID embedding plus adapted text, not normalised."""
        return cast(Tensor, self.item_ids.weight + self.item_adaptor(self.item_text))

    def encode(self, rows: Tensor, table: Tensor) -> Tensor:
        """History encodings at every position: (batch, length) rows, (items, width) table → (batch, length, width)."""
        states = F.embedding(rows, table) + self.positions.weight[: rows.shape[1]]
        states = dropout(states, self.config.dropout, self.training)
        for layer in self.layers:
            states = layer(states)
        return cast(Tensor, self.norm_history(states.float()))

    def user(self, encodings: Tensor) -> Tensor:
        """(n, width) sums of history and preference encodings → (n, width) unit-length user vectors."""
        return F.normalize(self.norm_user(encodings.float()), dim=-1)


def mean_phrases(phrases: Tensor, adapted: Tensor) -> Tensor:
    """Preference encodings: (n, most) indices into ``adapted`` (phrases, width), −1 for none → (n, width).

    A row without any phrase gives exactly zero.
    """
    padded = torch.cat([adapted, adapted.new_zeros(1, adapted.shape[1])])
    return F.embedding_bag(phrases.remainder(len(padded)), padded, mode="mean", padding_idx=len(adapted))
