"""The TRM over HTTP against a scripted server: what is asked, how it is split, and how faults are met."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from deeprec.config import ServingConfig
from deeprec.errors import TrmError
from deeprec.serving.remote import BlockingRetriever, OtherBundle, RemoteRetriever
from deeprec.types import Filter, Query, RetrievedItem
from tests.unit.client.scripted_server import Asked, ScriptedServer

SERVING = ServingConfig(max_history=4, max_k=6, max_instances=3, max_body_bytes=2000)
HASTY = SERVING.model_copy(update={"max_deadline_ms": 400})


def answer(*ids: str, bundle: str = "v1", path: str = "trm") -> dict[str, Any]:
    items = [{"id": item_id, "title": "", "rank": 1, "score": 0.1234567890123} for item_id in ids]
    return {"items": items, "bundle": bundle, "path": path, "reason": "the TRM failed"}


def answering(*ids: str) -> Any:
    """A server that gives each instance these items."""
    return lambda asked: {"predictions": [answer(*ids) for _ in asked.body["instances"]]}


def retrieve(
    kind: str, url: str, query: Query, k: int = 2, serving: ServingConfig = SERVING
) -> tuple[RetrievedItem, ...]:
    """One query by either form."""
    if kind == "blocking":
        retriever = BlockingRetriever(url, "v1", serving)
        try:
            return retriever.retrieve([query], k)[0]
        finally:
            retriever.close()

    async def run() -> tuple[RetrievedItem, ...]:
        retriever = RemoteRetriever(url, "v1", serving)
        try:
            return await retriever.retrieve(query, k)
        finally:
            retriever.close()
            await asyncio.sleep(0)

    return asyncio.run(run())


@pytest.fixture(params=["async", "blocking"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_query_becomes_a_request_and_its_answer_items(kind: str) -> None:
    query = Query(
        ("a", "b"), ("comedy", "1990s"), frozenset({"z", "b", "y"}), (Filter("year", ">=", 1990.0),), allow_seen=False
    )
    with ScriptedServer(answering("i1", "i2")) as server:
        found = retrieve(kind, server.url + "/", query)
    assert found == (RetrievedItem("i1", 0.1234567890123), RetrievedItem("i2", 0.1234567890123))
    [asked] = server.asked
    assert asked.path == "/v1/models/deeprec-trm:predict"
    assert asked.body["instances"] == [
        {
            "history": ["a", "b"],
            "preference": ["comedy", "1990s"],
            "k": 2,
            "filters": [{"column": "year", "operator": ">=", "value": 1990.0}],
            "exclude": ["y", "z"],
            "allow_seen": False,
        }
    ]


def test_who_may_see_again_says_what_is_excluded_all_the_same(kind: str) -> None:
    with ScriptedServer(answering("a")) as server:
        retrieve(kind, server.url, Query(("a", "b"), exclude=frozenset({"b"}), allow_seen=True))
    assert server.bodies[0]["instances"][0]["exclude"] == ["b"]
    assert server.bodies[0]["instances"][0]["allow_seen"] is True


def test_a_long_history_is_told_in_its_newest_items_and_excluded_whole(kind: str) -> None:
    history = tuple(f"h{number}" for number in range(10))
    with ScriptedServer(answering("h5", "n1", "h4", "n2", "n3")) as server:
        found = retrieve(kind, server.url, Query(history, exclude=frozenset({"x"})), k=2)
    [request] = server.bodies[0]["instances"]
    assert request["history"] == ["h6", "h7", "h8", "h9"]
    assert request["exclude"] == ["h0", "h1", "h2", "h3"]
    assert request["k"] == 5, "three more than asked for, since h4, h5 and x are not sent"
    assert [item.item_id for item in found] == ["n1", "n2"]


def test_queries_share_bodies_within_the_servers_limits() -> None:
    def echo(asked: Asked) -> Any:
        return {"predictions": [answer(*one["history"]) for one in asked.body["instances"]]}

    with ScriptedServer(echo) as server:
        retriever = BlockingRetriever(server.url, "v1", SERVING)
        small = [Query((f"s{number}",)) for number in range(7)]
        large = [Query((f"l{number}" + "x" * 1200,)) for number in range(4)]
        found = retriever.retrieve([*small, *large], 2)
        assert [items[0].item_id for items in found] == [query.history[0] for query in (*small, *large)]
        assert [len(body["instances"]) for body in server.bodies] == [3, 3, 2, 1, 1, 1]
        assert all(len(json.dumps(body)) <= SERVING.max_body_bytes for body in server.bodies)
        assert retriever.retrieve([], 2) == []


@pytest.mark.parametrize(
    ("given", "error", "part"),
    [
        ({"predictions": [answer("i", bundle="v2")]}, OtherBundle, "has bundle v2 and this recommender v1"),
        ({"predictions": [answer("i", path="popularity")]}, TrmError, "answered by popularity: the TRM failed"),
        ({"predictions": [{}]}, TrmError, "something else than items"),
        ({"predictions": [[]]}, TrmError, "something else than items"),
        ({"predictions": []}, TrmError, "0 predictions for 1 instances"),
        (400, TrmError, "scripted 400"),
        (500, TrmError, "scripted 500"),
    ],
)
def test_what_cannot_be_used_is_an_error(kind: str, given: Any, error: type[Exception], part: str) -> None:
    with ScriptedServer(given) as server, pytest.raises(error, match=part):
        retrieve(kind, server.url, Query(("a",)))


def test_popularity_is_the_right_answer_to_nothing(kind: str) -> None:
    with ScriptedServer({"predictions": [answer("i", path="popularity")]}) as server:
        assert [item.item_id for item in retrieve(kind, server.url, Query(()))] == ["i"]


def test_a_slow_server_is_not_waited_for(kind: str) -> None:
    async def late() -> Any:
        await asyncio.sleep(60)

    with ScriptedServer(lambda asked: late()) as server:
        started = time.monotonic()
        with pytest.raises(TrmError, match=r"gave no answer within 0\.4 seconds"):
            retrieve(kind, server.url, Query(("a",)), serving=HASTY)
        assert 0.4 <= time.monotonic() - started < 20


def test_the_loops_deadline_bounds_a_query() -> None:
    async def late() -> Any:
        await asyncio.sleep(60)

    with ScriptedServer(lambda asked: late()) as server:
        retriever = BlockingRetriever(server.url, "v1", SERVING)
        started = time.monotonic()
        with pytest.raises(TrmError, match="gave no answer"):
            retriever.until(started - 1).retrieve([Query(("a",))], 2)
        assert time.monotonic() - started < 20


def test_busy_and_absent_servers(kind: str) -> None:
    with ScriptedServer(503, answering("i")) as server:
        assert retrieve(kind, server.url, Query(("a",)))[0].item_id == "i"
    with pytest.raises(TrmError, match=r"cannot be asked: .*Connect"):
        retrieve(kind, server.url, Query(("a",)), serving=HASTY)


def test_who_is_away_is_not_waited_for_and_found_again_at_once(kind: str) -> None:
    """Each of the calls that find nobody may take 30 s."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    url, began = f"http://127.0.0.1:{port}", time.monotonic()

    async def run(ask: Callable[[], Any]) -> None:
        for _ in range(2):
            with pytest.raises(TrmError, match="cannot be asked"):
                await ask()
        assert time.monotonic() - began < 20
        with ScriptedServer(answering("i"), port=port):
            assert [item.item_id for item in await ask()] == ["i"]

    query = Query(("a",))
    if kind == "blocking":
        blocking = BlockingRetriever(url, "v1", SERVING)
        asyncio.run(run(lambda: asyncio.to_thread(lambda: blocking.retrieve([query], 1)[0])))
    else:
        awaited = RemoteRetriever(url, "v1", SERVING)
        asyncio.run(run(lambda: awaited.retrieve(query, 1)))


def test_one_retriever_serves_several_event_loops() -> None:
    with ScriptedServer(answering("i")) as server:
        retriever = RemoteRetriever(server.url, "v1", SERVING)

        async def run() -> int:
            return len(await asyncio.gather(*(retriever.retrieve(Query(("a",)), 1) for _ in range(5))))

        assert asyncio.run(run()) + asyncio.run(run()) == 10
