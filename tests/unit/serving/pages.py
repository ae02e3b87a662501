"""What the page's tests serve: the page over the real recommender, with a scripted loop and titles that are attacks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from deeprec.bundle.bundle import Bundle
from deeprec.config import DoorsConfig, ExploreConfig, ServingConfig, TextConfig
from deeprec.errors import FeatureError
from deeprec.recommender.exploration import Exploration, OnStep, Step, Unavailable
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.application import guarded
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.page.routes import Sources, routers
from deeprec.types import Call, Catalogue, EndReason, Item, Query, RetrievedItem, Trajectory
from deeprec.wire.reason import Reason, ReasonKind

ATTACKS = (
    '<img src=x onerror="window.attacked=1">',
    "</script><script>window.attacked=2</script>",
    '"><svg onload="window.attacked=3">',
    "${window.attacked=4} {{window.attacked=5}} javascript:window.attacked=6",
)
ATTACK = "<b onmouseover=window.attacked=7>bold</b>"
LONG = "An extraordinarily long title of a film that goes on and on " * 3
TITLES = (*ATTACKS, LONG.strip(), "فيلم عن البحر", "Amélie", *(f"Harbour {row}" for row in range(33)))
CATALOGUE = Catalogue(
    tuple(
        Item(
            f"i{row}",
            title,
            {"genres": "Comedy|Drama" if row % 2 else ATTACK, "year": 1980 + row},
            ("comedy", "drama", "1980s") if row % 2 else (ATTACK, "1980s"),
        )
        for row, title in enumerate(TITLES)
    )
)
HISTORIES = {"ann": ("i30", "i31", "i32", "gone"), "ann/other & more": ("i33",), ATTACK: ("i34", "i35"), "bob": ()}
ANSWER = ("i3", "i0", "i12", "i4", "i1")


class Retrieving:
    """The TRM: the catalogue's items in order, those excluded left out."""

    async def retrieve(self, query: Query, k: int) -> tuple[RetrievedItem, ...]:
        barred = query.exclude | set(query.history)
        kept = [item.item_id for item in CATALOGUE.items if item.item_id not in barred]
        return tuple(RetrievedItem(item_id, 0.9 - 0.02 * rank) for rank, item_id in enumerate(kept[:k]))

    busy_seconds, waiting = 0.0, 0

    def close(self) -> None:
        pass


@dataclass
class Exploring:
    """The loop: two calls and an answer, each after ``pause`` seconds or when it is let go on; or why there is none."""

    pause: float = 0.0
    unavailable: str | None = None
    violations: tuple[str, ...] = ()
    answer_size: int = len(ANSWER)
    cancelled: int = 0
    available: bool = True
    restarts: int = 0
    waiting: int = 0
    held: bool = False
    steps: int = 0
    asked: list[Query] = field(default_factory=list)

    async def explore(self, user_id: str, query: Query, deadline: float, on_step: OnStep | None = None) -> Exploration:
        self.asked.append(query)
        if self.unavailable is not None:
            raise Unavailable(Reason(kind=ReasonKind.RESTARTING, sentence=self.unavailable))
        tell = on_step or (lambda _: None)
        try:
            calls = await self._calls(tell)
            tell(Step(3))
            await self._step()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        trajectory = Trajectory("key", user_id, (), (), (), (), "", calls, ANSWER, EndReason.ANSWERED)
        return Exploration(trajectory, self.violations, (11.0, 22.0, 33.0))

    async def _calls(self, tell: OnStep) -> tuple[Call, ...]:
        calls = (
            Call("anything", (), _found("i0", "i1", "i2", "i3", "i4")),
            Call(f"comedy; {ATTACK}", ("comedy",), _found("i3", "i1", "i12", "i13")),
        )
        for turn, call in enumerate(calls, start=1):
            tell(Step(turn))
            await self._step()
            tell(Step(turn, call, f"Thought {turn}: {ATTACK}"))
        return calls

    async def _step(self) -> None:
        """Take the time of a turn; when ``held``, until a test has granted one of ``steps``."""
        await asyncio.sleep(self.pause)
        while self.held and self.steps <= 0:
            await asyncio.sleep(0.01)
        self.steps -= self.held

    async def loaded(self, timeout: float) -> None:
        pass

    def close(self) -> None:
        pass


def _found(*item_ids: str) -> tuple[RetrievedItem, ...]:
    return tuple(RetrievedItem(item_id, 0.8 - 0.1 * rank) for rank, item_id in enumerate(item_ids))


@dataclass
class Knowing:
    """Histories and directory of users; ``published``: where the directory's counts are older."""

    fails: bool = False
    published: dict[str, int] = field(default_factory=dict)

    def history(self, user_id: str) -> tuple[str, ...] | None:
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        if self.fails:
            raise FeatureError("secret")
        return [HISTORIES.get(user_id) for user_id in user_ids]

    def find(self, text: str, limit: int) -> list[Any]:
        if self.fails:
            raise FeatureError("secret")
        known = [(user, items) for user, items in HISTORIES.items() if text.lower() in user.lower()]
        counts = [(user, self.published.get(user, len(items))) for user, items in known[:limit]]
        return [SimpleNamespace(user_id=user, interactions=count) for user, count in counts]


class Pages:
    """The application, and what a test may turn: ``exploring``, ``knowing``, ``refused``."""

    def __init__(self, *, histories: bool = True, **serving: Any) -> None:
        limits = ServingConfig(**serving)
        self.exploring, self.knowing, self.refused = Exploring(), Knowing(), None
        self.metrics = ServingMetrics(CollectorRegistry())
        self.recommender = AsyncRecommender(
            CATALOGUE,
            np.arange(len(CATALOGUE), 0, -1),
            Retrieving(),
            explorer=self.exploring,
            histories=self.knowing if histories else None,
            serving=limits,
            version="f00dfeed0001",
            observers=[self.metrics.observe],
        )
        self.recommender.ready = True
        sources = Sources(
            served=lambda: self.recommender,
            bundle=lambda: BUNDLE,
            metrics=self.metrics,
            refused=lambda: self.refused,
        )
        app = self.routes = FastAPI()
        for one in routers(sources, DoorsConfig()):
            app.include_router(one)
        self.app = guarded(app, limits, Admission(limits, self.metrics.shed))


BUNDLE = Bundle(
    index=Path(),
    parts={},
    version="f00dfeed0001",
    serve="policy",
    why="this bundle serves the policy: NDCG@10 of the policy 0.0712, of the TRM alone 0.0684",
    catalogue=CATALOGUE,
    counts=np.ones(len(CATALOGUE), dtype=np.int64),
    explore=ExploreConfig(),
    text=TextConfig(provider="hashing", width=32),
    text_identity="hashing-32",
    info={"gate": "evaluation: passed", "created": "2026-11-20T18:22:07+00:00", "example_user": "ann"},
    metrics={
        "users_evaluated": 1500,
        "baselines": {"trm": {"ndcg@10": 0.0684, "recall@10": float("nan")}, "popularity": {"ndcg@10": 0.0185}},
        "policy": {"stage2": {"ndcg@10": 0.0712, "recall@10": 0.134, "valid_rate": 0.998, "mean_calls": 2.1}},
        "steps": {"stage2_minus_trm": {"ndcg@10": {"mean": 0.0028, "low": 0.0004, "high": 0.005}}},
    },
)
