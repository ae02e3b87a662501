"""The adapter between a request and the rollout engine, with a policy that writes given texts."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from deeprec.config import ExploreConfig
from deeprec.explore.protocol import TitleBook
from deeprec.serving.exploration import RolloutExplorer
from deeprec.types import Catalogue, EndReason, Filter, Item, Query, RetrievedItem, Rule, Segment

CATALOGUE = Catalogue(tuple(Item(f"i{row}", f"Title {row}", {"year": 1990}, ("comedy",)) for row in range(12)))
CONFIG = ExploreConfig(items_per_call=4, answer_size=3, max_calls=4, show_scores=True)
CALL = "\nA look.\n<|begin_of_preference|>anything<|end_of_preference|>"
NARROW = "Narrow it.\n<|begin_of_preference|>comedy<|end_of_preference|>"
ANSWER = "Now rank.\n</think>\n<recommendation_list>\n1. Title 11\n2. Title 8\n3. Title 9\n</recommendation_list>"
_PIECE = re.compile(r"<[^<>\n]+>|[^<]+|<")


@dataclass
class ScriptedPolicy:
    """Writes the given texts, one per turn. Its tokens are whole pieces of text."""

    texts: Sequence[str]
    words: list[str] = field(default_factory=lambda: ["<eos>"])
    eos_id: int = 0
    turn: int = 0

    def encode(self, text: str) -> list[int]:
        pieces = _PIECE.findall(text)
        self.words.extend(piece for piece in pieces if piece not in self.words)
        return [self.words.index(piece) for piece in pieces]

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(self.words[token] for token in token_ids)

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> ScriptedPolicy:
        self.turn = 0
        return self

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        tokens = tuple(self.encode(self.texts[self.turn]))
        self.turn += 1
        return [Segment(tokens, (0.0,) * len(tokens))]

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        pass


@dataclass
class Backwards:
    """The last items of the catalogue first; remembers what it was asked."""

    asked: list[Query] = field(default_factory=list)

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        self.asked.extend(queries)
        rows = [item.item_id for item in reversed(CATALOGUE.items) if item.item_id not in queries[0].exclude]
        return [tuple(RetrievedItem(item_id, 0.5) for item_id in rows[:k])]


QUERY = Query(("i1",), ("funny",), frozenset({"i1", "i10"}), (Filter("year", "=", 1990),))


def test_conditions_reach_every_call_and_turns_are_timed() -> None:
    retriever = Backwards()
    explorer = RolloutExplorer(ScriptedPolicy((CALL, NARROW, ANSWER)), retriever, TitleBook(CATALOGUE), CONFIG)
    exploration = explorer.explore("ann", QUERY, time.monotonic() + 60)
    assert exploration.violations == ()
    assert exploration.trajectory.end is EndReason.ANSWERED
    assert exploration.trajectory.answer == ("i11", "i8", "i9")
    assert [query.preference for query in retriever.asked] == [("funny",), ("funny", "comedy")]
    assert all((query.exclude, query.filters) == (QUERY.exclude, QUERY.filters) for query in retriever.asked)
    assert len(exploration.milliseconds) == 3


def test_broken_rules_are_named_and_a_passed_deadline_ends_the_rollout() -> None:
    titles = TitleBook(CATALOGUE)
    early = RolloutExplorer(ScriptedPolicy((ANSWER,)), Backwards(), titles, CONFIG)
    assert early.explore("ann", QUERY, time.monotonic() + 60).violations
    late = RolloutExplorer(ScriptedPolicy((CALL, ANSWER)), Backwards(), titles, CONFIG)
    assert late.explore("ann", QUERY, time.monotonic() - 1).trajectory.end is EndReason.DEADLINE
