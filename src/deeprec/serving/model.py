"""What both KServe models share: the V1 and V2 protocols around requests and answers that are JSON objects.

V1: ``{"instances": [request, …]}`` → ``{"predictions": [answer, …]}``. V2: one input tensor ``request`` of datatype
BYTES (JSON texts; JSON objects are accepted too) → one output tensor ``response`` of BYTES, JSON texts. Instances are
answered one after the other, so that each has its own deadline.

Importing ``kserve`` parses the command line, hence ``command_line_hidden``. Nothing outside ``serving`` imports this.
"""

from __future__ import annotations

import json
import sys
import uuid
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deeprec.errors import RequestError
from deeprec.serving.recommender import Recommender
from deeprec.types import JsonDict


@contextmanager
def command_line_hidden() -> Iterator[None]:
    """Show only the program's name in ``sys.argv`` for a while."""
    kept = sys.argv
    sys.argv = kept[:1]
    try:
        yield
    finally:
        sys.argv = kept


with command_line_hidden():
    from kserve import InferOutput, InferRequest, InferResponse, Model

INPUT = "request"
OUTPUT = "response"


class JsonModel(Model):  # type: ignore[misc]
    """A KServe model whose instances and predictions are JSON objects."""

    NAME = ""

    def __init__(self, recommender: Recommender) -> None:
        super().__init__(self.NAME)
        self.recommender = recommender

    def load(self) -> bool:
        """Mark the model ready; its recommender was loaded before it was made."""
        self.ready = True
        return self.ready

    @abstractmethod
    async def answer(self, raw: Any) -> JsonDict:
        """Answer one request of decoded JSON.

        Raises:
            RequestError: the request is not acceptable.
        """

    async def predict(
        self,
        payload: Any,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> Any:
        """Answer a V1 or V2 payload in its own protocol.

        Raises:
            RequestError: the payload or one of its requests is not acceptable.
        """
        if isinstance(payload, InferRequest):
            texts = [json.dumps(await self.answer(raw)) for raw in self._bounded(v2_requests(payload))]
            output = InferOutput(OUTPUT, [len(texts)], "BYTES", data=texts)
            return InferResponse(payload.id or uuid.uuid4().hex, self.name, [output])
        return {"predictions": [await self.answer(raw) for raw in self._bounded(v1_requests(payload))]}

    def get_input_types(self) -> list[JsonDict]:
        """V2 metadata."""
        return [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[JsonDict]:
        """V2 metadata."""
        return [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1]}]

    def _bounded(self, requests: list[Any]) -> list[Any]:
        most = self.recommender.serving.max_instances
        if not 1 <= len(requests) <= most:
            raise RequestError(f"{len(requests)} requests in one body, but this server takes from 1 to {most}")
        return requests


def v1_requests(payload: Any) -> list[Any]:
    """The requests of a V1 body.

    Raises:
        RequestError: the body is not ``{"instances": [...]}``.
    """
    instances = payload.get("instances") if isinstance(payload, dict) else None
    if not isinstance(instances, list):
        raise RequestError('the body must be a JSON object {"instances": [request, ...]}')
    return instances


def v2_requests(payload: Any) -> list[Any]:
    """The requests of a V2 body.

    Raises:
        RequestError: it does not hold one tensor ``request`` of JSON texts or objects.
    """
    if len(payload.inputs) != 1 or payload.inputs[0].name != INPUT or payload.inputs[0].datatype != "BYTES":
        raise RequestError(f'inputs must hold one tensor named "{INPUT}" of datatype BYTES with JSON texts as data')
    tensor = payload.inputs[0]
    data = tensor.data if isinstance(tensor.data, list) else []
    if tensor.shape != [len(data)]:
        raise RequestError(f'"{INPUT}" has shape {tensor.shape} but holds {len(data)} elements; make them agree')
    return [_decoded(element) for element in data]


def _decoded(element: Any) -> Any:
    if not isinstance(element, str | bytes):
        return element
    try:
        return json.loads(element)
    except (ValueError, RecursionError) as error:
        raise RequestError(f'an element of "{INPUT}" is not JSON; write each request as a JSON text') from error
