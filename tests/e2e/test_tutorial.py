"""The tutorial, command by command as it is written; only smaller, by the environment, and on a port of its own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.services import free_ports

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
LINES = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL) for line in block.splitlines()]
SMALL = {
    "DATA__SAMPLE__USERS": 1000,  # whose ids have four digits, as on the page
    "DATA__SAMPLE__ITEMS": 200,
    "DATA__SAMPLE__MEAN_HISTORY": 10,
    "TRM__EPOCHS": 2,
    "POLICY__WARM_START__TRAJECTORIES": 100,
    "POLICY__WARM_START__EPOCHS": 1,
    "POLICY__WARM_START__HISTORIES__PASSES": 1,
    "POLICY__SELECT__CANDIDATES": 40,
    "POLICY__SELECT__ROLLOUTS": 2,
    **{f"POLICY__STAGE{stage}__STEPS": 1 for stage in (1, 2)},
    **{f"POLICY__STAGE{stage}__PROMPTS_PER_STEP": 16 for stage in (1, 2)},
    **{f"POLICY__STAGE{stage}__GATE__MIN_VALID_RATE": 0 for stage in (1, 2)},
    **{f"POLICY__STAGE{stage}__GATE__MIN_MEAN_CALLS": 0 for stage in (1, 2)},
    "EVALUATION__GATE__MIN_VALID_RATE": 0,
    "EVALUATION__BOOTSTRAP_SAMPLES": 100,
}


class Reader:
    """Somebody who follows the page: a directory, a server in another terminal, and the next line to enter."""

    def __init__(self, place: Path) -> None:
        [self.port] = free_ports(1)
        self.place = place
        smaller = {f"DEEPREC__{key}": str(value) for key, value in SMALL.items()}
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        self.smaller = {**self.environment, **smaller}
        self.lines = iter(LINES)
        self.server: subprocess.Popen[bytes] | None = None

    def next(self, begins: str) -> str:
        """The next line of the page, which begins like this, with our port."""
        line = next(self.lines)
        assert line.startswith(begins), line
        return line.replace("localhost:8080", f"127.0.0.1:{self.port}").replace("--port 8080", f"--port {self.port}")

    def enter(self, begins: str) -> Any:
        """Enter the next line; what it prints, as JSON where it is that."""
        done = subprocess.run(
            self.next(begins), shell=True, cwd=self.place, env=self.smaller, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return json.loads(done.stdout) if done.stdout.startswith("{") else done.stdout

    def ask(self) -> dict[str, Any]:
        """Enter the next question; the one answer."""
        [answer] = self.enter("curl -s localhost:8080/v1/models/deeprec:predict")["predictions"]
        return dict(answer)


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    one = Reader(tmp_path)
    yield one
    if one.server:
        one.server.kill()
        one.server.wait()


def test_the_tutorial(reader: Reader) -> None:
    assert [reader.next("make"), reader.next("source")] == ["make install", "source .venv/bin/activate"]
    assert "report.html" in reader.enter("deeprec run")
    page = (reader.place / "runs" / "tutorial" / "report.html").read_text(encoding="utf-8")
    assert "Trajectories to read" in page
    with (reader.place / "server.log").open("w") as log:
        reader.server = subprocess.Popen(
            ["bash", "-c", f"exec {reader.next('deeprec serve')}"],
            cwd=reader.place, env=reader.environment, stdout=log, stderr=log,
        )  # fmt: skip
    until = time.monotonic() + 120
    while not ready(reader.port):
        assert reader.server.poll() is None, (reader.place / "server.log").read_text()
        assert time.monotonic() < until
        time.sleep(0.2)
    first = reader.ask()
    assert (first["user_known"], len(first["items"])) == (True, 5)
    assert len(reader.ask()["items"]) == 5
    stranger = reader.ask()
    assert (stranger["user_known"], stranger["path"]) == (False, "popularity")
    accepted = reader.enter("curl -s localhost:8080/v1/events")
    assert accepted["accepted"] == 2
    known = reader.ask()
    assert known["user_known"]
    assert not {"i0007", "i0011", "i007", "i011"} & {item["id"] for item in known["items"]}
    reader.enter("deeprec run")
    until, line = time.monotonic() + 60, reader.next("curl")
    while True:
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=True)
        [answer] = json.loads(done.stdout)["predictions"]
        if answer["bundle"] != known["bundle"]:
            break
        assert time.monotonic() < until, "the server did not take the new bundle"
        time.sleep(1)
    assert answer["user_known"]
    assert next(reader.lines, None) is None


def ready(port: int) -> bool:
    """Whether the server says that it is."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
