"""KServe's controller in Standard mode, with a gateway, as its source says it behaves: pods, routes, conditions.

A canary that is not ready gets no traffic; what an InferenceService does not name is deleted as an orphan; a weight of
0 without replicas means no pods; names and storage URIs change together; ready means that a pod is there, so that one
which crashes later is not ready at the next look. Pods are addresses of servers that run already, by bundle version.
"""

from __future__ import annotations

import itertools
import json
import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.standins.listening import Handler, Listening
from tests.standins.objects import Change, Key, Objects, Refused, Thing

SERVING = "serving.kserve.io/v1beta1"
SERVICES = "inferenceservices"
HOST = "{name}-{namespace}.shop.example"


@dataclass(frozen=True)
class Server:
    """A real server: its ports' addresses; what it answers may be delayed or altered by a fault."""

    url: str
    admin: str


@dataclass
class Plan:
    """What the pods of a version will do."""

    ready_after: float = 0.0
    failure: str = ""
    """Never ready, with this as the model's last failure."""
    crash_after: float = math.inf
    """Seconds after which a pod that was ready is gone again and again."""


@dataclass
class Workload:
    """A predictor's Deployment, with as many pods as it has been given."""

    service: str
    predictor: Thing
    version: str
    replicas: int
    made: float = field(default_factory=time.monotonic)


