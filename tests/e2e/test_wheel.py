"""The wheel, built, and installed into empty environments from the lock: what is in it, and what a client's does."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deeprec import __version__
from tests.unit.client.scripted_server import ScriptedServer
from tests.unit.client.test_client import predicted

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SOURCES = {
    "src/deeprec": "deeprec",
    **{name: f"deeprec/{name}" for name in ("components", "pipelines", "configs", "feature_repo")},
}
ASK = """
import sys
from deeprec.client import Client
with Client(sys.argv[1]) as client:
    print(client.recommend(user_id="u1", preference="comedy", k=1).items[0].title)
"""


def run(*command: object, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    given = [str(part) for part in command]
    return subprocess.run(given, text=True, capture_output=True, timeout=300, cwd="/", env=plain | variables)


def uv(*command: object) -> None:
    done = run(Path(sys.executable).with_name("uv"), *command, UV_PYTHON_DOWNLOADS="never")
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("wheel")
    uv("build", "--quiet", "--wheel", "--out-dir", place, ROOT)
    [found] = place.glob("*.whl")
    return found


@pytest.fixture(scope="module", params=["3.11", "3.12"])
def client_only(wheel: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """The ``bin`` of an environment with the wheel and what a client needs."""
    place = tmp_path_factory.mktemp("client") / "environment"
    at_hand = ":".join([os.environ["PATH"], *map(str, Path.home().glob(f".pyenv/versions/{request.param}*/bin"))])
    made = run(
        Path(sys.executable).with_name("uv"), "venv", "--python", request.param, place,
        UV_PYTHON_DOWNLOADS="never", PATH=at_hand,
    )  # fmt: skip
    if made.returncode and request.param != "3.11":
        pytest.skip(f"there is no Python {request.param} here: {made.stderr.strip()}")
    assert made.returncode == 0, made.stderr
    python = place / "bin" / "python"
    uv("pip", "install", "--python", python, "--no-deps", "--require-hashes", "-r", ROOT / "requirements" / "base.txt")
    uv("pip", "install", "--python", python, "--no-deps", wheel)
    uv("pip", "check", "--python", python)
    return place / "bin"


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = run("git", "-C", ROOT, "ls-files", *SOURCES).stdout.split()
    for name in tracked:
        [(source, target)] = [(a, b) for a, b in SOURCES.items() if name.startswith(f"{a}/")]
        assert f"{target}/{name.removeprefix(source + '/')}" in packed
    assert any(name.endswith("licenses/LICENSE") for name in packed)
    assert wheel.name.startswith(f"deeprec-{__version__}-")


def test_a_client_asks_a_server(client_only: Path) -> None:
    with ScriptedServer(predicted()) as server:
        done = run(client_only / "python", "-c", ASK, server.url)
    assert (done.stdout, done.stderr) == ("Heat\n", "")


def test_without_a_list_the_command_names_them_in_one_line(client_only: Path) -> None:
    done = run(client_only / "deeprec", "--help")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "serve, train, pipeline, cluster, gpu, dev; pip install 'deeprec[serve]'" in done.stderr
    uv("pip", "install", "--python", client_only / "python", "-c", ROOT / "requirements" / "dev.txt", "typer", "rich")
    assert run(client_only / "deeprec", "--version").stdout == f"deeprec {__version__}\n"
    done = run(client_only / "deeprec", "run", "--workdir", "/tmp/none")
    assert done.returncode == 2
    assert done.stderr == "error: this needs kfp, which is not installed; pip install 'deeprec[pipeline]'\n"


def test_the_locks_are_what_pyproject_asks_for(tmp_path: Path) -> None:
    """``make lock`` changes nothing: what is locked stays where it still fits."""
    for name in ("pyproject.toml", "Makefile", "requirements"):
        run("cp", "-r", ROOT / name, tmp_path)
    done = run("make", "-C", tmp_path, "lock", f"UV={Path(sys.executable).with_name('uv')}")
    assert done.returncode == 0, done.stderr
    for file in (ROOT / "requirements").iterdir():
        assert (tmp_path / "requirements" / file.name).read_text() == file.read_text(), "make lock"
