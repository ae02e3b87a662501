"""The reference of requests: what its tables say is taken is taken, as they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from deeprec.config import ServingConfig
from deeprec.recommender.reading import read_request
from deeprec.serving.events.routes import read_event
from deeprec.wire.events import MAX_EVENTS
from deeprec.wire.ids import MAX_ID
from deeprec.wire.request import RecommendRequest

PAGE = (Path(__file__).parents[3] / "docs" / "reference" / "requests.md").read_text(encoding="utf-8")
PAIRS = [
    tuple(json.loads(part) for part in found) for found in re.findall(r"^\| `(\{.*\})` \| `(\{.*\})` \|$", PAGE, re.M)
]


@pytest.mark.parametrize(("sent", "taken"), PAIRS)
def test_forms_are_taken_as_the_page_says(sent: Any, taken: Any) -> None:
    if "event_id" in sent:
        assert read_event(sent) == read_event(taken)
    else:
        read = [read_request(RecommendRequest, raw, ServingConfig()) for raw in (sent, taken)]
        assert read[0] == read[1]


def test_the_page_has_both_kinds_and_the_limits() -> None:
    assert {"event_id" in sent for sent, _ in PAIRS} == {True, False}
    assert f"longer than {MAX_ID} characters" in PAGE
    assert f"more than {MAX_EVENTS} events" in PAGE
