"""The real server process on a bundle made of real, tiny parts: both protocols, readiness, and refusals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from deeprec.checks.gate import Verdict
from deeprec.config import (
    BundleConfig,
    DataConfig,
    ExploreConfig,
    FeaturesConfig,
    PolicyConfig,
    SampleConfig,
    TextConfig,
    TinyConfig,
    TrmConfig,
    WarmStartConfig,
)
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import ArtifactError
from deeprec.store import write_artifact

JSON = {"Content-Type": "application/json"}
START_SECONDS = 60


@dataclass(frozen=True)
class Served:
    """A running server: its address, what it serves, and the lines it printed before it listened."""

    url: str
    data: Dataset
    printed: str

    def predict(self, request: Any, model: str = "deeprec") -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/v1/models/{model}:predict", json={"instances": [request]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory with ``bundle`` and ``features``; the policy is untrained, so its answers are not valid."""
    from deeprec.data.ingest import ingest
    from deeprec.features.store import publish as publish_features
    from deeprec.policy.build import build_policy
    from deeprec.serving.bundle import publish
    from deeprec.trm.training import train

    place = tmp_path_factory.mktemp("run")
    parts = {name: place / name for name in ("dataset", "trm", "policy", "evaluation", "published")}
    text = TextConfig(provider="hashing", width=32)
    trm = TrmConfig(width=16, layers=1, heads=1, max_length=20, epochs=1)
    explore = ExploreConfig(items_per_call=8, answer_size=5, max_calls=3, max_new_tokens=64, max_context=512)
    tiny = PolicyConfig(
        tiny=TinyConfig(width=16, layers=1, heads=2, inner=32), warm_start=WarmStartConfig(trajectories=0)
    )
    sample = SampleConfig(users=60, items=50, mean_history=20)
    ingest(DataConfig(source="sample", sample=sample), 0, parts["dataset"])
    publish_features(parts["dataset"], FeaturesConfig(path=str(place / "features")), parts["published"])
    train(parts["dataset"], trm, text, 0, parts["trm"], place / "trm.html")
    build_policy(parts["dataset"], parts["trm"], tiny, explore, text, 0, parts["policy"])
    with write_artifact(parts["evaluation"], "evaluation", parents=[parts["dataset"]]) as work:
        (work / "metrics.json").write_text(json.dumps({"serve": "policy"}))
    verdict = Verdict("evaluation", True, "evaluation: passed, 0 of 0 checks", ())
    publish(*parts.values(), text, explore, BundleConfig(), verdict, place / "bundle")
    return place


