"""From a bundle to a recommender: its models loaded from their own directories, and run once so that no user waits.

The TRM is the bundle's own, in this process. The text encoder has a process beside it, and so has the policy, unless
``ServingConfig.policy_url`` names a server.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeprec.bundle.bundle import Bundle, Part, Served, needs_of
from deeprec.config import EngineConfig, ServingConfig
from deeprec.errors import ArtifactError, FeatureError, StoreError, TrmError
from deeprec.recommender.batching import Batcher
from deeprec.recommender.exploration import Explorer, Unavailable
from deeprec.recommender.observer import Observer
from deeprec.recommender.phrases import PhraseEncoder
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.recommender.users import Histories
from deeprec.recommender.worker import fork_server
from deeprec.recommender.worker.encoder import Away, EncoderProcess
from deeprec.recommender.worker.explorer import PolicyTimeouts, WorkerExplorer
from deeprec.recommender.worker.loop import Loop
from deeprec.recommender.worker.texts import LoadText
from deeprec.types import Catalogue, FloatArray, Policy
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest

if TYPE_CHECKING:
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.text import CachedEmbedder, KeptTexts

logger = logging.getLogger(__name__)

WARM_UP_MS = 30_000
LOADING_SECONDS = 600.0
"""For the bundle's own policy, or its text encoder, to load."""
_THRESHOLDS = (5_000, 5, 200)
"""Of the garbage collector: containers made beyond those given back, and collections of the generation before."""
_TOGETHER = 8
_NEW_PHRASE = "a phrase that no catalogue has"
REMOTE_SECONDS = 10.0
"""For a policy server to be found, before the TRM begins to answer without."""


def load_recommender(
    bundle: Bundle,
    histories: Histories | None = None,
    serving: ServingConfig | None = None,
    *,
    force_policy: bool = False,
    observers: Sequence[Observer] = (),
) -> AsyncRecommender:
    """The recommender of a bundle; histories come from ``histories``, or from requests only.

    The text encoder's and the policy's processes begin to load; ``warm_up`` waits for them. ``force_policy`` runs the
    policy even where the bundle serves its TRM alone; shadow mode does too.

    Raises:
        ArtifactError: a model cannot be read, or the text encoder here is not the one the bundle was made with.
    """
    from deeprec.trm.text import KeptTexts, loads_with

    serving = serving or ServingConfig()
    texts = KeptTexts(bundle.text)

    def encode(text: str) -> Future[float]:
        return encoder.encode(text)

    # the policy first: it begins to load while what the text encoder loads with is still imported
    explores = _explores(bundle.serve, serving, force_policy)
    explorer = _explorer(bundle, serving, texts, encode) if explores else None
    encoder = EncoderProcess(LoadText(bundle.text, serving.threads), texts.prime, imports=loads_with(bundle.text))
    try:
        trm = _load_trm(bundle.part("trm"), bundle.catalogue, texts)
    except BaseException:
        encoder.close()
        if explorer is not None:
            explorer.close()
        raise
    return AsyncRecommender(
        bundle.catalogue,
        bundle.counts,
        Batcher(trm, serving.batch),
        explorer=explorer,
        why_trm=bundle.why,
        histories=histories,
        serving=serving,
        version=bundle.version,
        phrases=PhraseEncoder(texts, encoder, serving.text_share),
        observers=observers,
    )


def parts_run(serve: Served, serving: ServingConfig, *, force_policy: bool = False) -> frozenset[Part]:
    """The parts of a bundle that ``load_recommender`` loads, by what the bundle serves."""
    runs: Served = "policy" if _explores(serve, serving, force_policy) else "trm"
    return needs_of(runs, remote=bool(serving.policy_url))


def _explores(serve: Served, serving: ServingConfig, force_policy: bool) -> bool:
    return force_policy or serving.shadow or serve == "policy"


async def warm_up(
    recommender: AsyncRecommender, newest: Callable[[int], Sequence[str]] | None = None, *, text: bool = True
) -> None:
    """Wait until all is loaded, answer two made-up requests, and call the recommender ready.

    Without ``text`` the text encoder is not waited for: until it has loaded, new phrases are left out.

    Of the users that ``newest`` names, as many as ``serving.prepare``, the TRM in this process encodes the histories
    meanwhile, which it keeps. Where the policy is another server's, one that cannot be asked is logged: it is asked
    again, and the TRM answers until then.

    Raises:
        ArtifactError: the bundle's own policy or its text encoder cannot be loaded.
    """
    waiting = [_policy_loaded(recommender), recommender.prepare_filters()]
    if text:
        waiting.append(_text_loaded(recommender))
    if recommender.histories is not None and newest is not None and recommender.serving.prepare:
        waiting.append(_prepare(recommender, recommender.histories, newest))
    tasks = [asyncio.create_task(one) for one in waiting]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    history = tuple(item.item_id for item in recommender.catalogue.items[:3])
    deadline = min(WARM_UP_MS, recommender.serving.max_deadline_ms)
    phrases = (*recommender.catalogue.phrases[:1], _NEW_PHRASE)
    await recommender.recommend(RecommendRequest(history=history, preference=phrases, k=1, deadline_ms=deadline))
    await recommender.recommend(RecommendRequest(history=history, k=1, deadline_ms=deadline))
    recommender.ready = True


async def _policy_loaded(recommender: AsyncRecommender) -> None:
    if recommender.explorer is None:
        return
    remote = bool(recommender.serving.policy_url)
    try:
        await recommender.explorer.loaded(REMOTE_SECONDS if remote else LOADING_SECONDS)
    except Unavailable as error:
        if not remote:
            raise ArtifactError(f"the bundle's policy cannot be served: {error}") from error
        logger.warning("the policy cannot be asked yet, the TRM answers: %s", error)


