"""The frozen values that flow between rooms, and the ports across which they flow.

Everything here is plain data: no file, network or model is touched. Items and users are named by their own ids
(strings) everywhere outside model code. A history is ordered oldest first, newest last.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, cast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float32]
else:  # the client imports this module, and needs no NumPy
    FloatArray = Any

ANYTHING = "anything"
"""The reserved phrase of a broad call: the TRM is asked with no preference at all."""
MAX_PHRASES = 12
"""Phrases of a preference at most."""


@dataclass(frozen=True, slots=True)
class Item:
    """One catalogue item: its id, unique title, raw text columns, and the phrases its attributes give.

    ``phrases`` are lower-case attribute values such as ``comedy``, ``1990s`` or a maker's name, in catalogue order;
    they are the vocabulary of preferences.
    """

    item_id: str
    title: str
    attributes: Mapping[str, str | float | None] = field(default_factory=dict)
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalogue:
    """All items, in the order that defines every model's item index (0-based).

    ``text_columns`` and ``year_column`` name the attributes that gave the items' phrases, so that a new item's can be
    made in the same way; empty and None where that is not known.
    """

    items: tuple[Item, ...]
    text_columns: tuple[str, ...] = ()
    year_column: str | None = None

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Item id → row."""
        return {item.item_id: row for row, item in enumerate(self.items)}

    @cached_property
    def phrases(self) -> tuple[str, ...]:
        """Every distinct phrase, sorted."""
        return tuple(sorted({phrase for item in self.items for phrase in item.phrases}))

    def __getitem__(self, item_id: str) -> Item:
        return self.items[self.index[item_id]]

    def __contains__(self, item_id: object) -> bool:
        return item_id in self.index


@dataclass(frozen=True, slots=True)
class Example:
    """One prediction task: a user's history (oldest first) and the item that came next."""

    user_id: str
    history: tuple[str, ...]
    target: str

    @property
    def key(self) -> str:
        """Unique among a split's examples: the user and how much of the history is shown."""
        return f"{self.user_id}@{len(self.history)}"


Operator = Literal["=", "!=", ">=", "<="]
_FILTER = re.compile(r"\s*(?P<column>[^<>=!]+?)\s*(?P<operator>>=|<=|!=|==|=)\s*(?P<value>[^<>=\s].*?)\s*")


@dataclass(frozen=True, slots=True)
class Filter:
    """A condition on an item attribute: ``Filter("year", ">=", 1990)``, ``Filter("genres", "=", "Comedy")``.

    ``=`` on a list-valued column (values joined by ``|``) holds when one of the values is equal.
    """

    column: str
    operator: Operator
    value: str | float

    @classmethod
    def parse(cls, text: str) -> Self:
        """The filter that a person writes as ``year >= 1990``; a number where the value is one, text in quotes stays.

        Raises:
            ValueError: it is not of the form column, operator, value.
        """
        match = _FILTER.fullmatch(text)
        if match is None:
            raise ValueError(
                f"the filter {text!r} is not of the form COLUMN OPERATOR VALUE with =, !=, >= or <=; write for example "
                f"'year >= 1990' or 'genres = Comedy'"
            )
        operator = cast(Operator, match["operator"].replace("==", "="))
        value = match["value"]
        if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
            return cls(match["column"], operator, value[1:-1])
        try:
            return cls(match["column"], operator, float(value))
        except ValueError:
            return cls(match["column"], operator, value)


@dataclass(frozen=True, slots=True)
class Query:
    """What the TRM is asked. An empty ``preference`` asks for no preference at all.

    Items of ``history`` are excluded from the answer unless ``allow_seen``; ``exclude`` adds further item ids.
    The TRM reads as much of ``history`` as it can; exclusion uses the whole.
    """

    history: tuple[str, ...]
    preference: tuple[str, ...] = ()
    exclude: AbstractSet[str] = frozenset()
    filters: tuple[Filter, ...] = ()
    allow_seen: bool = False


