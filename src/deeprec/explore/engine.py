"""The in-process engine: a transformers causal language model as a ``Policy`` whose cache lives across turns.

Rows of a generation share one grid of cache columns. A row that is not part of a step gets a column that the
attention mask hides, so the grid has holes; positions count a row's own tokens only, so holes change nothing. Rows
that leave the batch are dropped from the grid and, should they return, are read again from their tokens. Rows that
begin alike, as a group does with its prompt, are read once. Tokens that a rule leaves no choice about are not asked
for one by one but read together with the choice before them (jump-forward decoding, Zheng et al., SGLang, 2024).

Limits: decoders with plain attention layers (no sliding windows, no recurrent layers), ``sdpa`` or ``eager``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from deeprec.errors import PolicyError
from deeprec.explore.masks import Choices, hold_
from deeprec.explore.tokens import TokenizedPolicy
from deeprec.types import Generation, Rule, Segment

_SPARE_COLUMNS = 64
_MAX_WASTE = 1.5
"""The grid is packed again when it has this many times the columns its longest row needs."""


class TransformersPolicy(TokenizedPolicy):
    """A causal language model and its tokenizer, wherever the model's weights are; holds no state between batches."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(tokenizer)
        self.model = model

    @property
    def longest(self) -> int:
        """The positions that the model was made for."""
        return int(getattr(self.model.config, "max_position_embeddings", 0))

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        """Begin a batch. A prompt of no tokens is refused with PolicyError."""
        return TransformersGeneration(self.model, prompts, seed)


class _GrowingLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one layer, (rows, heads, columns, head width), written in place into spare columns."""

    is_sliding = False
    is_croppable = False

    def __init__(self) -> None:
        super().__init__()
        self.used = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_zeros((*key_states.shape[:2], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((*value_states.shape[:2], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        end = self.used + key_states.shape[2]
        if end > self.keys.shape[2]:
            self.keys = self._grown(self.keys, end)
            self.values = self._grown(self.values, end)
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def _grown(self, old: torch.Tensor, columns: int) -> torch.Tensor:
        spare = max(_SPARE_COLUMNS, columns // 4)
        new = old.new_empty((*old.shape[:2], columns + spare, old.shape[3]))
        new[:, :, : self.used] = old[:, :, : self.used]
        return new

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return -1

    def take(self, rows: torch.Tensor, columns: torch.Tensor | None) -> _GrowingLayer:
        """A copy of some rows; with ``columns`` (rows taken, new columns), each row's cells in that order."""
        taken = _GrowingLayer()
        taken.lazy_initialization(self.keys, self.values)
        for name in ("keys", "values"):
            cells = getattr(self, name)[:, :, : self.used].index_select(0, rows)
            if columns is not None:
                index = columns[:, None, :, None].expand(-1, cells.shape[1], -1, cells.shape[3])
                cells = cells.gather(2, index)
            setattr(taken, name, cells)
        taken.used = taken.keys.shape[2]
        return taken


class _Grid:
    """The cache of some rows and which of its cells hold tokens.

    ``rows``: the generation's row of each grid row. ``cached``: tokens of each grid row that are in the cache.
    ``visible``: (grid rows, columns) bool.
    """

    def __init__(self, layers: list[_GrowingLayer], rows: list[int], cached: list[int], visible: torch.Tensor) -> None:
        self.layers, self.rows, self.cached, self.visible = layers, rows, cached, visible
        self.cache = Cache(layers=layers)

    @classmethod
    def empty(cls, layers: int, rows: list[int], device: torch.device) -> _Grid:
        visible = torch.zeros((len(rows), 0), dtype=torch.bool, device=device)
        return cls([_GrowingLayer() for _ in range(layers)], rows, [0] * len(rows), visible)

    @property
    def wasteful(self) -> bool:
        """Whether too many of its columns are holes."""
        return self.visible.shape[1] > _MAX_WASTE * max(self.cached)

    def take(self, places: list[int]) -> _Grid:
        """The grid of some of its rows, packed when too many of its columns are holes."""
        index = torch.tensor(places, device=self.visible.device)
        visible = self.visible.index_select(0, index)
        cached = [self.cached[place] for place in places]
        columns = None
        longest = max(cached)
        if visible.shape[1] > _MAX_WASTE * longest:
            columns = torch.argsort(visible.int(), dim=1, stable=True)[:, visible.shape[1] - longest :]
            visible = visible.gather(1, columns)
        layers = [layer.take(index, columns) for layer in self.layers]
        return _Grid(layers, [self.rows[place] for place in places], cached, visible)


