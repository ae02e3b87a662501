"""What stands behind a server of a bundle: the bundle that serves, its metrics, the request log, the places.

``recommender_service`` and ``trm_service`` are what ``deeprec serve recommender`` and ``deeprec serve trm`` run.
Nothing is loaded before ``Service.start``.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial

from deeprec.bundle.bundle import Bundle, Part, Served, needs_of
from deeprec.bundle.opening import find_source
from deeprec.config import ServingConfig
from deeprec.features.events import EventWriter
from deeprec.features.place import FeaturePlace
from deeprec.features.publication import PublishedFeatures
from deeprec.recommender.loading import load_recommender, parts_run, warm_up
from deeprec.recommender.observer import Observer
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.serving.events.model import EventsModel
from deeprec.serving.events.routes import Events
from deeprec.serving.events.routes import router as events_router
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.model import JsonModel
from deeprec.serving.http.recommender_model import RecommenderModel, TrmModel
from deeprec.serving.http.service import Hook, Port, Service, ports
from deeprec.serving.log.request_log import RequestLog
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.page.routes import Sources
from deeprec.serving.page.routes import routers as page_routers
from deeprec.serving.threads import in_thread_of_its_own
from deeprec.serving.watcher import BundleWatcher

TRM_ONLY = "this server answers with the TRM alone"

Introduce = Callable[[Bundle, str], str]
"""From the bundle that serves and the server's address to what people are told."""


class BundleServer:
    """A bundle's recommender and what watches over it.

    Args:
        address: of a bundle's directory, a shelf or ``SHELF@VERSION``; what appears there later takes its place.
        serving: limits, and what is whose (``policy_url``, ``shadow``, ``log``).
        place: where histories are; without one, only those in requests are known.
        force_policy: run the policy even where the bundle serves its TRM alone.
        trm_only: load no policy, whatever the bundle serves.

    Raises:
        ConfigError, StoreError: the request log cannot be written.
    """

    def __init__(
        self,
        address: str,
        serving: ServingConfig,
        place: FeaturePlace | None = None,
        *,
        force_policy: bool = False,
        trm_only: bool = False,
    ) -> None:
        self.serving, self.place = serving, place
        self.metrics = ServingMetrics()
        self.admission = Admission(serving, self.metrics.shed)
        self._log = RequestLog(serving.log) if serving.log.path else None
        observers: list[Observer] = [self.metrics.observe, *([self._log] if self._log else [])]
        load = partial(load_recommender, serving=serving, force_policy=force_policy, observers=observers)

        def loaded(bundle: Bundle) -> AsyncRecommender:
            histories = None if place is None else place.open(bundle.publication)
            recommender = load(replace(bundle, serve="trm", why=TRM_ONLY) if trm_only else bundle, histories)
            import torch  # after it has started the processes that load beside this one

            torch.set_num_threads(serving.threads)
            return recommender

        def needs(serve: Served) -> Collection[Part]:
            return needs_of("trm") if trm_only else parts_run(serve, serving, force_policy=force_policy)

        self.watcher = BundleWatcher(
            partial(find_source, address, serving.cache),
            needs=needs,
            load=loaded,
            warm_up=_warm_up,
            settled=self.admission.settled,
            metrics=self.metrics,
            poll_seconds=serving.poll_seconds,
        )
        self._show()

    def served(self) -> AsyncRecommender:
        """The recommender that serves now; hold on to it for one request only.

        Raises:
            NotLoaded: there is none yet.
        """
        return self.watcher.current

    def serves(self, item_id: str) -> bool:
        """Whether an item is in the catalogue of what serves now."""
        return self.watcher.loaded and item_id in self.served().catalogue

    async def start(self) -> None:
        """Load and warm up what serves; SIGHUP looks for a new bundle at once from then on.

        Raises:
            ArtifactError, FeatureError, StoreError: the bundle or the feature store cannot be used.
        """
        await self.watcher.load()
        await self.watcher.start()
        if threading.current_thread() is threading.main_thread():
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.watcher.look)

    async def close(self) -> None:
        """Close what serves, and finish the request log."""
        await self.watcher.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
        if self.place is not None:
            self.place.close()

    def service(
        self, models: Sequence[JsonModel], behind: Port, *, start: Hook, close: Hook, introduce: Introduce | None
    ) -> Service:
        """What a server answers with: the models, and what is behind its doors."""
        public, admin = ports(self.serving, models, behind)
        return Service(
            self.serving,
            public,
            self.admission,
            admin,
            self.metrics,
            start,
            close,
            alive=self._alive,
            introduction=None if introduce is None else lambda at: introduce(self.watcher.bundle, at),
        )

    def _alive(self) -> bool:
        """Whether the TRM is not stuck; a policy that is stuck is replaced, and a store is asked by its own breaker."""
        return not self.watcher.loaded or self.served().busy_seconds < self.serving.stuck_seconds

    def _show(self) -> None:
        """Let the metrics read what others keep."""
        metrics, watcher, log = self.metrics, self.watcher, self._log
        metrics.queue("requests", lambda: self.admission.waiting)
        for name in ("trm", "store", "encode", "policy"):
            metrics.queue(name, partial(self._waiting, name))
        metrics.state("bundle_refused", "1 while what is at the bundle's address is not put to use", self._refuses)
        metrics.state("store_away", "1 while the feature store keeps failing and is hardly asked", self._store_away)
        metrics.state("policy_down", "1 when there should be a policy and it cannot be asked", self._policy_down)
        metrics.count("restarts", "Times a process was started again", lambda: watcher.restarts, ["process"])
        if log is not None:
            metrics.count(
                "log_rows",
                "Rows of the request log, by what became of them",
                lambda: {("written",): log.written, ("dropped",): log.dropped},
                ["outcome"],
            )

    def _waiting(self, queue: str) -> int:
        return self.served().waiting.get(queue, 0) if self.watcher.loaded else 0

    def _refuses(self) -> bool:
        return self.watcher.refused is not None

    def _store_away(self) -> bool:
        return self.watcher.loaded and self.served().store.breaker.open

    def _policy_down(self) -> bool:
        explorer = self.served().explorer if self.watcher.loaded else None
        return explorer is not None and not explorer.available


