"""What the events service takes, refuses and answers; the writer behind it is a fake at its port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError, RequestError, StoreError
from deeprec.features.events import Outcome
from deeprec.serving.events.routes import MAX_TOGETHER, Events, read_event, read_events, router
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.application import guarded
from deeprec.serving.metrics import ServingMetrics
from deeprec.wire.events import MAX_EVENTS, Event

EVENT = {"event_id": "e1", "user_id": "u1", "item_id": "a"}


class Writer:
    """Accepts every id once, refuses the item "x", and counts its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.seen: set[str] = set()
        self.failure: Exception | None = None
        self.gate = threading.Event()
        self.gate.set()
        self.reached = threading.Event()

    def write(self, events: Sequence[Event]) -> tuple[Outcome, ...]:
        self.reached.set()
        assert self.gate.wait(60)
        self.calls.append([event.event_id for event in events])
        if self.failure is not None:
            raise self.failure
        return tuple(self._outcome(event) for event in events)

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    def _outcome(self, event: Event) -> Outcome:
        if event.item_id == "x":
            return Outcome(event.event_id, "refused", "item 'x' is unknown")
        if event.event_id in self.seen:
            return Outcome(event.event_id, "duplicate")
        self.seen.add(event.event_id)
        return Outcome(event.event_id, "accepted")


@pytest.fixture
def writer() -> Writer:
    return Writer()


def opened(writer: Writer, serving: ServingConfig) -> Events:
    events = Events(lambda: writer, serving, ServingMetrics())  # type: ignore[arg-type, return-value]
    events.open()
    return events


@pytest.fixture
def client(writer: Writer) -> Iterator[TestClient]:
    app, serving = FastAPI(), ServingConfig(retry_after=7)
    app.include_router(router(opened(writer, serving)))
    with TestClient(guarded(app, serving, Admission(serving)), base_url="http://127.0.0.1") as client:
        yield client


def post(client: TestClient, *events: Any) -> tuple[int, Any]:
    answer = client.post("/v1/events", json={"events": list(events)})
    return answer.status_code, answer.json()


def test_each_event_is_answered(client: TestClient) -> None:
    refused = {**EVENT, "event_id": "e2", "item_id": "x"}
    expected = {"accepted": 1, "duplicates": 1, "refused": [{"event_id": "e2", "reason": "item 'x' is unknown"}]}
    assert post(client, EVENT, refused, EVENT) == (200, expected)
    assert post(client, EVENT) == (200, {"accepted": 0, "duplicates": 1, "refused": []})


def test_a_body_of_which_nothing_is_accepted_is_a_400(client: TestClient) -> None:
    status, answer = post(client, {**EVENT, "item_id": "x"})
    assert status == 400
    assert answer["error"] == "no event was accepted: item 'x' is unknown"
    assert answer["refused"] == [{"event_id": "e1", "reason": "item 'x' is unknown"}]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"event_id": None}, "event_id: give a string, not null"),
        ({"user_id": ""}, "user_id: String should have at least 1 character"),
        ({"user_id": "  "}, "user_id: String should have at least 1 character"),
        ({"item_id": "i" * 201}, "item_id: String should have at most 200 characters"),
        ({"item_id": ["a"]}, "item_id: give a string, not a list"),
        ({"timestamp": "20240101"}, "timestamp: give Unix seconds, or ISO 8601 such as"),
        ({"timestamp": True}, "timestamp: give a whole number, not a boolean"),
        ({"timestamp": 10**30}, "timestamp: Input should be less than or equal to"),
        ({"rating": "5"}, "rating: give a number, not a string"),
        ({"event": ""}, "event: String should have at least 1 character"),
        ({"itme": "a"}, "unknown field 'itme'; remove it or correct its spelling"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(
    client: TestClient, writer: Writer, change: dict[str, Any], sentence: str
) -> None:
    status, answer = post(client, EVENT, {**EVENT, **change})
    assert status == 400
    assert answer["error"].startswith("event 2 of this body: ")
    assert sentence in answer["error"]
    assert writer.calls == []


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "must be a JSON object"),
        ({"events": {}}, "must be a JSON object"),
        ({"events": [EVENT], "more": 1}, "must be a JSON object"),
        ({"events": []}, "0 events in one body, but this server takes from 1 to 500"),
        ({"events": [EVENT] * (MAX_EVENTS + 1)}, "501 events in one body"),
        ({"events": ["e1"]}, "event 1 of this body: an event must be a JSON object"),
    ],
)
def test_a_malformed_body_is_a_400(client: TestClient, writer: Writer, body: Any, sentence: str) -> None:
    answer = client.post("/v1/events", json=body)
    assert answer.status_code == 400
    assert sentence in answer.json()["error"]
    assert writer.calls == []


