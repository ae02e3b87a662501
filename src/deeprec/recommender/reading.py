"""Reading requests: decoded JSON to what ``wire`` says a request is, or a sentence that says what is wrong with it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import ValidationError

from deeprec.errors import RequestError
from deeprec.explore.protocol import neutralise, split_phrases
from deeprec.types import Catalogue
from deeprec.wire.request import Limits, TrmRequest

NAMED_UNKNOWN = 3
"""Unknown item ids named in an error at most."""
RequestType = TypeVar("RequestType", bound=TrmRequest)


def read_request(kind: type[RequestType], raw: Any, limits: Limits, catalogue: Catalogue) -> RequestType:
    """Check decoded JSON against a request type, the server's limits and the catalogue.

    Raises:
        RequestError: naming every mistake; up to three unknown item ids of the history.
    """
    if not isinstance(raw, dict):
        raise RequestError(f'a request must be a JSON object such as {{"user_id": "1", "k": 10}}, not {_name(raw)}')
    try:
        request = kind.model_validate(raw, context=limits)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error
    if request.user_id is None and request.history is None and not phrases(request):
        raise RequestError("name a user_id, or give a history (item ids, oldest first; may be []), or a preference")
    unknown = [item_id for item_id in dict.fromkeys(request.history or ()) if item_id not in catalogue]
    if unknown:
        named = ", ".join(repr(item_id[:40]) for item_id in unknown[:NAMED_UNKNOWN])
        more = f" and {len(unknown) - NAMED_UNKNOWN} more" if len(unknown) > NAMED_UNKNOWN else ""
        raise RequestError(f"history names items that are not in the catalogue: {named}{more}; leave them out")
    return request


def phrases(request: TrmRequest) -> tuple[str, ...]:
    """The preference's distinct phrases as a policy would write them, neutralised; empty for ``anything``."""
    return split_phrases(";".join(neutralise(phrase) for phrase in request.preference))


def mistakes(error: ValidationError) -> str:
    """One sentence that names what is wrong with a request, the first five mistakes at most."""
    return "; ".join(_describe(item) for item in error.errors()[:5])


def _describe(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])[:60]
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown field {where!r}; remove it or correct its spelling"
    message = item["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _name(raw: Any) -> str:
    names = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}
    return names.get(type(raw), type(raw).__name__)
