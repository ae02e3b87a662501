"""Reading requests: decoded JSON to what ``wire`` says a request is, or a sentence that says what is wrong with it.

Sentences speak of JSON, since whoever reads them may not write Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from deeprec.errors import RequestError
from deeprec.explore.protocol import neutralise, split_phrases
from deeprec.wire.request import Limits, TrmRequest

_WANTED = {
    "tuple_type": "a list",
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "model_type": "an object",
}
"""What JSON is to be given, by the kind of mistake."""
_MEMBERS = ("constrained-str", "str", "int", "float")
"""Steps of a mistake's place that are no JSON: the members of a union."""
_UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
_NAMES = {list: "a list", dict: "an object", str: "a string", bool: "a boolean", type(None): "null"}
RequestType = TypeVar("RequestType", bound=TrmRequest)


def read_request(kind: type[RequestType], raw: Any, limits: Limits) -> RequestType:
    """Check decoded JSON against a request type and the server's limits.

    Raises:
        RequestError: naming every mistake.
    """
    if not isinstance(raw, dict):
        raise RequestError(f'a request must be a JSON object such as {{"user_id": "1", "k": 10}}, not {_name(raw)}')
    try:
        request = kind.model_validate(raw, context=limits)
    except ValidationError as error:
        raise RequestError(mistakes(error)) from error
    if request.user_id is None and request.history is None and not phrases(request):
        raise RequestError("name a user_id, or give a history (item ids, oldest first; may be []), or a preference")
    return request


def phrases(request: TrmRequest) -> tuple[str, ...]:
    """The preference's distinct phrases as a policy would write them, neutralised; empty for ``anything``."""
    return split_phrases(";".join(neutralise(phrase) for phrase in request.preference))


def mistakes(error: ValidationError) -> str:
    """One sentence that names what is wrong with a request, the first five mistakes at most."""
    found: dict[str, list[Any]] = {}
    for item in error.errors():
        named = item["type"] in _UNKNOWN
        place = [str(part) for part in item["loc"] if named or part not in _MEMBERS]
        found.setdefault(".".join(place)[:60], []).append(item)
    return "; ".join(_describe(where, items) for where, items in list(found.items())[:5])


def _describe(where: str, items: Sequence[Any]) -> str:
    """What is wrong at one place; of a value that may be of several kinds there is a mistake for each."""
    first = items[0]
    if first["type"] in _UNKNOWN:
        return f"unknown field {where!r}; remove it or correct its spelling"
    kinds = list(dict.fromkeys(_WANTED[item["type"]] for item in items if item["type"] in _WANTED))
    if len(kinds) > 1 and "a number" in kinds:
        kinds.remove("a whole number")
    if kinds and len(items) == sum(item["type"] in _WANTED for item in items):
        message = f"give {' or '.join(kinds)}, not {_name(first['input'])}"
    elif first["type"] in ("missing", "missing_argument"):
        message = "is missing"
    elif first["type"] == "too_long":
        message = f"has {first['ctx']['actual_length']} elements, but at most {first['ctx']['max_length']} are taken"
    else:
        message = items[-1]["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def _name(raw: Any) -> str:
    if isinstance(raw, int | float) and not isinstance(raw, bool):
        return f"the number {raw!r:.30}"
    return _NAMES.get(type(raw), type(raw).__name__)
