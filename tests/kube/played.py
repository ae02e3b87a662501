"""Plays a compiled pipeline here: each task in a container as its pod would be, by KFP's own local runner.

What is played is the YAML: command, image and environment of its first document, mounts, secrets, user and group of
its second, which KFP's ``DockerRunner`` knows nothing of. That runner also takes a container that failed for one that
succeeded (it has it removed, and then does not find its status), so that ``Session`` starts the containers in its
place, at the one function where KFP does. The root is read-only, as a cluster may demand, and no capability is left.
What a namespace lacks is said as Kubernetes says it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from tests.kube.engine import ENVIRONMENT


@dataclass(frozen=True)
class Namespace:
    """What pods can refer to: Secrets by name, and directories that stand for PersistentVolumeClaims."""

    secrets: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    claims: Mapping[str, Path] = field(default_factory=dict)


class PodError(Exception):
    """A pod that Kubernetes would not start, and why."""


@dataclass(frozen=True)
class Played:
    """What became of a task; ``said`` is the last line of its log."""

    state: str
    seconds: float
    said: str
    outputs: Mapping[str, Any]


def play(
    compiled: Path,
    namespace: Namespace,
    place: Path,
    *,
    arguments: Mapping[str, Any] | None = None,
    told: Callable[[str], None] = lambda line: None,
) -> dict[str, Played]:
    """Run the tasks of a compiled pipeline one after the other until one fails; by name, as far as it came.

    Artifacts are kept in ``place/pipeline``, what tasks print in ``place/logs/TASK.log``.
    """
    with podman_service() as address:
        return Session(compiled, namespace, place, told, address).run(arguments or {})


@contextlib.contextmanager
def podman_service() -> Iterator[str]:
    """The address of Docker's API: the one that DOCKER_HOST names, else podman's, which is started."""
    if os.environ.get("DOCKER_HOST"):
        yield os.environ["DOCKER_HOST"]
        return
    with tempfile.TemporaryDirectory(prefix="deeprec-podman-") as place:
        socket = Path(place) / "podman.sock"
        command = ["podman", "system", "service", "--time=0", f"unix://{socket}"]
        service = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            until = time.monotonic() + 30
            while not socket.exists():
                assert service.poll() is None, f"podman's service ended with {service.returncode}"
                assert time.monotonic() < until, "podman's service does not answer"
                time.sleep(0.05)
            yield f"unix://{socket}"
        finally:
            service.terminate()
            service.wait(timeout=20)


class Pods:
    """The pods that a compiled pipeline describes, as arguments of docker-py's ``containers.create``."""

    def __init__(self, compiled: Path, namespace: Namespace, scratch: Path) -> None:
        graph, platforms = yaml.safe_load_all(compiled.read_text(encoding="utf-8"))
        self._components = graph["components"]
        self._executors = graph["deploymentSpec"]["executors"]
        self._platform = platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.names = {
            task["componentRef"]["name"]: task["taskInfo"]["name"] for task in graph["root"]["dag"]["tasks"].values()
        }
        self._namespace, self._scratch = namespace, scratch

    def of(self, component: str) -> dict[str, Any]:
        """A component's pod.

        Raises:
            PodError: it refers to something that the namespace does not have.
        """
        label = self._components[component]["executorLabel"]
        container, pod = self._executors[label]["container"], self._platform.get(label, {})
        context = pod.get("securityContext", {})
        given: dict[str, Any] = {
            "image": container["image"],
            "environment": self._environment(container, pod),
            "volumes": {},
            "tmpfs": {},
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
        }
        if "runAsUser" in context:
            given["user"] = f"{context['runAsUser']}:{context.get('runAsGroup', 0)}"
        if context.get("runAsNonRoot") and context.get("runAsUser") in (None, "0", 0):
            raise PodError("container has runAsNonRoot and image will run as root")
        for mount in pod.get("pvcMount", ()):
            claim = mount["constant"]
            if claim not in self._namespace.claims:
                raise PodError(f'persistentvolumeclaim "{claim}" not found')
            source = self._namespace.claims[claim] / mount.get("subPath", "")
            given["volumes"][str(source)] = {"bind": mount["mountPath"], "mode": "rw"}
        for mount in pod.get("emptyDirMounts", ()):
            if mount.get("medium") == "Memory":
                given["tmpfs"][mount["mountPath"]] = "mode=1777"
            else:
                source = Path(tempfile.mkdtemp(dir=self._scratch))
                source.chmod(0o777)
                given["volumes"][str(source)] = {"bind": mount["mountPath"], "mode": "rw"}
        return given

    def _environment(self, container: Mapping[str, Any], pod: Mapping[str, Any]) -> dict[str, str]:
        variables = {one["name"]: one["value"] for one in container.get("env", ())}
        for source in pod.get("secretAsEnv", ()):
            secret = self._namespace.secrets.get(source["secretName"])
            for pair in source["keyToEnv"]:
                if secret is not None and pair["secretKey"] in secret:
                    variables[pair["envVar"]] = secret[pair["secretKey"]]
                elif not source.get("optional"):
                    missing = f'secret "{source["secretName"]}" not found'
                    absent = f"couldn't find key {pair['secretKey']} in Secret {source['secretName']}"
                    raise PodError(missing if secret is None else absent)
        return variables


