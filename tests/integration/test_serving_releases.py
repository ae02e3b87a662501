"""A bundle takes another's place on a server under load, and bundles that cannot be used do not."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.parts import copy_with_another_trm, make_bundle
from tests.integration.servers import START_SECONDS, ServerProcess, deeprec, started

QUICK = ["--set", "serving.poll_seconds=0.2", "--set", "serving.grace_ms=120000", "--port", "0"]


@dataclass
class Load:
    """What clients that never pause were answered: the versions, and everything that is no answer."""

    versions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stopping: bool = False
    """Whether the server was told to stop: connections may then be closed, and what is answered is an answer."""


@asynccontextmanager
async def load(server: ServerProcess, clients: int = 3) -> AsyncIterator[Load]:
    """Clients that ask both models all the time, until the block ends."""
    found, done = Load(), asyncio.Event()

    async def ask(number: int) -> None:
        model = ("deeprec", "deeprec-trm")[number % 2]
        body = {"instances": [{"user_id": "u01", "k": 3}, {"history": ["i01", "i02"], "k": 3}]}
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            while not done.is_set():
                try:
                    answer = await client.post(f"/v1/models/{model}:predict", json=body)
                    versions = {one["bundle"] for one in answer.raise_for_status().json()["predictions"]}
                    assert len(versions) == 1, f"one body, two bundles: {versions}"
                    found.versions.update(versions)
                except httpx.TransportError as error:
                    if found.stopping:
                        return
                    found.failures.append(repr(error))
                except (httpx.HTTPError, AssertionError) as error:
                    found.failures.append(repr(error))
                await asyncio.sleep(0.02)

    tasks = [asyncio.create_task(ask(number)) for number in range(clients)]
    try:
        yield found
    finally:
        done.set()
        await asyncio.gather(*tasks)


async def becomes(happened: Callable[[], Any], otherwise: Callable[[], str]) -> None:
    """Wait until ``happened()`` is true, without standing in the way of the load."""
    for _ in range(START_SECONDS * 5):
        if await asyncio.to_thread(happened):
            return
        await asyncio.sleep(0.2)
    raise AssertionError(otherwise())


def version(bundle: Path) -> str:
    return str(json.loads((bundle / "bundle.json").read_text())["version"])


def overview(server: ServerProcess) -> Any:
    return httpx.get(f"{server.url}/v1/overview", timeout=60).json()


def turn(link: Path, target: Path) -> None:
    """Let the link point to ``target`` in one step."""
    fresh = link.with_name(link.name + ".new")
    fresh.symlink_to(target)
    os.replace(fresh, link)


@pytest.fixture
def place(small_run: Path, tmp_path: Path) -> Iterator[Path]:
    """A directory with three bundles, of which ``two`` serves its policy, and the link ``current`` to ``one``."""
    for number, name in enumerate(("one", "two", "three"), start=1):
        make_bundle(small_run, tmp_path / name, serve="policy" if name == "two" else "trm", batch_size=number)
    (tmp_path / "current").symlink_to(tmp_path / "one")
    return tmp_path


def test_bundles_are_swapped_under_load_without_a_failed_request(small_run: Path, place: Path) -> None:
    command = deeprec("serve", "recommender", place / "current", "--features", small_run / "features", *QUICK)

    async def main(server: ServerProcess) -> None:
        async with load(server) as found:
            first = version(place / "one")
            await becomes(lambda: found.versions[first], lambda: str(found))
            for name in ("two", "three", "one"):
                turn(place / "current", place / name)
                asked = found.versions[version(place / name)]
                await becomes(lambda: found.versions[version(place / name)] > asked, lambda: server.printed)  # noqa: B023
            bad = copy_with_another_trm(place / "two", place / "bad")
            turn(place / "current", bad)
            await becomes(lambda: overview(server)["refused"], lambda: server.printed)
            assert "is not the one it was made with" in overview(server)["refused"]
            assert overview(server)["bundle"]["version"] == first
            assert server.metric("deeprec_bundle_refused") == 1
            before = found.versions.total()
            await becomes(lambda: found.versions.total() > before + 5, lambda: str(found))
            turn(place / "current", place / "two")
            await becomes(
                lambda: overview(server)["bundle"]["version"] == version(place / "two"), lambda: server.printed
            )
            assert overview(server)["refused"] is None
            assert server.metric("deeprec_bundles_refused_total") == 1
            assert server.metric("deeprec_bundle_refused") == 0
            assert server.metric("deeprec_bundle_info", version=version(place / "two")) == 1
            assert server.metric("deeprec_bundle_info") == 1
            found.stopping = True
            assert await asyncio.to_thread(server.stop) == 0
        assert found.failures == []
        assert set(found.versions) == {version(place / name) for name in ("one", "two", "three")}

    with started(command, place / "log") as server:
        asyncio.run(main(server))
        assert server.printed.count("is not the one it was made with") == 1
        assert "Traceback" not in server.printed


def test_a_directory_that_is_replaced_half_written_or_changed(small_run: Path, place: Path) -> None:
    """The TRM's server, told by SIGHUP alone: what is not whole is refused until it is."""
    home = place / "home"
    shutil.copytree(place / "one", home)
    command = deeprec("serve", "trm", home, "--features", small_run / "features", "--port", "0")

    def serves(server: ServerProcess) -> str:
        body = {"instances": [{"user_id": "u01"}]}
        answer = httpx.post(f"{server.url}/v1/models/deeprec-trm:predict", json=body, timeout=60)
        return str(answer.raise_for_status().json()["predictions"][0]["bundle"])

    async def main(server: ServerProcess) -> None:
        async def refused(count: int, part: str) -> None:
            server.process.send_signal(signal.SIGHUP)
            await becomes(lambda: server.metric("deeprec_bundles_refused_total") == count, lambda: server.printed)
            assert part in server.printed
            assert serves(server) == version(place / "one")

        shutil.rmtree(home)
        await refused(1, "does not exist")
        shutil.copytree(place / "two", home, ignore=shutil.ignore_patterns("manifest.json"))
        await refused(2, "has no manifest.json")
        shutil.copyfile(place / "two" / "manifest.json", home / "manifest.json")
        await refused(3, "is missing")
        shutil.rmtree(home)
        shutil.copytree(place / "two", home)
        (home / "popularity.safetensors").write_bytes(b"changed")
        await refused(4, "hash of popularity.safetensors differs")
        shutil.copyfile(place / "two" / "popularity.safetensors", home / "popularity.safetensors")
        server.process.send_signal(signal.SIGHUP)
        await becomes(lambda: serves(server) == version(place / "two"), lambda: server.printed)

    with started([*command, "--set", "serving.poll_seconds=0"], place / "log") as server:
        asyncio.run(main(server))
        assert server.stop() == 0
        assert "Traceback" not in server.printed