class _Writing:
    """A segment as it is written, told to its rule and added to the ``row`` it belongs to."""

    def __init__(self, row: list[int], most: int, stop_ids: AbstractSet[int], rule: Rule | None) -> None:
        self._row, self._most, self._stop_ids, self._rule = row, most, stop_ids, rule
        self.tokens: list[int] = []
        self.logprobs: list[float] = []

    @property
    def open(self) -> bool:
        """Whether it goes on: it is not as long as may be, and has not written a stop token."""
        return len(self.tokens) < self._most and not (self.tokens and self.tokens[-1] in self._stop_ids)

    @property
    def allowed(self) -> Mapping[int, float] | None:
        """What its rule allows next; None where any token may come."""
        return None if self._rule is None else self._rule.allowed

    def write(self, token: int, logprob: float) -> None:
        """The token comes next."""
        if self._rule is not None:
            self._rule.take(token)
        self._row.append(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def write_what_is_certain(self, vocabulary: int) -> None:
        """Go on as long as the rule allows one token only: its probability is 1, whatever the model says."""
        while self.open and (allowed := self.allowed) is not None and len(allowed) == 1:
            (token,) = allowed
            if not 0 <= token < vocabulary:
                return
            self.write(token, 0.0)


class TransformersGeneration:
    """A batch of growing sequences. Row numbers are the prompts' order."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], seed: int | None) -> None:
        self._model = model
        self._tokens = [list(prompt) for prompt in prompts]
        if not all(self._tokens):
            raise PolicyError("a prompt has no tokens; give the tokenizer the protocol's vocabulary")
        self._device = next(model.parameters()).device
        self._generator = torch.Generator(device=self._device)
        if seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(seed)
        self._grid: _Grid | None = None

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """Append tokens the environment wrote; they enter the cache with the row's next ``generate``."""
        for row, tokens in zip(rows, token_ids, strict=True):
            self._tokens[row].extend(tokens)

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        """Extend the rows until a stop token or the limit; one segment per row, in the order given.

        Log-probabilities are those of the distribution sampled from; greedy ones are the model's own, among what the
        row's rule allows.
        """
        if not rows or max_new_tokens < 1:
            return [Segment((), ()) for _ in rows]
        ruled = dict(zip(rows, rules, strict=True)) if rules else {}
        writing = {row: _Writing(self._tokens[row], max_new_tokens, stop_ids, ruled.get(row)) for row in rows}
        with _evaluating(self._model), torch.no_grad():
            grid, logits = self._read(list(writing))
            self._grid = grid
            open_rows = set(writing)
            while True:
                held = {place: writing[row].allowed for place, row in enumerate(grid.rows) if row in open_rows}
                tokens, logprobs = self._choose(
                    logits, temperature, {place: allowed for place, allowed in held.items() if allowed is not None}
                )
                for place in held:
                    row = grid.rows[place]
                    writing[row].write(tokens[place], logprobs[place])
                    writing[row].write_what_is_certain(logits.shape[1])
                    if not writing[row].open:
                        open_rows.discard(row)
                if not open_rows:
                    break
                grid = self._packed(grid, open_rows)
                logits = self._read_pending(grid, open_rows)
        return [Segment(tuple(writing[row].tokens), tuple(writing[row].logprobs)) for row in rows]

    def _read(self, rows: list[int]) -> tuple[_Grid, torch.Tensor]:
        """The grid for exactly these rows, all of their tokens read; logits (grid rows, vocabulary) of the next.

        It is the present grid or part of it, or a new one where a row is not in it.
        """
        grid, wanted = self._grid, set(rows)
        if grid is None or not wanted <= set(grid.rows):
            return self._read_anew(rows)
        places = [place for place, row in enumerate(grid.rows) if row in wanted]
        if grid.wasteful or len(places) < len(grid.rows):
            grid = grid.take(places)
        return grid, self._read_pending(grid, wanted)

    def _packed(self, grid: _Grid, open_rows: AbstractSet[int]) -> _Grid:
        """The grid without its closed rows once they are half of it, and without its holes once they are many."""
        if 2 * len(open_rows) <= len(grid.rows):
            return grid.take([place for place, row in enumerate(grid.rows) if row in open_rows])
        if not grid.wasteful:
            return grid
        packed = grid.take(list(range(len(grid.rows))))
        if grid is self._grid:
            self._grid = packed
        return packed

    def _read_anew(self, rows: list[int]) -> tuple[_Grid, torch.Tensor]:
        """A new grid; equal rows are read once, and their cells copied."""
        distinct: dict[tuple[int, ...], int] = {}
        sources = [distinct.setdefault(tuple(self._tokens[row]), len(distinct)) for row in rows]
        first = [rows[sources.index(place)] for place in range(len(distinct))]
        grid = _Grid.empty(self._model.config.num_hidden_layers, first, self._device)
        logits = self._read_pending(grid, set(first))
        if len(first) == len(rows):
            return grid, logits
        grid = grid.take(sources)
        grid.rows = rows
        return grid, logits.index_select(0, torch.tensor(sources, device=self._device))

    def _read_pending(self, grid: _Grid, rows: AbstractSet[int]) -> torch.Tensor:
        """Read the uncached tokens of ``rows``, aligned right; logits (grid rows, vocabulary) of the next token."""
        pending = [
            self._tokens[row][cached:] if row in rows else []
            for row, cached in zip(grid.rows, grid.cached, strict=True)
        ]
        width = max(len(tokens) for tokens in pending)
        ids = torch.tensor([[0] * (width - len(tokens)) + tokens for tokens in pending], device=self._device)
        lengths = torch.tensor([len(tokens) for tokens in pending], device=self._device)
        real = torch.arange(width, device=self._device)[None, :] >= width - lengths[:, None]
        return self._forward(grid, ids, real)

    def _forward(self, grid: _Grid, ids: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """One pass over new columns (grid rows, width), of which ``real`` hold tokens; logits of the last column.

        A hidden cell may see itself, so that no attention row is empty and no cell of the cache is undefined.
        """
        past = grid.visible.shape[1]
        width = ids.shape[1]
        cached = torch.tensor(grid.cached, device=self._device)
        positions = (cached[:, None] + real.cumsum(1) - 1).clamp(min=0)
        own = torch.ones((width, width), dtype=torch.bool, device=self._device)
        recent = (own.tril() & real[:, None, :]) | torch.diag(own.diagonal())
        seen = torch.cat([grid.visible[:, None, :].expand(-1, width, -1), recent], dim=2)
        dtype = next(self._model.parameters()).dtype
        mask = torch.zeros(seen.shape, dtype=dtype, device=self._device)
        mask.masked_fill_(~seen, torch.finfo(dtype).min)
        logits = self._model(
            input_ids=ids,
            attention_mask=mask[:, None],
            position_ids=positions,
            past_key_values=grid.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if grid.layers[0].used != past + width:
            raise PolicyError("the model did not use the cache it was given; use a decoder with plain attention layers")
        grid.visible = torch.cat([grid.visible, real], dim=1)
        grid.cached = [old + new for old, new in zip(grid.cached, real.sum(1).tolist(), strict=True)]
        return torch.as_tensor(logits)

    def _choose(self, logits: torch.Tensor, temperature: float, held: Choices) -> tuple[list[int], list[float]]:
        """One token per row and its log-probability, from logits (rows, vocabulary), which are changed where held."""
        scaled = hold_(logits.float(), held)
        if temperature > 0:
            scaled = scaled / temperature
        logprobs = torch.log_softmax(scaled, dim=-1)
        chosen = scaled.argmax(dim=-1) if temperature <= 0 else self._sample(logprobs)
        picked = logprobs.gather(1, chosen[:, None]).squeeze(1)
        return chosen.tolist(), picked.tolist()

    def _sample(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Tokens (rows,) by inverting the cumulative distribution: one random number a row, against one a cell."""
        cumulative = logprobs.exp().cumsum(dim=1, dtype=torch.float64)
        uniform = torch.rand(len(logprobs), 1, dtype=torch.float64, device=self._device, generator=self._generator)
        chosen = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
        return chosen.squeeze(1).clamp_(max=logprobs.shape[1] - 1)


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
