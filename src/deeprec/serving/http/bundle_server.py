"""What stands behind a server of a bundle: the releases, their measures, the request log, the places for requests."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from deeprec.bundle.bundle import Bundle, Part, Served, needs_of
from deeprec.bundle.opening import find_source
from deeprec.config import ServingConfig
from deeprec.recommender.loading import load_recommender, parts_run, warm_up
from deeprec.recommender.observer import Observer
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.recommender.users import Histories
from deeprec.serving.http.admission import Admission
from deeprec.serving.log.request_log import RequestLog
from deeprec.serving.measures import Measures
from deeprec.serving.releases import Releases

if TYPE_CHECKING:
    from fastapi import APIRouter

    from deeprec.serving.http.model import JsonModel
    from deeprec.serving.http.server import Service

TRM_ONLY = "this server answers with the TRM alone"


class BundleServer:
    """A bundle's recommender and what watches over it, loaded at once and closed by ``run``.

    Args:
        address: of a bundle's directory, a shelf or ``SHELF@VERSION``; what appears there later takes its place.
        serving: limits, and what is whose (``policy_url``, ``shadow``, ``log``).
        histories: the feature store.
        newest: its users, those with the newest interactions first, to be prepared for.
        force_policy: run the policy even where the bundle serves its TRM alone.
        trm_only: load no policy, whatever the bundle serves.

    Raises:
        ArtifactError: there is no bundle, or it cannot be used.
        ConfigError, StoreError: the request log cannot be written.
    """

    def __init__(
        self,
        address: str,
        serving: ServingConfig,
        *,
        histories: Histories | None = None,
        newest: Callable[[int], Sequence[str]] | None = None,
        force_policy: bool = False,
        trm_only: bool = False,
    ) -> None:
        self.serving = serving
        self.measures = Measures()
        self.admission = Admission(serving, self.measures.shed)
        self._log = RequestLog(serving.log) if serving.log.path else None
        observers: list[Observer] = [self.measures.observe, *([self._log] if self._log else [])]
        load = partial(
            load_recommender, histories=histories, serving=serving, force_policy=force_policy, observers=observers
        )

        def needs(serve: Served) -> Collection[Part]:
            return needs_of("trm") if trm_only else parts_run(serve, serving, force_policy=force_policy)

        self.releases = Releases(
            find_source(address, serving.cache),
            needs=needs,
            load=(lambda bundle: load(_without_policy(bundle))) if trm_only else load,
            warm_up=partial(warm_up, newest=newest),
            settled=self.admission.settled,
            measures=self.measures,
            poll_seconds=serving.poll_seconds,
        )
        self.measures.watch(
            waiting=lambda: self.admission.waiting,
            refusing=lambda: self.releases.refused is not None,
            policy_down=self._policy_down,
            restarts=self._restarts,
        )

    def served(self) -> AsyncRecommender:
        """The recommender that serves now; hold on to it for one request only."""
        return self.releases.current

    def service(
        self,
        models: Sequence[JsonModel],
        routers: Sequence[APIRouter] = (),
        closing: Sequence[Callable[[], None]] = (),
    ) -> Service:
        """What a server answers with; ``closing`` is called in the end, each in a thread."""
        from deeprec.serving.http.server import Service

        ends = [*closing, *([self._log.close] if self._log else [])]

        async def close() -> None:
            await self.releases.close()
            for end in ends:
                await asyncio.to_thread(end)

        start, figures = self.releases.start, self.measures.registry
        return Service(models, self.serving, self.admission, routers, start, close, figures)

    def run(
        self,
        models: Sequence[JsonModel],
        routers: Sequence[APIRouter] = (),
        closing: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Serve until told to stop, see ``service`` and ``server.run``; SIGHUP looks for a new bundle at once."""
        from deeprec.serving.http.server import run

        service = self.service(models, routers, closing)

        async def start() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.releases.look)
            await self.releases.start()

        run(replace(service, start=start))

    def _policy_down(self) -> bool:
        explorer = self.served().explorer
        return explorer is not None and not explorer.available

    def _restarts(self) -> int:
        explorer = self.served().explorer
        return 0 if explorer is None else explorer.restarts


def _without_policy(bundle: Bundle) -> Bundle:
    return replace(bundle, serve="trm", why=TRM_ONLY)
