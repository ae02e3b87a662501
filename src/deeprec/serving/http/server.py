"""The server process: any KServe models and FastAPI routers on one HTTP port.

Contract: ``application`` makes what answers, and neither listens nor starts anything. ``run`` opens the port, prepares
what serves (``start``), and only then calls the models ready: until that, and again once it was told to stop, readiness
answers 503. SIGTERM: not ready at once, still answering for ``DRAIN_SECONDS`` so that whoever routes requests here
looks elsewhere, then no new connection, then every accepted request is answered, then ``close``. SIGINT leaves the
waiting out. gRPC is off; one process serves.

``run`` is for the main thread of a process of its own: it sets up logging, signals and the event loop. A process may
hold any number of applications.
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from deeprec import __version__
from deeprec.config import ServingConfig
from deeprec.errors import ConfigError, RequestError
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.guard import Guard, error_body

if TYPE_CHECKING:
    from fastapi import APIRouter, FastAPI
    from prometheus_client import CollectorRegistry

    from deeprec.serving.http.model import JsonModel

logger = logging.getLogger(__name__)

Hook = Callable[[], Awaitable[None]]

DRAIN_SECONDS = 1.0
"""How long a server that was told to stop still takes new requests."""
SWITCH_SECONDS = 0.02
"""How long a thread goes on in Python while another waits. Longer turns than CPython's own 5 ms kept more answers in
time, and shorter ones fewer: 32 requests at once on two cores, a slow policy, ``benchmarks.serving_faults --http``."""
HELPERS = 4
"""Threads for what may wait on a disk or a network without anybody waiting for it."""
_SPARE_SECONDS = 5
"""Beyond the latest deadline, for answers on their way, before a stopping server gives up on a request."""


def free_port(host: str, port: int) -> int:
    """The port to listen on: ``port``, or any free one for 0.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; name another --host or --port") from error


def limit_threads(serving: ServingConfig) -> None:
    """Let torch compute with ``serving.threads`` threads in this process, and threads of Python take longer turns."""
    import torch

    torch.set_num_threads(serving.threads)
    sys.setswitchinterval(SWITCH_SECONDS)


@dataclass(frozen=True)
class Service:
    """What a server answers with, and what is done before the first answer and after the last."""

    models: Sequence[JsonModel]
    """Called ready (``load``) once ``start`` has returned."""
    serving: ServingConfig
    admission: Admission
    """The server's places, for who else wants to know of them."""
    routers: Sequence[APIRouter] = ()
    """Their paths come before KServe's own, so that ``/`` can be theirs."""
    start: Hook | None = None
    """Prepares what serves, in the server's event loop."""
    close: Hook | None = None
    """Puts it away after the last answer."""
    figures: CollectorRegistry | None = None
    """Shown on ``/metrics`` beside those of the process."""


def application(service: Service) -> FastAPI:
    """What answers: our checks around the routers and KServe's two protocols.

    It calls neither ``start`` nor ``close``, and the models are not ready until somebody says so; see ``live``.
    """
    from deeprec.serving.http.model import command_line_hidden

    with command_line_hidden():
        from kserve.model_repository import ModelRepository
        from kserve.protocol.dataplane import DataPlane
        from kserve.protocol.model_repository_extension import ModelRepositoryExtension
        from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
        from kserve.protocol.rest.v2_endpoints import register_v2_endpoints

    from fastapi import FastAPI
    from fastapi.responses import ORJSONResponse

    from deeprec.serving.http import metrics
    from deeprec.serving.http.openapi import document

    app = FastAPI(docs_url=None, redoc_url=None, default_response_class=ORJSONResponse)
    guard(app, service.serving, service.admission)
    repository = ModelRepository()
    for model in service.models:
        repository.update(model)
    dataplane = DataPlane(repository)
    dataplane.ready = _all_healthy(service.models)
    dataplane.metadata = lambda: {"name": "deeprec", "version": __version__, "extensions": []}
    for router in (*service.routers, metrics.router(service.figures)):
        app.include_router(router)
    app.add_api_route("/", dataplane.live)
    register_v1_endpoints(app, dataplane, ModelRepositoryExtension(repository))
    register_v2_endpoints(app, dataplane, ModelRepositoryExtension(repository))
    quiet_errors(app)
    app.openapi = cache(partial(document, app, service.models, service.serving))  # type: ignore[method-assign]
    return app


