"""One call of a server, without the sending: both clients send what it says and hand it what came of that.

A request is sent again after a connection that failed, after 429 (busy) and after 503 (not ready), as long as the
call's time lasts (``deeprec.retrying``). Everything that is sent may be sent twice: questions change nothing, and
events are told apart by their ids.
"""

from __future__ import annotations

import ipaddress
import json
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import httpx

from deeprec.errors import ClientError
from deeprec.retrying import BUSY, Again, retry_after

Answer = TypeVar("Answer")

MARGIN = 0.5
"""Seconds beyond the time that a server was given, for its answer to arrive."""
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
    readable: Callable[[httpx.Response], bool] = lambda reply: reply.is_success
    """Whether ``read`` understands a response; every other is an error."""

    @property
    def method(self) -> str:
        """``GET`` without a body, else ``POST``."""
        return "GET" if self.body is None else "POST"


@dataclass(frozen=True, slots=True)
class Send:
    """A request whose answer is waited for ``timeout`` seconds at most.

    ``stream`` leaves the content of a successful answer to be read later.
    """

    method: str
    path: str
    content: bytes | None
    timeout: float
    stream: bool = False


Reply = httpx.Response | httpx.TransportError


class Exchange(Generic[Answer]):
    """One call on its way to the server at ``base``; it may take ``timeout`` seconds from now on."""

    def __init__(self, call: Call[Answer], base: str, timeout: float) -> None:
        self._call, self._address = call, f"{base}{call.path}"
        self.seconds = min(limit for limit in (timeout, call.timeout, call.deadline) if limit is not None)
        """After which nothing is sent any more."""
        self._end = time.monotonic() + self.seconds
        self._margin = 0.0 if call.deadline is None else MARGIN

    def request(self) -> Send:
        """What is to be sent now."""
        call, left = self._call, max(self._end - time.monotonic(), 0.001)
        content = None if call.body is None else encode(call.body(left))
        return Send(call.method, call.path, content, left + self._margin, call.stream)

    def answer(self, reply: Reply) -> Answer:
        """What was answered.

        Raises:
            Again: it may be answered if it is sent again.
            ClientError: one of the four kinds above.
        """
        if isinstance(reply, httpx.Response):
            if self._call.readable(reply):
                return self._read(reply)
            refused = refusal(reply, self._address)
            if reply.status_code in BUSY:
                raise Again(refused, retry_after(reply.headers.get("Retry-After")))
            raise refused
        nobody = unreachable(reply, self._address, self.seconds)
        if isinstance(reply, _CONNECTION):
            raise Again(nobody)
        raise nobody

    def _read(self, reply: httpx.Response) -> Answer:
        try:
            return self._call.read(reply)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ServerFailed(
                f"{self._address} answered with something else than expected ({error}); is it a deeprec server of this "
                f"version?",
                status=reply.status_code,
                sentence=_shown(reply),
            ) from error


def refusal(reply: httpx.Response, address: str) -> ClientError:
    """The error that a status other than success stands for."""
    sentence = _sentence(reply)
    kind = ServerBusy if reply.status_code in BUSY else RequestRefused if reply.is_client_error else ServerFailed
    message = f"{address} answered with status {reply.status_code}: {sentence}"
    if _own_sentence(reply) is None and (cure := _by_proxy(address)):
        message = f"{message}; {cure}"
    return kind(message, status=reply.status_code, sentence=sentence)


def unreachable(error: httpx.TransportError, address: str, given: float) -> ClientError:
    """The error for an exchange that ended without an answer."""
    what = f"{type(error).__name__} {error}".strip()
    waited = f" within {given:.3g} seconds" if isinstance(error, httpx.TimeoutException) else ""
    cure = _by_proxy(address) or "check the address and that the server is up"
    return ServerUnreachable(f"{address} gave no answer{waited} ({what}); {cure}", sentence=what)


def is_here(address: str) -> bool:
    """Whether an address is this machine's own, which no proxy is asked for."""
    host = httpx.URL(address).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _by_proxy(address: str) -> str:
    """What to do about the proxy that an address is asked by; empty where there is none."""
    at = httpx.URL(address)
    proxies = urllib.request.getproxies()
    proxy = proxies.get(at.scheme, proxies.get("all"))
    if not proxy or is_here(address) or urllib.request.proxy_bypass(at.host):
        return ""
    shown = httpx.URL(proxy).copy_with(userinfo=b"")
    return f"it was asked by the proxy {shown} of the environment: add {at.host} to NO_PROXY where none is wanted"


def encode(body: Any) -> bytes:
    """A JSON body; RequestRefused for a number that JSON does not have."""
    try:
        return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise RequestRefused(f"the request cannot be written as JSON: {error}") from error


def _sentence(reply: httpx.Response) -> str:
    """The server's own sentence, or what of another server's answer can be shown."""
    return _own_sentence(reply) or _shown(reply) or reply.reason_phrase


def _own_sentence(reply: httpx.Response) -> str | None:
    """That of ``{"error": sentence}``, as our servers answer."""
    try:
        said = reply.json()["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return said if isinstance(said, str) else None


def _shown(reply: httpx.Response) -> str:
    return " ".join(reply.text.split())[:_SHOWN]
