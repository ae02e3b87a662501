"""What the servers are asked: the calls that the arguments of the clients' methods become."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from deeprec.client.exchange import Call, Reply, RequestRefused, Send, refusal
from deeprec.errors import ClientError
from deeprec.types import JsonDict
from deeprec.wire.events import MAX_EVENTS, Event, Stored
from deeprec.wire.questions import RecommendQuestion, TrmOnlyQuestion, request_json
from deeprec.wire.recommendation import Recommendation

Answer = TypeVar("Answer")
Model = TypeVar("Model", bound=BaseModel)

NAME = "deeprec"
"""The recommender's name where ``serving.name`` gives it no other."""
EXPLORE, EVENTS = "/v1/explore", "/v1/events"


def json_reader(read: Callable[[Any], Answer]) -> Callable[[httpx.Response], Answer]:
    """Read the decoded JSON of a response."""
    return lambda reply: read(reply.json())


def recommend(question: RecommendQuestion, name: str = NAME) -> Call[Recommendation]:
    """The answer of the recommender of this name to one question."""
    return Call(_predict(name), json_reader(_recommendation), _within(question, _instances), _deadline(question))


def retrieve(question: TrmOnlyQuestion, name: str = NAME) -> Call[Recommendation]:
    """The answer to one question of the TRM of the recommender of this name."""
    body = _instances(_json(question))
    return Call(_predict(f"{name}-trm"), json_reader(_recommendation), lambda left: body)


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


class Delivery:
    """Events on their way to the feature store, in bodies of ``MAX_EVENTS``, one after the other.

    Make each of ``calls`` before the next is asked for; ``stored`` is then what became of all of them. A body of which
    nothing is accepted is an answer among others, unless nothing at all was accepted. One that is malformed ends the
    delivery with its error: what was stored before stays, and may be sent again.
    """

    def __init__(self, events: Iterable[Event | Mapping[str, Any]], server: str) -> None:
        self._events, self._address = iter(events), f"{server}{EVENTS}"
        self._answers: list[Stored] = []
        self._refusal: ClientError | None = None

    def calls(self) -> Iterator[Call[None]]:
        """One call for each body; one for no events too, which the server has its own sentence for."""
        while (part := list(islice(self._events, MAX_EVENTS))) or not self._answers:
            body = {"events": [_without_none(asdict(one)) if isinstance(one, Event) else dict(one) for one in part]}
            yield Call(EVENTS, self._take, partial(_whenever, body), readable=_says_what_became_of_each)

    def stored(self) -> Stored:
        """What became of the events, in their order.

        Raises:
            RequestRefused: none was accepted; it says why the first was not.
        """
        found = Stored(
            accepted=sum(answer.accepted for answer in self._answers),
            duplicates=sum(answer.duplicates for answer in self._answers),
            refused=tuple(event for answer in self._answers for event in answer.refused),
        )
        if self._refusal is not None and not found.accepted + found.duplicates:
            raise self._refusal
        return found

    def _take(self, reply: httpx.Response) -> None:
        self._answers.append(_reader(Stored)(reply.json()))
        if not reply.is_success and self._refusal is None:
            self._refusal = refusal(reply, self._address)


def _says_what_became_of_each(reply: httpx.Response) -> bool:
    """True of an answer, and of a refusal because no event of the body was acceptable."""
    try:
        return reply.is_success or (reply.status_code == 400 and "refused" in reply.json())
    except (ValueError, TypeError, RecursionError):
        return False


def _whenever(body: JsonDict, left: float) -> JsonDict:
    """The same body however many seconds are left."""
    return body


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
