"""One HTTP request, made again where a proxy or a pod that is just coming or going has no answer."""

from __future__ import annotations

import time
from collections.abc import Mapping

import httpx

from deeprec.errors import ReleaseError
from deeprec.types import JsonDict

_ATTEMPTS = 4
_PAUSE = 0.5
_PASSING = (429, 502, 503, 504)


def ask(
    client: httpx.Client,
    who: str,
    method: str,
    url: str,
    body: JsonDict | None = None,
    params: Mapping[str, str] | None = None,
) -> httpx.Response:
    """The answer, whatever its status.

    Args:
        who: how an error calls what is asked.

    Raises:
        ReleaseError: it cannot be reached.
    """
    for attempt in range(_ATTEMPTS):
        last = attempt + 1 == _ATTEMPTS
        try:
            answer = client.request(method, url, json=body, params=params)
        except httpx.TransportError as error:
            if last:
                raise ReleaseError(f"{who} cannot be asked ({type(error).__name__}: {error})") from error
        else:
            if last or answer.status_code not in _PASSING:
                return answer
        time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def ask_well(
    client: httpx.Client,
    who: str,
    method: str,
    url: str,
    body: JsonDict | None = None,
    params: Mapping[str, str] | None = None,
) -> httpx.Response:
    """The answer, with status 200.

    Raises:
        ReleaseError: it cannot be reached, or answers otherwise.
    """
    answer = ask(client, who, method, url, body, params)
    if answer.status_code != httpx.codes.OK:
        raise ReleaseError(f"{who} answers {answer.status_code} to {answer.request.url.path}: {answer.text[:200]}")
    return answer
