"""A bundle's recommender for a script, a notebook or an application of its own: the same answers as over HTTP."""

from __future__ import annotations

import asyncio
import atexit
import threading
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from deeprec.errors import RequestError
from deeprec.wire.questions import RecommendQuestion, TrmOnlyQuestion, request_json
from deeprec.wire.recommendation import Recommendation
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest, TrmRequest

if TYPE_CHECKING:
    from deeprec.config import FeaturesConfig, ServingConfig
    from deeprec.recommender.recommender import AsyncRecommender
    from deeprec.types import Catalogue

Result = TypeVar("Result")
Request = TypeVar("Request", bound=TrmRequest)


class Recommender:
    """Answers from one bundle, in this process; made by ``open``. Safe to use from several threads.

    The text encoder, and the policy where the bundle serves it, run in processes beside this one, as they do beside a
    server. The encoder may still be loading when this is open: the first request with a new phrase waits for it, beside
    its deadline. Close it, or use it as a context manager; it ends with the interpreter at the latest.
    """

    def __init__(self, recommender: AsyncRecommender) -> None:
        """``recommender``: loaded; it is warmed up here."""
        from deeprec.recommender.loading import warm_up

        self._recommender = recommender
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="recommender", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # the processes are told to end by nothing else
        try:
            self._run(warm_up(recommender, text=False))
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        bundle: str | Path,
        *,
        features: str | Path | FeaturesConfig | None = None,
        serving: ServingConfig | None = None,
        force_policy: bool = False,
    ) -> Self:
        """Load a bundle and wait until it can answer.

        Args:
            bundle: a bundle's directory, a run's, a shelf (its live version) or ``SHELF@VERSION``; a shelf may be
                ``s3://``. Only the parts that are run are fetched. What appears there later is not followed.
            features: the feature place, for ``user_id``: a directory, or the section ``features`` of a configuration;
                the directory ``features`` beside the bundle by default.
            serving: limits, the default deadline, whether the policy is a server's; the defaults of ``ServingConfig``.
            force_policy: run the policy even where the bundle serves its TRM alone.

        Raises:
            ArtifactError: there is no bundle, or it cannot be used.
            ConfigError: ``bundle`` names nothing.
            FeatureError: there is no feature place at ``features``, or it lacks the bundle's publication.
            StoreError: the shelf or the feature place cannot be reached.
        """
        from deeprec.bundle.opening import features_beside, find_source, locate
        from deeprec.config import FeaturesConfig, ServingConfig
        from deeprec.recommender.loading import load_recommender, parts_run

        limits = serving or ServingConfig()
        address = locate(str(bundle))
        opened = find_source(address, limits.cache).open(
            lambda serve: parts_run(serve, limits, force_policy=force_policy)
        )
        place = features_beside(address) if features is None else features
        histories = None
        if place is not None:
            from deeprec.features.places import open_place

            config = place if isinstance(place, FeaturesConfig) else FeaturesConfig(path=str(place))
            histories = open_place(config).open(opened.publication)
            histories.check()  # an error of the place is better said now
        return cls(load_recommender(opened, histories, limits, force_policy=force_policy))

    @property
    def version(self) -> str:
        """The bundle's version."""
        return self._recommender.version

    @property
    def catalogue(self) -> Catalogue:
        """What may be recommended."""
        return self._recommender.catalogue

    def recommend(self, **question: Unpack[RecommendQuestion]) -> Recommendation:
        """The best path's answer, within the deadline; see ``RecommendQuestion`` for what may be asked.

        For example ``recommend(user_id="u0001", preference="comedy; 1990s", filters=["year >= 1990"], k=5)``.

        Raises:
            RequestError: the question is not acceptable; the sentence says what to mend.
        """
        return self._run(self._asked(self._recommender.recommend, self._read(RecommendRequest, question)))

    def retrieve(self, **question: Unpack[TrmOnlyQuestion]) -> Recommendation:
        """The TRM's answer, without the policy; see ``TrmOnlyQuestion`` for what may be asked.

        Raises:
            RequestError: the question is not acceptable; the sentence says what to mend.
        """
        return self._run(self._asked(self._recommender.retrieve, self._read(TrmOnlyRequest, question)))

    def close(self) -> None:
        """End the processes and let go of everything; a second time does nothing."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        self._recommender.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, kind: type[Request], question: Any) -> Request:
        from deeprec.recommender.reading import read_request

        try:
            raw = request_json(question)
        except ValueError as error:
            raise RequestError(f"filters: {error}") from error
        return read_request(kind, raw, self._recommender.serving)

    async def _asked(self, ask: Callable[[Request], Awaitable[Recommendation]], request: Request) -> Recommendation:
        """The answer, once the text encoder has loaded where that is needed; without one new phrases are left out."""
        from deeprec.recommender.loading import LOADING_SECONDS
        from deeprec.recommender.reading import phrases
        from deeprec.recommender.worker.encoder import Away

        encoder = self._recommender.phrases
        if encoder is not None and not encoder.knows(phrases(request)):
            with suppress(Away):
                await encoder.loaded(LOADING_SECONDS)
        return await ask(request)

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        if self._loop.is_closed():
            work.close()
            raise RuntimeError("this recommender is closed; open another")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()
