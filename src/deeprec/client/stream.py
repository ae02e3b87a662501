"""Server-sent events as steps of an exploration: what ``POST /v1/explore`` sends while the policy explores."""

from __future__ import annotations

import json
from dataclasses import dataclass

import httpx

from deeprec.client.exchange import ServerFailed
from deeprec.client.questions import read_recommendation
from deeprec.types import JsonDict
from deeprec.wire.recommendation import Recommendation

ANSWER, ERROR = "answer", "error"


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened: ``event`` is ``trm``, ``turn``, ``call`` or, last, ``answer``, ``data`` its JSON.

    ``recommendation`` is the answer; None before it.
    """

    event: str
    data: JsonDict
    recommendation: Recommendation | None = None


class StepReader:
    """Reads the lines of one response."""

    def __init__(self, reply: httpx.Response) -> None:
        self._where = str(reply.url)
        self._event, self._data, self._answered = "", "", False

    def read(self, line: str) -> Step | None:
        """The step that a line completes, if it does.

        Raises:
            ServerFailed: the server says that it failed, or sends something else than steps.
        """
        name, _, value = line.partition(":")
        if name == "event":
            self._event = value.removeprefix(" ")
        elif name == "data":
            self._data += value.removeprefix(" ")
        if line or not self._data:
            return None
        event, data, self._event, self._data = self._event, self._data, "", ""
        try:
            return self._step(event, json.loads(data))
        except (ValueError, TypeError, KeyError) as error:
            raise ServerFailed(f"{self._where} sent something else than a step: {error}") from error

    def finish(self) -> None:
        """The response has ended; ServerFailed where the answer has not come."""
        if not self._answered:
            raise ServerFailed(f"{self._where} ended before the answer; ask again")

    def _step(self, event: str, data: JsonDict) -> Step:
        if event == ERROR:
            sentence = str(data["error"])
            raise ServerFailed(f"{self._where} failed on the way: {sentence}", sentence=sentence)
        self._answered = event == ANSWER
        return Step(event, data, read_recommendation(data) if self._answered else None)