async def _text_loaded(recommender: AsyncRecommender) -> None:
    if recommender.phrases is None:
        return
    try:
        await recommender.phrases.loaded(LOADING_SECONDS)
    except Away as error:
        raise ArtifactError(f"the bundle's text cannot be encoded: {error}") from error


async def _prepare(recommender: AsyncRecommender, histories: Histories, newest: Callable[[int], Sequence[str]]) -> None:
    """Ask the TRM for each user once, few at a time, since another bundle may be serving."""
    began, most = time.monotonic(), recommender.serving.prepare
    try:
        users = await asyncio.to_thread(newest, most)
        for start in range(0, len(users), _TOGETHER):
            found = await asyncio.to_thread(histories.histories, users[start : start + _TOGETHER])
            known = (tuple(item for item in history or () if item in recommender.catalogue) for history in found)
            asked = [TrmOnlyRequest(history=history, k=1) for history in known if history]
            await asyncio.gather(*map(recommender.retrieve, asked))
    except (FeatureError, StoreError) as error:
        logger.warning("no user's history is encoded before it is asked for: %s", error)
        return
    logger.info("%d users' histories encoded in %.1f s", len(users), time.monotonic() - began)


def settle_memory() -> None:
    """Collect garbage once, leave what is loaded out of later collections, and let these come less often.

    A full collection over models, catalogue and libraries stops the process for a tenth of a second and more, and one
    over a thousand open requests, which Python's own thresholds ask for every few seconds, for a twentieth. A request
    leaves no cycles behind. For servers: to be called when a bundle has been warmed up, and again when an old one has
    been closed, whose cycles would stay in memory otherwise.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_THRESHOLDS)


class BundleLoop:
    """Loads what explores from a bundle's parts, the policy perhaps from a server's address; see ``loop.Make``.

    What crosses to the worker process is the parts' paths.
    """

    def __init__(self, bundle: Bundle, serving: ServingConfig) -> None:
        self._serving = serving
        self._explore, self._text = bundle.explore, bundle.text
        self._index, self._trm = bundle.index, bundle.part("trm")
        self._place = bundle.part("tokenizer" if serving.policy_url else "policy")

    def __call__(self) -> Loop:
        """Load, in the worker process, whose thread count is set.

        Raises:
            ArtifactError, PolicyError, TrmError: a part cannot be loaded, or a server cannot be asked.
        """
        import torch

        from deeprec.data.catalogue import read_catalogue
        from deeprec.explore.protocol import TitleBook
        from deeprec.trm.text import KeptTexts

        serving = self._serving
        torch.set_num_threads(serving.threads)
        catalogue, texts = read_catalogue(self._index), KeptTexts(self._text)
        policy, retriever = self._policy(), _load_trm(self._trm, catalogue, texts)
        side_by_side = serving.explorations if serving.policy_url else 1
        loop = Loop(
            policy,
            retriever,
            TitleBook(catalogue),
            self._explore,
            serving.batch,
            side_by_side,
            texts=texts,
        )

        def until(deadline: float) -> Loop:
            return replace(loop, policy=_until(policy, deadline))

        return replace(loop, until=until)

    def _policy(self) -> Policy:
        from deeprec.explore.loading import load_policy, open_policy

        serving, place = self._serving, self._place
        if not serving.policy_url:
            return load_policy(place)
        seconds = serving.max_deadline_ms / 1000
        where = {"url": serving.policy_url, "model": serving.policy_model}
        engine = EngineConfig(kind="server", **where, timeout=seconds, requests=serving.explorations)
        return open_policy(place, engine)


def _until(policy: Any, deadline: float) -> Any:
    """The policy for work that is of no use after the deadline, where it is another machine's."""
    bounded = getattr(policy, "until", None)
    return policy if bounded is None else bounded(deadline)


def _load_trm(place: Path, catalogue: Catalogue, embedder: CachedEmbedder) -> TrmRetriever:
    from deeprec.trm.retriever import TrmRetriever

    try:
        return TrmRetriever.load(place, catalogue, embedder)
    except TrmError as error:
        raise ArtifactError(f"cannot serve the TRM {place}: {error}") from error


def _explorer(
    bundle: Bundle, serving: ServingConfig, texts: KeptTexts, encode_one: Callable[[str], Future[float]]
) -> Explorer:
    timeouts = PolicyTimeouts(grace=serving.grace_ms / 1000, loading=LOADING_SECONDS)
    known = frozenset(bundle.catalogue.phrases)

    def vectors(phrases: Sequence[str]) -> tuple[tuple[str, ...], FloatArray] | None:
        """Phrases that are not the catalogue's, with their vectors: encoded here, they are not once more."""
        free = tuple(phrase for phrase in phrases if phrase not in known and texts.knows(phrase))
        return (free, texts.embed(free)) if free else None

    def encode(phrases: Sequence[str], tell: Callable[[FloatArray | None], None]) -> None:
        """Have the one encoder make what the policy wrote, and call back from its thread."""

        def next_one(_: object = None) -> None:
            missing = next(left, None)
            if missing is not None:
                encode_one(missing).add_done_callback(next_one)
            else:
                tell(texts.embed(phrases) if all(map(texts.knows, phrases)) else None)

        left = iter([phrase for phrase in phrases if not texts.knows(phrase)])
        next_one()

    make, size = BundleLoop(bundle, serving), bundle.explore.answer_size
    return WorkerExplorer(
        make,
        size,
        most=serving.explorations,
        timeouts=timeouts,
        vectors=vectors,
        encode=encode,
        imports=("torch",) if serving.policy_url else fork_server.TRANSFORMERS,
    )
