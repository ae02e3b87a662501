"""Both clients against a real HTTP server with scripted answers: what is sent, what is read, how faults are met."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from deeprec import retrying
from deeprec.client import (
    AsyncClient,
    Client,
    ClientError,
    Event,
    ReasonKind,
    RefusedEvent,
    RequestRefused,
    ServerBusy,
    ServerFailed,
    ServerUnreachable,
)
from deeprec.client import exchange as exchanging
from deeprec.types import Filter
from deeprec.wire.events import MAX_EVENTS
from tests.unit.client.scripted_server import Asked, ScriptedServer, events

ANSWER = {
    "items": [{"id": "7", "title": "Heat", "rank": 1, "score": 0.5, "turn": 2, "preference": "crime"}],
    "path": "policy",
    "user_known": True,
    "bundle": "abc",
    "milliseconds": {"total": 12.5, "trm": 2.0, "turns": [4.0, 5.0]},
    "calls": [
        {
            "turn": 1,
            "thought": "Look around.",
            "preference": "anything",
            "items": [{"id": "7", "title": "Heat", "score": 0.5, "new": True}],
        }
    ],
    "trm": [{"id": "9", "title": "Ronin", "rank": 1, "score": 0.75}],
    "later": "a newer server's field",
}


def predicted(answer: Any = ANSWER) -> dict[str, Any]:
    return {"predictions": [answer]}


def _call(kind: str, url: str, method: str, *given: Any, settings: dict[str, Any] | None = None, **named: Any) -> Any:
    """One call with a client of its own; what an exploration yields is a list."""
    if kind == "sync":
        with Client(url, **(settings or {})) as client:
            found = getattr(client, method)(*given, **named)
            return list(found) if method == "explore" else found

    async def run() -> Any:
        async with AsyncClient(url, **(settings or {})) as client:
            if method == "explore":
                return [step async for step in client.explore(*given, **named)]
            return await getattr(client, method)(*given, **named)

    return asyncio.run(run())


@pytest.fixture(params=["sync", "async"])
def call(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``call(url, method, …)`` of both clients."""
    return lambda *given, **named: _call(request.param, *given, **named)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrying, "FIRST_PAUSE", 0.01)


def test_an_answer_is_typed_and_kept_as_it_came(call: Any) -> None:
    with ScriptedServer(predicted()) as server:
        found = call(server.url + "/", "recommend", user_id=1, k=1, explain=True)
    assert (found.path, found.reason, found.bundle, found.user_known) == ("policy", None, "abc", True)
    [item] = found.items
    assert (item.id, item.title, item.rank, item.score, item.turn, item.preference) == ("7", "Heat", 1, 0.5, 2, "crime")
    assert (found.milliseconds.total, found.milliseconds.trm, found.milliseconds.turns) == (12.5, 2.0, (4.0, 5.0))
    assert (found.calls[0].thought, found.calls[0].items[0].new) == ("Look around.", True)
    assert (found.trm[0].id, found.trm[0].score) == ("9", 0.75)
    assert found.raw == ANSWER
    [asked] = server.asked
    assert (asked.method, asked.path) == ("POST", "/v1/models/deeprec:predict")
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == {"instances": [{"user_id": 1, "k": 1, "explain": True}]}


def test_a_recommender_of_another_name_is_asked_by_it(call: Any) -> None:
    settings = {"name": "shop", "headers": {"Authorization": "Bearer s3cret"}}
    with ScriptedServer(predicted(), predicted(), {}) as server:
        call(server.url, "recommend", user_id=1, settings=settings)
        call(server.url, "retrieve", user_id=1, settings=settings)
        call(server.url, "ready", settings=settings)
    paths = [asked.path for asked in server.asked]
    assert paths == ["/v1/models/shop:predict", "/v1/models/shop-trm:predict", "/v1/models/shop"]
    assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer s3cret"}


