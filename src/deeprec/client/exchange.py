"""One call of a server as a sequence of steps, without the sending: both clients take the same steps.

``exchange`` yields what is to be done next, ``Send`` or ``Pause``, and is sent what came of it. A request is sent again
after a connection that failed, after 429 (busy) and after 503 (not ready), as long as the call's time lasts: pauses
double, or are what ``Retry-After`` asks for. Everything that is sent may be sent twice: questions change nothing, and
events are told apart by their ids.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Generic, TypeVar

import httpx

from deeprec.errors import ClientError

Answer = TypeVar("Answer")

FIRST_PAUSE, LONGEST_PAUSE = 0.05, 2.0
"""Seconds between two attempts: doubled after each, and shortened by up to a half at random."""
MARGIN = 0.5
"""Seconds beyond the time that a server was given, for its answer to arrive."""
_BUSY = (429, 503)
_CONNECTION = (httpx.NetworkError, httpx.RemoteProtocolError, httpx.ConnectTimeout)
_SHOWN = 300
"""Characters of a server's answer that an error repeats."""


class ServerUnreachable(ClientError):
    """No answer came: nobody listens, the connection broke, or the time ran out."""


class ServerBusy(ClientError):
    """The server sheds load (429) or is not ready (503), and stayed so for as long as the call could wait."""


class RequestRefused(ClientError):
    """The request is not acceptable (another 4xx); ``sentence`` says why."""


class ServerFailed(ClientError):
    """The server failed on the request (5xx), or its answer cannot be read."""


@dataclass(frozen=True, slots=True)
class Call(Generic[Answer]):
    """One call. ``body`` makes the JSON body for the seconds that are left; ``read`` reads the server's answer.

    ``deadline`` (seconds) is what the server is given; it ends the retries, and the last answer may take ``MARGIN``
    longer. Without one the client's timeout ends both.
    """

    path: str
    read: Callable[[httpx.Response], Answer]
    body: Callable[[float], Any] | None = None
    deadline: float | None = None
    timeout: float | None = None
    """Seconds for the whole call, where that is less than the client's."""
    stream: bool = False
    """Read the answer as it comes: ``read`` is handed a response whose content is not there yet."""

    @property
    def method(self) -> str:
        """``GET`` without a body, else ``POST``."""
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True, slots=True)
class Send:
    """Send the request, waiting at most ``timeout`` seconds for its answer; then send that or the error that came.

    ``stream`` leaves the content of a successful answer to be read later.
    """

    method: str
    path: str
    content: bytes | None
    timeout: float
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait."""

    seconds: float


Reply = httpx.Response | httpx.TransportError
Steps = Generator[Send | Pause, Reply | None, Answer]


def exchange(call: Call[Answer], base: str, timeout: float) -> Steps[Answer]:
    """The steps of a call to the server at ``base`` that may take ``timeout`` seconds; returns what was answered.

    Raises:
        ClientError: one of the four kinds above.
    """
    given = min(limit for limit in (timeout, call.timeout, call.deadline) if limit is not None)
    margin = 0.0 if call.deadline is None else MARGIN
    end = time.monotonic() + given
    pauses = _pauses()
    while True:
        left = max(end - time.monotonic(), 0.001)
        content = None if call.body is None else encode(call.body(left))
        reply = yield Send(call.method, call.path, content, left + margin, call.stream)
        assert reply is not None
        if isinstance(reply, httpx.Response) and reply.is_success:
            return _read(call, base, reply)
        error, again = _problem(reply, f"{base}{call.path}", given)
        asked = _retry_after(reply)
        pause = next(pauses) if asked is None else asked
        if not again or time.monotonic() + pause >= end:
            raise error
        yield Pause(pause)


def refusal(reply: httpx.Response, address: str) -> ClientError:
    """The error that a status other than success stands for."""
    sentence = _sentence(reply)
    kind = ServerBusy if reply.status_code in _BUSY else RequestRefused if reply.is_client_error else ServerFailed
    message = f"{address} answered with status {reply.status_code}: {sentence}"
    return kind(message, status=reply.status_code, sentence=sentence)


def unreachable(error: httpx.TransportError, address: str, given: float) -> ClientError:
    """The error for an exchange that ended without an answer."""
    what = f"{type(error).__name__} {error}".strip()
    waited = f" within {given:.3g} seconds" if isinstance(error, httpx.TimeoutException) else ""
    return ServerUnreachable(
        f"{address} gave no answer{waited} ({what}); check the address and that the server is up", sentence=what
    )


def encode(body: Any) -> bytes:
    """A JSON body; RequestRefused for a number that JSON does not have."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise RequestRefused(f"the request cannot be written as JSON: {error}") from error


def _problem(reply: Reply, address: str, given: float) -> tuple[ClientError, bool]:
    """The error that a reply stands for, and whether another attempt may do better."""
    if isinstance(reply, httpx.Response):
        return refusal(reply, address), reply.status_code in _BUSY
    return unreachable(reply, address, given), isinstance(reply, _CONNECTION)


def _read(call: Call[Answer], base: str, reply: httpx.Response) -> Answer:
    try:
        return call.read(reply)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ServerFailed(
            f"{base}{call.path} answered with something else than expected ({error}); is it a deeprec server of this "
            f"version?",
            status=reply.status_code,
            sentence=_shown(reply),
        ) from error


def _sentence(reply: httpx.Response) -> str:
    """The server's own sentence: ``{"error": sentence}``, or what of another server's answer can be shown."""
    try:
        said = reply.json()["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return _shown(reply) or reply.reason_phrase
    return said if isinstance(said, str) else _shown(reply)


def _shown(reply: httpx.Response) -> str:
    return " ".join(reply.text.split())[:_SHOWN]


def _retry_after(reply: Reply) -> float | None:
    """Seconds that the server asks to wait: ``Retry-After`` as a number or a date."""
    asked = reply.headers.get("Retry-After") if isinstance(reply, httpx.Response) else None
    if asked is None or asked.isdecimal():
        return None if asked is None else float(asked)
    try:
        return max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _pauses() -> Iterator[float]:
    pause = FIRST_PAUSE
    while True:
        yield pause * random.uniform(0.5, 1.0)
        pause = min(2 * pause, LONGEST_PAUSE)
