"""A request as the arguments of a function: what ``Client`` and ``Recommender`` take, and the JSON that it becomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

from deeprec.types import Filter, JsonDict

Condition = str | Filter | Mapping[str, Any]
"""A filter as text (``year >= 1990``), as a value, or as the server's JSON."""


class TrmQuestion(TypedDict, total=False):
    """What ``retrieve`` takes; also the common part of every question.

    Name a user, whose history the server knows, or give a history, which wins over the user's.
    """

    user_id: str | int
    history: Sequence[str | int]
    """Item ids, oldest first."""
    k: int
    """Items wanted; 10 where it is not given."""
    preference: str | Sequence[str]
    """``comedy; 1990s``, or the phrases."""
    filters: Sequence[Condition]
    """Conditions that every item meets."""
    exclude: Iterable[str | int]
    """Item ids to leave out."""


class TrmOnlyQuestion(TrmQuestion, total=False):
    """What ``retrieve`` takes besides."""

    allow_seen: bool
    """Items of the history may be answered."""


class RecommendQuestion(TrmQuestion, total=False):
    """What ``recommend`` takes besides."""

    deadline_ms: int
    """Milliseconds that the server may take, and all attempts together; the server's default where it is not given."""
    explain: bool
    """Answer also with the policy's calls and the TRM's own list."""


def request_json(question: Mapping[str, Any]) -> JsonDict:
    """The request's JSON; what was not given is left to whoever answers.

    Raises:
        ValueError: a filter cannot be read; the message says how one is written.
    """
    request = {name: value for name, value in question.items() if value is not None}
    for name in ("history", "exclude"):
        if name in request:
            request[name] = list(request[name])
    if not isinstance(request.get("preference", ""), str):
        request["preference"] = list(request["preference"])
    if "filters" in request:
        request["filters"] = [_filter(one) for one in request["filters"]]
    return request


def _filter(condition: Condition) -> JsonDict:
    if isinstance(condition, str):
        condition = Filter.parse(condition)
    return asdict(condition) if isinstance(condition, Filter) else dict(condition)
