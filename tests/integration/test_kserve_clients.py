"""KServe's own clients against a server: V1, V2, and NumPy tensors as they are sent by default."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deeprec.serving.http.kserve_server import command_line_hidden
from tests.integration.servers import ServerProcess, started

with command_line_hidden():
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

ECHO = Path(__file__).with_name("echo_server.py")


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of one model that waits."""
    place = tmp_path_factory.mktemp("echo")
    (place / "gate").write_text("")
    with started([sys.executable, str(ECHO), str(place / "gate")], place / "log") as server:
        yield server


def client(protocol: str) -> InferenceRESTClient:
    return InferenceRESTClient(RESTConfig(protocol=protocol, timeout=60, retries=0))


def test_v1(echo: ServerProcess) -> None:
    async def ask() -> object:
        one = client("v1")
        answer = await one.infer(echo.url, {"instances": [{"ms": 1}, {"ms": 50}]}, model_name="echo")
        assert await one.is_model_ready(echo.url, "echo")
        await one.close()
        return answer

    assert asyncio.run(ask()) == {"predictions": [{"beside": 2}, {"beside": 2}]}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (1, 2)])
def test_v2_with_numpy_tensors(echo: ServerProcess, binary: bool, shape: tuple[int, ...]) -> None:
    async def ask() -> list[str]:
        texts = np.array([json.dumps({"ms": 1}), json.dumps({"ms": 50})], dtype=np.object_).reshape(shape)
        tensor = InferInput("request", list(shape), "BYTES")
        tensor.set_data_from_numpy(texts, binary_data=binary)
        one = client("v2")
        answer = await one.infer(echo.url, InferRequest("echo", [tensor]), model_name="echo")
        assert await one.is_server_ready(echo.url)
        assert await one.is_server_live(echo.url)
        assert await one.is_model_ready(echo.url, "echo")
        await one.close()
        [output] = answer.outputs
        assert (output.name, output.datatype, output.shape) == ("response", "BYTES", [2])
        return [element.decode() if isinstance(element, bytes) else element for element in output.as_numpy().flatten()]

    assert [json.loads(text) for text in asyncio.run(ask())] == [{"beside": 2}] * 2


def test_v2_refuses_in_a_sentence_that_its_client_shows(echo: ServerProcess) -> None:
    async def ask() -> None:
        tensor = InferInput("request", [1], "FP32")
        tensor.set_data_from_numpy(np.ones(1, dtype=np.float32))
        one = client("v2")
        try:
            await one.infer(echo.url, InferRequest("echo", [tensor]), model_name="echo")
        finally:
            await one.close()

    with pytest.raises(Exception, match="BYTES"):
        asyncio.run(ask())
