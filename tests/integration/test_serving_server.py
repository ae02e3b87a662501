"""The server process around a made-up model: readiness, overload, slow clients, batches and shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deeprec.serving.http.life import CLOSE_SECONDS
from tests.integration.servers import STOP_SECONDS, ServerProcess, started, until

PREDICT = "/v1/models/echo:predict"
ECHO = Path(__file__).with_name("echo_server.py")
Start = Callable[..., AbstractContextManager[ServerProcess]]
First = Callable[..., tuple[psutil.Process, "subprocess.Popen[bytes]"]]


LIMITS = ("serving.max_waiting=8", "serving.max_deadline_ms=5000", "serving.drain_seconds=1")


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """``start(*overrides, ready=True)``: the echo server; with ``ready=False`` its gate stays closed."""

    def begin(*overrides: str, ready: bool = True) -> AbstractContextManager[ServerProcess]:
        gate = tmp_path / "gate"
        if ready:
            gate.write_text("")
        return started([sys.executable, str(ECHO), str(gate), *overrides], tmp_path / "log", ready=ready)

    return begin


@pytest.fixture
def mortal(start: Start) -> Iterator[ServerProcess]:
    """A server of eight places that a test may stop."""
    with start(*LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of eight places for every test that leaves it running."""
    place = tmp_path_factory.mktemp("echo")
    (place / "gate").write_text("")
    with started([sys.executable, str(ECHO), str(place / "gate"), *LIMITS], place / "log") as server:
        yield server


def ask(server: ServerProcess, ms: int = 0, **more: Any) -> httpx.Response:
    return httpx.post(server.url + PREDICT, json={"instances": [{"ms": ms}]}, timeout=60, **more)


async def crowd(server: ServerProcess, count: int, ms: int) -> list[httpx.Response | Exception]:
    """``count`` requests at once, each with a connection of its own."""
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        calls = [client.post(PREDICT, json={"instances": [{"ms": ms}]}) for _ in range(count)]
        return await asyncio.gather(*calls, return_exceptions=True)  # type: ignore[return-value]


def test_ready_means_that_what_serves_has_been_prepared(start: Start, tmp_path: Path) -> None:
    with start(ready=False) as server:
        until(lambda: _live(server), "the port is not open", server.process)
        for path in ("/v2/health/ready", "/v1/models/echo", "/v2/models/echo/ready"):
            answer = httpx.get(server.url + path)
            assert (answer.status_code, list(answer.json())) == (503, ["error"])
        assert ask(server).status_code == 503
        (tmp_path / "gate").write_text("")
        server.wait_ready()
        assert ask(server).json() == {"predictions": [{"beside": 1}]}
        assert httpx.get(f"{server.url}/v1/models/echo").json() == {"name": "echo", "ready": True}
        assert httpx.get(f"{server.url}/").json() == "page"


def _live(server: ServerProcess) -> bool:
    try:
        return httpx.get(f"{server.url}/v2/health/live").json() == {"live": True}
    except httpx.TransportError:
        return False


def test_a_server_that_cannot_be_prepared_ends_with_the_reason(start: Start, tmp_path: Path) -> None:
    (tmp_path / "gate").write_text("the vectors are gone")
    with start(ready=False) as server:
        assert server.process.wait(STOP_SECONDS) != 0
        assert "ArtifactError: the vectors are gone" in server.printed
        assert "closed" in server.printed


def test_the_requests_of_a_body_are_answered_side_by_side(echo: ServerProcess) -> None:
    instances = [{"ms": 200}] * 5
    answer = httpx.post(echo.url + PREDICT, json={"instances": instances}, timeout=60)
    assert answer.json() == {"predictions": [{"beside": 5}] * 5}
    body = {"instances": [{"ms": 1}, {"ms": "x"}, {"ms": 1}]}
    refused = httpx.post(echo.url + PREDICT, json=body, timeout=60)
    assert (refused.status_code, refused.json()) == (400, {"error": 'request 2 of this body: write {"ms": 10}'})


def test_a_fault_of_the_server_is_told_without_its_trace(echo: ServerProcess) -> None:
    answer = ask(echo, 13)
    assert (answer.status_code, list(answer.json())) == (500, ["error"])
    assert "secret" not in answer.text
    assert "a secret of the server" in echo.printed
    assert ask(echo).status_code == 200


def test_beyond_capacity_it_sheds_and_recovers(echo: ServerProcess) -> None:
    process = psutil.Process(echo.process.pid)
    before = process.memory_info().rss
    for _ in range(3):
        answers = asyncio.run(crowd(echo, 200, 500))
        codes = [answer.status_code for answer in answers if isinstance(answer, httpx.Response)]
        assert len(codes) == 200
        assert set(codes) == {200, 429}
        refused = [answer for answer in answers if isinstance(answer, httpx.Response) and answer.status_code == 429]
        assert all(answer.headers["retry-after"] == "1" for answer in refused)
        assert all(list(answer.json()) == ["error"] for answer in refused)
        assert max(one.json()["predictions"][0]["beside"] for one in answers if one not in refused) <= 8
        ended = time.monotonic()
        until(lambda: ask(echo).status_code == 200, "it does not recover", echo.process)
        assert time.monotonic() - ended < 5
    assert process.memory_info().rss - before < 50_000_000


