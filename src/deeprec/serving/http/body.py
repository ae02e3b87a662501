"""A request's body: the JSON that it is, stricter than Python's own reader, and how many requests it holds."""

from __future__ import annotations

import json
from typing import Any

from deeprec.types import JsonDict


def decode_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Stricter than ``json.loads``: no NaN or Infinity, no text that is not Unicode (a lone surrogate).

    Raises:
        ValueError: with one clause that says why not.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode()
        value = json.loads(text, parse_constant=_not_json)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(str(error)[:200]) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds half of a surrogate pair, which is no character") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValueError as error:
        raise ValueError("it holds a number that is too long or not finite") from error
    return value


def _not_json(constant: str) -> None:
    raise ValueError(constant)


def places_of(body: JsonDict) -> int:
    """How many requests a body holds: V1's instances, V2's data; one where it has neither."""
    held = body.get("instances")
    inputs = body.get("inputs")
    if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict):
        held = inputs[0].get("data")
    return max(len(held), 1) if isinstance(held, list) else 1