async def _warm_up(recommender: AsyncRecommender) -> None:
    """See ``loading.warm_up``; the place is asked once, so that no user waits for what the first read imports."""
    histories = recommender.histories
    if isinstance(histories, PublishedFeatures):
        await in_thread_of_its_own(histories.check)
        await warm_up(recommender, newest=histories.newest)
    else:
        await warm_up(recommender)


def recommender_service(
    address: str,
    serving: ServingConfig,
    place: FeaturePlace | None = None,
    *,
    force_policy: bool = False,
    introduce: Introduce | None = None,
) -> Service:
    """A bundle's recommender and all that belongs to it: both models, the page, events; see ``BundleServer``."""
    server = BundleServer(address, serving, place, force_policy=force_policy)
    name, doors = serving.name or "deeprec", serving.doors
    models: list[JsonModel] = [
        RecommenderModel(name, server.served, serving),
        TrmModel(f"{name}-trm", server.served, serving),
    ]
    sources = Sources(
        served=server.served,
        bundle=lambda: server.watcher.bundle,
        metrics=server.metrics,
        refused=lambda: server.watcher.refused,
    )
    events = None
    if place is not None and doors.events:
        events = Events(partial(EventWriter, place, serves=server.serves), serving, server.metrics)
    behind = Port(
        models=[] if events is None else [EventsModel(f"{name}-events", events, serving)],
        routers=[*page_routers(sources, doors), *([] if events is None else [events_router(events)])],
        metrics=doors.metrics,
    )

    async def start() -> None:
        await server.start()
        if events is not None:
            await in_thread_of_its_own(events.try_to_open)

    async def close() -> None:
        if events is not None:
            await asyncio.to_thread(events.close)
        await server.close()

    return server.service(models, behind, start=start, close=close, introduce=introduce)


def trm_service(
    address: str, serving: ServingConfig, place: FeaturePlace | None = None, *, introduce: Introduce | None = None
) -> Service:
    """The TRM of a bundle alone; see ``BundleServer``."""
    server = BundleServer(address, serving, place, trm_only=True)
    models = [TrmModel(serving.name or "deeprec-trm", server.served, serving)]
    behind = Port(metrics=serving.doors.metrics)
    return server.service(models, behind, start=server.start, close=server.close, introduce=introduce)
