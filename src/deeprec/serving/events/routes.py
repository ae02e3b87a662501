"""Events over HTTP: ``POST /v1/events`` puts interactions into the online histories before it answers.

Contract: a body of at most ``MAX_EVENTS`` events is taken whole or, where it is malformed, not at all: 400, with a
sentence. Each of its events is then accepted, a duplicate (its id was accepted before) or refused with a reason. When
the answer is there, the next recommendation for those users reflects the events. A store that cannot be written is a
503 with Retry-After: the same body can be sent again, and what was kept of it is a duplicate then. Bodies that arrive
together are written together, in a thread of their own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError, RequestError, StoreError
from deeprec.features.events import Event, EventWriter, Outcome
from deeprec.serving.batching import Gathering, Overloaded
from deeprec.serving.request import mistakes
from deeprec.types import JsonDict

logger = logging.getLogger(__name__)

MAX_EVENTS = 500
"""Events in one body at most."""
MAX_ID = 200
"""Characters of an id at most."""
MAX_TOGETHER = 16
"""Bodies written together at most."""
_LATEST = 2**53


def _id_text(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _plain(text: str) -> str:
    if text != text.strip():
        raise ValueError("has white space around it, which no id of a dataset has; remove it")
    return text


_TEXT = {"type": "string", "minLength": 1, "maxLength": MAX_ID}
Id = Annotated[
    str,
    Field(min_length=1, max_length=MAX_ID),
    BeforeValidator(_id_text),
    AfterValidator(_plain),
    WithJsonSchema({"anyOf": [_TEXT, {"type": "integer"}]}),
]


class EventInput(BaseModel):
    """An interaction. The same ``event_id`` is accepted once, however often it is sent."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    event_id: Id
    """The caller's own id of this event, for example a UUID."""
    user_id: Id
    """Who: known or new."""
    item_id: Id
    """What: an item of the catalogue."""
    timestamp: int | None = Field(None, strict=True, ge=-_LATEST, le=_LATEST)
    """When, in the dataset's unit (Unix seconds, or a position); now where it is left out."""
    rating: float | None = Field(None, strict=True, allow_inf_nan=False)
    """Kept for the next training."""
    event: str | None = Field(None, min_length=1, max_length=100)
    """What kind of interaction it was; kept for the next training."""


class Refusal(BaseModel):
    """An event that was not accepted, and why."""

    event_id: str
    reason: str


class EventsAnswer(BaseModel):
    """What became of a body's events."""

    accepted: int
    duplicates: int
    refused: list[Refusal]


class Events:
    """What stands behind the events' model and router: one writer, and one thread that it writes in."""

    def __init__(self, writer: EventWriter, serving: ServingConfig) -> None:
        self._writer = writer
        self._retry_after = str(serving.retry_after)
        self._writes = Gathering(self._write, MAX_TOGETHER, "events", alone=False)

    async def accept(self, events: Sequence[EventInput]) -> tuple[Outcome, ...]:
        """What became of each event, in order; the histories hold those that were accepted.

        Raises:
            HTTPException: 503 with Retry-After, when they cannot be written.
        """
        try:
            return await self._writes.ask(tuple(Event(**event.model_dump()) for event in events))
        except (FeatureError, StoreError, Overloaded) as error:
            logger.warning("events cannot be written: %s", error)
            sentence = "events cannot be written now; send the same again, with the same ids"
            raise HTTPException(503, sentence, headers={"Retry-After": self._retry_after}) from error

    def close(self) -> None:
        """Write what waits, and close the log."""
        self._writes.close()
        self._writer.close()

    def _write(self, bodies: Sequence[tuple[Event, ...]]) -> list[tuple[Outcome, ...]]:
        outcomes = iter(self._writer.write([event for body in bodies for event in body]))
        return [tuple(next(outcomes) for _ in body) for body in bodies]


def read_event(raw: Any) -> EventInput:
    """One event of decoded JSON.

    Raises:
        RequestError: it is not one; the message names every mistake.
    """
    if not isinstance(raw, dict):
        raise RequestError('an event must be a JSON object such as {"event_id": "…", "user_id": "1", "item_id": "2"}')
    try:
        return EventInput.model_validate(raw)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error


def read_events(raw: Any) -> list[EventInput]:
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
    items = {"type": "array", "minItems": 1, "maxItems": MAX_EVENTS, "items": EventInput.model_json_schema()}
    body = {"type": "object", "properties": {"events": items}, "required": ["events"], "additionalProperties": False}

    @paths.post(
        "/v1/events",
        summary="Put interactions into the users' histories",
        response_model=EventsAnswer,
        responses={
            503: {"description": "The events cannot be written now; send them again after Retry-After seconds."}
        },
        openapi_extra={"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}},
    )
    async def accept(request: Request) -> JSONResponse:
        outcomes = await events.accept(read_events(await request.json()))
        answer = _summary(outcomes)
        if len(answer["refused"]) < len(outcomes):
            return JSONResponse(answer)
        return JSONResponse({"error": f"no event was accepted: {outcomes[0].reason}", **answer}, 400)

    return paths


def _summary(outcomes: Sequence[Outcome]) -> JsonDict:
    """What became of a body's events, as JSON; see ``EventsAnswer``."""
    found = [outcome.status for outcome in outcomes]
    return {
        "accepted": found.count("accepted"),
        "duplicates": found.count("duplicate"),
        "refused": [
            {"event_id": outcome.event_id, "reason": outcome.reason}
            for outcome in outcomes
            if outcome.status == "refused"
        ],
    }


def _numbered(number: int, raw: Any) -> EventInput:
    try:
        return read_event(raw)
    except RequestError as error:
        raise RequestError(f"event {number} of this body: {error}") from error
