"""The analyst's page of the recommender, and the routes that only it needs.

``GET /`` is one document: ``web/page.html`` with its style and scripts written into it, under a content security policy
that allows exactly those (by hash), no other origin, and no markup made from strings. The routes look up items, users
and filter columns, run one recommendation as server-sent events, and sum up the server's health. What they take is
checked by ``serving.request``, as the models' requests are; ids, titles and preferences are only ever sent as JSON.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.resources
import json
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse

from deeprec.bundle.bundle import Bundle
from deeprec.config import DoorsConfig
from deeprec.errors import FeatureError, RequestError, StoreError
from deeprec.recommender.reading import read_request
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.recommender.users import Histories
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.page.lookup import MAX_QUERY, CatalogueLookup
from deeprec.types import Catalogue, Item, JsonDict
from deeprec.wire.request import MAX_FILTERS, RecommendRequest

logger = logging.getLogger(__name__)

HEARTBEAT = 5.0
"""Seconds without a step after which a comment keeps the stream open."""
MAX_FOUND = 50
"""Items or users of one lookup."""
MAX_SHOWN = 100
"""Newest items of a history shown."""

_LINKED = re.compile(r'<link rel="stylesheet" href="([\w.]+)">|<script src="([\w.]+)"></script>')
_POLICY = (
    "default-src 'none'; script-src {scripts}; style-src {styles}; img-src data:; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)

_FAILING: dict[int | str, Any] = {503: {"description": "The feature store cannot be read"}}

Result = TypeVar("Result")
Text = Annotated[str, Query(max_length=MAX_QUERY)]
Limit = Annotated[int, Query(ge=1, le=MAX_FOUND)]


@dataclass(frozen=True)
class Sources:
    """What the page shows, each read anew for every request.

    ``refused`` is the sentence that says why a newer bundle is not served, None when there is none.
    """

    served: Callable[[], AsyncRecommender]
    bundle: Callable[[], Bundle]
    metrics: ServingMetrics
    refused: Callable[[], str | None] = lambda: None

    @property
    def histories(self) -> Histories | None:
        """Those of the bundle that serves; without any, users are unknown."""
        return self.served().histories


def routers(sources: Sources, doors: DoorsConfig) -> list[APIRouter]:
    """The page with its routes, and the two that tell of users, as far as their doors are open."""
    page, people = APIRouter(tags=["page"]), APIRouter(tags=["page"])
    _add_people(people, sources, doors)
    if not doors.page:
        return [people]
    _add_document(page)
    _add_lookups(page, sources)
    _add_exploration(page, sources)

    @page.get("/v1/overview", summary="Readiness, the bundle and its figures, and the last hour's traffic")
    async def overview() -> Response:
        return JSONResponse(_finite(_overview(sources)), headers={"Cache-Control": "no-store"})

    return [page, people]


def _add_document(pages: APIRouter) -> None:
    document, headers = assemble()

    @pages.get(
        "/",
        response_class=HTMLResponse,
        summary="The page that shows why an item was recommended",
        responses={304: {"description": "The page is as the client has it"}},
    )
    async def page(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return HTMLResponse(document, headers=headers)


def _add_lookups(pages: APIRouter, sources: Sources) -> None:
    """Routes that read the catalogue; FastAPI runs each in a thread."""
    lookups = _Lookups()

    @pages.get("/v1/items", summary="Items by title or id")
    def items(
        query: Text = "",
        limit: Limit = 20,
        id: Annotated[tuple[str, ...], Query(max_length=MAX_SHOWN)] = (),
    ) -> JsonDict:
        lookup = lookups.of(sources.served().catalogue)
        named = [lookup.catalogue[item_id] for item_id in dict.fromkeys(id) if item_id in lookup.catalogue]
        return {"items": [_shown(item) for item in (named if id else lookup.find(query, limit))]}

    @pages.get("/v1/facets", summary="What a request may hold: filter columns and their values, phrases, limits")
    def facets() -> JsonDict:
        return _facets(sources, lookups.of(sources.served().catalogue))


def _add_people(pages: APIRouter, sources: Sources, doors: DoorsConfig) -> None:
    """Routes that read a feature store; FastAPI runs each in a thread."""
    if doors.users:

        @pages.get("/v1/users", summary="Users by part of their id", responses=_FAILING)
        def users(query: Text = "", limit: Limit = 20) -> JsonDict:
            return {"users": _answering(lambda: _users(sources, query.strip(), limit))}

    if doors.history:

        @pages.get("/v1/history", summary="A user's newest items, oldest first", responses=_FAILING)
        def history(user_id: Annotated[str, Query(min_length=1, max_length=200)]) -> JsonDict:
            return _answering(lambda: _history(sources, user_id))


def _add_exploration(pages: APIRouter, sources: Sources) -> None:
    schema = {"$ref": "#/components/schemas/RecommendRequest"}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}

    @pages.post(
        "/v1/explore",
        summary="One recommendation, step by step",
        response_class=StreamingResponse,
        responses={200: {"description": "Events trm, turn, call, answer, error", "content": {"text/event-stream": {}}}},
        openapi_extra={"requestBody": body},
    )
    async def explore(request: Request) -> StreamingResponse:
        recommender = sources.served()
        raw = await request.json()
        asked = read_request(RecommendRequest, raw, recommender.serving)
        return StreamingResponse(
            _events(recommender, asked.model_copy(update={"explain": True})),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )


def assemble() -> tuple[str, dict[str, str]]:
    """The whole document, its styles and scripts in it, and the headers that it is sent with."""
    web = importlib.resources.files("deeprec.serving.page").joinpath("web")
    hashes: dict[str, list[str]] = {"style": [], "script": []}

    def inline(match: re.Match[str]) -> str:
        tag = "style" if match[1] else "script"
        text = web.joinpath(match[1] or match[2]).read_text(encoding="utf-8")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
        return f"<{tag}>{text}</{tag}>"

    document = _LINKED.sub(inline, web.joinpath("page.html").read_text(encoding="utf-8"))
    policy = _POLICY.format(scripts=" ".join(hashes["script"]), styles=" ".join(hashes["style"]))
    return document, {
        "Content-Security-Policy": policy,
        "Cache-Control": "no-cache",
        "ETag": f'"{hashlib.sha256(document.encode()).hexdigest()[:16]}"',
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
    }


class _Lookups:
    """The lookup of the catalogue that serves now; a new bundle brings a new one."""

    def __init__(self) -> None:
        self._kept: CatalogueLookup | None = None

    def of(self, catalogue: Catalogue) -> CatalogueLookup:
        kept = self._kept
        if kept is None or kept.catalogue is not catalogue:
            kept = self._kept = CatalogueLookup(catalogue)
        return kept


def _shown(item: Item) -> JsonDict:
    return {"id": item.item_id, "title": item.title, "phrases": list(item.phrases)}


def _answering(work: Callable[[], Result]) -> Result:
    """What ``work`` returns; 503 when the feature store fails."""
    try:
        return work()
    except (FeatureError, StoreError) as error:
        logger.exception("the feature store failed")
        raise HTTPException(503, "the feature store cannot be read; the server's log says why") from error


def _users(sources: Sources, text: str, limit: int) -> list[JsonDict]:
    histories = sources.histories
    if histories is None:
        return []
    found: dict[str, int] = {}
    if text:
        had = histories.history(text)
        found |= {} if had is None else {text: len(had)}
    for user in histories.find(text, limit):
        found.setdefault(user.user_id, user.interactions)
    return [{"id": user_id, "interactions": count} for user_id, count in list(found.items())[:limit]]


def _history(sources: Sources, user_id: str) -> JsonDict:
    catalogue = sources.served().catalogue
    histories = sources.histories
    had = histories.history(user_id) if histories is not None else None
    usable = [item_id for item_id in had or () if item_id in catalogue][-MAX_SHOWN:]
    return {
        "user_id": user_id,
        "known": had is not None,
        "interactions": len(had or ()),
        "items": [_shown(catalogue[item_id]) for item_id in usable],
    }


def _facets(sources: Sources, lookup: CatalogueLookup) -> JsonDict:
    serving = sources.served().serving
    limits = {name: getattr(serving, name) for name in ("deadline_ms", "max_deadline_ms", "max_k", "max_history")}
    return {
        "items": len(lookup.catalogue),
        "columns": list(lookup.columns),
        "phrases": list(lookup.phrases),
        "limits": {**limits, "max_filters": MAX_FILTERS, "max_shown": MAX_SHOWN},
        "users": sources.histories is not None,
        "example_user": sources.bundle().info.get("example_user") if sources.histories is not None else None,
    }


def _overview(sources: Sources) -> JsonDict:
    recommender, bundle = sources.served(), sources.bundle()
    metrics = bundle.metrics
    recommenders = {**metrics.get("baselines", {}), **metrics.get("policy", {})}
    return {
        "at": time.time(),
        "ready": recommender.ready,
        "policy": None if recommender.explorer is None else recommender.explorer.available,
        "shadow": recommender.serving.shadow,
        "bundle": {
            "version": bundle.version,
            "serve": bundle.serve,
            "why": bundle.why,
            "gate": bundle.info.get("gate"),
            "created": bundle.info.get("created"),
            "items": len(bundle.catalogue),
            "text": bundle.text_identity,
            "example_user": bundle.info.get("example_user"),
        },
        "refused": sources.refused(),
        "features": sources.histories is not None,
        "deadline_ms": recommender.serving.deadline_ms,
        "users_evaluated": metrics.get("users_evaluated"),
        "recommenders": recommenders,
        "policy_minus_trm": metrics.get("steps", {}).get("stage2_minus_trm", {}).get("ndcg@10"),
        "last_hour": sources.metrics.last_hour(),
    }


def _finite(value: Any) -> Any:
    """The value as JSON can hold it: null for a number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


