"""The door of the server, driven as plain ASGI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.serving.http import guard
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.body import decode_json
from deeprec.serving.http.guard import Guard
from tests.cycles import collected

JSON = [(b"content-type", b"application/json; charset=utf-8")]
SERVING = ServingConfig(max_body_bytes=100, max_waiting=2, retry_after=3)
seen: dict[str, Any] = {}


async def app(scope: Any, receive: Any, send: Any) -> None:
    seen["headers"] = dict(scope["headers"])
    seen["body"] = (await receive())["body"] if scope["method"] == "POST" else b""
    if scope["path"] == "/refuse":
        raise RequestError("no such thing: \ud800")
    if scope["path"] == "/break":
        raise RuntimeError("secret")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    if scope["path"] == "/break-late":
        raise RuntimeError("secret")
    await send({"type": "http.response.body", "body": b"{}"})


class Client:
    """One connection: the pieces of a body, and what is sent back. With ``stalls`` the body's end never comes.

    It stays until it is told to go.
    """

    def __init__(self, body: list[bytes] | None = None, stalls: bool = False) -> None:
        self.pieces = [b"{}"] if body is None else body
        self.stalls = stalls
        self.gone = asyncio.Event()
        self.sent: list[Any] = []
        self.read = 0

    async def receive(self) -> Any:
        if self.read < len(self.pieces):
            self.read += 1
            more = self.stalls or self.read < len(self.pieces)
            return {"type": "http.request", "body": self.pieces[self.read - 1], "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def answer(self) -> dict[str, Any]:
        found = json.loads(b"".join(message["body"] for message in self.sent[1:]))
        assert isinstance(found, dict)
        return found


def scope(path: str = "/", headers: Any = JSON, method: str = "POST", query_string: bytes = b"") -> dict[str, Any]:
    return {"type": "http", "path": path, "method": method, "headers": headers, "query_string": query_string}


def call(
    body: list[bytes] | None = None, *, stalls: bool = False, closing: bool = False, most: int = 100, **where: Any
) -> Client:
    serving = SERVING.model_copy(update={"max_body_bytes": most})
    client, places = Client(body, stalls), Admission(serving)
    places.closing = closing
    asyncio.run(Guard(app, serving, places)(scope(**where), client.receive, client.send))
    assert places.waiting == 0
    return client


def test_a_good_body_arrives_whole_as_plain_json() -> None:
    headers = [*JSON, (b"ce-id", b"1"), (b"x-request-id", b"7")]
    client = call([b'{"a":', b"1}"], headers=headers)
    assert (client.status, client.answer) == (200, {})
    assert seen["body"] == b'{"a":1}'
    assert seen["headers"] == {b"x-request-id": b"7", b"content-type": b"application/json"}
    assert client.headers[b"x-request-id"] == b"7"


@pytest.mark.parametrize("given", [b"", b"a b", b"x" * 129, b"\xff"])
def test_a_request_without_a_name_of_its_own_is_given_one(given: bytes) -> None:
    names = {call(headers=[*JSON, (b"x-request-id", given)]).headers[b"x-request-id"] for _ in range(2)}
    assert len(names) == 2
    assert given not in names


def test_binary_tensors_become_json() -> None:
    texts = ['{"user_id": "1"}', "ü"]
    tail = b"".join(len(text.encode()).to_bytes(4, "little") + text.encode() for text in texts)
    tensor = {"name": "request", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(tail)}}
    head = json.dumps({"inputs": [tensor]}).encode()
    length = (b"inference-header-content-length", str(len(head)).encode())
    for kind in (b"application/json", b"application/octet-stream"):
        client = call([head + tail], headers=[(b"content-type", kind), length], most=1000)
        assert client.status == 200, client.answer
        [found] = json.loads(seen["body"])["inputs"]
        assert (found["data"], found["parameters"]) == (texts, {})
        assert seen["headers"] == {b"content-type": b"application/json"}


def _tensors(size: object, datatype: str = "BYTES") -> bytes:
    inputs = [{"name": "request", "datatype": datatype, "shape": [1], "parameters": {"binary_data_size": size}}]
    return json.dumps({"inputs": inputs}).encode()


@pytest.mark.parametrize(
    ("head", "length", "tail", "part"),
    [
        (_tensors(4), None, b"\x05\0\0\0", "longer than its tensor"),
        (_tensors(5), None, b"\x01\0\0\0\xff", "utf-8"),
        (_tensors(9), None, b"\x05\0\0\0", "binary_data_size"),
        (_tensors(-1), None, b"", "binary_data_size"),
        (_tensors("4"), None, b"\0\0\0\0", "binary_data_size"),
        (_tensors(4, "FP32"), None, b"\0\0\0\0", "BYTES"),
        (_tensors(4), None, b"\0\0\0\0more", "no tensor names"),
        (b"{}", b"-2", b"", "length"),
        (b"{}", b"900", b"", "length"),
        (b"[1]", None, b"x", "no tensor names"),
        (b"{", None, b"", "Expecting"),
    ],
)
def test_binary_tensors_that_do_not_fit_are_one_sentence(
    head: bytes, length: bytes | None, tail: bytes, part: str
) -> None:
    named = (b"inference-header-content-length", str(len(head)).encode() if length is None else length)
    client = call([head + tail], headers=[*JSON, named], most=1000)
    assert client.status == 400
    assert part in client.answer["error"]


def test_each_request_of_a_body_takes_a_place() -> None:
    async def work(door: Guard, places: Admission, done: asyncio.Event) -> None:
        two = json.dumps({"instances": [{}, {}]}).encode()
        first, second = Client([two]), Client([two])
        calls = [asyncio.ensure_future(door(scope(), client.receive, client.send)) for client in (first, second)]
        await asyncio.sleep(0.05)
        assert places.waiting == 2
        assert (second.status, second.headers[b"retry-after"]) == (429, b"3")
        done.set()
        await asyncio.gather(*calls)
        assert first.status == 200
        assert places.waiting == 0

    assert together(work) == [1]


def test_what_a_client_asked_that_has_gone_is_given_up() -> None:
    ended: list[str] = []

    async def stuck(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async def main() -> None:
        counted: list[tuple[str, int]] = []
        places, client = Admission(SERVING), Client()
        door = Guard(stuck, SERVING, places, lambda route, status, _: counted.append((route, status)))
        asked = asyncio.ensure_future(door(scope(), client.receive, client.send))
        await asyncio.sleep(0.05)
        assert places.waiting == 1
        client.gone.set()
        await asyncio.wait_for(asked, 5)
        assert (places.waiting, ended, client.sent, counted) == (0, ["cancelled"], [], [("none", guard.GONE)])

    asyncio.run(main())


def test_probes_and_figures_are_answered_whatever_a_server_is_called() -> None:
    """The kubelet and Prometheus call a pod by its address."""
    limits = ServingConfig(host="0.0.0.0", hosts=("shop.example",))
    asked_for = {"/v2/health/live": 200, "/v2/health/started": 200, "/metrics": 200, "/v2/models": 421}
    for path, status in asked_for.items():
        client = Client()
        asked = scope(path, [(b"host", b"10.1.2.3:8080")], "GET")
        asyncio.run(Guard(app, limits, Admission(limits))(asked, client.receive, client.send))
        assert client.status == status, path


@pytest.mark.parametrize(
    ("serving", "host", "status"),
    [
        ({}, b"localhost:8080", 200),
        ({}, b"127.0.0.1", 200),
        ({}, b"[::1]:8080", 200),
        ({}, b"rebound.example:8080", 421),
        ({"host": "0.0.0.0"}, b"anything.example", 200),
        ({"host": "0.0.0.0", "hosts": ["shop.example", "*.in.example"]}, b"Shop.example:80", 200),
        ({"host": "0.0.0.0", "hosts": ["shop.example", "*.in.example"]}, b"a.in.example", 200),
        ({"host": "0.0.0.0", "hosts": ["shop.example", "*.in.example"]}, b"in.example", 421),
        ({"hosts": ["*"]}, b"anything", 200),
    ],
)
def test_a_server_answers_to_its_own_names(serving: dict[str, Any], host: bytes, status: int) -> None:
    client, limits = Client(), ServingConfig(**serving)
    door = Guard(app, limits, Admission(limits))
    asyncio.run(door(scope(headers=[*JSON, (b"host", host)]), client.receive, client.send))
    assert client.status == status


@pytest.mark.parametrize(
    ("arguments", "status", "part"),
    [
        ({"headers": []}, 415, "Content-Type: application/json"),
        ({"headers": [(b"content-type", b"application/octet-stream")]}, 415, "Content-Type"),
        ({"headers": [*JSON, (b"content-encoding", b"gzip")]}, 415, "Content-Encoding"),
        ({"headers": [*JSON, (b"content-length", b"101")]}, 413, "100 bytes"),
        ({"headers": [*JSON, (b"content-length", b"9" * 50)]}, 413, "100 bytes"),
        ({"body": [b" " * 60, b" " * 60]}, 413, "100 bytes"),
        ({"body": [b"{"]}, 400, "not JSON"),
        ({"body": [b"\xff\xfe"]}, 400, "not UTF-8"),
        ({"body": [b'{"k": NaN}']}, 400, "not finite"),
        ({"body": [b"[]"]}, 400, "JSON object"),
        ({"body": [b'{"specversion":"1"}']}, 400, "CloudEvents"),
        ({"path": "/v2/repository/models/deeprec/unload"}, 404, "cannot be changed"),
        ({"path": "/v2/models/deeprec/versions/1/infer"}, 404, "one version"),
        ({"path": "/v2/models/deeprec/versions/\n/ready"}, 404, "one version"),
        ({"path": "/v2/models/deeprec/ready", "query_string": b"model_version=1"}, 404, "one version"),
        ({"path": "/v1/models/deeprec:explain"}, 404, "no explainer"),
        ({"path": "/refuse"}, 400, "no such thing"),
        ({"path": "/break"}, 500, "its log says why"),
    ],
)
def test_errors_are_one_sentence_of_json(arguments: dict[str, Any], status: int, part: str) -> None:
    client = call(**arguments)
    assert client.status == status
    assert list(client.answer) == ["error"]
    assert part in client.answer["error"]
    assert "secret" not in client.answer["error"]


def test_who_fails_between_head_and_body_is_answered_all_the_same() -> None:
    """The head goes with the body, so that the client is told of the failure."""
    client = call(path="/break-late")
    assert client.status == 500
    assert [message["type"] for message in client.sent] == ["http.response.start", "http.response.body"]
    assert "secret" not in client.answer["error"]


def test_get_needs_no_body() -> None:
    assert call(method="GET", headers=[]).status == 200


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"a": Infinity}', "not finite"),
        ('["\\ud800"]', "surrogate"),
        ("[" * 100_000, "nested"),
        ("9" * 5000, "too long"),
        (b"\x80", "UTF-8 at byte 0"),
        ("\ufeff{}", "BOM"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_not_quite_json_is_refused(text: str | bytes, part: str) -> None:
    with pytest.raises(ValueError, match=part):
        decode_json(text)


def test_json_of_all_kinds_of_text_is_read() -> None:
    text = '{"a": ["\\ud83d\\ude00", "\U0001f600", "\\u0000", "\u202e"], "a": ["last", 1e400]}'
    assert decode_json(text) == {"a": ["last", float("inf")]}
    assert decode_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.05)
    client = call([b"{"], stalls=True)
    assert client.status == 408
    assert client.headers[b"connection"] == b"close"
    assert "0.05 s" in client.answer["error"]


def test_the_rest_of_a_refused_body_is_read_before_the_answer_ends() -> None:
    client = call([b" " * 60, b" " * 60, b" " * 60, b" " * 60])
    assert client.status == 413
    assert client.read == 4
    assert client.headers[b"connection"] == b"close"
    assert client.sent[1]["more_body"]


def test_an_answer_that_is_not_read_frees_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SEND_SECONDS", 0.05)
    places = Admission(SERVING)

    async def deaf(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    asyncio.run(Guard(app, SERVING, places)(scope(), Client().receive, deaf))
    assert places.waiting == 0


def together(work: Callable[[Guard, Admission, asyncio.Event], Awaitable[None]]) -> list[int]:
    """Run ``work`` on a guard whose application answers when the event is set; returns the requests shed."""
    shed: list[int] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await done.wait()
        await app(scope, receive, send)

    async def main() -> None:
        nonlocal done
        done = asyncio.Event()
        places = Admission(SERVING, lambda: shed.append(1))
        await work(Guard(slow, SERVING, places), places, done)

    done = asyncio.Event()
    asyncio.run(main())
    return shed


def test_neither_an_answer_nor_a_refusal_leaves_a_cycle_for_the_collector() -> None:
    """A collection over what thousands of refused requests left would keep everybody waiting."""

    async def work(door: Guard, places: Admission, done: asyncio.Event) -> None:
        done.set()
        for status, most in ((200, 2), (429, 0)):
            places._most = most
            with collected() as left:
                client = Client()
                await door(scope(), client.receive, client.send)
                assert client.status == status
            assert left == []

    together(work)


def test_beyond_its_places_a_server_refuses_before_it_reads() -> None:
    async def work(door: Guard, places: Admission, done: asyncio.Event) -> None:
        clients = [Client() for _ in range(3)]
        calls = [asyncio.ensure_future(door(scope(), client.receive, client.send)) for client in clients]
        await asyncio.sleep(0.05)
        assert places.waiting == 2
        assert calls[2].done()
        assert (clients[2].status, clients[2].headers[b"retry-after"]) == (429, b"3")
        assert "try again in 3 s" in clients[2].answer["error"]
        free = Client()
        probe = asyncio.ensure_future(door(scope("/metrics", [], "GET"), free.receive, free.send))
        done.set()
        await asyncio.gather(*calls, probe)
        assert [client.status for client in (*clients[:2], free)] == [200, 200, 200]
        late = Client()
        await door(scope(), late.receive, late.send)
        assert late.status == 200
        assert places.accepted == 3

    assert together(work) == [1]


def test_what_waits_for_its_turn_counts_and_keeps_no_probe_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred arrive together, and each begins in a turn of its own: the first at once, two more have places."""
    monkeypatch.setattr(guard, "TURN_SECONDS", 0.0)

    async def work(door: Guard, places: Admission, done: asyncio.Event) -> None:
        clients, probe = [Client() for _ in range(100)], Client()
        done.set()
        calls = [asyncio.ensure_future(door(scope(), client.receive, client.send)) for client in clients]
        asked = asyncio.ensure_future(door(scope("/metrics", [], "GET"), probe.receive, probe.send))
        for _ in range(20):
            await asyncio.sleep(0)
        assert asked.done()
        assert not calls[-1].done()
        await asyncio.gather(*calls)
        assert [client.status for client in clients] == [200, 200, 200, *[429] * 97]

    assert together(work) == [1] * 97


