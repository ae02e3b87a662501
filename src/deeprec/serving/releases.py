"""The bundle that serves now, and how another takes its place without a failed request.

Contract: ``current`` always answers. The bundle's address (a directory, a link that is turned, ``s3://bucket/prefix``)
is looked at every ``poll_seconds`` and on ``look``. What has changed there, and then stays as it is for a moment, is
read, checked, loaded and warmed up beside what serves, and takes its place in one step; the old one is closed when
every request that may hold it has been answered and its explorations in shadow mode have ended, so never more than two
are in memory. A bundle that cannot be used is refused: ``refused`` says why, the log says it once, and the old one
goes on.

Limit: a link that is turned leaves the old bundle's files alone; a directory that is overwritten takes them away,
and a policy that has to be started again then finds the new ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deeprec.errors import ArtifactError, DeepRecError, StoreError
from deeprec.serving.bundle import Bundle
from deeprec.serving.loading import settle_memory
from deeprec.serving.measures import Measures
from deeprec.serving.recommender import Recommender
from deeprec.store import fingerprint

logger = logging.getLogger(__name__)

SETTLE_SECONDS = 1.0
"""A bundle is read when its files have stayed as they are for this long, or for ``poll_seconds`` where that is less."""


@dataclass(frozen=True)
class Release:
    """A bundle and the recommender that was loaded from it; a bundle's copy of remote files lives as long as it."""

    bundle: Bundle
    recommender: Recommender


class Releases:
    """What serves, and its replacement.

    Args:
        address: of the bundle that serves first; read and loaded here.
        load: a bundle's recommender; later called in a thread.
        warm_up: lets a recommender answer once, in the server's event loop.
        settled: returns when every request admitted before has been answered.
        measures: told what serves and what was refused.
        poll_seconds: how often the address is looked at; 0 for on ``look`` only.

    Raises:
        ArtifactError: there is no bundle at the address, or it cannot be used.
        StoreError: the store cannot be reached.
    """

    def __init__(
        self,
        address: str,
        *,
        load: Callable[[Bundle], Recommender],
        warm_up: Callable[[Recommender], Awaitable[None]],
        settled: Callable[[], Awaitable[None]],
        measures: Measures,
        poll_seconds: float,
    ) -> None:
        self._address = address
        self._load, self._warm_up, self._settled = load, warm_up, settled
        self._measures, self._poll = measures, poll_seconds
        self._seen = _listing(address)
        bundle = read_bundle(address)
        self._open = [Release(bundle, load(bundle))]
        """What is not closed yet: what serves is the last, what it has replaced is before it."""
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._closed = False
        self._unreachable = False
        self.refused: str | None = None
        """Why what is at the address does not serve; None when it does."""

    @property
    def current(self) -> Recommender:
        """The recommender that serves; hold on to it for one request only."""
        return self._open[-1].recommender

    @property
    def bundle(self) -> Bundle:
        """The bundle that serves."""
        return self._open[-1].bundle

    async def start(self) -> None:
        """Warm up what serves, and watch the address from now on."""
        await self._warm_up(self.current)
        settle_memory()
        self._measures.serves(self.bundle.version, self.bundle.serve)
        self._watching = asyncio.create_task(self._watch())

    def look(self) -> None:
        """Look at the address now; what was refused is tried again."""
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
                logger.exception("looking for a new bundle at %s failed", self._address)

    async def _look(self) -> None:
        """Put to use what is new at the address. What cannot be loaded, for whatever reason, is refused."""
        try:
            listing = await asyncio.to_thread(_listing, self._address)
            if listing == self._seen:
                return
            listing = await self._still(listing)
        except StoreError as error:
            if not self._unreachable:
                logger.warning("cannot look for a new bundle: %s", error)
            self._unreachable = True
            return
        self._unreachable = False
        self._seen = listing
        try:
            release = await self._made()
        except DeepRecError as error:
            self._refuse(str(error))
        except Exception as error:
            logger.exception("the bundle at %s cannot be loaded", self._address)
            self._refuse(f"the bundle at {self._address} cannot be loaded: {type(error).__name__}; the log says why")
        else:
            self.refused = None
            if release is not None:
                await self._put_to_use(release)

    async def _still(self, listing: str) -> str:
        """The listing once it has stopped changing."""
        while True:
            await asyncio.sleep(min(SETTLE_SECONDS, self._poll or SETTLE_SECONDS))
            before, listing = listing, await asyncio.to_thread(_listing, self._address)
            if listing == before:
                return listing

    async def _made(self) -> Release | None:
        """What is at the address, ready to serve; None when that is what serves already."""
        bundle = await asyncio.to_thread(read_bundle, self._address)
        if bundle.version == self.bundle.version and ("://" in self._address or bundle.path == self.bundle.path):
            return None
        recommender = await asyncio.to_thread(self._loaded, bundle)
        try:
            await self._warm_up(recommender)
        except BaseException:
            recommender.close()
            raise
        return Release(bundle, recommender)

    def _loaded(self, bundle: Bundle) -> Recommender:
        recommender = self._load(bundle)
        if self._closed:
            recommender.close()
        return recommender

    async def _put_to_use(self, release: Release) -> None:
        old = self._open[-1]
        self._open.append(release)
        self._measures.serves(release.bundle.version, release.bundle.serve)
        logger.info("bundle %s serves, in place of %s", release.bundle.version, old.bundle.version)
        await self._settled()
        await old.recommender.settled()
        old.recommender.close()
        self._open.remove(old)
        del old
        settle_memory()

    def _refuse(self, reason: str) -> None:
        if reason != self.refused:
            logger.error("bundle refused, %s goes on serving: %s", self.bundle.version, reason)
            self._measures.refuses()
        self.refused = reason


def read_bundle(address: str) -> Bundle:
    """The bundle at ``address``, by the place that a link points to now, so that turning the link leaves it whole.

    Raises:
        ArtifactError, StoreError: see ``Bundle.load``.
    """
    return Bundle.load(address if "://" in address else Path(address).resolve())


def _listing(address: str) -> str:
    try:
        return fingerprint(address)
    except ArtifactError:
        return ""
