"""The KServe model ``deeprec-trm``: history or user, preference and filters in; the TRM's items and scores out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from deeprec.config import ServingConfig
from deeprec.serving.http.answers import TrmAnswer
from deeprec.serving.http.model import JsonModel
from deeprec.serving.recommender import Recommender
from deeprec.serving.request import TrmOnlyRequest, read_request
from deeprec.types import JsonDict


class TrmModel(JsonModel):
    """The TRM alone; see ``serving.request.TrmOnlyRequest`` for what it takes, ``RecommenderModel`` for ``served``."""

    NAME = "deeprec-trm"
    REQUEST = TrmOnlyRequest
    ANSWER = TrmAnswer

    def __init__(self, served: Callable[[], Recommender], serving: ServingConfig) -> None:
        super().__init__(serving)
        self._served = served

    async def healthy(self) -> bool:
        """Whether the server has called it ready and its TRM can answer."""
        return self.ready and self._served().ready

    def read(self, raw: Any) -> tuple[Recommender, TrmOnlyRequest]:
        """The recommender that serves now, and the request; see ``JsonModel.read``."""
        recommender = self._served()
        return recommender, read_request(TrmOnlyRequest, raw, self.serving, recommender.catalogue)

    async def answer(self, request: tuple[Recommender, TrmOnlyRequest]) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        recommender, asked = request
        return await recommender.retrieve(asked)
