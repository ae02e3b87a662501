"""Shadow mode from request to comparison: a real server, and the real recommender over a policy that answers well."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.cli.evaluate import app
from deeprec.config import RequestLogConfig, ServingConfig
from deeprec.data.dataset import read_dataset
from deeprec.recommender.batching import Batcher
from deeprec.recommender.loading import warm_up
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.recommender.worker.explorer import WorkerExplorer
from deeprec.serving.log.request_log import RequestLog, read_log
from deeprec.wire.request import RecommendRequest
from tests.integration.servers import deeprec, started
from tests.unit.recommender.policies import CATALOGUE, CONFIG, ListRetriever, Make

PATIENCE_MS = 240_000
"""A deadline that no policy of a loaded machine misses."""


def compare(log: Path, *arguments: object) -> dict[str, Any]:
    command = ["shadow", str(log), "--json", *map(str, arguments)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_a_server_in_shadow_mode_logs_what_its_policy_would_have_answered(small_run: Path, tmp_path: Path) -> None:
    """The policy is untrained, so nothing it writes is valid: that is what the comparison has to say.

    The server is told to stop while the policy is still at it, and what the policy then says is logged too.
    """
    users = list(read_dataset(small_run / "dataset").sequences)[:12]
    log = tmp_path / "log"
    patient = ["--set", f"serving.max_deadline_ms={PATIENCE_MS}", "--deadline-ms", PATIENCE_MS]
    command = deeprec("serve", "recommender", small_run, "--shadow", "--log", log, "--port", 0, *patient)
    with started(command, tmp_path / "server.log") as server:
        for user in users:
            body = {"instances": [{"user_id": user, "k": 5}, {"user_id": "a-new-user"}]}
            answers = httpx.post(f"{server.url}/v1/models/deeprec:predict", json=body, timeout=60).json()
            assert answers["predictions"][0]["path"] == "trm"
        assert server.stop() == 0, server.printed
    rows = read_log(log)
    own = rows.filter(pl.col("shadow"), pl.col("path") == "trm")
    assert (len(rows), len(own), own["user"].n_unique()) == (24, 12, 12)
    assert rows.filter(pl.col("user").is_null()).is_empty(), "the warm-up's own requests are nobody's"
    assert all(own["items"].list.len() == 5)
    assert own["items"].to_list() == own["trm_items"].to_list()
    kept = rows.write_json()
    assert '"i' in kept
    assert not any(f'"{user}"' in kept for user in [*users, "a-new-user"])

    found = compare(log, "--bundle", small_run)
    assert found["answered"] == 0
    assert sum(found["unanswered"].values()) == found["requests"] == 12
    assert all("not valid" in reason for reason in found["unanswered"]), found["unanswered"]
    assert found["versions"] == {Bundle.load(small_run / "bundle").version: found["requests"]}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of 40 requests of 20 users whom the policy, in a process of its own, answered beside the TRM."""

    async def serve() -> None:
        log = RequestLog(RequestLogConfig(path=str(tmp_path / "log")))
        recommender = AsyncRecommender(
            CATALOGUE,
            np.arange(30, 0, -1),
            Batcher(ListRetriever(), 64),
            explorer=WorkerExplorer(Make(), CONFIG.answer_size),
            serving=ServingConfig(shadow=True, deadline_ms=PATIENCE_MS),
            version="v1",
            observers=(log,),
        )
        await warm_up(recommender)
        try:
            for row in range(40):
                history = (f"i{row % 20}",)
                request = RecommendRequest(user_id=f"user-{row % 20}", history=history, k=3)
                answer = await recommender.recommend(request)
                assert answer.path == "trm"
            await recommender.settled()
        finally:
            recommender.close()
            log.close()

    asyncio.run(serve())
    return tmp_path / "log"


def test_what_the_policy_answered_is_compared_and_later_events_decide(log: Path, tmp_path: Path) -> None:
    """Everyone takes the item that the TRM lists first, and one that nobody lists."""
    rows = read_log(log)
    found = compare(log, "-k", 3)
    assert (found["requests"], found["users"], found["answered"]) == (40, 20, 40)
    assert found["unanswered"] == {}
    overlaps = [len({*trm} & {*policy}) / 3 for trm, policy in rows.select("trm_items", "policy_items").iter_rows()]
    assert found["agreement"]["overlap"] == pytest.approx(sum(overlaps) / 40)
    [(turns, latency)] = found["policy_ms"].items()
    assert (turns, latency["requests"]) == ("3", 40)

    at = rows["at"].max().timestamp() + 60  # type: ignore[union-attr]
    taken = [(f"user-{number}", item) for number in range(20) for item in ("i29", "nothing-listed")]
    lines = [json.dumps({"user_id": user, "item_id": item, "timestamp": at}) for user, item in taken]
    (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
    later = compare(log, "-k", 3, "--events", tmp_path / "events.jsonl")["later"]
    assert (later["requests"], later["users"], later["taken"]) == (40, 20, 80)
    first = 1 / (1 + 1 / np.log2(3))
    assert later["metrics"]["ndcg@3"]["trm"]["mean"] == pytest.approx(first)
    assert later["metrics"]["hit_rate@3"]["policy"]["mean"] == 1
