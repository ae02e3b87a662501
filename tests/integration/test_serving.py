"""The real server process on a bundle made of real, tiny parts: both protocols, readiness, and refusals."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from deeprec.config import ServingConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.errors import ArtifactError
from deeprec.features.directory import DirectoryPlace
from deeprec.recommender import loading
from deeprec.serving.http.bundle_server import recommender_service
from deeprec.serving.http.service import Service
from tests import forkserver
from tests.integration.servers import ServerProcess, deeprec, hosted, started, until

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Served:
    """A running server: its address, what it serves, and the lines it printed before it listened."""

    url: str
    data: Dataset
    server: ServerProcess

    def predict(self, request: Any, model: str = "deeprec") -> dict[str, Any]:
        answer = httpx.post(f"{self.url}/v1/models/{model}:predict", json={"instances": [request]}, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()["predictions"][0]


@pytest.fixture(scope="module")
def run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's directory of our own, since events are put into its features; the policy is untrained, never valid."""
    return shutil.copytree(small_run, tmp_path_factory.mktemp("own") / "run", symlinks=True)


@pytest.fixture(scope="module")
def served(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The command's own process on a free port, ended with SIGTERM."""
    log = tmp_path_factory.mktemp("served") / "log"
    with started(deeprec("serve", "recommender", run / "bundle", "--port", "0"), log) as server:
        yield Served(server.url, read_dataset(run / "dataset"), server)
        assert server.stop() == 0
        assert "Traceback" not in server.printed


def test_the_printed_lines_work(served: Served) -> None:
    lines = [line for line in served.server.printed.splitlines() if line.startswith("  curl ")]
    assert len(lines) == 6
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
    assert "the policy's answer is not valid" in answer["reason"]["sentence"]
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
    assert (answer["path"] in ("trm", "popularity"), len(answer["items"])) == (True, 3)
    assert "the policy did not finish within 1 ms" in answer["reason"]["sentence"]
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


def test_items_that_the_catalogue_does_not_have_are_ignored_and_named(served: Served) -> None:
    known = served.data.catalogue.items[0].item_id
    for model in ("deeprec", "deeprec-trm"):
        request = {"history": ["gone", known, "lost", "gone"], "k": 3}
        mixed, gone = (
            httpx.post(f"{served.url}/v1/models/{model}:predict", json={"instances": [one]}, timeout=30).json()
            for one in (request, {**request, "history": ["gone"]})
        )
        [answer], [nothing] = mixed["predictions"], gone["predictions"]
        assert answer["ignored"] == ["gone", "lost"]
        assert answer["path"] in ("policy", "trm")
        assert known not in [item["id"] for item in answer["items"]]
        assert (nothing["path"], nothing["ignored"], nothing["reason"]["kind"]) == (
            "popularity",
            ["gone"],
            "no_history",
        )


def test_v2_takes_and_gives_json_texts(served: Served) -> None:
    texts = [json.dumps({"user_id": "nobody", "k": k}) for k in (1, 2)]
    body = {"inputs": [{"name": "request", "shape": [2], "datatype": "BYTES", "data": texts}]}
    answer = httpx.post(f"{served.url}/v2/models/deeprec/infer", json=body, timeout=30)
    assert answer.status_code == 200, answer.text
    output = answer.json()["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == ("response", "BYTES", [2])
    assert [len(json.loads(text)["items"]) for text in output["data"]] == [1, 2]


def _workers(server: ServerProcess) -> list[psutil.Process]:
    """The processes that a server has started to compute."""
    return [
        one
        for one in psutil.Process(server.process.pid).children(recursive=True)
        if one.name() in ("deeprec-policy", "deeprec-text")
    ]


def test_the_trm_is_served_without_a_policy(run: Path, tmp_path: Path) -> None:
    """Readiness is false until the model has answered, and the answers are those of the recommender's own TRM."""
    statuses: list[int] = []
    command = deeprec("serve", "trm", run, "--port", "0")
    with started(command, tmp_path / "log", ready=False, forked=False) as server:
        while 200 not in statuses:
            with suppress(httpx.TransportError):
                statuses.append(httpx.get(f"{server.url}/v1/models/deeprec-trm", timeout=30).status_code)
                if statuses[-1] == 200:
                    assert server.metric("request_predict_seconds_count") == 0
        assert set(statuses) <= {503, 200}
        assert httpx.get(f"{server.url}/v1/models").json() == {"models": ["deeprec-trm"]}
        assert len(_workers(server)) == 1, "the text encoder, and no policy"
        lines = [line for line in server.printed.splitlines() if line.startswith("  curl ")]
        assert len(lines) == 2
        data = read_dataset(run / "dataset")
        user, history = next(iter(data.sequences.items()))
        body = {"instances": [{"user_id": user, "k": 8}, {"user_id": user, "k": 3, "allow_seen": True}]}
        fresh, seen = httpx.post(f"{server.url}/v1/models/deeprec-trm:predict", json=body).json()["predictions"]
        assert (fresh["path"], len(fresh["items"]), fresh["user_known"]) == ("trm", 8, True)
        assert not {item["id"] for item in fresh["items"]} & set(history)
        assert len(seen["items"]) == 3
        assert server.stop() == 0


@pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated")
def test_the_recommender_stays_ready_without_its_policy(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "REMOTE_SECONDS", 1.0)

    def make() -> Service:
        serving, features = ServingConfig(policy_url="http://127.0.0.1:9"), run / "features"
        return recommender_service(str(run / "bundle"), serving, DirectoryPlace(features))

    with forkserver.routed(), hosted(make) as server:
        user = next(iter(read_dataset(run / "dataset").sequences))
        body = {"instances": [{"user_id": user, "k": 3, "deadline_ms": 20000}]}
        answer = httpx.post(f"{server.url}/v1/models/deeprec:predict", json=body, timeout=30).json()["predictions"][0]
        assert (answer["path"], len(answer["items"])) == ("trm", 3)
        assert answer["reason"]["sentence"]
        assert server.ready()
        assert server.metric("deeprec_policy_down") == 1
        assert server.metric("deeprec_answer_duration_seconds_count", path="trm", model="deeprec") == 1


def test_nothing_is_written_but_below_the_temporary_directory(run: Path, tmp_path: Path) -> None:
    """In a namespace whose root is read-only, as a pod's is, and without a home."""
    writable = tmp_path / "writable"
    writable.mkdir()
    mounts = f'mount -t tmpfs none "{writable}" && mount -o remount,bind,ro / && ! touch "{tmp_path}/x" 2>/dev/null'
    apart = ["unshare", "--map-root-user", "--mount", "--fork", "--kill-child"]
    apart += ["sh", "-c", f'{mounts} && exec "$@"', "sh"]
    if subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a namespace of mounts (unshare --mount)")
    places = {"TMPDIR": str(writable), "HOME": "/nowhere", "XDG_CACHE_HOME": "/nowhere/cache"}
    command = [*apart, "env", "-u", "PROMETHEUS_MULTIPROC_DIR", *(f"{name}={place}" for name, place in places.items())]
    command += map(str, deeprec("serve", "recommender", run, "--policy", "--port", "0"))
    with started(command, tmp_path / "log", forked=False) as server:
        user = next(iter(read_dataset(run / "dataset").sequences))
        body = {"instances": [{"user_id": user, "k": 3, "preference": "a phrase that is new", "deadline_ms": 20000}]}
        answer = httpx.post(f"{server.url}/v1/models/deeprec:predict", json=body, timeout=30).json()["predictions"][0]
        assert (answer["user_known"], len(answer["items"])) == (True, 3)
        assert "left_out" not in answer
        assert "Traceback" not in server.printed


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
        (PREDICT, b'{"instances": [{"history": [1.5]}]}', JSON, 400, "history.0: give a string, not the number 1.5"),
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
    from deeprec.bundle.bundle import Bundle
    from deeprec.errors import ConfigError
    from deeprec.serving.http.address import bind

    with pytest.raises(ConfigError, match="cannot listen"):
        bind("127.0.0.1", int(served.url.rpartition(":")[2]))
    with pytest.raises(ArtifactError):
        Bundle.load(run / "dataset")


def test_a_policy_that_is_killed_is_replaced_and_the_recommender_stays_ready(served: Served) -> None:
    """The last test of this server: its policy is away for a while."""
    workers = _workers(served.server)
    assert len(workers) == 2, "the policy and the text encoder"
    for worker in workers:
        worker.kill()

    def restarted() -> bool:
        return all(served.server.metric("deeprec_restarts_total", process=name) for name in ("policy", "text"))

    until(restarted, "they are not started again")
    assert served.server.ready()
    user = next(iter(served.data.sequences))
    answer = served.predict({"user_id": user, "k": 3, "deadline_ms": 20000})
    assert (answer["path"], len(answer["items"])) == ("trm", 3)
    until(lambda: served.server.metric("deeprec_policy_down") == 0, "the policy does not come back")
