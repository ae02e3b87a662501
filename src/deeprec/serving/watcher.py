"""The bundle that serves now, and how another takes its place without a failed request.

Contract: once ``load`` has returned, ``current`` always answers. The bundle's source (a shelf's ``live``, a directory,
a link that is turned) is looked at every ``poll_seconds`` and on ``look``. What has changed there (of a directory, when
it then stays as it is for a moment) is read, checked, loaded and warmed up beside what serves, and takes its place in
one step; the old one is closed when every request that may hold it has been answered and its explorations in shadow
mode have ended, so never more than two are in memory. A bundle that cannot be used is refused: ``refused`` says why,
the log says it once, and the old one goes on.

Limit: a link that is turned leaves the old bundle's files alone; a directory that is overwritten takes them away,
and a policy that has to be started again then finds the new ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.opening import Needs, Source
from deeprec.errors import ArtifactError, DeepRecError, RequestError, StoreError
from deeprec.recommender.loading import settle_memory
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.threads import in_thread_of_its_own

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
"""A directory is read when its files have stayed as they are for this long, or ``poll_seconds`` where that is less."""


@dataclass(frozen=True)
class Release:
    """A bundle and the recommender that was loaded from it."""

    bundle: Bundle
    recommender: AsyncRecommender


class NotLoaded(RequestError):
    """The server's first bundle is still being loaded."""

    status = 503


class BundleWatcher:
    """What serves, and its replacement.

    Args:
        source: opens where bundles come from; called in a thread.
        needs: the parts that are opened.
        load: a bundle's recommender; called in a thread.
        warm_up: lets a recommender answer once, in the server's event loop.
        settled: returns when every request admitted before has been answered.
        metrics: told what serves and what was refused.
        poll_seconds: how often the source is looked at; 0 for on ``look`` only.
    """

    def __init__(
        self,
        source: Callable[[], Source],
        *,
        needs: Needs,
        load: Callable[[Bundle], AsyncRecommender],
        warm_up: Callable[[AsyncRecommender], Awaitable[None]],
        settled: Callable[[], Awaitable[None]],
        metrics: ServingMetrics,
        poll_seconds: float,
    ) -> None:
        self._find, self._needs = source, needs
        self._load, self._warm_up, self._settled = load, warm_up, settled
        self._metrics, self._poll = metrics, poll_seconds
        self._seen = ""
        self._open: list[Release] = []
        """What is not closed yet: what serves is the last, what it has replaced is before it."""
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False
        self._unreachable = False
        self._restarts_before: Counter[str] = Counter()
        self.refused: str | None = None
        """Why what is at the source does not serve; None when it does."""

    @property
    def loaded(self) -> bool:
        """Whether there is something that serves."""
        return bool(self._open)

    @property
    def current(self) -> AsyncRecommender:
        """The recommender that serves; hold on to it for one request only.

        Raises:
            NotLoaded: there is none yet.
        """
        return self._now().recommender

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves.

        Raises:
            NotLoaded: there is none yet.
        """
        return self._now().bundle

    @property
    def restarts(self) -> dict[tuple[str, ...], int]:
        """How often each process was started again, ``policy`` and ``text``, whichever bundle's it was."""
        found = Counter({"policy": 0, "text": 0})
        found.update(self._restarts_before)
        for release in self._open:
            found.update(release.recommender.restarts)
        return {(name,): times for name, times in found.items()}

    async def load(self) -> None:
        """Load what serves first.

        Raises:
            ArtifactError: there is no bundle at the source, or it cannot be used.
            StoreError: the store cannot be reached.
        """
        self._open.append(await in_thread_of_its_own(self._first))

    async def start(self) -> None:
        """Warm up what serves, and watch the source from now on.

        Raises:
            ArtifactError: the bundle's policy cannot be loaded.
        """
        await self._warm_up(self.current)
        settle_memory()
        self._metrics.serves(self.bundle.version, self.bundle.serve)
        self._watching = asyncio.create_task(self._watch())

    def look(self) -> None:
        """Look at the source now; what was refused is tried again."""
        if self.refused is not None:
            self._seen = ""
        self._wake.set()

    async def close(self) -> None:
        """Stop watching and close what serves, and what it is replacing; to be called after the last answer."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        for release in self._open:
            await release.recommender.settled()
            release.recommender.close()

    def _now(self) -> Release:
        if not self._open:
            raise NotLoaded("the server is loading its bundle; try again when it is ready")
        return self._open[-1]

    def _first(self) -> Release:
        self._source = self._find()
        self._seen = self._source.state()
        bundle = self._source.open(self._needs)
        return Release(bundle, self._loaded(bundle))

    async def _watch(self) -> None:
        """Look again and again; whatever a look raises, the next one is made."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll or None):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look()
            except Exception:
                logger.exception("looking for a new bundle at %s failed", self._source.address)

    async def _look(self) -> None:
        """Put to use what is new at the source. What cannot be loaded, for whatever reason, is refused."""
        try:
            state = await asyncio.to_thread(self._source.state)
            if state == self._seen:
                return
            if self._source.settles:
                state = await self._still(state)
        except (StoreError, ArtifactError) as error:
            if not self._unreachable:
                logger.warning("cannot look for a new bundle: %s", error)
            self._unreachable = True
            return
        self._unreachable = False
        self._seen = state
        try:
            release = await self._made()
        except DeepRecError as error:
            self._refuse(str(error))
        except Exception as error:
            address = self._source.address
            logger.exception("the bundle at %s cannot be loaded", address)
            self._refuse(f"the bundle at {address} cannot be loaded: {type(error).__name__}; the log says why")
        else:
            self.refused = None
            if release is not None:
                await self._put_to_use(release)

    async def _still(self, state: str) -> str:
        """The state once it has stopped changing."""
        while True:
            await asyncio.sleep(min(SETTLE_SECONDS, self._poll or SETTLE_SECONDS))
            before, state = state, await asyncio.to_thread(self._source.state)
            if state == before:
                return state

    async def _made(self) -> Release | None:
        """What is there, ready to serve; None when that is what serves already."""
        bundle = await asyncio.to_thread(self._source.open, self._needs)
        if bundle.version == self.bundle.version and bundle.index == self.bundle.index:
            return None
        recommender = await asyncio.to_thread(self._loaded, bundle)
        try:
            await self._warm_up(recommender)
        except BaseException:
            recommender.close()
            raise
        return Release(bundle, recommender)

    def _loaded(self, bundle: Bundle) -> AsyncRecommender:
        recommender = self._load(bundle)
        if self._closed:
            recommender.close()
        return recommender

    async def _put_to_use(self, release: Release) -> None:
        old = self._open[-1]
        self._open.append(release)
        self._metrics.serves(release.bundle.version, release.bundle.serve)
        logger.info("bundle %s serves, in place of %s", release.bundle.version, old.bundle.version)
        await self._settled()
        await old.recommender.settled()
        old.recommender.close()
        self._restarts_before.update(old.recommender.restarts)
        self._open.remove(old)
        del old
        settle_memory()

    def _refuse(self, reason: str) -> None:
        if reason != self.refused:
            logger.error("bundle refused, %s goes on serving: %s", self.bundle.version, reason)
            self._metrics.refuses()
        self.refused = reason
