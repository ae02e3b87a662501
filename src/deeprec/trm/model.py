"""The preference-aware TRM as a network (method, section 2).

A causal Transformer (Kang and McAuley, 2018, SASRec) reads item rows; its output at a position is the history encoding
there. What its layers have beyond SASRec's, each measured in docs/explanation/trm.md: a learned bias by distance in the
attention, a gate on what attention gives, a gated inner layer (SwiGLU; Shazeer, 2020), and a short causal convolution
before both. A preference is the mean of its phrases' adapted text vectors. ``user = LayerNorm(history + preference)``,
where an absent part is exactly zero, and the score of an item is the cosine of user and item vector over the
temperature. An item vector is its ID embedding plus its adapted text, so an item nobody has interacted with is still
reachable.

Sequences are left-aligned and padded on the right; attention is causal, so what is padded never reaches a position
that is read. Rows are indices into the catalogue the model was built with; ``PAD`` may be any valid row. Where ``low``
is asked for, products and the states between them are in bfloat16; parameters, the item table and results are float32.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deeprec.config import TrmConfig
from deeprec.trm.functions import attend, dropout_add, gather, linear, mix_recent, norm

PAD = 0
EXPERTS = 8
TAPS = 3
"""Positions back that the short convolutions read."""
INNER = 3
"""Width of the inner layer over that of the states."""
GRAINS = (32, 256)
"""Few and many texts are padded to a multiple of these: a product of a shape not seen before is costly to prepare."""
TABLE_CHUNK = 16_384


class Layer(nn.Module):
    """A pre-LN Transformer layer with gates, and dropout on its two residual branches only.

    ``nearness`` (heads, longest) is added to the attention scores of a position by how far back the other one is.
    """

    def __init__(self, width: int, heads: int, rate: float, longest: int) -> None:
        super().__init__()
        self.heads, self.rate = heads, rate
        self.norm_attention, self.norm_inner = nn.LayerNorm(width), nn.LayerNorm(width)
        self.taps_attention = nn.Parameter(torch.zeros(TAPS, width))
        self.taps_inner = nn.Parameter(torch.zeros(TAPS, width))
        self.nearness = nn.Parameter(torch.zeros(heads, longest))
        self.project, self.gate_attention = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.merge = nn.Linear(width, width)
        self.gate_inner, self.widen = nn.Linear(width, INNER * width), nn.Linear(width, INNER * width)
        self.narrow = nn.Linear(INNER * width, width)

    def forward(self, states: Tensor, batch: int, distances: Tensor) -> Tensor:
        """(batch · length, width) states and (length, length) distances → the same shape and type as the states.

        Flat, because what follows in place on a view of a product costs copies on the way back.
        """
        width = states.shape[1]
        mixed = self._mixed(norm(states, self.norm_attention), self.taps_attention, batch)
        parts = linear(mixed, self.project).view(batch, -1, 3, self.heads, width // self.heads)
        attended = attend(parts, self.nearness[:, distances]).view(-1, width)
        attended = attended * torch.sigmoid(linear(mixed, self.gate_attention))
        states = dropout_add(states, linear(attended, self.merge), self.rate, self.training)
        mixed = self._mixed(norm(states, self.norm_inner), self.taps_inner, batch)
        inner = F.silu(linear(mixed, self.gate_inner)) * linear(mixed, self.widen)
        return dropout_add(states, linear(inner, self.narrow), self.rate, self.training)

    def _mixed(self, states: Tensor, taps: Tensor, batch: int) -> Tensor:
        return mix_recent(states.view(batch, -1, states.shape[1]), taps).view_as(states)


class Adaptor(nn.Module):
    """A mixture of linear experts from text width to TRM width, weighted by a softmax gate on the text."""

    def __init__(self, text_width: int, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(text_width, EXPERTS)
        self.experts = nn.Linear(text_width, EXPERTS * width)

    def forward(self, text: Tensor, low: bool = False) -> Tensor:
        """(rows, text width) of any float type → (rows, width) float32."""
        count, grain = len(text), GRAINS[len(text) > GRAINS[1]]
        text = F.pad((text * math.sqrt(text.shape[1])).to(_kind(low)), (0, 0, 0, -count % grain))
        gate = torch.softmax(linear(text, self.gate).float(), -1)
        experts = linear(text, self.experts).view(len(text), EXPERTS, -1)
        return torch.bmm(gate.to(experts.dtype)[:, None], experts)[:count, 0].float()


class Trm(nn.Module):
    """The network. ``item_text`` (items, text width) is a constant of the catalogue and is not a parameter."""

    item_text: Tensor

    def __init__(self, config: TrmConfig, item_text: Tensor) -> None:
        super().__init__()
        items, text_width = item_text.shape
        self.config = config
        self.register_buffer("item_text", item_text, persistent=False)
        self.item_ids = nn.Embedding(items, config.width, _weight=torch.empty(items, config.width))
        self.positions = nn.Embedding(config.max_length, config.width)
        self.item_adaptor = Adaptor(text_width, config.width)
        self.phrase_adaptor = Adaptor(text_width, config.width)
        self.layers = nn.ModuleList(
            Layer(config.width, config.heads, config.dropout, config.max_length) for _ in range(config.layers)
        )
        self.norm_history, self.norm_user = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        nn.init.normal_(self.item_ids.weight, std=config.width**-0.5)
        nn.init.normal_(self.positions.weight, std=0.02)

    def fuse(self, ids: Tensor, text: Tensor, *, low: bool = False) -> Tensor:
        """(n, width) ID embeddings and (n, text width) text vectors → (n, width) float32 item vectors."""
        return cast(Tensor, ids + self.item_adaptor(text, low))

    def item_table(self, rows: Tensor | None = None) -> Tensor:
        """Item vectors of some rows, or of all: (n, width) float32, not normalised.

        An item whose ID embedding is zero has its adapted text alone. Without gradients, many rows are done in chunks.
        """
        ids, text = self.item_ids.weight, self.item_text
        count = len(ids) if rows is None else len(rows)
        if torch.is_grad_enabled() or count <= TABLE_CHUNK:
            return self.fuse(ids, text) if rows is None else self.fuse(ids[rows], text[rows])
        table = ids.new_empty(count, ids.shape[1])
        for start in range(0, count, TABLE_CHUNK):
            part = slice(start, start + TABLE_CHUNK) if rows is None else rows[start : start + TABLE_CHUNK]
            table[start : start + TABLE_CHUNK] = self.fuse(ids[part], text[part])
        return table

    def encode(self, rows: Tensor, table: Tensor, places: Tensor | None = None, *, low: bool = False) -> Tensor:
        """History encodings at every position, or at some.

        Args:
            rows: (batch, length) of ``table``.
            table: (n, width) item vectors.
            places: (positions,) wanted, as indices into the batch · length positions, each once.

        Returns:
            (batch, length, width) float32, or (positions, width) with ``places``.
        """
        states = gather(table, rows, _kind(low)) + self.positions.weight[: rows.shape[1]].to(_kind(low))
        states = dropout_add(None, states.flatten(0, 1), self.config.dropout, self.training)
        places_back = torch.arange(rows.shape[1], device=rows.device)
        distances = (places_back[:, None] - places_back).clamp_(min=0)
        for layer in self.layers:
            states = layer(states, len(rows), distances)
        if places is not None:
            states = states.index_select(0, places)
        encoded = cast(Tensor, self.norm_history(states.float()))
        return encoded if places is not None else encoded.view(*rows.shape, -1)

    def user(self, encodings: Tensor) -> Tensor:
        """(n, width) sums of history and preference encodings → (n, width) unit-length user vectors."""
        return F.normalize(self.norm_user(encodings.float()), dim=-1)


def mean_phrases(phrases: Tensor, adapted: Tensor) -> Tensor:
    """Preference encodings: (n, most) indices into ``adapted`` (phrases, width), −1 for none → (n, width).

    A row without any phrase gives exactly zero.
    """
    padded = torch.cat([adapted, adapted.new_zeros(1, adapted.shape[1])])
    return F.embedding_bag(phrases.remainder(len(padded)), padded, mode="mean", padding_idx=len(adapted))


def _kind(low: bool) -> torch.dtype:
    return torch.bfloat16 if low else torch.float32
