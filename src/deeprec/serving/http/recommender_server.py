"""A bundle's recommender and all that belongs to it, ready to be served: both models, the page, events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeprec.config import ServingConfig
from deeprec.errors import DeepRecError
from deeprec.features.online import HistoryStore
from deeprec.features.users import UserDirectory
from deeprec.serving.events.model import events_parts
from deeprec.serving.http.bundle_server import BundleServer
from deeprec.serving.http.recommender_model import RecommenderModel, TrmModel
from deeprec.serving.page.routes import Sources, router

if TYPE_CHECKING:
    from fastapi import APIRouter

    from deeprec.serving.http.model import JsonModel
    from deeprec.serving.http.server import Service


@dataclass(frozen=True)
class RecommenderServer:
    """What was opened for a bundle; ``no_events`` says why events are not accepted, empty where they are."""

    server: BundleServer
    models: Sequence[JsonModel]
    routers: Sequence[APIRouter]
    closing: Sequence[Callable[[], None]]
    no_events: str

    def service(self) -> Service:
        """What a server answers with."""
        return self.server.service(self.models, self.routers, self.closing)

    def run(self) -> None:
        """Serve until told to stop; see ``BundleServer.run``."""
        self.server.run(self.models, self.routers, self.closing)


def open_recommender_server(
    address: str,
    serving: ServingConfig,
    features: Path | None = None,
    histories: HistoryStore | None = None,
    *,
    force_policy: bool = False,
) -> RecommenderServer:
    """What ``deeprec serve recommender`` serves of the bundle at ``address``; see ``BundleServer`` for what it raises.

    ``features``, the feature store's directory, and its ``histories`` are given both or neither.
    """
    directory = None if features is None else UserDirectory(features)
    newest = None if directory is None else directory.newest
    server = BundleServer(address, serving, histories=histories, newest=newest, force_policy=force_policy)
    releases = server.releases
    sources = Sources(
        served=server.served,
        bundle=lambda: releases.bundle,
        measures=server.measures,
        histories=histories,
        directory=directory,
        refused=lambda: releases.refused,
    )
    models: list[JsonModel] = [RecommenderModel(server.served, serving), TrmModel(server.served, serving)]
    routers, closing, no_events = [router(sources)], [], "there is no feature store"
    if features is not None:
        try:
            model, events, close = events_parts(features, serving)
        except DeepRecError as error:
            no_events = str(error)
        else:
            models, routers, closing, no_events = [*models, model], [*routers, events], [close], ""
    return RecommenderServer(server, models, routers, closing, no_events)
