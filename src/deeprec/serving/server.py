"""The server process: both KServe models on one HTTP port.

Contract: ``run`` returns when the server was told to stop (SIGTERM, SIGINT). The port is opened after the models are
loaded, so a server that answers its readiness probe can recommend. gRPC is off; one process serves, models run in
threads.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from deeprec.config import ServingConfig
from deeprec.errors import ConfigError
from deeprec.serving.recommender import Recommender


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


def run(recommender: Recommender, host: str, port: int) -> None:
    """Serve ``deeprec`` and ``deeprec-trm`` until told to stop."""
    from deeprec.serving.model import command_line_hidden

    with command_line_hidden():
        import kserve
        from kserve import model_server
    from deeprec.serving.recommender_model import RecommenderModel
    from deeprec.serving.trm_model import TrmModel

    class Server(kserve.ModelServer):  # type: ignore[misc]
        """KServe's server, listening on one address instead of on all."""

        async def _serve(self) -> None:
            self._rest_server.config.host = host
            self._rest_server._add_exception_handlers = quiet_errors
            await super()._serve()

    guard(model_server.app, recommender.serving)
    models = [RecommenderModel(recommender), TrmModel(recommender)]
    for model in models:
        model.load()
    asyncio.set_event_loop(asyncio.new_event_loop())
    try:
        server = Server(http_port=port, workers=1, enable_grpc=False, enable_latency_logging=False)
        logging.getLogger("kserve.trace").setLevel(logging.WARNING)
        server.start(models)
    finally:
        recommender.close()


def quiet_errors(app: Any) -> None:
    """Answer KServe's own errors as ``{"error": sentence}`` without the traces that its handlers log.

    What is not listed reaches the guard, which answers 500 and logs it.
    """
    from fastapi.responses import JSONResponse
    from kserve import errors

    def answering(status: HTTPStatus) -> Any:
        async def handler(_: Any, error: Exception) -> JSONResponse:
            return JSONResponse({"error": str(error)}, status)

        return handler

    statuses = {
        errors.InvalidInput: HTTPStatus.BAD_REQUEST,
        errors.ModelNotFound: HTTPStatus.NOT_FOUND,
        errors.ModelNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.ServerNotLive: HTTPStatus.SERVICE_UNAVAILABLE,
        errors.UnsupportedProtocol: HTTPStatus.NOT_IMPLEMENTED,
        NotImplementedError: HTTPStatus.NOT_IMPLEMENTED,
    }
    for kind, status in statuses.items():
        app.add_exception_handler(kind, answering(status))


def guard(app: Any, serving: ServingConfig) -> None:
    """Put our checks in front of a FastAPI application and make its errors ``{"error": sentence}``."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    from deeprec.errors import RequestError
    from deeprec.serving.guard import Guard

    async def on_http(_: Any, error: HTTPException) -> JSONResponse:
        sentence = str(error.detail)
        if error.status_code == HTTPStatus.NOT_FOUND:
            sentence = "no such path; try GET /v1/models or POST /v1/models/deeprec:predict"
        return JSONResponse({"error": sentence}, error.status_code, headers=_plain(error.headers))

    async def on_shape(_: Any, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
        return JSONResponse({"error": f"the body is not a V2 request: {where[:200]}: {first['msg']}"}, 400)

    async def on_request(_: Any, error: RequestError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, error.status)

    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(RequestError, on_request)
    app.add_middleware(Guard, max_body_bytes=serving.max_body_bytes)


def _plain(headers: Mapping[str, str] | None) -> dict[str, str] | None:
    return dict(headers) if headers else None