class Session:
    """One run of a compiled pipeline."""

    def __init__(
        self, compiled: Path, namespace: Namespace, place: Path, told: Callable[[str], None], address: str
    ) -> None:
        self._compiled, self._namespace, self._place = compiled, namespace, place.absolute()
        self._told, self._address = told, address
        self._played: dict[str, Played] = {}
        self._scratch = Path()
        self._component, self._last_line = "", ""

    def run(self, arguments: Mapping[str, Any]) -> dict[str, Played]:
        """Run every task that can run."""
        from kfp import components, local

        root, logs = self._place / "pipeline", self._place / "logs"
        for folder in (root, logs):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (root, *root.parents):  # which is made by root, and written by the image's user
            folder.chmod(folder.stat().st_mode | 0o005)
        root.chmod(0o777)
        self._scratch = self._place / "scratch"
        self._scratch.mkdir(exist_ok=True)
        self._pods = Pods(self._compiled, self._namespace, self._scratch)
        with self._hooked(), (logs / "pipeline.log").open("w") as log, contextlib.redirect_stdout(log):
            local.init(local.DockerRunner(), pipeline_root=str(root), raise_on_error=False)
            pipeline = components.load_component_from_file(str(self._compiled))
            pipeline(**arguments)
        shutil.rmtree(self._scratch)
        return self._played

    @contextlib.contextmanager
    def _hooked(self) -> Iterator[None]:
        from kfp.local import docker_task_handler, task_dispatcher

        original = task_dispatcher.run_single_task_implementation
        with (
            mock.patch.dict(os.environ, {"DOCKER_HOST": self._address}),
            mock.patch.object(
                task_dispatcher, "run_single_task_implementation", lambda **call: self._run_task(original, call)
            ),
            mock.patch.object(docker_task_handler, "run_docker_container", self._run_container),
        ):
            yield

    def _run_task(self, original: Callable[..., Any], call: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        from kfp.local import status

        self._component, self._last_line = call["component_name"], ""
        name = self._pods.names[self._component]
        began = time.monotonic()
        outputs, outcome = original(**call)
        state = "succeeded" if outcome is status.Status.SUCCESS else "failed"
        self._played[name] = Played(state, time.monotonic() - began, self._last_line, outputs)
        self._told(f"{name}: {state}, {self._played[name].seconds:.1f} s")
        if state == "failed":
            self._told(f"  {self._last_line}")
        return outputs, outcome

    def _run_container(self, client: Any, image: str, command: list[str], volumes: dict[str, Any], **_: Any) -> int:
        """Start a task's container, keep what it prints, and return its exit status."""
        with (self._place / "logs" / f"{self._pods.names[self._component]}.log").open("w") as log:
            try:
                pod = self._pods.of(self._component)
            except PodError as error:
                self._last_line = f"Error: {error}"
                log.write(self._last_line + "\n")
                return 1
            pod["volumes"] |= volumes
            container = client.containers.create(
                **pod, entrypoint=command[:1], command=command[1:], network_mode="host", detach=True
            )
            try:
                container.start()
                for line in container.logs(stream=True, follow=True):
                    text = line.decode(errors="replace")
                    log.write(text)
                    log.flush()
                    self._last_line = text.rstrip() or self._last_line
                return int(container.wait()["StatusCode"])
            finally:
                container.remove(force=True)
