"""Servers that several test files share, each started once in a test process.

A file that uses them says ``pytest_plugins = ["tests.integration.rooms"]``, and stands among ``TOGETHER`` in
``tests/conftest.py``, so that one worker has all of them.

The recommender is started as a user starts it, and ends with SIGTERM and exit status 0 after the last test. The
policy's server is the tests' own, in this process, since vLLM is seldom there.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.integration.parts import make_run
from tests.integration.servers import ServerProcess, deeprec, started
from tests.integration.taught import teach
from tests.policy_server import serving_policy

PATIENCE_MS = 120_000
"""The recommender's deadline where a request names none: its policy always gets to answer."""


@pytest.fixture(scope="session")
def plain(built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """A run's directory, see ``parts.make_run``. Read it, never write into it."""
    return built_once("run", make_run)


@pytest.fixture(scope="session")
def taught(plain: Path, built_once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """``plain`` with a policy that answers, see ``taught.teach``. Read it, never write into it."""
    return built_once("taught", lambda place: teach(plain, place))


@contextmanager
def _until_told_to_stop(command: list[str], log: Path) -> Iterator[ServerProcess]:
    with started(command, log, forked=False) as server:
        yield server
        assert server.stop() == 0, server.printed
        assert "Traceback" not in server.printed


@pytest.fixture(scope="session")
def recommender(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """``deeprec serve recommender`` of ``taught``, with features of its own, so that it may be sent events."""
    place = tmp_path_factory.mktemp("recommender")
    shutil.copytree(taught / "features", place / "features", symlinks=True)
    patient = ("--set", f"serving.max_deadline_ms={PATIENCE_MS}", "--deadline-ms", PATIENCE_MS)
    command = deeprec("serve", "recommender", taught, "--features", place / "features", "--port", 0, *patient)
    with _until_told_to_stop(command, place / "log") as server:
        yield server


@pytest.fixture(scope="session")
def policy_server(taught: Path) -> Iterator[str]:
    """The address of ``taught``'s policy behind OpenAI's completions API; see ``tests.policy_server``."""
    with serving_policy(taught / "bundle" / "policy") as url:
        yield url