def run(service: Service) -> None:
    """Serve on the configuration's address until told to stop.

    Raises:
        Exception: what ``start`` raised; the server has stopped.
    """
    from deeprec.serving.http.model import command_line_hidden

    with command_line_hidden():
        import kserve

    import uvloop

    from deeprec.serving.http.arrival import ArrivalProtocol

    serving = service.serving

    class Server(kserve.ModelServer):  # type: ignore[misc]
        """KServe's server, with our application on one address and our lifecycle around it."""

        async def _serve(self) -> None:
            rest = self._rest_server
            rest.config.host, rest.config.ws, rest.config.http = serving.host, "none", ArrivalProtocol
            rest.config.app, rest.create_application = app, lambda: None
            await live(service, rest._server, super()._serve())

    grace = math.ceil((serving.max_deadline_ms + serving.grace_ms) / 1000) + _SPARE_SECONDS
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    server = Server(
        http_port=serving.port,
        workers=1,
        max_asyncio_workers=HELPERS,
        enable_grpc=False,
        enable_latency_logging=False,
        grace_period=grace,
    )
    _set_up_logging()
    app = application(service)
    server.start([])


async def live(service: Service, server: Any, serving: Awaitable[None]) -> None:
    """From the opening of a port to its closing: ``serving``, which is uvicorn's ``server``, with our hooks around it.

    Raises:
        Exception: what ``start`` raised.
    """
    from anyio import to_thread

    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(HELPERS, "deeprec-helper"))
    to_thread.current_default_thread_limiter().total_tokens = HELPERS
    life = _Life(server, service)
    server.handle_exit = life.stop
    await life.around(serving)


def _set_up_logging() -> None:
    """Let our lines look as KServe's do, and leave out those that it and uvicorn write for every request."""
    kserve, own = logging.getLogger("kserve"), logging.getLogger("deeprec")
    own.handlers, own.propagate = list(kserve.handlers), False
    own.setLevel(kserve.level)
    for name in ("kserve.trace", "uvicorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="ORJSONResponse is deprecated")


def _all_healthy(models: Sequence[JsonModel]) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return all([await model.healthy() for model in models])

    return ready


class _Life:
    """From the opening of the port to its closing."""

    def __init__(self, server: Any, service: Service) -> None:
        self._server, self._models, self._places = server, service.models, service.admission
        self._start, self._close = service.start, service.close
        self._exit = server.handle_exit
        self._loop = asyncio.get_running_loop()

    async def around(self, serving: Awaitable[None]) -> None:
        """Serve, with ``start`` beside and ``close`` after it; raises what ``start`` raised."""
        beginning = asyncio.create_task(self._begin())
        try:
            await serving
            beginning.cancel()
            with suppress(asyncio.CancelledError):
                await beginning
        finally:
            if self._close is not None:
                await self._close()
            logger.info("stopped after answering %d requests", self._places.accepted)

    async def _begin(self) -> None:
        """Prepare what serves; whatever that raises ends the server, and is raised by ``around``."""
        try:
            if self._start is not None:
                await self._start()
            for model in self._models:
                model.load()
        except Exception:
            self._server.should_exit = True
            raise

    def stop(self, number: int, frame: Any) -> None:
        """Answer a signal: the first SIGTERM lets the server be not ready for a while, any other ends it now."""
        wait = number == signal.SIGTERM and not self._places.closing
        self._places.closing = True
        delay = DRAIN_SECONDS if wait else 0.0
        self._loop.call_soon_threadsafe(self._loop.call_later, delay, self._exit, number, frame)


def quiet_errors(app: Any) -> None:
    """Answer KServe's own errors as ``{"error": sentence}`` without the traces that its handlers log.

    What is not listed reaches the guard, which answers 500 and logs it.
    """
    from kserve import errors

    statuses = {
        errors.InvalidInput: HTTPStatus.BAD_REQUEST,
        errors.ModelNotFound: HTTPStatus.NOT_FOUND,
        errors.ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.ServerNotLive: HTTPStatus.SERVICE_UNAVAILABLE,
    }
    for kind, status in statuses.items():
        app.add_exception_handler(kind, _answering(status))


def _answering(status: int) -> Any:
    async def handler(_: Any, error: Exception) -> Any:
        return _error(str(error), status)

    return handler


def guard(app: Any, serving: ServingConfig, admission: Admission) -> None:
    """Put our checks in front of a FastAPI application and make its errors ``{"error": sentence}``."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    async def on_http(_: Any, error: HTTPException) -> Any:
        sentence = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            sentence = "no such path; GET /openapi.json lists those there are"
        return _error(sentence, error.status_code, error.headers)

    async def on_shape(_: Any, error: RequestValidationError) -> Any:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
        return _error(f"the request is not as this path takes it: {where[:200]}: {first['msg']}", 400)

    async def on_request(_: Any, error: RequestError) -> Any:
        return _error(str(error), error.status)

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(RequestError, on_request)
    app.add_middleware(Guard, serving=serving, admission=admission)


def _error(sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Any:
    from fastapi.responses import Response

    body = error_body(sentence)
    return Response(body, status, headers=dict(headers) if headers else None, media_type="application/json")
