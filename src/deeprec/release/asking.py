"""One HTTP request to a Service, a pod or Prometheus, made again where it has no answer for a moment."""

from __future__ import annotations

import httpx

from deeprec.errors import ReleaseError
from deeprec.retrying import BUSY_BEHIND_A_GATEWAY, Again, keep_asking

PATIENCE_SECONDS = 5.0
"""After which a request is not made again."""


def ask(client: httpx.Client, who: str, request: httpx.Request) -> httpx.Response:
    """The answer, with status 200.

    Args:
        who: how an error calls what is asked.

    Raises:
        ReleaseError: it cannot be reached, or answers otherwise.
    """

    def attempt() -> httpx.Response:
        try:
            answer = client.send(request)
        except httpx.TransportError as error:
            raise Again(ReleaseError(f"{who} cannot be asked ({type(error).__name__}: {error})")) from error
        if answer.status_code == httpx.codes.OK:
            return answer
        refused = ReleaseError(f"{who} answers {answer.status_code} to {request.url.path}: {answer.text[:200]}")
        if answer.status_code in BUSY_BEHIND_A_GATEWAY:
            raise Again(refused)
        raise refused

    return keep_asking(attempt, PATIENCE_SECONDS)
