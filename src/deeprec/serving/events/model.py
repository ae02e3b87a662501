"""The KServe model ``deeprec-events``: one event in, what became of it out; and all that serves events on one port."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter

from deeprec.config import ServingConfig
from deeprec.errors import FeatureError
from deeprec.features.events import EventWriter
from deeprec.serving.events.routes import Events, read_event, router
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.model import JsonModel
from deeprec.serving.http.server import Service
from deeprec.types import JsonDict
from deeprec.wire.events import Event, EventAnswer


class EventsModel(JsonModel):
    """Events over KServe's protocols; see ``wire.events.Event`` for what it takes.

    ``reachable`` says whether the feature store can be asked; without it the model is ready whether or not it can.
    """

    NAME = "deeprec-events"
    REQUEST = Event
    ANSWER = EventAnswer

    def __init__(self, events: Events, serving: ServingConfig, reachable: Callable[[], bool] | None = None) -> None:
        super().__init__(serving)
        self._events = events
        self._reachable = reachable

    async def healthy(self) -> bool:
        """Whether the server has called it ready and, if it is to say so, its store can be asked."""
        return self.ready and (self._reachable is None or await asyncio.to_thread(self._reachable))

    def read(self, raw: Any) -> Event:
        """Check one event; see ``JsonModel.read``."""
        return read_event(raw)

    async def answer(self, request: Event) -> JsonDict:
        """Write one event; see ``Events.accept`` for what it raises."""
        [outcome] = await self._events.accept([request])
        reason = outcome.reason if outcome.status == "refused" else None
        answer = EventAnswer(event_id=outcome.event_id, status=outcome.status, reason=reason)
        return answer.model_dump(exclude_none=True)


def events_parts(
    features: Path, serving: ServingConfig, *, alone: bool = False
) -> tuple[EventsModel, APIRouter, Callable[[], None]]:
    """What accepts events for the feature store in a directory: a model, a router, and what closes them.

    What an earlier process left in the log alone is pushed now. ``alone``: the server has nothing else to do, so it is
    not ready while the store cannot be asked.

    Raises:
        FeatureError: there is no feature store, or it cannot be read or written.
        StoreError: the log of events cannot be opened.
    """
    writer = EventWriter(features)
    events = Events(writer, serving)

    def reachable() -> bool:
        try:
            writer.check()
        except FeatureError:
            return False
        return True

    return EventsModel(events, serving, reachable if alone else None), router(events), events.close


def events_service(features: Path, serving: ServingConfig) -> Service:
    """A server of events alone; see ``events_parts``."""
    model, router, end = events_parts(features, serving, alone=True)

    async def close() -> None:
        end()

    return Service([model], serving, Admission(serving), routers=[router], close=close)
