"""A policy for worker processes at the Policy port, good, slow, stuck, wrong or dying, and a retriever of a list.

``Make`` is what a ``WorkerExplorer`` is given. The policy's mood is what its file says, where it has one, so that a
test can change it while a process runs; a bad one shows from the second turn on.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

from deeprec.config import ExploreConfig, TextConfig
from deeprec.explore.protocol import TitleBook
from deeprec.recommender.worker.loop import Loop
from deeprec.trm.text import KeptTexts
from deeprec.types import Catalogue, Item, Query, RetrievedItem, Rule, Segment

CATALOGUE = Catalogue(
    tuple(
        Item(
            f"i{row}",
            f"Title {row}",
            {"genres": "Comedy|Drama" if row % 2 else "Horror", "year": 1980 + row},
            ("comedy", "drama") if row % 2 else ("horror",),
        )
        for row in range(30)
    )
)
CONFIG = ExploreConfig(items_per_call=6, answer_size=3, max_calls=4, show_scores=True, prompt="compact")
FIRST = "\nA look.\n<|begin_of_preference|>anything<|end_of_preference|>"
SECOND = "Narrow it.\n<|begin_of_preference|>comedy<|end_of_preference|>"
RUBBISH = "No idea.\n</think>\n<recommendation_list>\n1. Title 0\n1. Title 0\n</recommendation_list>"

_PIECE = re.compile(r"<[^<>\n]+>|[^<]+|<")
_SHOWN = re.compile(r"\d+\. (.+?) \| \d+\n")
_FOR_EVER = 3600.0
_CATASTROPHE = re.compile(r"(a+)+$")


class Fault(RuntimeError):
    """What a wrong policy raises."""


@dataclass
class ListRetriever:
    """The catalogue from its end, exclusions left out; writes a line for each batch it is asked for into ``log``.

    With ``texts`` it reads the vectors of all phrases first, as the TRM does.
    """

    log: Path | None = None
    texts: KeptTexts | None = None

    def retrieve(self, queries: Sequence[Query], k: int) -> list[tuple[RetrievedItem, ...]]:
        if self.texts is not None:
            self.texts.embed([phrase for query in queries for phrase in query.preference])
        if self.log is not None:
            with self.log.open("a") as stream:
                stream.write(repr(list(queries)) + "\n")
        found = []
        for query in queries:
            barred = query.exclude | (frozenset() if query.allow_seen else frozenset(query.history))
            ids = [item.item_id for item in reversed(CATALOGUE.items) if item.item_id not in barred]
            found.append(tuple(RetrievedItem(item_id, 0.9 - 0.01 * rank) for rank, item_id in enumerate(ids[:k])))
        return found


class MoodyPolicy:
    """Calls twice and answers the first three titles it was shown; tokens are whole pieces of text."""

    eos_id = 0

    def __init__(self, mood: str, file: Path | None = None, together: int = 1) -> None:
        self._mood, self._file = mood, file
        self.barrier = threading.Barrier(together)
        self._words: list[str] = ["<eos>"]
        self._ids: dict[str, int] = {"<eos>": 0}

    @property
    def mood(self) -> str:
        return self._file.read_text().strip() if self._file is not None else self._mood

    def encode(self, text: str) -> list[int]:
        tokens = []
        for piece in _PIECE.findall(text):
            if piece not in self._ids:
                self._ids[piece] = len(self._words)
                self._words.append(piece)
            tokens.append(self._ids[piece])
        return tokens

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join("" if token == 0 else self._words[token] for token in token_ids)

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> MoodyGeneration:
        return MoodyGeneration(self, [self.decode(prompt) for prompt in prompts])


class MoodyGeneration:
    def __init__(self, policy: MoodyPolicy, prompts: list[str]) -> None:
        self._policy, self._prompts = policy, prompts
        self._turn = [0] * len(prompts)
        self._lists = [""] * len(prompts)

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        for row, tokens in zip(rows, token_ids, strict=True):
            self._lists[row] += self._policy.decode(tokens)

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        mood = self._policy.mood
        if any(self._turn[row] for row in rows):
            self._misbehave(mood, len(rows))
        segments = []
        for row in rows:
            if mood == "poisoned" and "Title 13" in self._prompts[row]:
                raise Fault("Title 13")
            tokens = tuple(self._policy.encode(self._text(row, mood)))
            self._turn[row] += 1
            segments.append(Segment(tokens, (-0.5,) * len(tokens)))
        return segments

    def _misbehave(self, mood: str, rows: int) -> None:
        """``crowded`` takes time for each, ``holding`` keeps the interpreter, ``together`` waits for other threads."""
        if mood == "slow":
            time.sleep(0.4)
        elif mood == "crowded":
            time.sleep(0.1 * rows)
        elif mood == "sleeping":
            time.sleep(_FOR_EVER)
        elif mood == "spinning":
            while True:
                pass
        elif mood == "holding":
            _CATASTROPHE.match("a" * 60 + "b")
        elif mood == "raising":
            raise Fault(f"{rows} rows")
        elif mood == "dying":
            os._exit(3)
        elif mood == "together":
            self._policy.barrier.wait(30)

    def _text(self, row: int, mood: str) -> str:
        if self._turn[row] < 2:
            return (FIRST, SECOND)[self._turn[row]]
        if mood == "rubbish":
            return RUBBISH
        titles = list(dict.fromkeys(_SHOWN.findall(self._lists[row])))[: CONFIG.answer_size]
        lines = "".join(f"{number}. {title}\n" for number, title in enumerate(titles, 1))
        return f"Now rank.\n</think>\n<recommendation_list>\n{lines}</recommendation_list>"


@dataclass(frozen=True)
class Make:
    """In the moods ``refused``, ``unloadable`` and ``never`` it does not load.

    ``log``: where the retriever writes what it is asked; ``trm``: a TRM artifact to retrieve with instead; ``texts``:
    it needs the vectors of phrases.
    """

    mood: str = "good"
    file: Path | None = None
    batch: int = 64
    threads: int = 1
    log: Path | None = None
    trm: Path | None = None
    texts: bool = False

    def __call__(self) -> Loop:
        policy = MoodyPolicy(self.mood, self.file, self.threads)
        if policy.mood == "refused":
            raise Fault("no such policy")
        if policy.mood == "unloadable":
            os._exit(4)
        if policy.mood == "never":
            time.sleep(_FOR_EVER)
        if self.trm is not None:
            from deeprec.trm.retriever import TrmRetriever

            own = TrmRetriever.load(self.trm)
            return Loop(policy, own, TitleBook(own.catalogue), CONFIG, self.batch, self.threads)
        texts = KeptTexts(TextConfig(provider="hashing", width=4)) if self.texts else None
        retriever = ListRetriever(self.log, texts)
        return Loop(policy, retriever, TitleBook(CATALOGUE), CONFIG, self.batch, self.threads, texts=texts)