class Controller:
    """Reconciles the InferenceServices of a store until it is closed.

    Args:
        servers: bundle version → the server that its pods are.
    """

    def __init__(self, objects: Objects, servers: Mapping[str, Server]) -> None:
        self.objects, self.servers = objects, servers
        self.plans: dict[str, Plan] = {}
        self.altered: dict[str, Server] = {}
        """Version → the server that its pods are instead."""
        self.policy: Server | None = None
        """The server that the pods of policies are."""
        self.workloads: dict[str, Workload] = {}
        self.routes: dict[str, list[tuple[str, int]]] = {}
        """InferenceService → names of Kubernetes Services with their weights."""
        self._lock = threading.RLock()
        self._queue: queue.Queue[Key | None] = queue.Queue()
        objects.admit = self._admit
        objects.watchers.append(self._changed)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def settled(self, seconds: float = 10.0) -> None:
        """Return when what was changed has been seen to."""
        done = threading.Event()
        until = time.monotonic() + seconds
        while not self._queue.empty():
            assert time.monotonic() < until
            done.wait(0.01)

    def backends(self, isvc: str) -> list[tuple[Server, int]]:
        """Where the gateway sends a request for an InferenceService, with weights."""
        with self._lock:
            found = [(self.server(name), weight) for name, weight in self.routes.get(isvc, ())]
        return [(server, weight) for server, weight in found if server and weight]

    def server(self, service: str) -> Server | None:
        """The server behind a Kubernetes Service, when a pod of it is ready."""
        with self._lock:
            workload = self.workloads.get(service)
            if workload is None or not self._available(workload):
                return None
            if "-policy-" in service:
                return self.policy
            return self.altered.get(workload.version) or self.servers.get(workload.version)

    def route(self, kind: str, name: str, port: str) -> str | None:
        """For the API server's proxy."""
        if kind == "pods":
            name = name.rpartition("-")[0]
        server = self.server(name)
        return server and (server.admin if port == "8081" else server.url)

    # ------------------------------------------------------------------------------------------------- the webhook

    def _admit(self, key: Key, old: Thing | None, new: Thing) -> None:
        if key.plural != SERVICES:
            return
        spec, canaries = new["spec"], new["spec"].get("canary") or []
        stable = spec["predictor"]
        if canaries:
            mode = new["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
            self._deny(mode != "Standard", "canary requires the annotation serving.kserve.io/deploymentMode: Standard")
            self._deny("model" not in stable, "canary requires a model in the stable predictor")
            names = [one["predictor"].get("name") for one in canaries]
            self._deny(not all(names), "spec.canary[].predictor.name is required")
            self._deny(len({*names, stable.get("name")}) <= len(names), "predictor names must be unique")
            self._deny(sum(one["trafficPercent"] for one in canaries) > 100, "the sum of trafficPercent is above 100")
            for one in canaries:
                least = one["predictor"].get("minReplicas")
                self._deny(
                    least is not None and least > stable.get("minReplicas", 1),
                    "minReplicas of a canary must not be above the stable predictor's",
                )
                for name in ("workerSpec", "maxReplicas", "scaleTarget", "scaleMetric", "autoScaling"):
                    self._deny(name in one["predictor"], f"spec.canary[].predictor.{name} is not supported")
        if old is not None:
            was = old["spec"]["predictor"]
            same = was.get("model", {}).get("storageUri") == stable.get("model", {}).get("storageUri")
            self._deny(
                was.get("name") != stable.get("name") and same, "predictor.name may change only with the storage URI"
            )

    def _deny(self, wrong: bool, why: str) -> None:
        if wrong:
            raise Refused(400, "BadRequest", f'admission webhook "inferenceservice.kserve" denied the request: {why}')

    # ---------------------------------------------------------------------------------------------- the controller

    def _changed(self, change: Change) -> None:
        if change.key.plural == SERVICES:
            self._queue.put(change.key)

    def _run(self) -> None:
        waiting: set[Key] = set()
        while True:
            try:
                key = self._queue.get(timeout=0.02 if waiting else None)
            except queue.Empty:
                todo, waiting = waiting, set()
            else:
                if key is None:
                    return
                todo = {key}
            for one in todo:
                if self._reconcile(one):
                    waiting.add(one)

    def _reconcile(self, key: Key) -> bool:
        """Bring about what is asked for; whether it has to be looked at again."""
        with self._lock:
            try:
                isvc = self.objects.get(key)
            except Refused:
                self._remove({name for name, one in self.workloads.items() if one.service == key.name})
                self.routes.pop(key.name, None)
                return False
            wanted = self._wanted(isvc)
            for name, workload in wanted.items():
                kept = self.workloads.get(name)
                if kept is None or kept.predictor != workload.predictor:
                    self.workloads[name] = workload
                else:
                    kept.replicas = workload.replicas
            self._route(isvc)
            self._remove({name for name, one in self.workloads.items() if one.service == key.name} - wanted.keys())
            self._pods(key)
            self._status(key, isvc)
            mine = [self.workloads[name] for name in wanted]
        return any(not self._available(one) or self._plan(one).crash_after < math.inf for one in mine)

    def _wanted(self, isvc: Thing) -> dict[str, Workload]:
        name, stable = isvc["metadata"]["name"], isvc["spec"]["predictor"]
        least = stable.get("minReplicas", 1)
        predictors = [(stable, least)]
        for one in isvc["spec"].get("canary") or []:
            merged = {**stable, **one["predictor"]}
            if "model" in one["predictor"]:
                merged["model"] = {**stable["model"], **one["predictor"]["model"]}
            share = math.ceil(least * one["trafficPercent"] / 100)
            predictors.append((merged, one["predictor"].get("minReplicas", share)))
        return {
            service_of(name, predictor): Workload(name, _pod_of(predictor), _version(predictor), count)
            for predictor, count in predictors
        }

    def _route(self, isvc: Thing) -> None:
        name = isvc["metadata"]["name"]
        ready = [
            (service_of(name, one["predictor"]), one["trafficPercent"])
            for one in isvc["spec"].get("canary") or []
            if self._available(self.workloads[service_of(name, one["predictor"])])
        ]
        stable = 100 - sum(weight for _, weight in ready)
        self.routes[name] = [(service_of(name, isvc["spec"]["predictor"]), stable), *ready]

    def _pods(self, key: Key) -> None:
        wanted = {}
        for name, one in self.workloads.items():
            if one.service == key.name:
                for count in range(one.replicas):
                    labels = {"app": f"isvc.{name}", "serving.kserve.io/inferenceservice": key.name}
                    wanted[f"{name}-{count}"] = (labels | {"component": "predictor"}, self._available(one))
        for pod in self.objects.list("v1", "pods", key.namespace, {"serving.kserve.io/inferenceservice": key.name}):
            if pod["metadata"]["name"] not in wanted:
                self.objects.delete(Key("v1", "pods", key.namespace, pod["metadata"]["name"]))
        for name, (labels, ready) in wanted.items():
            place = Key("v1", "pods", key.namespace, name)
            status = {"phase": "Running", "conditions": [{"type": "Ready", "status": str(ready)}]}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"labels": labels}, "status": status}
            try:
                self.objects.merge(place, {"status": status}, "kubelet", status=True)
            except Refused:
                self.objects.create(place, pod, "kubelet")

    def _status(self, key: Key, isvc: Thing) -> None:
        name, spec = key.name, isvc["spec"]
        stable = self.workloads[service_of(name, spec["predictor"])]
        canaries = [(one, self.workloads[service_of(name, one["predictor"])]) for one in spec.get("canary") or []]
        conditions = [_condition("PredictorReady", self._available(stable))]
        if canaries:
            ready = all(self._available(workload) for _, workload in canaries)
            reason = "AllCanariesReady" if ready else "CanariesNotReady"
            conditions.append(_condition("CanaryPredictorReady", ready, reason))
        conditions += [_condition("IngressReady", True), _condition("Ready", self._available(stable))]
        status = {
            "observedGeneration": isvc["metadata"]["generation"],
            "conditions": conditions,
            "url": f"http://{HOST.format(name=name, namespace=key.namespace)}",
            "address": {"url": f"http://{service_of(name, spec['predictor'])}.{key.namespace}.svc.cluster.local"},
            "modelStatus": self._model_status(stable),
            "canaryStatuses": [
                {
                    "name": one["predictor"]["name"],
                    "ready": self._available(workload),
                    "trafficPercent": one["trafficPercent"],
                    "modelStatus": self._model_status(workload),
                }
                for one, workload in canaries
            ]
            or None,
        }
        if status != {name: isvc.get("status", {}).get(name) for name in status}:
            self.objects.merge(key, {"status": status}, "kserve-controller-manager", status=True)

    def _model_status(self, workload: Workload) -> Thing:
        failure = self._plan(workload).failure
        if failure:
            told = {"location": workload.predictor["model"].get("storageUri", ""), "message": failure}
            return {
                "transitionStatus": "BlockedByFailedLoad",
                "states": {"activeModelState": "", "targetModelState": "FailedToLoad"},
                "lastFailureInfo": {**told, "reason": "ModelLoadFailed", "exitCode": 2},
            }
        if self._available(workload):
            loaded = {"activeModelState": "Loaded", "targetModelState": "Loaded"}
            return {"transitionStatus": "UpToDate", "states": loaded}
        return {
            "transitionStatus": "InProgress",
            "states": {"activeModelState": "", "targetModelState": "Loading"},
        }

    def _remove(self, names: set[str]) -> None:
        for name in names:
            del self.workloads[name]

    def _plan(self, workload: Workload) -> Plan:
        return self.plans.get(workload.version, Plan())

    def _available(self, workload: Workload) -> bool:
        plan, age = self._plan(workload), time.monotonic() - workload.made
        up = plan.ready_after <= age < plan.ready_after + plan.crash_after
        return bool(workload.replicas) and not plan.failure and up