@pytest.fixture(scope="module")
def served(run: Path) -> Iterator[Served]:
    """The command's own process on a free port, ended with SIGTERM."""
    command = [sys.executable, "-c", "from deeprec.cli import main; main()", "serve", str(run / "bundle")]
    log = run / "server.log"
    with log.open("w") as stream:
        process = subprocess.Popen([*command, "--port", "0"], stdout=stream, stderr=stream, env=dict(os.environ))
    try:
        url = _wait(process, log)
        yield Served(url, read_dataset(run / "dataset"), log.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        found = re.search(r"http://127\.0\.0\.1:\d+", log.read_text())
        if found:
            try:
                if httpx.get(f"{found[0]}/v2/health/ready").json() == {"ready": True}:
                    return found[0]
            except httpx.TransportError:
                pass
        time.sleep(0.2)
    raise AssertionError(f"the server did not start:\n{log.read_text()}")


def test_a_bundle_comes_back_from_object_storage(run: Path, client: Any) -> None:
    from deeprec.serving.bundle import Bundle
    from deeprec.store import put_directory

    put_directory(run / "bundle", "s3://models/bundles/run")
    fetched = Bundle.load("s3://models/bundles/run")
    local = Bundle.load(run / "bundle")
    assert fetched.path != local.path
    assert (fetched.version, fetched.catalogue) == (local.version, local.catalogue)

    client.remove_object("models", "bundles/run/explore.json")
    with pytest.raises(ArtifactError, match="explore"):
        Bundle.load("s3://models/bundles/run")


def test_the_printed_lines_work(served: Served) -> None:
    lines = [line for line in served.printed.splitlines() if line.startswith("  curl ")]
    assert len(lines) == 5
    for line in lines:
        url = re.search(r"http://\S+", line)
        body = re.search(r"-d '(.*)'$", line)
        assert url
        assert body
        answer = httpx.post(url[0], content=body[1].replace("'\\''", "'"), headers=JSON, timeout=30)
        assert answer.status_code == 200, answer.text


def test_a_known_user_gets_new_items(served: Served) -> None:
    user, history = next(iter(served.data.sequences.items()))
    answer = served.predict({"user_id": user, "k": 8, "explain": True, "deadline_ms": 20000})
    assert answer["user_known"] is True
    assert answer["path"] == "trm"
    assert "the policy's answer is not valid" in answer["reason"]
    found = [item["id"] for item in answer["items"]]
    assert len(set(found)) == 8
    assert not set(found) & set(history)
    assert all(item["title"] == served.data.catalogue[item["id"]].title for item in answer["items"])
    assert [item["rank"] for item in answer["items"]] == list(range(1, 9))
    trm = served.predict({"user_id": user, "k": 8}, "deeprec-trm")
    assert [item["id"] for item in trm["items"]] == found


def test_a_history_in_the_request_a_preference_and_a_stranger(served: Served) -> None:
    history = [item.item_id for item in served.data.catalogue.items[:4]]
    answer = served.predict({"history": history, "k": 3, "deadline_ms": 1})
    assert (answer["path"], len(answer["items"])) == ("trm", 3)
    assert answer["reason"] == "the policy did not finish within 1 ms"
    phrase = served.data.catalogue.phrases[0]
    wished = served.predict({"history": history, "preference": phrase, "k": 3}, "deeprec-trm")
    assert wished["items"][0]["preference"] == phrase
    stranger = served.predict({"user_id": "nobody", "k": 3})
    assert (stranger["path"], stranger["user_known"]) == ("popularity", False)
    assert len(stranger["items"]) == 3


def test_filters_hold(served: Served) -> None:
    years = sorted(int(item.attributes["year"] or 0) for item in served.data.catalogue.items)
    middle = years[len(years) // 2]
    condition = {"column": "year", "operator": ">=", "value": middle}
    for request in ({"history": []}, {"history": [served.data.catalogue.items[0].item_id]}):
        found = served.predict({**request, "k": 5, "filters": [condition]})["items"]
        assert found
        assert all(int(served.data.catalogue[item["id"]].attributes["year"] or 0) >= middle for item in found)


def test_v2_takes_and_gives_json_texts(served: Served) -> None:
    texts = [json.dumps({"user_id": "nobody", "k": k}) for k in (1, 2)]
    body = {"inputs": [{"name": "request", "shape": [2], "datatype": "BYTES", "data": texts}]}
    answer = httpx.post(f"{served.url}/v2/models/deeprec/infer", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("response", "BYTES", [2])
    assert [len(json.loads(text)["items"]) for text in output["data"]] == [1, 2]


def test_readiness_of_both_models(served: Served) -> None:
    for model in ("deeprec", "deeprec-trm"):
        assert httpx.get(f"{served.url}/v1/models/{model}").json() == {"name": model, "ready": True}
        assert httpx.get(f"{served.url}/v2/models/{model}/ready").json()["ready"] is True
    assert httpx.get(f"{served.url}/v1/models/other").status_code == 404


PREDICT = "/v1/models/deeprec:predict"
INFER = "/v2/models/deeprec/infer"


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "part"),
    [
        (PREDICT, b"{}", {}, 415, "Content-Type: application/json"),
        (PREDICT, b"{", JSON, 400, "not JSON"),
        (PREDICT, b" " * 300_000, JSON, 413, "larger than"),
        (PREDICT, b"{}", JSON, 400, "instances"),
        (PREDICT, b'{"instances": []}', JSON, 400, "from 1 to"),
        (PREDICT, b'{"instances": [{"history": ["no-such-item"]}]}', JSON, 400, "no-such-item"),
        (PREDICT, b'{"instances": [{"user": "1"}]}', JSON, 400, "unknown field 'user'"),
        (PREDICT, b'{"instances": [{"user_id": "1", "k": 100000}]}', JSON, 400, "at most"),
        (PREDICT, b'{"instances": [{"user_id": "1", "filters": [{"column": "x", "value": 1}]}]}', JSON, 400, "'x'"),
        ("/v1/models/other:predict", b"{}", JSON, 404, "other"),
        ("/nowhere", b"{}", JSON, 404, "no such path"),
        (INFER, b"{}", JSON, 400, "inputs"),
        (INFER, b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1]}]}', JSON, 400, "request"),
        (INFER, b'{"inputs": [{"name": "request", "shape": [1], "datatype": "BYTES", "data": ["{"]}]}', JSON, 400, ""),
        ("/v2/repository/models/deeprec/unload", b"{}", JSON, 404, "cannot be changed"),
    ],
)
def test_refusals_are_one_sentence(
    served: Served, path: str, body: bytes, headers: dict[str, str], status: int, part: str
) -> None:
    answer = httpx.post(served.url + path, content=body, headers=headers, timeout=30)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert part in answer.json()["error"]
    assert "Traceback" not in answer.text


def test_a_port_in_use_or_a_spoilt_bundle_is_refused(served: Served, run: Path) -> None:
    from deeprec.errors import ArtifactError, ConfigError
    from deeprec.serving.bundle import Bundle
    from deeprec.serving.server import free_port

    with pytest.raises(ConfigError, match="cannot listen"):
        free_port("127.0.0.1", int(served.url.rpartition(":")[2]))
    with pytest.raises(ArtifactError):
        Bundle.load(run / "dataset")
