"""Pods of the chart played here by ``podman kube play``: what Kubernetes would start, on this machine's network.

Every server of the chart listens on the same two ports, each pod having an address of its own; here they share one, so
that each is given ports of its own by the environment, and is asked by what its readiness probe says.
"""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import re
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.kube.engine import call, checked
from tests.kube.rendered import Pod, Rendered
from tests.services import free_ports


@dataclass(frozen=True)
class PlayedPod:
    """A pod that runs; its container's name, and the ports it was given."""

    container: str
    port: int
    admin: int
    probe: Mapping[str, Any] | None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        done = call("podman", "logs", self.container)
        return done.stdout + done.stderr

    @property
    def state(self) -> dict[str, Any]:
        """``Running``, ``ExitCode``, ``Pid`` and more."""
        found: dict[str, Any] = json.loads(checked("podman", "container", "inspect", self.container))[0]["State"]
        return found

    def ready(self) -> bool:
        """What the readiness probe would find."""
        assert self.probe
        try:
            return httpx.get(f"{self.url}{self.probe['httpGet']['path']}", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def wait_ready(self, seconds: float = 120) -> None:
        """Return when it is ready; AssertionError, with its log, when it has ended or is not in time."""
        until = time.monotonic() + seconds
        while not self.ready():
            assert self.state["Running"], f"ended with {self.state['ExitCode']}:\n{self.log[-3000:]}"
            assert time.monotonic() < until, f"not ready after {seconds} s:\n{self.log[-3000:]}"
            time.sleep(0.3)

    def wait_end(self, seconds: float = 120) -> int:
        """Its exit status."""
        until = time.monotonic() + seconds
        while self.state["Running"]:
            assert time.monotonic() < until, f"still running after {seconds} s:\n{self.log[-3000:]}"
            time.sleep(0.3)
        return int(self.state["ExitCode"])

    def kill(self) -> None:
        """Kill its first process, as the kernel does where memory runs out."""
        os.kill(int(self.state["Pid"]), signal.SIGKILL)


@contextlib.contextmanager
def playing(
    pod: Pod,
    objects: Sequence[Rendered],
    secrets: Mapping[str, Mapping[str, str]],
    place: Path,
    *,
    restart: str = "Always",
    **variables: str,
) -> Iterator[PlayedPod]:
    """A pod of the chart, with the ConfigMaps that were rendered and these Secrets; gone in the end."""
    port, admin = free_ports(2)
    spec = copy.deepcopy(pod.spec)
    [container] = spec["containers"]
    own = {"DEEPREC__SERVING__PORT": str(port), "DEEPREC__SERVING__ADMIN_PORT": str(admin), **variables}
    kept = [one for one in container["env"] if one["name"] not in own]
    container["env"] = [*kept, *({"name": name, "value": value} for name, value in own.items())]
    told = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    for part in ("command", "args"):  # which Kubernetes expands, and podman does not
        if part in container:
            container[part] = [re.sub(r"\$\((\w+)\)", lambda name: told[name[1]], text) for text in container[part]]
    container.pop("ports", None)
    for amounts in container["resources"].values():  # of which there are none here
        for name in [name for name in amounts if "/" in name]:
            del amounts[name]
    probe = container.get("readinessProbe")
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        container.pop(kind, None)  # podman acts on a liveness probe by its own command in the container
    for volume in spec.get("volumes", ()):
        if "secret" in volume:  # which podman 4.3 mounts otherwise than Kubernetes does
            mounted = volume.pop("secret")
            folder = place / f"{mounted['secretName']}-mounted"
            folder.mkdir(exist_ok=True)
            for item in mounted["items"]:
                (folder / item["path"]).write_text(secrets[mounted["secretName"]][item["key"]], encoding="utf-8")
            volume["hostPath"] = {"path": str(folder), "type": "Directory"}
    spec |= {"hostNetwork": True, "restartPolicy": restart}
    name = f"deeprec-{place.name[-40:].strip('-_').replace('_', '-').lower()}-{port}"
    thing = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": dict(pod.labels)}, "spec": spec}
    given = [one.object for one in objects if one.kind == "ConfigMap"]
    for secret, values in secrets.items():
        _make_secret(secret, values, place)
    file = place / f"{name}.yaml"
    file.write_text(yaml.safe_dump_all([*given, thing], sort_keys=False), encoding="utf-8")
    try:
        checked("podman", "kube", "play", "--replace", file)
        yield PlayedPod(f"{name}-{container['name']}", port, admin, probe)
    finally:
        call("podman", "kube", "down", file)
        for secret in secrets:
            call("podman", "secret", "rm", secret)


def _make_secret(name: str, values: Mapping[str, str], place: Path) -> None:
    """A Secret as podman 4.3 reads it for a pod's environment, which is not as it writes one from a manifest."""
    call("podman", "secret", "rm", name)
    file = place / f"{name}.json"
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    file.write_text(json.dumps(encoded), encoding="utf-8")
    checked("podman", "secret", "create", name, file)