def test_what_is_not_given_is_not_sent_and_filters_may_be_text(call: Any) -> None:
    with ScriptedServer(
        predicted({**ANSWER, "path": "trm", "reason": {"kind": "bundle", "sentence": "asked so"}})
    ) as server:
        found = call(
            server.url,
            "retrieve",
            history=("1", 2),
            preference=("comedy", "1990s"),
            exclude={"5"},
            filters=["year >= 1990", Filter("genres", "=", "Drama"), {"column": "title", "value": "x"}],
            user_id=None,
            allow_seen=True,
        )
    assert (found.reason.kind, str(found.reason)) == (ReasonKind.BUNDLE, "asked so")
    [asked] = server.asked
    assert asked.path == "/v1/models/deeprec-trm:predict"
    assert asked.body["instances"] == [
        {
            "history": ["1", 2],
            "preference": ["comedy", "1990s"],
            "exclude": ["5"],
            "filters": [
                {"column": "year", "operator": ">=", "value": 1990.0},
                {"column": "genres", "operator": "=", "value": "Drama"},
                {"column": "title", "value": "x"},
            ],
            "allow_seen": True,
        }
    ]


@pytest.mark.parametrize("named", [{"filters": ["year"]}, {"filters": [Filter("year", ">=", float("nan"))]}])
def test_what_cannot_be_sent_is_refused_before(call: Any, named: Any) -> None:
    with ScriptedServer(predicted()) as server:
        with pytest.raises(RequestRefused, match=r"year|JSON"):
            call(server.url, "recommend", history=[], **named)
        assert server.asked == []


def test_busy_servers_are_asked_again_with_the_time_that_is_left(call: Any) -> None:
    def later(asked: Asked) -> Any:
        time.sleep(0.2)
        return 503

    with ScriptedServer(429, later, predicted()) as server:
        assert call(server.url, "recommend", user_id="1", deadline_ms=5000).path == "policy"
    deadlines = [body["instances"][0]["deadline_ms"] for body in server.bodies]
    assert 4000 < deadlines[0] <= 5000
    assert deadlines[0] > deadlines[1] > deadlines[2]
    assert deadlines[1] - deadlines[2] >= 200


def test_retry_after_is_waited_for(call: Any) -> None:
    busy = Response('{"error": "full"}', 429, {"Retry-After": "1"})
    with ScriptedServer(busy, predicted()) as server:
        call(server.url, "recommend", user_id="1")
        assert server.asked[1].at - server.asked[0].at >= 1
    with ScriptedServer(Response('{"error": "full"}', 429, {"Retry-After": "60"})) as server:
        started = time.monotonic()
        with pytest.raises(ServerBusy, match="status 429: full") as raised:
            call(server.url, "recommend", user_id="1", deadline_ms=30_000)
        assert time.monotonic() - started < 20, "it has no time to wait, so it does not"
        assert (raised.value.status, raised.value.sentence, len(server.asked)) == (429, "full", 1)
    dated = Response("", 503, {"Retry-After": formatdate(time.time() + 1000, usegmt=True)})
    with ScriptedServer(dated) as server, pytest.raises(ServerBusy):
        call(server.url, "recommend", user_id="1")


def test_a_busy_server_is_given_up_when_the_time_is_over(call: Any) -> None:
    with ScriptedServer(503) as server:
        started = time.monotonic()
        with pytest.raises(ServerBusy, match="scripted 503"):
            call(server.url, "recommend", user_id="1", deadline_ms=1500)
        assert time.monotonic() - started < 20
        assert len(server.asked) > 2


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (400, RequestRefused, "scripted 400"),
        (404, RequestRefused, "scripted 404"),
        (500, ServerFailed, "scripted 500"),
        (PlainTextResponse("bad\ngateway", 502), ServerFailed, "bad gateway"),
        (Response("", 500), ServerFailed, "Internal Server Error"),
        (PlainTextResponse("<html>"), ServerFailed, "<html>"),
        ({"predictions": []}, ServerFailed, "predictions"),
        (predicted({**ANSWER, "path": "other"}), ServerFailed, "other"),
        (predicted({**ANSWER, "items": [{"id": "1"}]}), ServerFailed, "items"),
        (predicted(None), ServerFailed, "null"),
    ],
)
def test_refusals_and_wrong_answers_are_not_repeated(call: Any, answer: Any, kind: Any, sentence: str) -> None:
    with ScriptedServer(answer) as server:
        with pytest.raises(kind) as raised:
            call(server.url, "recommend", user_id="1")
        assert sentence in raised.value.sentence
        assert isinstance(raised.value, ClientError)
        assert raised.value.status == (answer if isinstance(answer, int) else getattr(answer, "status_code", 200))
        assert server.url in str(raised.value)
        assert len(server.asked) == 1


