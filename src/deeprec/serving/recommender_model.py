"""The KServe model ``deeprec``: the recommender, which lets the policy explore within the request's deadline."""

from __future__ import annotations

from typing import Any

from deeprec.serving.model import JsonModel
from deeprec.serving.request import RecommendRequest, read_request
from deeprec.types import JsonDict


class RecommenderModel(JsonModel):
    """The recommender; see ``serving.request.RecommendRequest`` for what it takes."""

    NAME = "deeprec"

    async def answer(self, raw: Any) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        served = self.recommender
        return await served.recommend(read_request(RecommendRequest, raw, served.serving, served.catalogue))
