"""What the shadow of an answer still needs when its bundle is replaced, and when the server stops."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.opening import everything, find_source
from deeprec.config import ServingConfig
from deeprec.data.dataset import Dataset
from deeprec.explore.protocol import TitleBook
from deeprec.recommender.batching import Batcher
from deeprec.recommender.exploration import Exploration, OnStep, Unavailable
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.watcher import BundleWatcher
from deeprec.types import Query
from deeprec.wire.reason import Reason, ReasonKind
from deeprec.wire.request import RecommendRequest
from tests.unit.recommender.policies import CATALOGUE, ListRetriever


@dataclass
class HeldExplorer:
    """Ends its explorations when ``go`` is set."""

    name: str
    go: asyncio.Event
    happened: list[tuple[str, str]]
    answer_size: int = 3
    available: bool = True
    restarts: int = 0
    waiting: int = 0

    async def loaded(self, timeout: float) -> None:
        pass

    async def explore(self, user_id: str, query: Query, deadline: float, on_step: OnStep | None = None) -> Exploration:
        await self.go.wait()
        raise Unavailable(Reason(kind=ReasonKind.RESTARTING, sentence="held"))

    def close(self) -> None:
        self.happened.append(("closed", self.name))


def test_a_bundle_is_closed_when_its_shadows_have_been_told_of(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    """One exploration is open when the bundle is replaced, one more when the server stops during the replacement."""
    titles = list(TitleBook(dataset.catalogue).titles)
    for name in ("one", "two"):
        make_bundle(tmp_path / name, titles)
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "one")
    happened: list[tuple[str, str]] = []

    async def serve() -> None:
        go = asyncio.Event()

        def load(bundle: Bundle) -> AsyncRecommender:
            return AsyncRecommender(
                CATALOGUE,
                bundle.counts,
                Batcher(ListRetriever(), 4),
                explorer=HeldExplorer(bundle.index.name, go, happened),
                serving=ServingConfig(shadow=True, deadline_ms=30_000),
                observers=(lambda served: happened.append(("told", bundle.index.name)),),
            )

        async def warm_up(recommender: AsyncRecommender) -> None:
            await recommender.recommend(RecommendRequest(history=("i1",), k=1))
            recommender.ready = True

        async def nothing_open() -> None:
            pass

        watcher = BundleWatcher(
            lambda: find_source(str(link)),
            needs=everything,
            load=load,
            warm_up=warm_up,
            settled=nothing_open,
            metrics=ServingMetrics(),
            poll_seconds=0.05,
        )
        await watcher.load()
        await watcher.start()
        old = watcher.current
        await old.recommend(RecommendRequest(history=("i1",), k=1))
        os.replace(_link_to(tmp_path / "two"), link)
        while watcher.current is old:
            await asyncio.sleep(0.01)
        await watcher.current.recommend(RecommendRequest(history=("i1",), k=1))
        closing = asyncio.create_task(watcher.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        assert happened == []
        go.set()
        await closing

    try:
        asyncio.run(asyncio.wait_for(serve(), 60))
    finally:
        gc.unfreeze()
    assert sorted(happened) == [("closed", "one"), ("closed", "two"), ("told", "one"), ("told", "two")]
    for name in ("one", "two"):
        assert happened.index(("told", name)) < happened.index(("closed", name))


def _link_to(place: Path) -> Path:
    fresh = place.with_name("fresh")
    fresh.symlink_to(place)
    return fresh
