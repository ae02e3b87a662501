"""The KServe model of events: one event in, what became of it out; and the server that accepts nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from deeprec.config import ServingConfig
from deeprec.features.events import EventWriter
from deeprec.features.place import FeaturePlace
from deeprec.serving.events.routes import Events, read_event, router
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.model import JsonModel
from deeprec.serving.http.service import Port, Service, ports
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.threads import in_thread_of_its_own
from deeprec.types import JsonDict
from deeprec.wire.events import Event, EventAnswer


class EventsModel(JsonModel):
    """Events over KServe's protocols; see ``wire.events.Event`` for what it takes.

    ``alone``: the server has nothing else to do, so it is not ready while the store cannot be asked.
    """

    REQUEST = Event
    ANSWER = EventAnswer

    def __init__(self, name: str, events: Events, serving: ServingConfig, *, alone: bool = False) -> None:
        super().__init__(name, serving)
        self._events, self._alone = events, alone

    async def healthy(self) -> bool:
        """Whether the server has called it ready and, if it is to say so, its store can be asked."""
        return bool(self.ready) and (not self._alone or await asyncio.to_thread(self._events.reachable))

    def admit(self, headers: Mapping[str, str]) -> None:
        """See ``Events.admit``."""
        self._events.admit(headers.get("authorization", ""))

    def read(self, raw: Any) -> Event:
        """Check one event; see ``JsonModel.read``."""
        return read_event(raw)

    async def answer(self, request: Event) -> JsonDict:
        """Write one event; see ``Events.accept`` for what it raises."""
        [outcome] = await self._events.accept([request])
        reason = outcome.reason if outcome.status == "refused" else None
        answer = EventAnswer(event_id=outcome.event_id, status=outcome.status, reason=reason)
        return answer.model_dump(exclude_none=True)


def events_service(
    place: FeaturePlace, serving: ServingConfig, introduction: Callable[[str], str] | None = None
) -> Service:
    """A server of events alone, for a feature place; it ends where that cannot be opened."""
    metrics = ServingMetrics()
    admission, events = Admission(serving, metrics.shed), Events(partial(EventWriter, place), serving, metrics)
    metrics.queue("requests", lambda: admission.waiting)

    async def start() -> None:
        await in_thread_of_its_own(events.open)

    async def close() -> None:
        await asyncio.to_thread(events.close)
        place.close()

    model = EventsModel(serving.name or "deeprec-events", events, serving, alone=True)
    public, admin = ports(serving, [model], Port(metrics=serving.doors.metrics))
    public = Port(public.models, [*public.routers, router(events)], public.metrics)
    return Service(serving, public, admission, admin, metrics, start, close, introduction=introduction)