def test_a_late_answer_is_not_waited_for_and_not_asked_again(call: Any) -> None:
    async def late() -> Any:
        await asyncio.sleep(60)

    with ScriptedServer(lambda asked: late()) as server:
        with pytest.raises(ServerUnreachable, match=r"no answer within 1\.5 seconds"):
            call(server.url, "retrieve", user_id="1", settings={"timeout": 1.5})
        assert len(server.asked) == 1


def test_an_answer_may_arrive_a_little_after_the_deadline(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanging, "MARGIN", 15.0)

    async def late() -> Any:
        await asyncio.sleep(1)
        return JSONResponse(predicted())

    with ScriptedServer(lambda asked: late()) as server:
        assert call(server.url, "recommend", user_id="1", deadline_ms=200).bundle == "abc"


def test_connections_that_break_are_tried_again(call: Any) -> None:
    def broken(asked: Asked) -> Any:
        async def content() -> Any:
            yield b"{"
            raise RuntimeError("the server dies")

        return StreamingResponse(content(), headers={"Content-Length": "100"})

    with ScriptedServer(broken, predicted()) as server:
        assert call(server.url, "recommend", user_id="1").bundle == "abc"
        assert len(server.asked) == 2
    started = time.monotonic()
    with pytest.raises(ServerUnreachable, match=r"ConnectError.*check the address"):
        call(server.url, "recommend", user_id="1", deadline_ms=400)
    assert time.monotonic() - started >= 0.1
    with pytest.raises(ClientError, match="no address"):
        call("recommender:8080", "ready")


def test_readiness_is_an_answer_and_never_an_error(call: Any) -> None:
    with ScriptedServer({"name": "deeprec", "ready": True}, 503) as server:
        assert call(server.url, "ready") is True
        assert call(server.url, "ready", "deeprec-trm") is False
        assert [asked.path for asked in server.asked] == ["/v1/models/deeprec", "/v1/models/deeprec-trm"]
    assert call(server.url, "ready") is False


def test_predictions_come_in_order_and_are_counted(call: Any) -> None:
    with ScriptedServer({"predictions": [{"a": 1}, {"a": 2}]}) as server:
        assert call(server.url, "predict", "other", [{}, {}]) == [{"a": 1}, {"a": 2}]
        assert (server.asked[0].path, server.bodies[0]) == ("/v1/models/other:predict", {"instances": [{}, {}]})
        with pytest.raises(ServerFailed, match="2 predictions for 1 instances"):
            call(server.url, "predict", "other", [{}], timeout=1.0)


def test_headers_go_with_every_request(call: Any) -> None:
    with ScriptedServer(predicted()) as server:
        call(server.url, "recommend", user_id="1", settings={"headers": {"Authorization": "Bearer x", "Host": "h"}})
    assert (server.asked[0].headers["authorization"], server.asked[0].headers["host"]) == ("Bearer x", "h")


def stream(*steps: tuple[str, Any], rest: bytes = b"") -> Callable[[Asked], Response]:
    async def content() -> Any:
        sent = b": waiting\n\n" + events(steps) + rest
        for place in range(0, len(sent), 7):
            yield sent[place : place + 7]

    return lambda asked: StreamingResponse(content(), media_type="text/event-stream")


def test_steps_come_one_by_one_and_the_last_is_the_recommendation(call: Any) -> None:
    told = [("trm", {"items": []}), ("turn", {"turn": 1}), ("call", {"turn": 1, "thought": "ü"}), ("answer", ANSWER)]
    with ScriptedServer(503, stream(*told)) as server:
        steps = call(server.url, "explore", history=["1"], deadline_ms=1000)
    assert [(step.event, step.data) for step in steps] == told
    assert [step.recommendation is None for step in steps] == [True, True, True, False]
    assert steps[-1].recommendation.items[0].id == "7"
    assert server.asked[1].path == "/v1/explore"
    assert server.bodies[1]["history"] == ["1"]