def test_a_server_follows_what_is_live_in_object_storage(small_run: Path, place: Path, client: Any) -> None:
    from deeprec.bundle.bundle import Bundle
    from deeprec.bundle.shelf import Shelf

    shelf = Shelf.make("s3://models/served/shelf")
    shelf.push(Bundle.load(place / "one"))
    shelf.promote(version(place / "one"))
    cache = ("--set", f"serving.cache={place / 'cache'}")
    command = deeprec("serve", "trm", shelf.address, "--features", small_run / "features", *QUICK, *cache)

    def serves(server: ServerProcess) -> bool:
        return server.metric("deeprec_bundle_info", version=version(place / "two")) == 1

    with started(command, place / "log") as server:
        assert server.metric("deeprec_bundle_info", version=version(place / "one")) == 1
        shelf.push(Bundle.load(place / "two"))
        time.sleep(0.5)
        assert not serves(server), "pushing is not promoting"
        shelf.promote(version(place / "two"))
        asyncio.run(becomes(lambda: serves(server), lambda: server.printed))
        fetched = {path.name for path in (place / "cache" / "PARTS").iterdir()}
        assert fetched == {Bundle.load(place / name).info["parts"]["trm"] for name in ("one", "two")}, "no policy"
        body = {"instances": [{"user_id": "u01"}]}
        answer = httpx.post(f"{server.url}/v1/models/deeprec-trm:predict", json=body, timeout=60)
        assert answer.json()["predictions"][0]["bundle"] == version(place / "two")
        assert server.stop() == 0


def test_promoting_is_the_only_turn_of_what_histories_are_read(small_run: Path, tmp_path: Path) -> None:
    """Two bundles of two publications in one place: a server reads its bundle's, and events are in both."""
    from deeprec.bundle.bundle import Bundle
    from deeprec.bundle.shelf import Shelf
    from deeprec.config import FeaturesConfig
    from deeprec.features.publish import publish

    features, short = tmp_path / "features", tmp_path / "published"
    shutil.copytree(small_run / "features", features)
    publish(small_run / "dataset", FeaturesConfig(path=str(features), history_length=2), short)
    shelf = Shelf.make(tmp_path / "shelf")
    whole = shelf.push(Bundle.load(make_bundle(small_run, tmp_path / "one", serve="trm"))).version
    cut = shelf.push(Bundle.load(make_bundle(small_run, tmp_path / "two", serve="trm", published=short))).version
    assert whole != cut
    shelf.promote(whole)
    command = deeprec("serve", "recommender", shelf.address, "--features", features, *QUICK)

    def had(server: ServerProcess) -> int:
        return int(httpx.get(f"{server.url}/v1/history", params={"user_id": "u01"}, timeout=60).json()["interactions"])

    with started(command, tmp_path / "log") as server:
        before = had(server)
        assert before > 3
        item = Bundle.load(tmp_path / "one").catalogue.items[0].item_id
        body = {"events": [{"event_id": "e1", "user_id": "new", "item_id": item}]}
        assert httpx.post(f"{server.url}/v1/events", json=body, timeout=60).json()["accepted"] == 1
        shelf.promote(cut)
        asyncio.run(becomes(lambda: had(server) == 2, lambda: server.printed))
        answer = httpx.get(f"{server.url}/v1/history", params={"user_id": "new"}, timeout=60).json()
        assert answer["interactions"] == 1
        shelf.rollback()
        asyncio.run(becomes(lambda: had(server) == before, lambda: server.printed))
        assert server.stop() == 0