class Gateway:
    """What callers ask: each request goes to one of the ready predictors of the host's InferenceService, by weight."""

    def __init__(self, controller: Controller, seed: int = 0) -> None:
        chance, lock = random.Random(seed), threading.Lock()
        clients = threading.local()

        class Here(Handler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                found = controller.backends((self.headers.get("Host") or "").partition("-shop.")[0])
                code, raw = 503, b'{"error": "no healthy upstream"}'
                if found:
                    with lock:
                        [(server, _)] = chance.choices(found, [weight for _, weight in found])
                    client = clients.__dict__.setdefault("client", httpx.Client(timeout=30))
                    try:
                        answer = client.post(
                            f"{server.url}{self.path}", content=body, headers={"Content-Type": "application/json"}
                        )
                        code, raw = answer.status_code, answer.content
                    except httpx.TransportError as error:
                        code, raw = 502, str(error).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        self._http = Listening(Here)
        self.url = self._http.url

    def close(self) -> None:
        self._http.close()


class Shim:
    """A server in front of another: it answers ``seconds`` later, the first ``after`` at once, what ``alter`` makes."""

    def __init__(
        self,
        server: Server,
        *,
        seconds: float = 0.0,
        after: int = 0,
        alter: Callable[[Any], Any] = lambda told: told,
    ) -> None:
        asked = itertools.count()
        client = httpx.Client(timeout=30)

        class Here(Handler):
            def _pass(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                kind = {"Content-Type": "application/json"} if body else {}
                answer = client.request(self.command, f"{server.url}{self.path}", content=body, headers=kind)
                raw = answer.content
                if self.path.endswith(":predict") and answer.status_code == httpx.codes.OK:
                    time.sleep(seconds if next(asked) >= after else 0.0)
                    raw = json.dumps(alter(answer.json())).encode()
                self.send_response(answer.status_code)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            do_GET = do_POST = _pass

        self._http = Listening(Here)
        self.server = Server(self._http.url, self._http.url)

    def close(self) -> None:
        self._http.close()


def service_of(isvc: str, predictor: Mapping[str, Any]) -> str:
    """Name of a predictor's Deployment and Service."""
    name = predictor.get("name")
    return f"{isvc}-{name}-predictor" if name else f"{isvc}-predictor"


def _pod_of(predictor: Thing) -> Thing:
    """What of a predictor is in its pods: another one means other pods."""
    return {name: value for name, value in predictor.items() if name not in ("minReplicas", "maxReplicas", "timeout")}


def _version(predictor: Thing) -> str:
    model = predictor["model"]
    told = {one["name"]: one.get("value", "") for one in model.get("env") or []}
    return (model.get("storageUri") or told.get("DEEPREC_BUNDLE", "")).rpartition("/")[2].rpartition("@")[2]


def _condition(kind: str, holds: bool, reason: str = "") -> Thing:
    return {"type": kind, "status": str(holds), **({"reason": reason} if reason else {})}
