"""The images: what is in them, and that they serve as a pod runs them: read-only, without rights, as user 1000."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from deeprec import __version__
from tests.integration.parts import make_run
from tests.kube.engine import BILLS, CONFINED, call, checked, image, running, unavailable
from tests.services import free_ports

pytestmark = [pytest.mark.kube, pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "")]

MOST_BYTES = 2.5e9
COMPILERS = ("gcc", "cc", "g++", "clang", "ld", "make", "nvcc")
LABELS = {"title", "description", "licenses", "source", "version", "revision"}


@pytest.fixture(scope="module", params=["serve", "train"])
def built(request: pytest.FixtureRequest) -> str:
    return image(request.param)


@pytest.fixture(scope="module", params=["serve", "train", "policy"])
def any_built(request: pytest.FixtureRequest) -> str:
    return image(request.param)


@pytest.fixture(scope="module")
def run(built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run's directory with ``bundle`` and ``features``, readable for whoever a container is."""
    place = built_once("run", make_run)
    for path in (place, *place.parents):
        path.chmod(path.stat().st_mode | 0o005)
    checked("chmod", "-R", "a+rX", place)
    return place


def inside(tag: str, *command: object) -> str:
    """What a command prints in a container as a pod runs it."""
    return checked("podman", "run", "--rm", *CONFINED, "--tmpfs", "/home/deeprec", "--entrypoint", "", tag, *command)


def test_it_is_small_and_holds_neither_cuda_nor_a_compiler(built: str) -> None:
    [found] = json.loads(checked("podman", "image", "inspect", built))
    assert found["Size"] <= MOST_BYTES
    assert (
        json.loads(inside(built, "python3", "-c", "import json, torch; print(json.dumps(torch.version.cuda))")) is None
    )
    listed = inside(built, "sh", "-c", "find / -xdev -type f -name '*.so*' 2>/dev/null || true").splitlines()
    assert listed
    assert [name for name in listed if "libcudart" in name or "libcublas" in name or "/nvidia/" in name] == []
    for compiler in COMPILERS:
        assert inside(built, "sh", "-c", f"command -v {compiler} || true") == ""


def test_nothing_of_the_machine_that_built_it_is_left(any_built: str) -> None:
    assert inside(any_built, "sh", "-c", "ls /run/pip /etc/pip.conf /requirements /source 2>/dev/null || true") == ""
    history = checked("podman", "history", "--no-trunc", "--format", "{{.CreatedBy}}", any_built)
    assert "BEGIN CERTIFICATE" not in history


def test_it_is_user_1000_by_name_and_writes_below_one_directory(built: str) -> None:
    assert inside(built, "sh", "-c", "id -u; id -g; id -un; echo $HOME").split() == [
        "1000",
        "0",
        "deeprec",
        "/home/deeprec",
    ]
    places = "[os.environ['TMPDIR'], os.environ['HF_HOME'], os.environ['XDG_CACHE_HOME'], tempfile.gettempdir()]"
    told = inside(built, "python3", "-c", f"import os, tempfile; print(*{places})").split()
    assert all(place.startswith("/home/deeprec") for place in told)
    assert call("podman", "run", "--rm", *CONFINED, "--entrypoint", "", built, "touch", "/opt/deeprec/x").returncode
    other = [part if part != "1000:0" else "10007:0" for part in CONFINED]
    written = call("podman", "run", "--rm", *other, "--entrypoint", "", built, "sh", "-c", "stat -c %a /home/deeprec")
    assert written.stdout.strip()[1] == "7", "a group of 0 may write, whoever the user is"


def test_its_labels_and_its_bill_of_materials_say_what_it_is(any_built: str) -> None:
    [found] = json.loads(checked("podman", "image", "inspect", any_built))
    labels = {name.rpartition(".")[2] for name in found["Labels"] if name.startswith("org.opencontainers.image.")}
    assert labels >= LABELS
    assert found["Labels"]["org.opencontainers.image.version"] == __version__
    bill = BILLS[any_built.partition(":")[0].rpartition("-")[2]]
    there = {one["purl"] for one in bill["components"]}
    assert f"pkg:pypi/deeprec@{__version__}" in there
    assert any(one.startswith("pkg:deb/debian/tini@") for one in there)
    held = {"pkg:deb/debian/libc6"} | (
        {"pkg:pypi/httpx"} if "policy" in any_built else {"pkg:pypi/torch", "pkg:pypi/feast"}
    )
    assert {one.partition("@")[0] for one in there} >= held
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")


def test_the_policys_image_gives_vllm_its_rules_and_writes_below_one_directory() -> None:
    """On a base that stands for vLLM's own, which has no registry to come from here."""
    tag = image("policy")
    ask = "from importlib.metadata import entry_points; print(*entry_points(group='vllm.logits_processors').names)"
    assert inside(tag, "python3", "-c", ask).split() == ["deeprec"]
    assert "--print-command" in inside(tag, "deeprec", "serve", "policy", "--help")
    assert inside(tag, "python3", "-c", "import minio, safetensors") == "", "what a shelf is read with"
    assert inside(tag, "sh", "-c", "id -u; id -g; id -un; echo $HOME $VLLM_CACHE_ROOT").split() == [
        "1000", "0", "deeprec", "/home/deeprec", "/home/deeprec/cache/vllm",
    ]  # fmt: skip
    assert call("podman", "run", "--rm", *CONFINED, "--entrypoint", "", tag, "touch", "/opt/x").returncode


def test_the_command_is_there(any_built: str) -> None:
    done = call("podman", "run", "--rm", *CONFINED, any_built, "--version")
    assert done.stdout == f"deeprec {__version__}\n"


def test_the_training_image_can_run_a_task_and_each_list_is_in_the_right_one() -> None:
    names = ("kfp", "trl", "great_expectations", "kserve", "feast")
    ask = f"from importlib.util import find_spec; print(*(name for name in {names} if find_spec(name)))"
    assert inside(image("train"), "python3", "-c", ask).split() == ["kfp", "trl", "great_expectations", "feast"]
    assert inside(image("serve"), "python3", "-c", ask).split() == ["kserve", "feast"]


def test_the_serving_image_serves_a_bundle_from_a_read_only_mount_and_ends_when_told(run: Path) -> None:
    [port] = free_ports(1)
    command = ("serve", "recommender", "/bundle", "--features", "/features", "--host", "127.0.0.1", "--port", port)
    mounts = (f"{run / 'bundle'}:/bundle:ro", f"{run / 'features'}:/features:ro")
    with running(image("serve"), *command, mounts=mounts) as container:
        url = f"http://127.0.0.1:{port}"
        container.wait_ready(url)
        asked = {"instances": [{"history": [], "k": 3}, {"user_id": "u0001", "k": 3}]}
        answers = httpx.post(f"{url}/v1/models/deeprec:predict", json=asked, timeout=60).json()["predictions"]
        assert [len(answer["items"]) for answer in answers] == [3, 3]
        assert answers[0]["path"] == "popularity"
        container.signal("TERM")
        status, seconds = container.ended(30)
    assert status == 0
    assert seconds < 15
