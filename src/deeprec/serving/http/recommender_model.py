"""The KServe models of a bundle's recommender: the one where the policy explores, and the TRM alone.

A body is answered by the bundle that served when it came. A model is ready when its TRM is, whatever the policy does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from deeprec.config import ServingConfig
from deeprec.recommender.reading import read_request
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.serving.http.model import JsonModel
from deeprec.types import JsonDict
from deeprec.wire.recommendation import Recommendation
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest, TrmRequest


class _BundleModel(JsonModel):
    """A model behind which the recommender stands that serves now: ``served`` is asked once for every request."""

    REQUEST: ClassVar[type[TrmRequest]]

    def __init__(self, name: str, served: Callable[[], AsyncRecommender], serving: ServingConfig) -> None:
        super().__init__(name, serving)
        self._served = served

    async def healthy(self) -> bool:
        """Whether the server has called it ready and its TRM can answer."""
        return bool(self.ready) and self._served().ready

    def read(self, raw: Any) -> tuple[AsyncRecommender, TrmRequest]:
        """The recommender that serves now, and the request; see ``JsonModel.read``."""
        recommender = self._served()
        return recommender, read_request(self.REQUEST, raw, self.serving)


class RecommenderModel(_BundleModel):
    """The recommender, within the request's deadline."""

    REQUEST = RecommendRequest
    ANSWER = Recommendation

    async def answer(self, request: tuple[AsyncRecommender, RecommendRequest]) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        recommender, asked = request
        return (await recommender.recommend(asked)).raw


class TrmModel(_BundleModel):
    """The TRM alone: history or user, preference and filters in; items and scores out."""

    REQUEST = TrmOnlyRequest
    ANSWER = Recommendation

    async def answer(self, request: tuple[AsyncRecommender, TrmOnlyRequest]) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        recommender, asked = request
        return (await recommender.retrieve(asked)).raw
