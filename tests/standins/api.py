"""A Kubernetes API server over HTTP, for the official clients: what is in ``objects.Objects``, rights, and a proxy.

It validates what is written against the definitions of custom resources, as a strict server does. Faults are set by
tests: ``faults`` is asked before each request.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import yaml

from tests.kube.valid import objections
from tests.standins.listening import Handler, Listening
from tests.standins.objects import Key, Objects, Refused, Thing

_PATH = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<part>status|proxy)(?P<rest>/.*)?)?"
)
_CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/"
_REVIEW = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


@dataclass(frozen=True)
class Asked:
    """A request: ``GET /apis/…``, with its number from 0."""

    number: int
    method: str
    path: str


@dataclass
class ApiServer:
    """The server.

    ``definitions`` are the CRDs that are installed, by name; ``denied`` what the account may not do, as
    ``patch inferenceservices``; ``faults`` may raise ``Refused`` or wait, ``answers`` is told when a request was done
    and is yet to be answered; ``route`` says where a Service's or a pod's port is: (``services`` or ``pods``, name,
    port) → address.
    """

    objects: Objects = field(default_factory=Objects)
    definitions: dict[str, Thing] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    faults: Callable[[Asked], None] = lambda asked: None
    answers: Callable[[Asked], None] = lambda asked: None
    route: Callable[[str, str, str], str | None] = lambda kind, name, port: None

    def __post_init__(self) -> None:
        self.asked = 0
        self.client = httpx.Client()
        self._count = threading.Lock()
        server = self

        class Here(_Handler):
            api = server

        self._http = Listening(Here)
        self.url = self._http.url

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """For ``KUBECONFIG``: this cluster, namespace ``shop``."""
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "standin",
            "clusters": [{"name": "standin", "cluster": {"server": self.url}}],
            "users": [{"name": "tester", "user": {"token": "t0ken"}}],
            "contexts": [{"name": "standin", "context": {"cluster": "standin", "user": "tester", "namespace": "shop"}}],
        }

    def count(self, method: str, path: str) -> Asked:
        with self._count:
            self.asked += 1
            return Asked(self.asked - 1, method, path)

    def close(self) -> None:
        self._http.close()
        self.client.close()


class _Handler(Handler):
    api: ApiServer

    def _handle(self) -> None:
        url = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self._asked = self.api.count(self.command, url.path)
        try:
            self.api.faults(self._asked)
            self._answer(url.path, query, body)
        except Refused as refused:
            told = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {}}
            self._send(
                refused.code, told | {"reason": refused.reason, "message": refused.message, "code": refused.code}
            )
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _handle

    def _answer(self, path: str, query: Mapping[str, str], body: bytes) -> None:
        if path.startswith(_CRD):
            found = self.api.definitions.get(path.removeprefix(_CRD))
            if found is None:
                raise Refused(404, "NotFound", f"customresourcedefinitions {path.removeprefix(_CRD)!r} not found")
            return self._send(200, found)
        if path == _REVIEW:
            return self._review(json.loads(body))
        match = _PATH.fullmatch(path)
        if match is None:
            raise Refused(404, "NotFound", f"the server could not find the requested resource {path}")
        group = match["group"] or match["core"]
        key = Key(group, match["plural"], match["namespace"], match["name"] or "")
        self._allow(key)
        if match["part"] == "proxy":
            return self._proxy(key, match["rest"] or "/", body)
        return self._object(key, query, body, status=match["part"] == "status")

    def _allow(self, key: Key) -> None:
        verb = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}.get(self.command, "update")
        if f"{verb} {key.plural}" in self.api.denied:
            raise Refused(
                403, "Forbidden", f'{key.plural} is forbidden: User "tester" cannot {verb} resource "{key.plural}"'
            )

    def _review(self, body: Thing) -> None:
        asked = body["spec"]["resourceAttributes"]
        resource = "/".join(part for part in (asked["resource"], asked.get("subresource")) if part)
        allowed = f"{asked['verb']} {resource}" not in self.api.denied
        self._send(201, {**body, "status": {"allowed": allowed}})

    def _object(self, key: Key, query: Mapping[str, str], body: bytes, *, status: bool) -> None:
        objects = self.api.objects
        manager = query.get("fieldManager") or (self.headers.get("User-Agent") or "unknown").partition("/")[0]
        if self.command == "GET" and key.name:
            return self._send(200, objects.get(key))
        if self.command == "GET":
            return self._list(key, query)
        if self.command == "DELETE":
            objects.delete(key)
            return self._send(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})
        if self.command == "POST":
            thing = self._valid(json.loads(body))
            made = Key(key.group, key.plural, key.namespace, thing["metadata"]["name"])
            return self._send(201, objects.create(made, thing, manager))
        if "apply-patch" in (self.headers.get("Content-Type") or ""):
            thing = self._valid(yaml.safe_load(body))
            applied, made_now = objects.apply(key, thing, manager, force=query.get("force") == "true")
            return self._send(201 if made_now else 200, applied)
        return self._send(200, objects.merge(key, json.loads(body), manager, status=status))

    def _valid(self, thing: Thing) -> Thing:
        found = list(objections(thing)) if thing.get("kind") == "InferenceService" else []
        if found:
            raise Refused(422, "Invalid", f"{thing['kind']} is invalid: {'; '.join(found)}")
        return thing

    def _list(self, key: Key, query: Mapping[str, str]) -> None:
        objects = self.api.objects
        if query.get("watch") in ("true", "True", "1"):
            return self._watch(key, query)
        labels = dict(part.split("=", 1) for part in query.get("labelSelector", "").split(",") if part)
        version = objects.version
        items = objects.list(key.group, key.plural, key.namespace, labels)
        self._send(
            200, {"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": items}
        )
        return None

    def _watch(self, key: Key, query: Mapping[str, str]) -> None:
        name = query.get("fieldSelector", "").removeprefix("metadata.name=")

        def of(one: Key) -> bool:
            same = (one.group, one.plural, one.namespace) == (key.group, key.plural, key.namespace)
            return same and name in ("", one.name)

        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        since = int(query.get("resourceVersion") or self.api.objects.version)
        try:
            for change in self.api.objects.changes(since, float(query.get("timeoutSeconds") or 30), of):
                self._chunk({"type": change.kind, "object": change.thing})
        except Refused as refused:
            status = {"kind": "Status", "status": "Failure", "code": refused.code, "reason": refused.reason}
            self._chunk({"type": "ERROR", "object": {**status, "message": refused.message}})
        self.wfile.write(b"0\r\n\r\n")

    def _chunk(self, thing: Any) -> None:
        line = json.dumps(thing).encode() + b"\n"
        self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.flush()

    def _proxy(self, key: Key, rest: str, body: bytes) -> None:
        name, _, port = key.name.partition(":")
        address = self.api.route(key.plural, name, port)
        if address is None:
            raise Refused(503, "ServiceUnavailable", f'no endpoints available for service "{name}"')
        kind = self.headers.get("Content-Type")
        try:
            answer = self.api.client.request(
                self.command,
                f"{address}{rest}",
                content=body,
                headers={"Content-Type": kind} if kind else {},
                timeout=30,
            )
        except httpx.TransportError as error:
            raise Refused(502, "BadGateway", f"error trying to reach service: {error}") from error
        self._send(answer.status_code, answer.content, answer.headers.get("Content-Type", "application/json"))

    def _send(self, code: int, content: Any, kind: str = "application/json") -> None:
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.api.answers(self._asked)
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)
