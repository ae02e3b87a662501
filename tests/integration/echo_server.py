"""A server of one made-up model, run as a script by the tests of the server itself.

``python echo_server.py GATE [section.key=value …]``. The model waits as long as a request says and answers how many
requests it had at a time. It is loading, in a thread that nothing ends, until there is the file GATE, and fails when
that holds a text.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from deeprec.cli.serve.options import read_serving
from deeprec.errors import ArtifactError, RequestError
from deeprec.serving.http.address import bind
from deeprec.serving.http.admission import Admission
from deeprec.serving.http.model import JsonModel
from deeprec.serving.http.server import run
from deeprec.serving.http.service import Port, Service
from deeprec.serving.metrics import ServingMetrics
from deeprec.serving.threads import in_thread_of_its_own
from deeprec.types import JsonDict

STUCK = "stuck"
"""Instead of an override: one of the server's helper threads never ends, and neither does its closing."""


class Wait(BaseModel):
    """Milliseconds to wait."""

    ms: int = Field(0, ge=0)


class Waited(BaseModel):
    """Most requests that were waiting at a time since none was."""

    beside: int


class EchoModel(JsonModel):
    """Waits."""

    REQUEST = Wait
    ANSWER = Waited
    now = most = 0

    def read(self, raw: Any) -> int:
        if not isinstance(raw, dict) or not isinstance(raw.get("ms", 0), int):
            raise RequestError('write {"ms": 10}')
        return int(raw.get("ms", 0))

    async def answer(self, request: int) -> JsonDict:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(request / 1000)
            if request == 13:
                raise RuntimeError("a secret of the server")
            return {"beside": self.most}
        finally:
            self.now -= 1
            self.most = self.most if self.now else 0


router = APIRouter()


@router.get("/")
def page() -> str:
    """A page before KServe's own answer at this path."""
    return "page"


def main(gate: Path, *overrides: str) -> None:
    """Serve until told to stop."""
    serving = read_serving(None, [one for one in overrides if one != STUCK])
    bound = bind(serving.host, 0)

    def load() -> None:
        while not gate.exists():
            time.sleep(0.05)
        if gate.read_text():
            raise ArtifactError(gate.read_text())

    async def start() -> None:
        await in_thread_of_its_own(load)
        if STUCK in overrides:  # as what waits for a disk or a network that never answers
            asyncio.get_running_loop().run_in_executor(None, time.sleep, 10_000)

    async def close() -> None:
        print("closed", flush=True)
        if STUCK in overrides:
            await asyncio.Event().wait()

    print(f"http://{serving.host}:{bound.getsockname()[1]}", flush=True)
    metrics = ServingMetrics()
    port = Port([EchoModel("echo", serving)], [router], metrics=True)
    run(Service(serving, port, Admission(serving, metrics.shed), metrics=metrics, start=start, close=close), [bound])


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
