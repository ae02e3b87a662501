"""What answers on one port: our routes and KServe's two protocols, behind our checks.

Neither listens nor starts anything: a process may hold any number of applications.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache, partial
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import ORJSONResponse
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.middleware.cors import CORSMiddleware

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.serving.http import metrics
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.guard import FAILED, App, Guard, error_body
from deeprec.serving.http.kserve_server import STATUSES, endpoints
from deeprec.serving.http.openapi import document
from deeprec.serving.http.service import Port, Service
from deeprec.serving.metrics import ServingMetrics

logger = logging.getLogger(__name__)


def application(service: Service, port: Port) -> App:
    """The application of one port, our checks first. The models are not ready until somebody says so: ``http.life``."""
    return guarded(routes(service, port), service.serving, service.admission, service.metrics)


def routes(service: Service, port: Port) -> FastAPI:
    """What answers on one port behind our checks, and its document."""

    async def ready() -> bool:
        return service.admission.started and all([await model.healthy() for model in service.models])

    app = FastAPI(docs_url=None, redoc_url=None, default_response_class=ORJSONResponse)
    for router in (*port.routers, *([metrics.router(service.metrics.registry)] if port.metrics else [])):
        app.include_router(router)
    app.include_router(_startup(service.admission))
    endpoints(app, port.models, service.alive, ready)
    for kind, status in STATUSES.items():
        app.add_exception_handler(kind, _answering(status))
    app.openapi = cache(partial(document, app, port.models, service.serving))  # type: ignore[method-assign]
    return app


def guarded(app: FastAPI, serving: ServingConfig, admission: Admission, metrics: ServingMetrics | None = None) -> App:
    """An application behind our checks, its errors made ``{"error": sentence}``.

    The checks stand before the whole application, so that a request that waits for its turn or is refused has cost
    nothing of it.
    """

    async def on_http(_: Any, error: Any) -> Response:
        sentence = str(error.detail)
        if sentence == HTTPStatus.NOT_FOUND.phrase:
            sentence = "no such path; GET /openapi.json lists those there are"
        return _error(sentence, error.status_code, error.headers)

    async def on_shape(_: Any, error: Any) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part not in ("body", "InferenceRequest"))
        return _error(f"the request is not as this path takes it: {where[:200]}: {first['msg']}", 400)

    async def on_request(_: Any, error: Any) -> Response:
        return _error(str(error), error.status)

    async def on_failure(_: Any, error: Any) -> Response:
        logger.error("a request failed", exc_info=error)
        return _error(FAILED, 500)

    app.add_exception_handler(AnyHTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_shape)
    app.add_exception_handler(RequestError, on_request)
    app.add_exception_handler(Exception, on_failure)
    behind = Guard(app, serving, admission, metrics.http if metrics else None)
    if not serving.origins:
        return behind
    return CORSMiddleware(  # outside, so that a browser may read a refusal too
        behind,
        allow_origins=serving.origins,
        allow_methods=["GET", "POST"],
        allow_headers=["content-type", "authorization", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )


def _startup(admission: Admission) -> APIRouter:
    """The startup probe's path: 200 from the first time that the server is ready on, whatever becomes of it."""
    router = APIRouter(tags=["V2"])

    @router.get("/v2/health/started", summary="Whether the server has been ready once")
    async def started() -> dict[str, bool]:
        if not admission.started:
            raise HTTPException(503, "the server is loading")
        return {"started": True}

    return router


def _answering(status: HTTPStatus) -> Any:
    async def handler(_: Any, error: Exception) -> Response:
        return _error(str(error), status)

    return handler


def _error(sentence: str, status: int, headers: Mapping[str, str] | None = None) -> Response:
    body = error_body(sentence)
    return Response(body, status, headers=dict(headers) if headers else None, media_type="application/json")
