"""From a bundle to a recommender that has answered once: what is started, what is refused, what is held."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import signal
import socket
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from deeprec.bundle.bundle import Bundle
from deeprec.config import ServingConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, FeatureError
from deeprec.explore.protocol import TitleBook
from deeprec.recommender.loading import BundleLoop, load_recommender, settle_memory, warm_up
from deeprec.recommender.observer import AnsweredRequest
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.trm.encoding import Encoder
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest
from tests.unit.recommender.encoders import FakeText


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> Callable[[str], Bundle]:
    """A bundle of the toy TRM, whose policy has no weights."""
    titles = list(TitleBook(dataset.catalogue).titles)
    return lambda serve: Bundle.load(make_bundle(tmp_path / serve, titles, serve))


@pytest.fixture
def load() -> Iterator[Callable[..., AsyncRecommender]]:
    loaded: list[AsyncRecommender] = []

    def make(*given: Any, **other: Any) -> AsyncRecommender:
        loaded.append(load_recommender(*given, **other))
        return loaded[-1]

    yield make
    for recommender in loaded:
        recommender.close()


def test_a_bundle_that_serves_its_trm_starts_no_process(bundle: Any, load: Any) -> None:
    told: list[AnsweredRequest] = []
    recommender = load(bundle("trm"), observers=(told.append,))
    assert recommender.explorer is None
    assert not recommender.ready
    asyncio.run(warm_up(recommender))
    assert recommender.ready
    assert told == [], "what warms it up was asked by nobody"
    history = (recommender.catalogue.items[0].item_id,)
    answer = asyncio.run(recommender.retrieve(TrmOnlyRequest(history=history, k=4))).raw
    assert (answer["path"], len(answer["items"]), answer["bundle"]) == ("trm", 4, recommender.version)
    assert [served.model for served in told] == ["deeprec-trm"]


def test_new_phrases_are_encoded_in_a_process_and_left_out_while_it_is_gone(bundle: Any, load: Any) -> None:
    recommender = load(bundle("trm"), None, ServingConfig(deadline_ms=30_000))
    asyncio.run(warm_up(recommender))
    encoder = recommender.phrases.encoder
    assert encoder.pid not in (None, os.getpid())

    def left_out(phrase: str) -> Any:
        asked = TrmOnlyRequest(history=(), preference=(phrase,), k=2)
        return asyncio.run(recommender.retrieve(asked)).raw.get("left_out", [])

    assert left_out("a new one") == []
    os.kill(encoder.pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while encoder.available:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert left_out("another") == ["another"]
    assert left_out("a new one") == [], "what is known needs no encoder"
    recommender.close()


def test_text_that_cannot_be_encoded_keeps_a_server_from_being_ready(
    bundle: Any, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.recommender.loading.LoadText", lambda text, threads: FakeText(Path(__file__)))
    recommender = load(bundle("trm"))
    with pytest.raises(ArtifactError, match="text cannot be encoded: there is no encoder here"):
        asyncio.run(warm_up(recommender))
    assert not recommender.ready
    asyncio.run(warm_up(recommender, text=False))
    assert recommender.ready


class Store:
    """A feature store of many users, who had one item each."""

    def __init__(self, item_ids: Sequence[str]) -> None:
        self._item_ids, self.asked = item_ids, list[str]()

    def history(self, user_id: str) -> tuple[str, ...]:
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...]]:
        self.asked += user_ids
        return [(self._item_ids[int(user_id) % len(self._item_ids)],) for user_id in user_ids]

    def newest(self, limit: int) -> list[str]:
        return list(map(str, range(99, 99 - limit, -1)))


def test_the_newest_users_are_encoded_before_it_is_ready(
    bundle: Any, load: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = bundle("trm")
    store = Store([item.item_id for item in served.catalogue.items])
    told: list[AnsweredRequest] = []
    recommender = load(served, store, ServingConfig(prepare=20), observers=(told.append,))
    asyncio.run(warm_up(recommender, store.newest))
    assert sorted(map(int, store.asked)) == list(range(80, 100))
    assert told == []
    encoded: list[Any] = []
    monkeypatch.setattr(Encoder, "_encode_batch", lambda self, batch: encoded.append(batch))
    answer = asyncio.run(recommender.retrieve(TrmOnlyRequest(user_id="85", k=4))).raw
    assert (answer["path"], len(answer["items"]), encoded) == ("trm", 4, [])


def test_a_store_that_cannot_list_its_users_keeps_no_server_from_its_work(bundle: Any, load: Any) -> None:
    def newest(limit: int) -> list[str]:
        raise FeatureError("no such file")

    recommender = load(bundle("trm"))
    asyncio.run(warm_up(recommender, newest))
    assert recommender.ready


@pytest.mark.parametrize(
    ("serve", "options", "limits"),
    [("policy", {}, {}), ("trm", {"force_policy": True}, {}), ("trm", {}, {"shadow": True})],
)
def test_a_policy_that_cannot_be_loaded_is_refused(
    bundle: Any, load: Any, serve: str, options: dict[str, Any], limits: dict[str, Any]
) -> None:
    recommender = load(bundle(serve), None, ServingConfig(**limits), **options)
    with pytest.raises(ArtifactError, match="cannot be served: cannot load the policy"):
        asyncio.run(warm_up(recommender))
    assert not recommender.ready


def test_a_policy_server_that_is_down_is_waited_for_while_the_trm_answers(bundle: Any, load: Any) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"
        limits = ServingConfig(policy_url=url, max_deadline_ms=500, deadline_ms=400)
        recommender = load(bundle("policy"), None, limits)
        asyncio.run(warm_up(recommender))
        assert recommender.ready
        history = (recommender.catalogue.items[0].item_id,)
        answer = asyncio.run(recommender.recommend(RecommendRequest(history=history))).raw
    assert answer["path"] == "trm"
    assert answer["reason"]["sentence"].startswith("the policy is being")


class Ring:
    """An object that keeps itself."""

    def __init__(self) -> None:
        self.own = self


def test_what_is_loaded_is_left_out_of_collections_and_an_old_ring_is_not_kept() -> None:
    try:
        ring = Ring()
        settle_memory()
        assert gc.get_freeze_count() > 0
        gone = weakref.ref(ring)
        del ring
        gc.collect()
        assert gone() is not None
        settle_memory()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_what_crosses_to_the_process_is_paths(bundle: Any) -> None:
    assert len(pickle.dumps(BundleLoop(bundle("policy"), ServingConfig()))) < 10_000
