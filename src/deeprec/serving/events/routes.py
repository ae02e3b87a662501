"""Events over HTTP: ``POST /v1/events`` puts interactions into the online histories before it answers.

Contract: a body of at most ``MAX_EVENTS`` events is taken whole or, where it is malformed, not at all: 400, with a
sentence. Each of its events is then accepted, a duplicate (its id was accepted before) or refused with a reason. When
the answer is there, the next recommendation for those users reflects the events. A store that cannot be written is a
503 with Retry-After: the same body can be sent again, and what was kept of it is a duplicate then. Bodies that arrive
together are written together, in a thread of their own. Where ``serving.events_token`` names a file, whoever sends
events names the token in it, which is read anew for every request.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import TypeAdapter, ValidationError

from deeprec.config import ServingConfig
from deeprec.errors import DeepRecError, FeatureError, RequestError, StoreError
from deeprec.features.events import EventWriter, Outcome
from deeprec.recommender.batching import MicroBatcher, Overloaded
from deeprec.recommender.reading import mistakes
from deeprec.serving.metrics import ServingMetrics
from deeprec.wire.events import MAX_EVENTS, Event, RefusedEvent, Stored

logger = logging.getLogger(__name__)

MAX_TOGETHER = 16
"""Bodies written together at most."""
_EVENT = TypeAdapter(Event)


class Events:
    """What stands behind the events' model and router: one writer, and one thread that it writes in.

    Nothing is opened before ``open`` or ``try_to_open``: what comes until then is to be sent again.

    Args:
        writer: opens the log and the store.
        serving: what a client is told to wait, and whose token is asked for.
        metrics: told what became of events.
    """

    def __init__(self, writer: Callable[[], EventWriter], serving: ServingConfig, metrics: ServingMetrics) -> None:
        self._make, self._metrics = writer, metrics
        self._retry_after = str(serving.retry_after)
        self._token = Path(serving.events_token) if serving.events_token else None
        self._writer: EventWriter | None = None
        self._away = False
        self._writes = MicroBatcher(self._write, MAX_TOGETHER, "events", alone=False)
        self.closed = "the server is loading"
        """Why nothing is accepted; empty once it is."""

    def open(self) -> None:
        """Open the log and the store; what an earlier process left in the log alone is pushed now.

        Raises:
            FeatureError: there is no feature place, or it cannot be read or written.
            StoreError: its log of events cannot be used.
        """
        self._writer = self._make()
        self.closed = ""

    def try_to_open(self) -> None:
        """``open``; what it would raise is why nothing is accepted."""
        try:
            self.open()
        except DeepRecError as error:
            self.closed = f"events are not accepted: {error}"
            logger.warning("%s", self.closed)

    def reachable(self) -> bool:
        """Whether the store can be asked now; that it cannot, and that it can again, is logged once."""
        if self._writer is None:
            return False
        try:
            self._writer.check()
        except (FeatureError, StoreError) as error:
            if not self._away:
                logger.warning("not ready, since events cannot be written: %s", error)
            self._away = True
            return False
        if self._away:
            logger.warning("events can be written again")
        self._away = False
        return True

    def admit(self, authorization: str) -> None:
        """Refuse whoever does not name the token, where one is asked for.

        Raises:
            HTTPException: 401, or 503 when the token cannot be read.
        """
        if self._token is None:
            return
        try:
            token = self._token.read_text().strip()
        except (OSError, UnicodeError) as error:
            logger.error("serving.events_token cannot be read: %s", error)
            raise HTTPException(503, "the server cannot read the token of its events; its log says why") from error
        scheme, _, given = authorization.partition(" ")
        right = hmac.compare_digest(given.strip().encode(), token.encode())
        if scheme.lower() != "bearer" or not token or not right:
            sentence = "name the token of this server's events in the header Authorization: Bearer TOKEN"
            raise HTTPException(401, sentence, headers={"WWW-Authenticate": "Bearer"})

    async def accept(self, events: Sequence[Event]) -> tuple[Outcome, ...]:
        """What became of each event, in order; the histories hold those that were accepted.

        They are written whether or not whoever sent them is still there.

        Raises:
            HTTPException: 503 with Retry-After, when they cannot be written.
        """
        retry = {"Retry-After": self._retry_after}
        if self.closed:
            raise HTTPException(503, self.closed, headers=retry)
        try:
            outcomes = await asyncio.shield(self._writes.ask(tuple(events)))
        except (FeatureError, StoreError, Overloaded) as error:
            logger.warning("events cannot be written: %s", error)
            sentence = "events cannot be written now; send the same again, with the same ids"
            raise HTTPException(503, sentence, headers=retry) from error
        self._metrics.events(outcome.status for outcome in outcomes)
        return outcomes

    def close(self) -> None:
        """Write what waits."""
        self._writes.close()

    def _write(self, bodies: Sequence[tuple[Event, ...]]) -> list[tuple[Outcome, ...]]:
        assert self._writer is not None  # accept has seen that it is open
        outcomes = iter(self._writer.write([event for body in bodies for event in body]))
        return [tuple(next(outcomes) for _ in body) for body in bodies]


def read_event(raw: Any) -> Event:
    """One event of decoded JSON.

    Raises:
        RequestError: it is not one; the message names every mistake.
    """
    if not isinstance(raw, dict):
        raise RequestError('an event must be a JSON object such as {"event_id": "…", "user_id": "1", "item_id": "2"}')
    try:
        return _EVENT.validate_python(raw)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error


def read_events(raw: Any) -> list[Event]:
    """The events of a decoded body.

    Raises:
        RequestError: the body is malformed, or one of its events; the message names the first such event's mistakes.
    """
    events = raw.get("events") if isinstance(raw, dict) and len(raw) == 1 else None
    if not isinstance(events, list):
        raise RequestError('the body must be a JSON object {"events": [event, ...]}')
    if not 1 <= len(events) <= MAX_EVENTS:
        raise RequestError(f"{len(events)} events in one body, but this server takes from 1 to {MAX_EVENTS}")
    return [_numbered(number, event) for number, event in enumerate(events, 1)]


def router(events: Events) -> APIRouter:
    """The path ``POST /v1/events``."""
    paths = APIRouter(tags=["events"])
    items = {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS, "items": _EVENT.json_schema()}
    body = {"type": "object", "properties": {"events": items}, "required": ["events"], "additionalProperties": False}

    @paths.post(
        "/v1/events",
        summary="Put interactions into the users' histories",
        response_model=Stored,
        responses={
            401: {"description": "This server asks for a token, and it was not named."},
            503: {"description": "The events cannot be written now; send them again after Retry-After seconds."},
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}},
    )
    async def accept(request: Request) -> JSONResponse:
        events.admit(request.headers.get("authorization", ""))
        outcomes = await events.accept(read_events(await request.json()))
        answer = _summary(outcomes)
        if len(answer.refused) < len(outcomes):
            return JSONResponse(answer.model_dump())
        return JSONResponse({"error": f"no event was accepted: {outcomes[0].reason}", **answer.model_dump()}, 400)

    return paths


def _summary(outcomes: Sequence[Outcome]) -> Stored:
    """What became of a body's events."""
    found = [outcome.status for outcome in outcomes]
    refused = [outcome for outcome in outcomes if outcome.status == "refused"]
    return Stored(
        accepted=found.count("accepted"),
        duplicates=found.count("duplicate"),
        refused=tuple(RefusedEvent(event_id=one.event_id, reason=one.reason) for one in refused),
    )


def _numbered(number: int, raw: Any) -> Event:
    try:
        return read_event(raw)
    except RequestError as error:
        raise RequestError(f"event {number} of this body: {error}") from error
