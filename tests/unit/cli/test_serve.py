"""What the serve commands share: the configuration that files and options make together, and refusals."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.cli import app
from deeprec.cli.serve.examples import curl_v1, curl_v2
from deeprec.cli.serve.options import read_serving
from deeprec.cli.serve.recommender import introduction
from deeprec.config import ServingConfig
from deeprec.errors import ArtifactError, ConfigError, FeatureError
from deeprec.features.directory import DirectoryPlace
from deeprec.serving.http.bundle_server import recommender_service, trm_service
from deeprec.serving.http.service import Service

run = CliRunner().invoke


def test_options_win_over_keys_and_keys_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("serving: {port: 1, threads: 2, deadline_ms: 300, log: {sample: 0.5}}\n")
    found = read_serving(
        str(file), ["serving.port=7", "serving.max_k=9"], deadline_ms=400, host=None, **{"log.path": "/logs"}
    )
    expected = {"port": 7, "threads": 2, "deadline_ms": 400, "max_k": 9, "host": "127.0.0.1"}
    assert {name: getattr(found, name) for name in expected} == expected
    assert (found.log.path, found.log.sample) == ("/logs", 0.5)
    assert read_serving(None, None) == ServingConfig()


def test_mistakes_name_the_key() -> None:
    with pytest.raises(ConfigError, match=r"unknown key serving\.colour"):
        read_serving(None, ["serving.colour=red"])
    with pytest.raises(ConfigError, match=r"port.*got 70000"):
        read_serving(None, None, port=70000)


@pytest.mark.parametrize("make", [recommender_service, trm_service])
def test_what_cannot_be_served_is_refused_with_one_sentence(
    make: Callable[..., Service], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="neither a bundle nor a shelf nor the directory of a run"):
        run(app, ["serve", "trm", str(tmp_path)], catch_exceptions=False)
    (tmp_path / "bundle.json").write_text("{}")
    with pytest.raises(ArtifactError, match="has no manifest"):
        start(make(str(tmp_path), ServingConfig()))
    bundle = make_bundle(tmp_path / "whole", ["A"])
    with pytest.raises(FeatureError, match="no feature store"):
        start(make(str(bundle), ServingConfig(), DirectoryPlace("/nowhere")))


def start(service: Service) -> None:
    async def whole() -> None:
        assert service.start is not None
        assert service.close is not None
        try:
            await service.start()
        finally:
            await service.close()

    asyncio.run(whole())


def test_a_port_in_use_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            run(app, ["serve", "trm", str(tmp_path), "--port", port], catch_exceptions=False)


def test_a_line_to_try_comes_through_the_shell_whole() -> None:
    request = {"history": ['it\'s "7"; $HOME \\ `ls`'], "preference": "ü\n喜剧"}
    *first, body = shlex.split(curl_v1("http://h:1", "m", request))
    assert first == ["curl", "-s", "http://h:1/v1/models/m:predict", "-H", "Content-Type: application/json", "-d"]
    assert json.loads(body) == {"instances": [request]}
    *first, body = shlex.split(curl_v2("http://h:1", "m", request))
    assert first[2] == "http://h:1/v2/models/m/infer"
    [tensor] = json.loads(body)["inputs"]
    assert [json.loads(text) for text in tensor["data"]] == [request]


def test_what_is_printed_says_what_there_is_to_try(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle.load(make_bundle(tmp_path / "bundle", ["A"]))
    at = "http://127.0.0.1:9000"
    alone = introduction(bundle, None, ServingConfig(), at)
    assert bundle.version in alone
    assert f"page {at}/" in alone
    assert "no feature store (name one with --features)" in alone
    assert len(re.findall(r"^  curl ", alone, re.MULTILINE)) == 4
    assert "events" not in alone
    whole = introduction(bundle, str(tmp_path), ServingConfig(), at)
    assert len(re.findall(r"^  curl ", whole, re.MULTILINE)) == 6
    assert "/v1/events" in whole
    shut = introduction(bundle, str(tmp_path), ServingConfig(name="shop", doors={"page": False, "events": False}), at)
    assert "page" not in shut
    assert "/v1/events" not in shut
    assert f"{at}/v1/models/shop:predict" in shut


def test_a_pod_is_printed_that_agrees_with_the_configuration() -> None:
    keys = ["serving.admin_port=9090", "serving.drain_seconds=7.5", "serving.stop_seconds=20"]
    told = run(
        app, ["serve", "recommender", "nowhere", "--port", "80", "--print-pod", *(f"--set={key}" for key in keys)]
    )
    pod = yaml.safe_load(told.stdout)
    [container] = pod["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": 80}, {"name": "admin", "containerPort": 9090}]
    paths = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert paths == {"startup": "/v2/health/started", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    assert pod["terminationGracePeriodSeconds"] >= 7.5 + 20 + 10
    for command in (["events", "--features", "nowhere"], ["trm", "nowhere"]):
        assert "terminationGracePeriodSeconds: 52" in run(app, ["serve", *command, "--print-pod"]).stdout