@pytest.mark.parametrize(
    ("answer", "kind", "part"),
    [
        (stream(("turn", {"turn": 1}), ("error", {"error": "no luck"})), ServerFailed, "no luck"),
        (stream(("turn", {"turn": 1})), ServerFailed, "ended before the answer"),
        (stream(rest=b"event: turn\ndata: {\n\n"), ServerFailed, "something else than a step"),
        (stream(("answer", {})), ServerFailed, "something else than a step: items"),
        (400, RequestRefused, "scripted 400"),
    ],
)
def test_an_exploration_that_fails_says_so(call: Any, answer: Any, kind: Any, part: str) -> None:
    with ScriptedServer(answer) as server, pytest.raises(kind, match=part):
        call(server.url, "explore", user_id="1")


def test_several_threads_and_tasks_share_a_client() -> None:
    with ScriptedServer(lambda asked: predicted({**ANSWER, "bundle": asked.body["instances"][0]["user_id"]})) as server:
        from concurrent.futures import ThreadPoolExecutor

        names = [str(number) for number in range(300)]
        with Client(server.url) as client, ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda name: client.recommend(user_id=name).bundle, names)) == names
        assert len(server.asked) == len(names), "no connection is closed while another thread uses it"

        async def run() -> list[str]:
            async with AsyncClient(server.url, connections=4) as client:
                return [one.bundle for one in await asyncio.gather(*(client.recommend(user_id=n) for n in names[:40]))]

        assert asyncio.run(run()) == names[:40]


