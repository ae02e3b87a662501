"""``/metrics``: the figures of the process and of one server, as Prometheus reads them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import REGISTRY, CollectorRegistry, exposition


def router(figures: CollectorRegistry | None) -> APIRouter:
    """The path ``/metrics``, with the process's figures and these."""
    shown = CollectorRegistry()
    for registry in (REGISTRY, figures):
        if registry is not None:
            shown.register(registry)  # type: ignore[arg-type]
    made = APIRouter()

    @made.get("/metrics")
    async def metrics(request: Request) -> Response:
        encoder, kind = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encoder(shown), headers={"content-type": kind})

    return made
