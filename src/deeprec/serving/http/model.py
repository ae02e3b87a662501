"""What our KServe models share: the V1 and V2 protocols around requests and answers that are JSON objects.

V1: ``{"instances": [request, …]}`` → ``{"predictions": [answer, …]}``. V2: one input tensor ``request`` of datatype
BYTES (JSON texts; JSON objects are accepted too) → one output tensor ``response`` of BYTES, JSON texts. All requests
of a body are checked before one is answered; then they are answered side by side, each within its own deadline.
Nothing outside ``serving`` imports this.
"""

from __future__ import annotations

import asyncio
import json
import math
import uuid
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import BaseModel

from deeprec.config import ServingConfig
from deeprec.errors import RequestError
from deeprec.serving.http.body import decode_json
from deeprec.serving.http.kserve_server import command_line_hidden
from deeprec.types import JsonDict

with command_line_hidden():
    from kserve import InferOutput, InferRequest, InferResponse, Model

INPUT = "request"
OUTPUT = "response"


class JsonModel(Model):  # type: ignore[misc]
    """A KServe model whose instances and predictions are JSON objects.

    It is not ready until the server says so (``load``), and ``healthy`` may ask for more than that.
    """

    REQUEST: ClassVar[type[Any]] = BaseModel
    """What a request looks like, for the OpenAPI document."""
    ANSWER: ClassVar[type[BaseModel]] = BaseModel
    """What an answer looks like, for the OpenAPI document."""

    def __init__(self, name: str, serving: ServingConfig) -> None:
        super().__init__(name)
        self.serving = serving

    def start(self) -> None:
        """Nothing: KServe would call the model ready here, before it has answered anything."""

    def load(self) -> bool:
        """Mark the model ready; called by the server when everything behind it has answered once."""
        self.ready = True
        return self.ready

    def admit(self, headers: Mapping[str, str]) -> None:
        """Refuse whoever may not ask this model; names of headers are in lower case.

        Raises:
            HTTPException: with the status that says why.
        """

    @abstractmethod
    def read(self, raw: Any) -> Any:
        """Check one request of decoded JSON and return what ``answer`` takes.

        Raises:
            RequestError: the request is not acceptable.
        """

    @abstractmethod
    async def answer(self, request: Any) -> JsonDict:
        """Answer one request that ``read`` returned.

        Raises:
            RequestError: the request is not acceptable.
        """

    async def __call__(self, body: Any, headers: dict[str, str] | None = None, verb: Any = None) -> Any:
        """Answer a payload as KServe asks a model: without a step before and after ``predict``, and without KServe's
        timing of the three, which nobody can read here; ``deeprec_stage_duration_seconds`` has ours.
        """
        return await self.predict(self.validate(body), headers), {}

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
        self.admit(headers or {})
        if isinstance(payload, InferRequest):
            texts = [json.dumps(answer) for answer in await self._answers(v2_requests(payload))]
            output = InferOutput(OUTPUT, [len(texts)], "BYTES", data=texts)
            return InferResponse(payload.id or uuid.uuid4().hex, self.name, [output])
        return {"predictions": await self._answers(v1_requests(payload))}

    def get_input_types(self) -> list[JsonDict]:
        """V2 metadata."""
        return [{"name": INPUT, "datatype": "BYTES", "shape": [-1]}]

    def get_output_types(self) -> list[JsonDict]:
        """V2 metadata."""
        return [{"name": OUTPUT, "datatype": "BYTES", "shape": [-1]}]

    async def _answers(self, raws: list[Any]) -> list[JsonDict]:
        most = self.serving.most_instances
        if not 1 <= len(raws) <= most:
            raise RequestError(f"{len(raws)} requests in one body, but this server takes from 1 to {most}")
        if len(raws) == 1:
            return [await self.answer(self.read(raws[0]))]
        requests = [self._read_one(number, raw) for number, raw in enumerate(raws)]
        return await _side_by_side([asyncio.ensure_future(self.answer(request)) for request in requests])

    def _read_one(self, number: int, raw: Any) -> Any:
        try:
            return self.read(raw)
        except RequestError as error:
            raise RequestError(f"request {number + 1} of this body: {error}") from error


async def _side_by_side(tasks: list[asyncio.Future[JsonDict]]) -> list[JsonDict]:
    """The results in order; when one fails the others are not waited for."""
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


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
    if not _fits(tensor.shape, len(data)):
        raise RequestError(f'"{INPUT}" has shape {tensor.shape} but holds {len(data)} elements; make them agree')
    return [_decoded(element) for element in data]


def _fits(shape: Sequence[int], elements: int) -> bool:
    """Whether a tensor of this shape, of which one dimension may be open (-1), can hold so many elements."""
    if -1 not in shape:
        return math.prod(shape) == elements
    known = math.prod(size for size in shape if size != -1)
    return list(shape).count(-1) == 1 and (known > 0 and elements % known == 0)


def _decoded(element: Any) -> Any:
    if not isinstance(element, str | bytes):
        return element
    try:
        return decode_json(element)
    except ValueError as error:
        sentence = f'an element of "{INPUT}" is not JSON ({error}); write each request as a JSON text'
        raise RequestError(sentence) from error
