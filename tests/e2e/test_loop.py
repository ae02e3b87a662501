"""The loop on one machine, whole: data, a bundle that serves, events, drift, a training that goes on, its bundle."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.data.dataset import read_dataset
from deeprec.pipelines.made import made
from tests import forkserver
from tests.e2e.test_pipeline import SMALL
from tests.integration.servers import deeprec, started, until

DAY = 86400
COMERS, TAKEN = 60, 12
"""People who come after the first training, and how many of the items that nobody took each of them takes."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a configuration: one shelf and one feature place for all runs."""
    settings = {
        **SMALL,
        "features": {"path": str(tmp_path / "features")},
        "bundle": {
            "uri": str(tmp_path / "shelf"),
            "promote": True,
            "compare": {"min_users": 50, "margin": 0.5},  # of networks so small, whose order is half chance
        },
        "drift": {"min_users": 30},
        "serving": {"poll_seconds": 0.5, "log": {"path": str(tmp_path / "log"), "seconds": 1}},
    }
    (tmp_path / "loop.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return tmp_path


def run(place: Path, *command: str, status: int = 0) -> str:
    done = forkserver.run(
        forkserver.deeprec(*command, "--config", "loop.yaml"), cwd=place, capture_output=True, text=True
    )
    assert done.returncode == status, done.stdout[-3000:] + done.stderr[-3000:]
    return str(done.stdout)


def unpopular(bundle: Bundle) -> list[str]:
    rows = bundle.counts.argsort(kind="stable")
    return [bundle.catalogue.items[row].item_id for row in rows[: 3 * TAKEN]]


def events(bundle: Bundle, now: int) -> list[dict[str, Any]]:
    """People take, on the last two days, what hardly anybody took before."""
    items = unpopular(bundle)
    return [
        {
            "event_id": f"{user}-{count}",
            "user_id": f"comer-{user}",
            "item_id": items[(user + 3 * count) % len(items)],
            "timestamp": now - 2 * DAY + 3600 * count + user,
        }
        for user in range(COMERS)
        for count in range(TAKEN)
    ]


def test_events_lead_to_a_bundle_that_serves_them(place: Path) -> None:
    run(place, "run", "--workdir", "one")
    shelf = Shelf(place / "shelf")
    first = shelf.live()
    old = Bundle.load(place / "one" / "bundle", ())
    command = deeprec("serve", "recommender", "shelf", "--features", "features", "--config", "loop.yaml", "--port", "0")
    command = [part if part not in ("shelf", "features", "loop.yaml") else str(place / part) for part in command]
    with started(command, place / "server.log") as server:
        taken = events(old, int(time.time()))
        for start in range(0, len(taken), 100):
            sent = httpx.post(f"{server.url}/v1/events", json={"events": taken[start : start + 100]}, timeout=60).json()
            assert sent["accepted"] == len(taken[start : start + 100]), sent

        def ask(user: str) -> dict[str, Any]:
            body = {"instances": [{"user_id": user, "k": 5}]}
            answer = httpx.post(f"{server.url}/v1/models/deeprec:predict", json=body, timeout=60)
            [found] = answer.raise_for_status().json()["predictions"]
            return dict(found)

        before = ask("comer-0")
        assert (before["bundle"], before["user_known"]) == (first, True)
        assert not {one["item_id"] for one in taken[:TAKEN]} & {item["id"] for item in before["items"]}

        looked = json.loads(run(place, "drift", "shelf", "--features", "features", "--json", status=1))
        shift = {one["key"]: one["state"] for one in looked["figures"]}
        assert looked["verdict"] == "drifted"
        assert shift["popularity"] == "drifted"

        continued = f"trm.continue_from={place / 'shelf'}"
        run(place, "run", "--workdir", "two", "--set", "data.events=true", "--set", continued)
        second = shelf.live()
        assert second != first
        assert "against the live bundle" in (place / "two" / "logs" / "publish-bundle.log").read_text(encoding="utf-8")
        data = read_dataset(made(place / "two")["dataset"])
        assert {"comer-0", f"comer-{COMERS - 1}"} <= data.sequences.keys()
        until(lambda: ask("comer-0")["bundle"] == second, lambda: server.printed, server.process)
        after = ask("comer-0")
        assert after["user_known"]
        assert not {one["item_id"] for one in taken[:TAKEN]} & {item["id"] for item in after["items"]}
        assert sum(Bundle.load(place / "two" / "bundle", ()).counts) > sum(old.counts), "it has learnt from the events"
    looked = json.loads(run(place, "drift", "shelf", "--features", "features", "--json", status=2))
    assert looked["verdict"] == "inconclusive", "nothing has come since"
