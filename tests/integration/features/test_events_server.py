"""The command ``deeprec serve events`` as a process, on both stores: its protocols, its refusals, its end."""

from __future__ import annotations

import json
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from tests import forkserver
from tests.integration.servers import ServerProcess, deeprec, started

JSON = {"Content-Type": "application/json"}


def post(server: ServerProcess, path: str, body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json=body, timeout=30)


def event(number: int, user: str = "u1", item: str = "d") -> dict[str, str]:
    return {"event_id": f"e{number}", "user_id": user, "item_id": item}


def events(place: Any) -> list[str]:
    """The command of a server for the place, which a configuration names."""
    config = place.path / "place.yaml"
    config.write_text(json.dumps({"features": place.config().model_dump()}))
    return deeprec("serve", "events", "--config", config, "--port", "0")


def test_the_server_writes_histories_until_it_is_told_to_stop(place: Any, tmp_path: Path) -> None:
    place.publish()
    reader = place.open().newest()
    with started(events(place), tmp_path / "log", forked=place.cluster) as server:
        answer = post(server, "/v1/events", {"events": [event(1), event(2, "new", "a"), event(3, "u1", "nowhere")]})
        assert answer.status_code == 200
        assert (answer.json()["accepted"], answer.json()["duplicates"]) == (2, 0)
        assert [refused["event_id"] for refused in answer.json()["refused"]] == ["e3"]
        assert reader.histories(["u1", "new"]) == [("b", "a", "c", "d"), ("a",)]

        answer = post(server, "/v1/models/deeprec-events:predict", {"instances": [event(1), event(4, "u1", "a")]})
        statuses = [found["status"] for found in answer.json()["predictions"]]
        assert statuses == ["duplicate", "accepted"]
        tensor = {"name": "request", "shape": [1], "datatype": "BYTES", "data": ['{"event_id": "e5", "user_id": "u2"}']}
        answer = post(server, "/v2/models/deeprec-events/infer", {"inputs": [tensor]})
        assert (answer.status_code, answer.json()) == (400, {"error": "item_id: is missing"})

        lines = [line for line in server.printed.splitlines() if line.startswith("  curl ")]
        assert len(lines) == 3
        for line in lines:
            url, body = re.search(r"http://\S+", line), re.search(r"-d '(.*)'$", line)
            assert url
            assert body
            answer = httpx.post(url[0], content=body[1].replace("'\\''", "'").encode(), headers=JSON, timeout=30)
            assert answer.status_code == 200, answer.text

        for body in (b"{", b'{"events": [1]}', b'{"events": [{"event_id": "\\ud800"}]}', b"[]"):
            answer = httpx.post(f"{server.url}/v1/events", content=body, headers=JSON, timeout=30)
            assert (answer.status_code, "error" in answer.json()) == (400, True)
        described = httpx.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]
        assert {"/v1/events", "/v1/models/deeprec-events:predict"} <= described.keys()

        before = reader.history("u2")
        assert before is not None
        with ThreadPoolExecutor(8) as pool:
            bodies = [{"events": [event(100 + n, "u2", "abcd"[n % 4])]} for n in range(40)]
            answers = list(pool.map(lambda body: post(server, "/v1/events", body).status_code, bodies))
        assert answers == [200] * 40
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        assert "Traceback" not in server.printed
    assert {"a", "b", "c", "d"} == set(reader.history("u2") or ())


def test_without_redis_events_are_a_503_and_are_written_when_it_is_back(
    cluster_place: Any, redis_server: Any, tmp_path: Path
) -> None:
    dataset = cluster_place.dataset()
    cluster_place.publish(dataset)
    with started(events(cluster_place), tmp_path / "log") as server:
        redis_server.stop()
        answer = post(server, "/v1/events", {"events": [event(1)]})
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
        assert "send the same again" in answer.json()["error"]
        assert not server.ready()
        redis_server.start()
        assert not server.ready()
        cluster_place.publish(dataset)
        assert post(server, "/v1/events", {"events": [event(1)]}).json()["duplicates"] == 1
        assert server.ready()
        assert server.stop() == 0
    assert cluster_place.history("u1") == ("b", "a", "c", "d")


def test_a_missing_store_is_one_sentence(tmp_path: Path) -> None:
    command = deeprec("serve", "events", "--features", tmp_path / "nowhere", "--port", "0")
    done = forkserver.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no feature store at" in done.stderr
    assert "Traceback" not in done.stderr


def test_two_recommenders_share_the_histories_of_a_cluster(cluster_place: Any, small_run: Path, tmp_path: Path) -> None:
    """The bundle's publication is found by its name, wherever the same dataset was published."""
    cluster_place.publish(small_run / "dataset")
    config = cluster_place.path / "place.yaml"
    config.write_text(json.dumps({"features": cluster_place.config().model_dump()}))
    command = deeprec("serve", "recommender", small_run / "bundle", "--config", config, "--port", "0")
    user = {"user_id": "u01"}
    with started(command, tmp_path / "one") as one, started(command, tmp_path / "two") as two:
        before = httpx.get(f"{two.url}/v1/history", params=user, timeout=60).json()
        assert before["known"]
        item = before["items"][0]["id"]
        for number, (server, name) in enumerate([(one, "new"), (two, "new"), (one, "newer")]):
            body = {
                "events": [{"event_id": f"e{number}", "user_id": name, "item_id": item, "timestamp": 10**9 + number}]
            }
            assert post(server, "/v1/events", body).json()["accepted"] == 1
        for server in (one, two):
            answer = post(server, "/v1/models/deeprec-trm:predict", {"instances": [{"user_id": "newer", "k": 3}]})
            assert answer.json()["predictions"][0]["user_known"]
            found = httpx.get(f"{server.url}/v1/users", params={"query": "u01"}, timeout=60).json()["users"]
            assert found[0]["id"] == "u01"
