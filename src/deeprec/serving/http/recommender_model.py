"""The KServe model ``deeprec``: the recommender, which lets the policy explore within the request's deadline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deeprec.config import ServingConfig
from deeprec.serving.http.answers import Recommendation
from deeprec.serving.http.model import JsonModel
from deeprec.serving.recommender import Recommender
from deeprec.serving.request import RecommendRequest, read_request
from deeprec.types import JsonDict


class RecommenderModel(JsonModel):
    """The recommender; see ``serving.request.RecommendRequest`` for what it takes.

    ``served`` is asked once for every request: a body is answered by the bundle that served when it came. The model
    is ready when its TRM is, whatever the policy does: it answers without.
    """

    NAME = "deeprec"
    REQUEST = RecommendRequest
    ANSWER = Recommendation

    def __init__(self, served: Callable[[], Recommender], serving: ServingConfig) -> None:
        super().__init__(serving)
        self._served = served

    async def healthy(self) -> bool:
        """Whether the server has called it ready and its recommender can answer."""
        return self.ready and self._served().ready

    def read(self, raw: Any) -> tuple[Recommender, RecommendRequest]:
        """The recommender that serves now, and the request; see ``JsonModel.read``."""
        recommender = self._served()
        return recommender, read_request(RecommendRequest, raw, self.serving, recommender.catalogue)

    async def answer(self, request: tuple[Recommender, RecommendRequest]) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        recommender, asked = request
        return await recommender.recommend(asked)