def test_it_is_imported_without_what_serves_and_trains() -> None:
    code = (
        "import sys, deeprec.client; print(sorted({'torch', 'kserve', 'transformers', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_events_are_sent_as_values_or_json(call: Any) -> None:
    told = {"accepted": 1, "duplicates": 1, "refused": [{"event_id": "e3", "reason": "no such item"}]}
    with ScriptedServer(told) as server:
        given = [Event("e1", "ann", "7"), Event("e2", "ann", "8", 1_700_000_000, rating=4.5), {"event_id": "e3"}]
        found = call(server.url, "send", given)
    assert server.bodies == [
        {
            "events": [
                {"event_id": "e1", "user_id": "ann", "item_id": "7"},
                {"event_id": "e2", "user_id": "ann", "item_id": "8", "timestamp": 1_700_000_000, "rating": 4.5},
                {"event_id": "e3"},
            ]
        }
    ]
    assert server.asked[0].path == "/v1/events"
    assert (found.accepted, found.duplicates, found.refused) == (
        1,
        1,
        (RefusedEvent(event_id="e3", reason="no such item"),),
    )


def numbered(count: int) -> list[Event]:
    return [Event(f"e{number}", "ann", "7") for number in range(count)]


def counted(asked: Asked) -> dict[str, Any]:
    """The last event of a body is refused, the first is a duplicate, the others are accepted."""
    ids = [event["event_id"] for event in asked.body["events"]]
    return {"accepted": len(ids) - 2, "duplicates": 1, "refused": [{"event_id": ids[-1], "reason": "no such item"}]}


def none_accepted(asked: Asked) -> Response:
    """As the server answers a body of which it accepts nothing."""
    refused = [{"event_id": event["event_id"], "reason": "no such item"} for event in asked.body["events"]]
    told = {"error": "no event was accepted: no such item", "accepted": 0, "duplicates": 0, "refused": refused}
    return JSONResponse(told, 400)


def test_many_events_go_in_several_bodies_and_their_answers_are_joined(call: Any) -> None:
    with ScriptedServer(counted) as server:
        found = call(server.url, "send", iter(numbered(1203)))
    sent = [[event["event_id"] for event in body["events"]] for body in server.bodies]
    assert [len(ids) for ids in sent] == [MAX_EVENTS, MAX_EVENTS, 203]
    assert [name for ids in sent for name in ids] == [event.event_id for event in numbered(1203)]
    assert (found.accepted, found.duplicates) == (1203 - 6, 3)
    assert [one.event_id for one in found.refused] == ["e499", "e999", "e1202"]


@pytest.mark.parametrize("count", [1, MAX_EVENTS])
def test_events_that_fit_go_in_one_body(call: Any, count: int) -> None:
    with ScriptedServer({"accepted": count}) as server:
        assert call(server.url, "send", numbered(count)).accepted == count
    assert [len(body["events"]) for body in server.bodies] == [count]


def test_a_busy_server_gets_the_same_body_again(call: Any) -> None:
    with ScriptedServer({"accepted": MAX_EVENTS}, 503, {"accepted": 1}) as server:
        assert call(server.url, "send", numbered(MAX_EVENTS + 1)).accepted == MAX_EVENTS + 1
    assert [len(body["events"]) for body in server.bodies] == [MAX_EVENTS, 1, 1]


def test_events_are_refused_only_where_none_of_all_is_accepted(call: Any) -> None:
    with ScriptedServer(counted, none_accepted) as server:
        found = call(server.url, "send", numbered(MAX_EVENTS + 2))
    assert (found.accepted, found.duplicates) == (MAX_EVENTS - 2, 1)
    assert [one.event_id for one in found.refused] == ["e499", "e500", "e501"]
    with ScriptedServer(none_accepted) as server:
        with pytest.raises(RequestRefused, match="status 400: no event was accepted: no such item") as raised:
            call(server.url, "send", numbered(MAX_EVENTS + 2))
        assert (raised.value.status, len(server.asked)) == (400, 2)


def test_a_malformed_body_ends_the_delivery_and_none_is_the_servers_to_refuse(call: Any) -> None:
    with ScriptedServer(counted, 400, counted) as server:
        with pytest.raises(RequestRefused, match="scripted 400"):
            call(server.url, "send", numbered(2 * MAX_EVENTS + 1))
        assert len(server.asked) == 2
    with ScriptedServer(400) as server, pytest.raises(RequestRefused, match="scripted 400"):
        call(server.url, "send", [])
    assert server.bodies == [{"events": []}]


@pytest.fixture
def without_proxies(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_a_server_on_this_machine_is_asked_by_no_proxy(
    without_proxies: pytest.MonkeyPatch, kind: str, proxy: str
) -> None:
    without_proxies.setenv("ALL_PROXY", proxy)
    with ScriptedServer(predicted()) as server:
        assert _call(kind, server.url, "recommend", user_id="1").bundle == "abc"


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_proxy_that_cannot_be_used_is_named_with_the_cure(without_proxies: pytest.MonkeyPatch, kind: str) -> None:
    url = "http://recommender.example:8080"
    without_proxies.setenv("HTTP_PROXY", "http://me:secret@127.0.0.1:9")
    with pytest.raises(ServerUnreachable, match=r"proxy http://127\.0\.0\.1:9 .* add recommender\.example to NO_PROXY"):
        _call(kind, url, "recommend", user_id="1", settings={"timeout": 0.3})
    without_proxies.setenv("HTTP_PROXY", "socks5://127.0.0.1:9")
    with pytest.raises(ClientError, match=r"the environment's proxy cannot be used .* install httpx\[socks\]"):
        _call(kind, url, "recommend", user_id="1")
    without_proxies.setenv("HTTP_PROXY", "gopher://127.0.0.1:9")
    with pytest.raises(ClientError, match="the environment's proxy cannot be used"):
        _call(kind, url, "recommend", user_id="1")


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_an_answer_that_a_proxy_gave_is_told_from_a_server_s(without_proxies: pytest.MonkeyPatch, kind: str) -> None:
    """The scripted server stands for the proxy."""
    url = "http://recommender.example:8080"
    denied, refused = PlainTextResponse("<html>Access denied</html>", 403), JSONResponse({"error": "k: too many"}, 400)
    with ScriptedServer(denied, refused) as proxy:
        without_proxies.setenv("HTTP_PROXY", proxy.url)
        with pytest.raises(RequestRefused, match=r"Access denied.*add recommender\.example to NO_PROXY"):
            _call(kind, url, "recommend", user_id="1")
        with pytest.raises(RequestRefused, match=r"k: too many$"):
            _call(kind, url, "recommend", user_id="1")