@dataclass(frozen=True, slots=True)
class Conditions:
    """What one rollout is held to besides its configuration.

    ``preference`` is added to the phrases of every call; ``exclude``, ``filters`` and ``allow_seen`` go with every call
    as in ``Query``. None of them enters the prompt. ``deadline`` is in ``time.monotonic`` seconds, a clock that the
    processes of one machine share; the rollout that is open then ends.
    """

    preference: tuple[str, ...] = ()
    exclude: AbstractSet[str] = frozenset()
    filters: tuple[Filter, ...] = ()
    allow_seen: bool = False
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class RetrievedItem:
    """One retrieved item and its match score in [0, 1] (higher is better, comparable between calls for one history)."""

    item_id: str
    score: float


class Retriever(Protocol):
    """Port: the loop's only knowledge of retrieval. Implemented by ``trm.retriever.TrmRetriever``."""

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        """The best ``k`` items for each query, best first; fewer only when filters leave fewer."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens one ``generate`` call produced, the stop token included, with their sampled log-probabilities (nats)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class Rule(Protocol):
    """Port: what may be written in a segment, token by token. Implemented by ``explore.answers.AnswerRule``."""

    @property
    def allowed(self) -> Mapping[int, float] | None:
        """Token ids that may come next, in ascending order → what is added to their logits; None where any may."""
        ...

    def take(self, token: int) -> None:
        """The token was written."""
        ...

    def describe(self) -> str:
        """The rule in its present state as text, for an engine in another process."""
        ...


class Generation(Protocol):
    """Port: a batch of growing token sequences held by an engine between turns (so that it can keep its cache)."""

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        """Extend the given rows until a stop token or the limit; ``temperature`` 0 is greedy. One result per row.

        ``rules``, one per row or none at all, say what may be written, and are told what was; log-probabilities are
        then those among the allowed tokens.
        """
        ...

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """Append tokens the environment wrote to the given rows."""
        ...


class Policy(Protocol):
    """Port: a language model and its tokenizer, as the loop sees them."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of the tokens, markup included, with no clean-up of spaces."""
        ...

    @property
    def eos_id(self) -> int: ...

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        """Begin a batch from prompt token ids. The seed fixes sampling."""
        ...


class EndReason(StrEnum):
    """Why a rollout ended."""

    ANSWERED = "answered"
    EMPTY_PREFERENCE = "empty_preference"
    CALL_LIMIT = "call_limit"
    CONTEXT_LIMIT = "context_limit"
    SEGMENT_LIMIT = "segment_limit"
    OUTSIDE_PROTOCOL = "outside_protocol"
    DEADLINE = "deadline"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the TRM: the preference as written, its phrases (empty for ``anything``), what came back."""

    preference: str
    phrases: tuple[str, ...]
    items: tuple[RetrievedItem, ...]


@dataclass(frozen=True, slots=True)
class RewardPart:
    """One part of the reward. ``value`` is None when the part was not scored; never 0 in its place."""

    name: str
    value: float | None
    weight: float


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One rollout: everything that training, rewards, evaluation and a reader need to know about it.

    ``completion_ids``, ``loss_mask`` (1 = written by the policy) and ``logprobs`` (0.0 where the mask is 0) have equal
    length. ``text`` is the completion as text, lists included. ``answer`` holds one entry per answered line, in order:
    the item id, or None where the line is not the title of an item this rollout retrieved.
    """

    example_key: str
    user_id: str
    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]
    loss_mask: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    calls: tuple[Call, ...]
    answer: tuple[str | None, ...]
    end: EndReason
    rewards: tuple[RewardPart, ...] = ()

    @property
    def reward(self) -> float:
        """Weighted sum of the scored parts."""
        return sum(part.weight * part.value for part in self.rewards if part.value is not None)


Opinion = Callable[[Sequence[Example], Sequence[Sequence[str]]], list[list[float]]]
"""Log-likelihoods, in nats, that each example's next item is each of its candidates."""


class Embedder(Protocol):
    """Port: text to unit-length vectors. Implemented by ``trm.text`` providers."""

    @property
    def identity(self) -> str:
        """Name and version of the encoder, kept in a bundle."""
        ...

    @property
    def width(self) -> int: ...

    def embed(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width), rows of unit length."""
        ...


@dataclass(frozen=True)
class ItemVectors:
    """Unit-length vectors of the catalogue's items, row order of ``Catalogue.items``.

    ``text`` is (items, text width), ``collaborative`` is (items, TRM width).
    """

    text: FloatArray
    collaborative: FloatArray


JsonDict = dict[str, Any]
