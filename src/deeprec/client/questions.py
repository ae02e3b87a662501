"""What the servers are asked: the calls that the arguments of the clients' methods become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from deeprec.client.exchange import Call, Reply, RequestRefused, Send
from deeprec.types import JsonDict
from deeprec.wire.events import Event, Stored
from deeprec.wire.questions import RecommendQuestion, TrmOnlyQuestion, request_json
from deeprec.wire.recommendation import Recommendation

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)

RECOMMENDER, TRM = "deeprec", "deeprec-trm"
"""The servers' names of the models."""
EXPLORE = "/v1/explore"


def json_reader(read: Callable[[Any], Answer]) -> Callable[[httpx.Response], Answer]:
    """Read the decoded JSON of a response."""
    return lambda reply: read(reply.json())


def recommend(question: RecommendQuestion) -> Call[Recommendation]:
    """The recommender's answer to one question."""
    return Call(_predict(RECOMMENDER), json_reader(_recommendation), _within(question, _instances), _deadline(question))


def retrieve(question: TrmOnlyQuestion) -> Call[Recommendation]:
    """The TRM's answer to one question."""
    body = _instances(_json(question))
    return Call(_predict(TRM), json_reader(_recommendation), lambda left: body)


def explore(question: RecommendQuestion) -> Call[httpx.Response]:
    """The recommender's answer to one question, as a stream of events; see ``client.stream``."""
    return Call(EXPLORE, lambda reply: reply, _within(question, dict), _deadline(question), stream=True)


def predict(model: str, instances: Sequence[JsonDict], timeout: float | None) -> Call[list[JsonDict]]:
    """A model's answers to several requests of JSON, in one body (KServe's V1 protocol)."""

    def read(answer: Any) -> list[JsonDict]:
        found = list(answer["predictions"])
        if len(found) != len(instances):
            raise ValueError(f"{len(found)} predictions for {len(instances)} instances")
        return found

    return Call(_predict(model), json_reader(read), lambda left: {"instances": list(instances)}, timeout=timeout)


def send(events: Iterable[Event | Mapping[str, Any]]) -> Call[Stored]:
    """What the feature store made of some events."""
    body = {"events": [_without_none(asdict(one)) if isinstance(one, Event) else dict(one) for one in events]}
    return Call("/v1/events", json_reader(_reader(Stored)), lambda left: body)


def ready(model: str, timeout: float) -> Send:
    """Ask once, and wait for nothing, whether a model is ready."""
    return Send("GET", f"/v1/models/{quote(model, safe='')}", None, timeout)


def is_ready(reply: Reply) -> bool:
    """Whether the answer to ``ready`` says so."""
    return isinstance(reply, httpx.Response) and reply.is_success


def _predict(model: str) -> str:
    return f"/v1/models/{quote(model, safe='')}:predict"


def _recommendation(answer: Any) -> Recommendation:
    [prediction] = answer["predictions"]
    return read_recommendation(prediction)


def read_recommendation(answer: JsonDict) -> Recommendation:
    """A recommendation from the server's decoded JSON.

    Raises:
        ValueError: it is something else; the message says what, in one line.
    """
    return _reader(Recommendation)(answer)


def _reader(kind: type[Model]) -> Callable[[Any], Model]:
    def read(answer: Any) -> Model:
        try:
            return kind.model_validate(answer)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error

    return read


def _instances(request: JsonDict) -> JsonDict:
    return {"instances": [request]}


def _deadline(question: RecommendQuestion) -> float | None:
    asked = question.get("deadline_ms")
    return None if asked is None else asked / 1000


def _within(question: RecommendQuestion, wrapped: Callable[[JsonDict], JsonDict]) -> Callable[[float], JsonDict]:
    """The body for the seconds left: an attempt after others has less time than the question named."""
    request = _json(question)
    if "deadline_ms" not in request:
        return lambda left: wrapped(request)
    return lambda left: wrapped({**request, "deadline_ms": max(round(1000 * left), 1)})


def _json(question: Mapping[str, Any]) -> JsonDict:
    try:
        return request_json(question)
    except ValueError as error:
        raise RequestRefused(str(error)) from error


def _without_none(values: Mapping[str, Any]) -> JsonDict:
    return {name: value for name, value in values.items() if value is not None}
