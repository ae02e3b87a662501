"""A cluster for tests of releases: the stand-in, two versions on a shelf, and two real servers that are their pods."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import yaml

from deeprec import __version__
from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.config import Config, parse_config
from tests.integration.parts import make_bundle, make_run
from tests.integration.servers import deeprec, started
from tests.kube.valid import installed
from tests.standins.api import ApiServer
from tests.standins.kserve import HOST, SERVICES, SERVING, Controller, Gateway, Server
from tests.standins.objects import Key, Objects

SHOP = "shop"
QUICK: dict[str, Any] = {
    "ready_seconds": 10,
    "soak_seconds": 0,
    "smoke": {"requests": 2, "max_p99_ratio": 100},
    "ramp": {"step_seconds": 0, "wait_seconds": 0, "max_p99_ratio": 100},
}
"""Settings of a release that waits for nothing: of requests so few, times say nothing."""


@dataclass
class World:
    """What a test of releases works on; ``versions`` are on the shelf, the first is live."""

    api: ApiServer
    controller: Controller
    gateway: Gateway
    shelf: Shelf
    versions: tuple[str, str]
    place: Path

    def config(self, **release: Any) -> Config:
        """A configuration whose release waits for nothing, unless told otherwise."""
        section = {**QUICK, **release}
        for name in ("smoke", "ramp"):
            section[name] = {**QUICK[name], **release.get(name, {})}
        section.setdefault("namespace", SHOP)
        return parse_config({"release": section, "bundle": {"uri": self.shelf.address}}, "test")

    def service(self, name: str = "deeprec") -> dict[str, Any] | None:
        """An InferenceService as it is stored."""
        found = self.api.objects.list(SERVING, SERVICES, SHOP)
        return next((one for one in found if one["metadata"]["name"] == name), None)

    def told(self, name: str = "deeprec") -> list[tuple[str, int]]:
        """Versions and weights of an InferenceService: the stable one first."""
        found = self.service(name)
        if found is None:
            return []
        stable, canaries = found["spec"]["predictor"], found["spec"].get("canary") or []
        weights = [one["trafficPercent"] for one in canaries]
        predictors = [stable, *(one["predictor"] for one in canaries)]
        versions = [one["model"].get("storageUri", "").rpartition("/")[2] for one in predictors]
        return list(zip(versions, (100 - sum(weights), *weights), strict=True))

    def clear(self) -> None:
        """An empty cluster, with the runtimes of the chart, and no release."""
        self.api.faults, self.api.denied = (lambda asked: None), set()
        self.controller.plans.clear()
        self.controller.altered.clear()
        objects = self.api.objects
        for group, plural in ((SERVING, SERVICES), ("v1", "pods"), ("v1", "resourcequotas")):
            for thing in objects.list(group, plural, SHOP):
                objects.delete(Key(group, plural, SHOP, thing["metadata"]["name"]))
        self.controller.settled()
        for one in self.shelf.objects.names("RELEASES"):
            self.shelf.objects.remove(one.name)
        self.shelf.objects.remove("release.json")
        self.shelf.promote(self.versions[0])

    @contextmanager
    def callers(self, count: int = 2) -> Iterator[Callers]:
        """Clients that ask through the gateway all the time."""
        callers = Callers(self.gateway.url)
        threads = [threading.Thread(target=callers.ask) for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield callers
        finally:
            callers.done.set()
            for thread in threads:
                thread.join()


@dataclass
class Callers:
    """What clients were answered: by version, and everything that was no answer."""

    url: str
    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    done: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        host = HOST.format(name="deeprec", namespace=SHOP)
        with httpx.Client(base_url=self.url, headers={"Host": host}, timeout=60) as client:
            while not self.done.is_set():
                try:
                    answer = client.post("/v1/models/deeprec:predict", json={"instances": [{"user_id": "u01", "k": 3}]})
                    [one] = answer.raise_for_status().json()["predictions"]
                    self.versions[one["bundle"]] += 1
                except (httpx.HTTPError, ValueError) as error:
                    self.failures.append(f"{time.monotonic():.3f} {error!r}")
                time.sleep(0.02)


@contextmanager
def opened(place: Path, serve: Literal["policy", "trm"] = "policy") -> Iterator[World]:
    """A world in a directory, until the block ends; its servers answer at once where the TRM ``serve``s."""
    run = make_run(place / "run")
    bundles = [
        make_bundle(run, place / "first", serve=serve),
        make_bundle(run, place / "second", serve=serve, max_calls=2),
    ]
    shelf = Shelf.make(place / "shelf")
    versions = [Bundle.load(bundle) for bundle in bundles]
    for one in versions:
        shelf.push(one)
    found = (versions[0].version, versions[1].version)
    with ExitStack() as open_now:
        servers: dict[str, Server] = {}
        for version in found:
            command = deeprec(
                "serve", "recommender", f"{shelf.address}@{version}", "--port", "0",
                "--set", "serving.poll_seconds=0", "--set", "serving.prepare=0",
                "--features", str(run / "features"),
            )  # fmt: skip
            server = open_now.enter_context(started(command, place / f"{version}.log"))
            servers[version] = Server(server.url, server.url)
        objects = Objects()
        controller = Controller(objects, servers)
        api = ApiServer(objects, definitions=installed(), route=controller.route)
        gateway = Gateway(controller)
        open_now.callback(gateway.close)
        open_now.callback(api.close)
        open_now.callback(controller.close)
        for component in ("recommender", "trm", "policy"):
            name = f"deeprec-{component}-{__version__.replace('.', '-')}"
            runtime = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime", "metadata": {"name": name}}
            objects.create(Key("serving.kserve.io/v1alpha1", "servingruntimes", SHOP, name), runtime, "helm")
        (place / "kubeconfig").write_text(yaml.safe_dump(api.kubeconfig), encoding="utf-8")
        world = World(api, controller, gateway, shelf, found, place)
        world.clear()
        yield world
