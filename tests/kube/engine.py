"""Images built and containers run by the tests, with buildah and podman as Debian has them; no daemon, no registry.

Where the registry of the base image cannot be reached, a stand-in is made of Debian's own packages, once, and bears the
same name: Debian 12's Python is the same 3.11.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
BASE = "docker.io/library/python:3.11-slim-bookworm"
NEEDED = ("buildah", "podman", "runc", "debootstrap")
ENVIRONMENT = {
    **os.environ,
    "CONTAINERS_CONF": str(Path(__file__).parent / "containers.conf"),
    "BUILDAH_ISOLATION": "chroot",
    "STORAGE_DRIVER": "overlay",
}
CONFINED = ("--read-only", "--cap-drop", "all", "--security-opt", "no-new-privileges", "--user", "1000:0")
"""How a pod of the "restricted" level runs a container."""


def unavailable() -> str | None:
    """Why images cannot be built here; None where they can."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed"
    if os.geteuid() != 0:
        return "images are built as root here"
    done = call("podman", "info")
    return None if done.returncode == 0 else f"podman does not work here: {done.stderr.strip().splitlines()[-1]}"


def call(*command: object, seconds: float = 600.0, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command with the settings of the tests."""
    given = [str(part) for part in command]
    return subprocess.run(given, capture_output=True, text=True, timeout=seconds, env=ENVIRONMENT | variables, cwd=ROOT)


def checked(*command: object, seconds: float = 600.0, **variables: str) -> str:
    """What a command prints; its last lines are the error where it fails."""
    done = call(*command, seconds=seconds, **variables)
    assert done.returncode == 0, "\n".join((done.stdout + done.stderr).splitlines()[-30:])
    return done.stdout


@cache
def base_image() -> str:
    """The name of the base image, which is there."""
    if call("podman", "image", "exists", BASE).returncode == 0:
        return BASE
    if call("podman", "pull", "--quiet", BASE, seconds=300).returncode == 0:
        return BASE
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        packages = "python3,python3-venv,ca-certificates"
        checked("debootstrap", "--variant=minbase", f"--include={packages}", "bookworm", place)
        checked("sh", "-c", f"tar -C {place} -c . | podman import - {BASE}")
    return BASE


@cache
def vllm_stand_in() -> str:
    """The name of an image that stands for vLLM's own, of some ten GB: a Python with pip, and no vLLM."""
    name = "localhost/vllm-stand-in"
    with tempfile.TemporaryDirectory() as place:
        text = f"FROM {base_image()}\nRUN python3 -m venv /opt/venv\nENV PATH=/opt/venv/bin:$PATH\n"
        (Path(place) / "Containerfile").write_text(text)
        checked("buildah", "build", "--layers", "--tag", name, place)
    return name


@cache
def image(name: str) -> str:
    """The tag of an image of the project, built from this checkout; layers are kept from one run to the next."""
    dist = tempfile.mkdtemp(prefix="deeprec-images-")
    bases = {"PYTHON_IMAGE": base_image()} | ({"VLLM_IMAGE": vllm_stand_in()} if name == "policy" else {})
    printed = checked(ROOT / "containers" / "build", IMAGES=name, DIST=dist, **bases)
    BILLS[name] = json.loads((Path(dist) / f"{name}.cdx.json").read_text(encoding="utf-8"))
    shutil.rmtree(dist)
    return printed.splitlines()[-1].partition(": ")[0]


BILLS: dict[str, dict[str, Any]] = {}
"""Bills of materials of the images that were built."""


@dataclass
class Container:
    """One that runs."""

    name: str

    @property
    def log(self) -> str:
        """What it has printed."""
        done = call("podman", "logs", self.name)
        return done.stdout + done.stderr

    @property
    def status(self) -> int | None:
        """Its exit status; None while it runs."""
        state = json.loads(checked("podman", "container", "inspect", self.name))[0]["State"]
        return None if state["Running"] else int(state["ExitCode"])

    def signal(self, name: str) -> None:
        """Send it a signal."""
        checked("podman", "kill", "--signal", name, self.name)

    def wait_ready(self, url: str, seconds: float = 120) -> None:
        """Return when the server that it runs says that it is ready; AssertionError, with its log, when it does not."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.status is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200:
                    return
            time.sleep(0.2)
        raise AssertionError(f"not ready:\n{self.log[-3000:]}")

    def ended(self, seconds: float) -> tuple[int, float]:
        """Its exit status, and after how many seconds it was there."""
        began = time.monotonic()
        while (status := self.status) is None:
            assert time.monotonic() < began + seconds, f"still running after {seconds} s:\n{self.log[-2000:]}"
            time.sleep(0.1)
        return status, time.monotonic() - began


@contextlib.contextmanager
def running(tag: str, *command: object, mounts: Sequence[str] = (), options: Sequence[str] = ()) -> Iterator[Container]:
    """A container as a pod runs it: read-only, without capabilities, as user 1000, one directory to write in."""
    places = [part for mount in mounts for part in ("--volume", mount)]
    started = checked(
        "podman", "run", "--detach", *CONFINED, "--tmpfs", "/home/deeprec:mode=1777", *places, *options, tag, *command
    )
    container = Container(started.strip())
    try:
        yield container
    finally:
        call("podman", "rm", "--force", container.name)
