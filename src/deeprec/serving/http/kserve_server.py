"""KServe's model server, and every place where we lean on what it does not promise.

Its V1 and V2 routes, its models and its server are used as they are. It offers no way to choose the address (it
listens on every one), to answer while the models load, to stop as we do, or to put checks before its own, so:

- importing it parses the command line: ``command_line_hidden``;
- ``Server`` overrides ``_serve``, which awaits KServe's own listeners, and closes them unused;
- ``Server`` overrides ``setup_event_loop`` and ``register_signal_handler``: both are ours;
- ``endpoints`` registers its routes with an application of ours, so that our checks stand before them, and puts its
  handler of ``:predict`` before FastAPI's dispatch.

Each is pinned by ``tests/unit/serving/http/test_kserve_server.py``. Nothing outside ``serving`` imports this.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from deeprec import __version__

if TYPE_CHECKING:
    from fastapi import FastAPI


@contextmanager
def command_line_hidden() -> Iterator[None]:
    """Show only the program's name in ``sys.argv`` for a while."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept


with command_line_hidden():
    import kserve
    from kserve import errors
    from kserve.model_repository import ModelRepository
    from kserve.protocol.dataplane import DataPlane
    from kserve.protocol.model_repository_extension import ModelRepositoryExtension
    from kserve.protocol.rest.v1_endpoints import V1Endpoints, register_v1_endpoints
    from kserve.protocol.rest.v2_endpoints import register_v2_endpoints

STATUSES: Mapping[type[Exception], HTTPStatus] = {
    errors.InvalidInput: HTTPStatus.BAD_REQUEST,
    errors.ModelNotFound: HTTPStatus.NOT_FOUND,
    errors.ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
    errors.ServerNotLive: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""KServe's errors, and what they are answered with. What is not listed is a fault of the server."""

Health = Callable[[], Awaitable[bool]]


class _Plane(DataPlane):  # type: ignore[misc]
    """KServe's data plane, whose server is alive and ready when we say so."""

    def __init__(self, repository: ModelRepository, alive: Callable[[], bool], ready: Health) -> None:
        super().__init__(repository)
        self._alive, self._ready = alive, ready

    async def live(self) -> dict[str, str]:  # type: ignore[override]
        return {"status": "alive" if self._alive() else "stuck"}

    async def ready(self) -> bool:
        return await self._ready()

    def metadata(self) -> dict[str, Any]:
        return {"name": "deeprec", "version": __version__, "extensions": []}


def endpoints(app: FastAPI, models: Iterable[Any], alive: Callable[[], bool], ready: Health) -> None:
    """Add KServe's V1 and V2 routes for these models, and ``/`` where nothing else is there."""
    repository = ModelRepository()
    for model in models:
        repository.update(model)
    plane = _Plane(repository, alive, ready)
    app.add_api_route("/", plane.live)
    app.router.routes.insert(0, _predict(V1Endpoints(plane)))
    register_v1_endpoints(app, plane, ModelRepositoryExtension(repository))
    register_v2_endpoints(app, plane, ModelRepositoryExtension(repository))


def _predict(v1: V1Endpoints) -> Route:
    """KServe's own handler of ``:predict``, which takes a request as it is: FastAPI, which finds out what it takes each
    time anew, would add a seventh to the time of an answer. Its own route stays behind, for the document.
    """

    async def predict(request: Request) -> Response:
        request.scope["route"] = route
        answer: Response = await v1.predict(request.path_params["model_name"], request)
        return answer

    route = Route("/v1/models/{model_name}:predict", predict, methods=["POST"])
    return route


class Server(kserve.ModelServer):  # type: ignore[misc]
    """KServe's server around listeners of ours: ``serve`` is awaited in an event loop of its own."""

    def __init__(self, serve: Callable[[], Awaitable[None]]) -> None:
        super().__init__(workers=1, enable_grpc=False, enable_latency_logging=False)
        self._ours = serve

    def setup_event_loop(self) -> None:
        """Nothing: ``serve`` does it, in the loop that runs."""

    def register_signal_handler(self) -> None:
        """Nothing: signals are taken before anything is loaded."""

    async def _serve(self) -> None:
        for listener in self.servers:
            listener.close()
        await self._ours()