async def _events(recommender: AsyncRecommender, request: RecommendRequest) -> AsyncIterator[bytes]:
    """A recommendation's steps and its answer or error; closing the iterator gives the recommendation up.

    The status was sent before the first step, so whatever fails after it can only be told as an event.
    """
    steps: asyncio.Queue[JsonDict | None] = asyncio.Queue()
    work = asyncio.create_task(recommender.recommend(request, on_step=steps.put_nowait))
    work.add_done_callback(lambda _: steps.put_nowait(None))
    try:
        while True:
            try:
                step = await asyncio.wait_for(steps.get(), HEARTBEAT)
            except TimeoutError:
                yield b": waiting\n\n"
                continue
            if step is None:
                break
            yield _event(recommender.catalogue, step)
        yield _event(recommender.catalogue, {"event": "answer", **work.result().raw})
    except RequestError as error:
        yield _event(recommender.catalogue, {"event": "error", "error": str(error)})
    except Exception:
        logger.exception("an exploration failed")
        yield _event(recommender.catalogue, {"event": "error", "error": "the server failed; its log says why"})
    finally:
        work.cancel()


def _event(catalogue: Catalogue, step: JsonDict) -> bytes:
    """A step as a server-sent event; its items also say their phrases."""
    data = {name: value for name, value in step.items() if name != "event"}
    for name in ("items", "trm"):
        if name in data:
            data[name] = [{**item, "phrases": list(catalogue[item["id"]].phrases)} for item in data[name]]
    return f"event: {step['event']}\ndata: {json.dumps(_finite(data))}\n\n".encode()