def test_health_and_metrics_are_answered_while_every_place_is_taken(echo: ServerProcess) -> None:
    async def full(client: httpx.AsyncClient) -> bool:
        return (await client.post(PREDICT, json={"instances": [{"ms": 0}]})).status_code == 429

    async def answered() -> bool:
        """Whether every place was taken before and after the questions that need none."""
        busy = asyncio.ensure_future(crowd(echo, 8, 1500))
        async with httpx.AsyncClient(base_url=echo.url, timeout=60) as client:
            while not await full(client) and not busy.done():
                await asyncio.sleep(0.02)
            for path in ("/v2/health/live", "/v2/health/ready", "/v1/models/echo", "/metrics", "/openapi.json"):
                assert (await client.get(path)).status_code == 200
            still = await full(client)
        assert all(isinstance(answer, httpx.Response) for answer in await busy)
        return still

    until(lambda: asyncio.run(answered()), "the places are never all taken", echo.process)


def test_bodies_that_do_not_come_keep_no_place(echo: ServerProcess) -> None:
    head = (
        f"POST {PREDICT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{"
    )
    slow = [socket.create_connection(("127.0.0.1", echo.port), timeout=30) for _ in range(8)]
    try:
        for connection in slow:
            connection.sendall(head.encode())
        until(lambda: ask(echo).status_code == 429, "the slow bodies take no place", echo.process)
        until(lambda: ask(echo).status_code == 200, "the slow bodies keep their places", echo.process)
        for connection in slow:
            answer = connection.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'{"error": "the body did not arrive within 5 s"}' in answer
    finally:
        for connection in slow:
            connection.close()


def test_a_body_that_is_too_large_is_answered_before_it_is_there(echo: ServerProcess) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(200):
            yield b" " * 100_000

    for body in (b" " * 1_000_000, endless()):
        answer = httpx.post(echo.url + PREDICT, content=body, headers={"Content-Type": "application/json"}, timeout=60)
        assert answer.status_code == 413
        assert "262144 bytes" in answer.json()["error"]


def test_sigterm_under_load_answers_every_accepted_request(mortal: ServerProcess) -> None:
    async def client(number: int) -> list[int]:
        codes = []
        async with httpx.AsyncClient(base_url=mortal.url, timeout=60) as connection:
            while True:
                try:
                    answer = await connection.post(PREDICT, json={"instances": [{"ms": 20 + 37 * (number % 8)}]})
                except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
                    return codes
                codes.append(answer.status_code)

    async def main() -> list[int]:
        clients = [asyncio.ensure_future(client(number)) for number in range(12)]
        held = [asyncio.ensure_future(crowd(mortal, 1, 3000)) for _ in range(2)]
        await asyncio.sleep(1.0)
        mortal.process.send_signal(signal.SIGTERM)
        async with httpx.AsyncClient(base_url=mortal.url, timeout=60) as probe:
            while (answer := await probe.get("/v2/health/ready")).status_code == 200:
                await asyncio.sleep(0.02)
            assert (answer.status_code, answer.json()) == (503, {"error": "the server is shutting down"})
        for [late] in await asyncio.gather(*held):
            assert isinstance(late, httpx.Response)
            assert late.status_code in (200, 429)
            codes.append(late.status_code)
        for found in await asyncio.gather(*clients):
            codes.extend(found)
        return codes

    codes: list[int] = []
    asyncio.run(main())
    assert mortal.process.wait(STOP_SECONDS) == 0
    assert set(codes) <= {200, 429}
    assert f"stopped after answering {codes.count(200)} requests" in mortal.printed
    assert codes.count(200) > 20
    assert "closed" in mortal.printed
    assert "Traceback" not in mortal.printed


def test_a_second_sigterm_ends_the_wait(mortal: ServerProcess) -> None:
    mortal.process.send_signal(signal.SIGTERM)
    until(lambda: not mortal.ready(), "it stays ready")
    mortal.process.send_signal(signal.SIGTERM)
    assert mortal.process.wait(STOP_SECONDS) == 0


