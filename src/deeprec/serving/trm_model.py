"""The KServe model ``deeprec-trm``: history or user, preference and filters in; the TRM's items and scores out."""

from __future__ import annotations

from typing import Any

from deeprec.serving.model import JsonModel
from deeprec.serving.request import TrmOnlyRequest, read_request
from deeprec.types import JsonDict


class TrmModel(JsonModel):
    """The TRM alone; see ``serving.request.TrmOnlyRequest`` for what it takes."""

    NAME = "deeprec-trm"

    async def answer(self, raw: Any) -> JsonDict:
        """Answer one request; see ``JsonModel.answer``."""
        served = self.recommender
        return await served.retrieve(read_request(TrmOnlyRequest, raw, served.serving, served.catalogue))
