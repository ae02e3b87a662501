"""The how-to page of calling the recommender: its curl, Python and JavaScript run against real servers."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.cli import app
from tests.integration.servers import ServerProcess

pytest_plugins = ["tests.integration.rooms"]
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "call-it.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


CURLS = [block for block in blocks("sh") if block.startswith("curl")]
COMMANDS = [block.strip() for block in blocks("sh") if block.startswith("deeprec")]


@pytest.fixture
def servers(recommender: ServerProcess, policy_server: str) -> dict[str, str]:
    """The page's ports and what listens there."""
    return {"8080": recommender.url, "8082": policy_server}


def here(text: str, servers: dict[str, str]) -> str:
    """The page's text with the test's addresses, users and items, and time enough for a busy machine."""
    for port, url in servers.items():
        text = text.replace(f"http://localhost:{port}", url)
    text = re.sub(r"\b([iu])0\d*?([1-9]\d?0?)\b", lambda found: f"{found[1]}{int(found[2]) % 50:02}", text)
    return re.sub(r"(deadline_ms\W+)\d{3,}", r"\g<1>20000", text)


def test_the_page_has_every_kind() -> None:
    assert (len(CURLS), len(blocks("python")), len(blocks("js")), len(COMMANDS)) == (6, 4, 2, 4)


@pytest.mark.parametrize("number", range(len(CURLS)))
def test_curl(servers: dict[str, str], number: int) -> None:
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = here(CURLS[number], servers)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=True)
    if "/v1/explore" in command:
        assert re.match(r"event: trm\ndata: \{", done.stdout), done.stdout
        assert "event: answer\n" in done.stdout
        return
    answer = json.loads(done.stdout)
    assert "error" not in answer, answer
    if "/v1/events" in command:
        assert answer["accepted"] == 1
    elif "deeprec:predict" in command:
        assert answer["predictions"][0]["items"]
    else:
        assert answer.get("outputs") or answer["choices"]


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python(servers: dict[str, str], number: int, taught: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(taught)
    code = here(blocks("python")[number], servers)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) >= 3
    if number == 2:
        assert lines[1] == "1 ()"
        assert re.match(r"1 \S", lines[2]), "a new user's first event has made the policy explore"
        assert lines[-1].startswith("400 k is 100000, but this server answers at most")


@pytest.mark.parametrize("number", range(len(blocks("js"))))
def test_javascript(servers: dict[str, str], number: int, tmp_path: Path) -> None:
    if shutil.which("node") is None:
        pytest.skip("there is no node")
    script = tmp_path / "call.mjs"
    script.write_text(here(blocks("js")[number], servers), encoding="utf-8")
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert re.match(r"1 \S+", done.stdout), done.stdout
    assert "policy\n" in done.stdout or "'," in done.stdout


def test_every_command_and_option_exists() -> None:
    for command in COMMANDS:
        _, serve, name, *rest = command.split()
        shown = CliRunner().invoke(app, [serve, name, "--help"], env={"COLUMNS": "200"}).output
        assert all(option in shown for option in rest if option.startswith("--")), command


def test_the_client_has_what_the_page_says() -> None:
    import deeprec.client as client

    for name in ("ServerUnreachable", "ServerBusy", "RequestRefused", "ServerFailed"):
        assert f"`{name}`" in PAGE
        assert issubclass(getattr(client, name), client.ClientError)