def test_errors_of_routes_are_one_sentence(echo: ServerProcess) -> None:
    for method, path, status in (
        ("GET", "/nowhere", 404),
        ("PUT", PREDICT, 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/models/other:predict", 404),
        ("POST", "/v1/models/echo:explain", 404),
        ("POST", "/v2/models/echo/versions/1/infer", 404),
        ("GET", "/v2/models/echo/versions/1", 404),
        ("POST", "/v2/repository/models/echo/unload", 404),
    ):
        answer = httpx.request(method, echo.url + path, json={} if method == "POST" else None)
        assert (answer.status_code, list(answer.json())) == (status, ["error"]), path
    assert httpx.request("HEAD", echo.url + PREDICT).status_code == 405
    assert "allow" in httpx.put(echo.url + PREDICT).headers


def test_the_server_names_itself_and_offers_no_loading_of_models(echo: ServerProcess) -> None:
    found = httpx.get(f"{echo.url}/v2").json()
    assert (found["name"], found["extensions"]) == ("deeprec", [])


def test_the_document_names_each_model_with_its_fields_and_limits(echo: ServerProcess) -> None:
    found = httpx.get(f"{echo.url}/openapi.json").json()
    paths = found["paths"]
    assert set(paths[PREDICT]) == {"post"}
    assert "/v2/models/echo/infer" in paths
    assert not [path for path in paths if "{model_name}:" in path or "repository" in path]
    body = paths[PREDICT]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"]["instances"]["items"] == {"$ref": "#/components/schemas/Wait"}
    assert found["components"]["schemas"]["Wait"]["properties"]["ms"]["minimum"] == 0
    assert paths["/"]["get"]["operationId"].startswith("page")
    for path, item in paths.items():
        for operation in item.values():
            assert "422" not in operation["responses"], path


def test_a_server_that_is_loading_is_alive_and_not_started(start: Start, tmp_path: Path) -> None:
    with start(ready=False) as server:
        until(lambda: _live(server), "the port is not open", server.process)
        assert httpx.get(f"{server.url}/v2/health/started").status_code == 503
        (tmp_path / "gate").write_text("")
        server.wait_ready()
        assert httpx.get(f"{server.url}/v2/health/started").json() == {"started": True}


def test_a_signal_while_loading_ends_it_whatever_the_loading_does(start: Start) -> None:
    with start(ready=False) as server:
        until(lambda: _live(server), "the port is not open", server.process)
        assert server.stop() == 0
        assert "closed" in server.printed
        assert "Traceback" not in server.printed


def test_neither_a_helper_nor_a_closing_that_never_ends_keeps_it(start: Start) -> None:
    with start("stuck", "serving.stop_seconds=1") as server:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(CLOSE_SECONDS + 30) == 0
        assert "is not closed" in server.printed


def test_what_was_asked_while_loading_is_answered_when_a_signal_comes(start: Start) -> None:
    with start(ready=False) as server:
        until(lambda: _live(server), "the port is not open", server.process)
        answer = ask(server)
        assert answer.status_code == 503
        assert answer.headers["x-request-id"]


@pytest.fixture
def first_process(tmp_path: Path) -> Iterator[First]:
    """Runs code as process 1 of a namespace of its own, and gives that process, and the one that waits for its end."""
    apart = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a namespace of processes (unshare --pid)")
    started: list[subprocess.Popen[bytes]] = []

    def begin(code: str, *arguments: str) -> tuple[psutil.Process, subprocess.Popen[bytes]]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with (tmp_path / "first").open("w") as log:
            command = [*apart, sys.executable, "-c", code, *arguments]
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        outer = psutil.Process(started[-1].pid)
        until(outer.children, "it does not start", started[-1])
        return outer.children()[0], started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("ready", [True, False])
def test_as_process_one_it_ends_when_it_is_told_to(first_process: First, tmp_path: Path, ready: bool) -> None:
    if ready:
        (tmp_path / "gate").write_text("")
    code = (
        "import runpy, sys; from deeprec.__main__ import step_in_front; step_in_front(); "
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    first, outer = first_process(code, str(ECHO), str(tmp_path / "gate"))
    printed = (tmp_path / "first").read_text
    until(lambda: ("ready on" if ready else "Started server process") in printed(), printed)
    first.send_signal(signal.SIGTERM)
    assert outer.wait(STOP_SECONDS) == 0
    assert "closed" in printed()


def test_process_one_reaps_what_others_have_left_and_ends_as_the_command_does(
    first_process: First, tmp_path: Path
) -> None:
    code = (
        "import os, signal, subprocess, sys, time; from deeprec.__main__ import step_in_front; step_in_front(); "
        "assert os.getpid() != 1; subprocess.run(['sh', '-c', 'sleep 0.1 & exit 0']); print('left', flush=True); "
        "time.sleep(1000)"
    )
    first, outer = first_process(code)
    until(lambda: "left" in (tmp_path / "first").read_text(), "it does not start")
    until(lambda: [one.name() for one in first.children()][1:] == [], "what was left is not reaped")
    first.children()[0].send_signal(signal.SIGKILL)
    assert outer.wait(STOP_SECONDS) == 128 + signal.SIGKILL