def test_a_refused_client_whose_body_may_be_long_has_to_connect_anew() -> None:
    async def work(door: Guard, places: Admission, done: asyncio.Event) -> None:
        held = [places.enter(True), places.enter(True)]
        short, unsaid = Client(), Client([b"{", b"}"])
        await door(scope(headers=[*JSON, (b"content-length", b"2")]), short.receive, short.send)
        await door(scope(), unsaid.receive, unsaid.send)
        assert (short.read, b"connection" in short.headers) == (0, False)
        assert unsaid.headers[b"connection"] == b"close"
        for ticket in held:
            places.leave(ticket)

    assert together(work) == [1, 1]


def test_settled_waits_for_those_before_and_not_for_those_after() -> None:
    async def main() -> None:
        places = Admission(SERVING)
        before, free = places.enter(True), places.enter(False)
        waiting = asyncio.ensure_future(places.settled())
        await asyncio.sleep(0)
        after = places.enter(True)
        places.leave(before)
        await asyncio.sleep(0.05)
        assert not waiting.done()
        places.leave(free)
        await asyncio.wait_for(waiting, 5)
        assert places.waiting == 1
        places.leave(after)

    asyncio.run(main())


@pytest.mark.parametrize("path", ["/v2/health/ready", "/v1/models/deeprec", "/v2/models/deeprec/ready"])
def test_a_server_that_closes_is_not_ready_and_still_answers(path: str) -> None:
    client = call(path=path, method="GET", headers=[], closing=True)
    assert (client.status, client.answer) == (503, {"error": "the server is shutting down"})
    answered = call(path="/v1/models/deeprec:predict", closing=True)
    assert (answered.status, answered.headers[b"connection"]) == (200, b"close")
    assert call(path=path, method="GET", headers=[]).status == 200
