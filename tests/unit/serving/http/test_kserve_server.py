"""What ``kserve_server`` leans on in KServe, each pinned: an update that changes one of them fails here."""

from __future__ import annotations

import asyncio
import inspect
import signal
import subprocess
import sys

import kserve
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from kserve import errors
from kserve.protocol.rest.server import RESTServer
from kserve.protocol.rest.v1_endpoints import V1Endpoints

from deeprec.serving.http import kserve_server
from deeprec.serving.http.kserve_server import STATUSES, Server, command_line_hidden, endpoints


def test_importing_it_reads_the_command_line_which_is_why_it_is_hidden() -> None:
    script = "import sys; sys.argv = ['x', '--http_port', 'no-number']\nimport kserve"
    assert "invalid int value" in subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stderr
    with command_line_hidden():
        assert len(sys.argv) == 1


def test_the_server_awaits_ours_in_a_loop_of_its_own_and_opens_no_port() -> None:
    seen: list[object] = []

    async def serve() -> None:
        seen.append(asyncio.get_running_loop())
        seen.append(server._rest_server._server.started)  # what KServe would listen with is made, and not used

    server = Server(serve)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)]
    server.start([])
    assert [type(one) for one in seen[1:]] == [bool]
    assert seen[1] is False
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)] == before
    assert server._grpc_server is None


def test_what_is_overridden_is_what_start_calls() -> None:
    source = inspect.getsource(kserve.ModelServer.start)
    for call in ("self.setup_event_loop()", "self.register_signal_handler()", "asyncio.run(self._serve())"):
        assert call in source
    assert inspect.iscoroutinefunction(kserve.ModelServer._serve)
    assert "self.servers.append(self._rest_server.start())" in source
    assert inspect.iscoroutinefunction(RESTServer.start)


def test_alive_ready_and_the_servers_name_are_ours() -> None:
    state = {"alive": True, "ready": False}

    async def ready() -> bool:
        return state["ready"]

    app = FastAPI()
    endpoints(app, [], lambda: state["alive"], ready)
    for kind, status in STATUSES.items():
        app.add_exception_handler(kind, _answer(status))
    client = TestClient(app)
    assert client.get("/v2").json()["name"] == "deeprec"
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").status_code == 503
    state |= {"alive": False, "ready": True}
    assert client.get("/v2/health/live").status_code == 503
    assert client.get("/v2/health/ready").json() == {"ready": True}


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_predict_is_kserves_own_handler_and_the_first_route() -> None:
    """It is called without FastAPI's dispatch, so what it takes is pinned."""
    assert list(inspect.signature(V1Endpoints.predict).parameters) == ["self", "model_name", "request"]
    called: list[object] = []

    class Double(kserve.Model):  # type: ignore[misc]
        async def __call__(self, body, headers=None, verb=None):  # type: ignore[no-untyped-def]
            called.append(verb)
            return {"predictions": [2 * one for one in body["instances"]]}, {}

    async def ready() -> bool:
        return True

    app, model = FastAPI(), Double("double")
    model.load()
    endpoints(app, [model], lambda: True, ready)
    app.add_exception_handler(errors.ModelNotFound, _answer(404))
    client = TestClient(app)
    assert client.post("/v1/models/double:predict", json={"instances": [1, 2]}).json() == {"predictions": [2, 4]}
    assert client.post("/v1/models/other:predict", json={"instances": [1]}).status_code == 404
    assert called == [None]
    assert app.router.routes[0].path == "/v1/models/{model_name}:predict"  # type: ignore[attr-defined]
    assert "/v1/models/{model_name}:predict" in app.openapi()["paths"]


def _answer(status: int):  # type: ignore[no-untyped-def]
    from fastapi.responses import JSONResponse

    async def handler(_: object, error: Exception) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status)

    return handler


@pytest.mark.parametrize("name", ["InvalidInput", "ModelNotFound", "ModelNotReady", "ServerNotReady", "ServerNotLive"])
def test_every_error_of_its_routes_has_a_status(name: str) -> None:
    assert getattr(errors, name) in kserve_server.STATUSES