def test_integer_ids_are_texts_and_all_mistakes_are_named() -> None:
    event = read_event({"event_id": 1, "user_id": 2, "item_id": 3, "timestamp": 4, "rating": 5, "event": "play"})
    assert (event.event_id, event.user_id, event.item_id, event.timestamp) == ("1", "2", "3", 4)
    assert (event.rating, event.event) == (5.0, "play")
    with pytest.raises(RequestError, match="event_id: is missing; user_id: is missing; item_id: is missing"):
        read_event({})
    with pytest.raises(RequestError, match="must be a JSON object"):
        read_events([EVENT])


@pytest.mark.parametrize("failure", [FeatureError("/secret/place is down"), StoreError("/secret/place is full")])
def test_a_store_that_cannot_be_written_is_a_503(client: TestClient, writer: Writer, failure: Exception) -> None:
    writer.failure = failure
    answer = client.post("/v1/events", json={"events": [EVENT]})
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "7"
    assert answer.json() == {"error": "events cannot be written now; send the same again, with the same ids"}
    writer.failure = None
    assert post(client, EVENT) == (200, {"accepted": 1, "duplicates": 0, "refused": []})


def test_bodies_that_wait_together_are_written_together(writer: Writer) -> None:
    async def ask() -> list[tuple[Outcome, ...]]:
        events = opened(writer, ServingConfig())
        writer.gate.clear()
        first = asyncio.ensure_future(events.accept([read_event({**EVENT, "event_id": "first"})]))
        await asyncio.to_thread(writer.reached.wait, 60)
        bodies = [[read_event({**EVENT, "event_id": f"{n}-{m}"}) for m in range(n % 3)] for n in range(1, 6)]
        others = [asyncio.ensure_future(events.accept(body)) for body in bodies]
        await asyncio.sleep(0)
        writer.gate.set()
        found = [await first, *[await other for other in others]]
        events.close()
        return found

    found = asyncio.run(ask())
    assert writer.calls == [["first"], ["1-0", "2-0", "2-1", "4-0", "5-0", "5-1"]]
    assert [[outcome.event_id for outcome in body] for body in found[1:4]] == [["1-0"], ["2-0", "2-1"], []]
    assert MAX_TOGETHER >= 5


def test_a_failure_is_not_tried_again_for_each_body(writer: Writer) -> None:
    async def ask() -> None:
        events = opened(writer, ServingConfig())
        writer.failure = FeatureError("down")
        bodies = [events.accept([read_event({**EVENT, "event_id": str(n)})]) for n in range(4)]
        for error in await asyncio.gather(*bodies, return_exceptions=True):
            assert isinstance(error, HTTPException)
            assert error.status_code == 503
        events.close()
        with pytest.raises(HTTPException):
            await events.accept([read_event(EVENT)])

    asyncio.run(ask())
    assert len(writer.calls) <= 2


def test_the_route_is_described(client: TestClient) -> None:
    operation = client.get("/openapi.json").json()["paths"]["/v1/events"]["post"]
    events = operation["requestBody"]["content"]["application/json"]["schema"]["properties"]["events"]
    assert events["maxItems"] == MAX_EVENTS
    assert {"event_id", "user_id", "item_id"} == set(events["items"]["required"])
    assert "white" not in str(operation)
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("Stored")


def test_that_the_store_cannot_be_asked_is_said_once(writer: Writer, caplog: pytest.LogCaptureFixture) -> None:
    """A server that is not ready for want of a password says so, and not every five seconds."""
    events = Events(lambda: writer, ServingConfig(), ServingMetrics())  # type: ignore[arg-type, return-value]
    assert not events.reachable(), "it is not open yet"
    events.open()
    writer.failure = FeatureError("features.redis takes no such password")
    assert [events.reachable() for _ in range(3)] == [False] * 3
    writer.failure = None
    assert [events.reachable() for _ in range(2)] == [True] * 2
    assert [record.getMessage() for record in caplog.records] == [
        "not ready, since events cannot be written: features.redis takes no such password",
        "events can be written again",
    ]
