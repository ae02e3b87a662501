"""From a bundle to a recommender: its models loaded from their own directories, and run once so that no user waits."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from deeprec.config import ServingConfig
from deeprec.errors import ArtifactError, TrmError
from deeprec.serving.bundle import Bundle
from deeprec.serving.exploration import Explorer, RolloutExplorer
from deeprec.serving.recommender import Histories, Recommender
from deeprec.serving.request import RecommendRequest

if TYPE_CHECKING:
    from deeprec.types import Retriever

logger = logging.getLogger(__name__)

WARM_UP_MS = 30_000


def load_recommender(
    bundle: Bundle,
    histories: Histories | None = None,
    serving: ServingConfig | None = None,
    *,
    force_policy: bool = False,
) -> Recommender:
    """The recommender of a bundle; histories come from ``histories``, or from requests only.

    ``force_policy`` runs the policy even where the bundle serves its TRM alone.

    Raises:
        ArtifactError: a model cannot be read, or the text encoder here is not the one the bundle was made with.
    """
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.text import load_embedder

    try:
        embedder = load_embedder(bundle.text)
        retriever = TrmRetriever.load(bundle.path / "trm", bundle.catalogue, embedder)
    except TrmError as error:
        raise ArtifactError(f"cannot serve the bundle {bundle.path}: {error}") from error
    return Recommender(
        bundle.catalogue,
        bundle.counts,
        retriever,
        explorer=_explorer(bundle, retriever) if force_policy or bundle.serve == "policy" else None,
        why_trm=bundle.why,
        histories=histories,
        serving=serving,
        version=bundle.version,
    )


async def warm_up(recommender: Recommender) -> None:
    """Answer one made-up request, so that the first user does not wait for lazy initialisation."""
    newest = tuple(item.item_id for item in recommender.catalogue.items[:3])
    deadline = min(WARM_UP_MS, recommender.serving.max_deadline_ms)
    phrases = recommender.catalogue.phrases[:1]
    await recommender.recommend(RecommendRequest(history=newest, preference=phrases, k=1))
    await recommender.recommend(RecommendRequest(history=newest, k=1, deadline_ms=deadline))


def _explorer(bundle: Bundle, retriever: Retriever) -> Explorer:
    from deeprec.explore.loading import load_policy
    from deeprec.explore.protocol import TitleBook

    return RolloutExplorer(load_policy(bundle.path / "policy"), retriever, TitleBook(bundle.catalogue), bundle.explore)
