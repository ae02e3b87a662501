"""A shelf on a real S3 server process (SeaweedFS): many writers at once, a killed push, parts fetched once."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle, needs_of
from deeprec.bundle.opening import everything, find_source, open_bundle
from deeprec.bundle.shelf import PARTS, Shelf
from deeprec.cli import app
from deeprec.errors import ArtifactError, StoreError
from deeprec.objects import MovedError, open_objects
from tests.integration.parts import make_bundle

WRITERS = 12


@pytest.fixture(autouse=True)
def store(seaweed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("AWS_ENDPOINT_URL", seaweed),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="module")
def bundles(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    place = tmp_path_factory.mktemp("bundles")
    make_bundle(small_run, place / "two", items_per_call=7)
    return Bundle.load(small_run / "bundle"), Bundle.load(place / "two")


def test_twelve_writers_at_once_undo_nothing(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    address, lost, idle, failed = "s3://models/raced", list[str](), list[str](), list[BaseException]()

    def write(number: int) -> None:
        try:
            mine = bundles[number % 2]
            shelf = Shelf.make(address)
            shelf.push(mine)
            for _ in range(5):
                try:
                    move = shelf.promote(mine.version)
                    idle.extend([move.after] if move.before == move.after else [])
                except MovedError as error:
                    lost.append(str(error))
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    shelf = Shelf(address)
    moves = shelf.moves("live")
    assert len(moves) + len(lost) + len(idle) == WRITERS * 5
    assert all(one.after == two.before for one, two in pairwise(moves))
    assert {one.version for one in shelf.versions()} == {bundle.version for bundle in bundles}
    for bundle in bundles:
        found = shelf.open(bundle.version, everything, tmp_path)
        assert found.version == bundle.version


def test_a_push_that_is_killed_leaves_the_shelf_as_it_was(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    shelf = Shelf.make("s3://models/killed")
    shelf.push(bundles[0])
    shelf.promote(bundles[0].version)
    script = (
        "import sys, time\n"
        "from deeprec.bundle.bundle import Bundle\n"
        "from deeprec.bundle.shelf import Shelf\n"
        "from deeprec.objects import S3Objects\n"
        "put = S3Objects.put\n"
        "def slow(self, name, source):\n"
        "    put(self, name, source)\n"
        "    print(name, flush=True)\n"
        "    time.sleep(0.5)\n"
        "S3Objects.put = slow\n"
        "Shelf('s3://models/killed').push(Bundle.load(sys.argv[1]))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(bundles[1].index)], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    process.stdout.readline()
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (shelf.pointer("candidate"), shelf.pointer("live")) == (bundles[0].version,) * 2
    assert [one.version for one in shelf.versions()] == [bundles[0].version]
    assert shelf.push(bundles[1]).written
    assert open_bundle(f"{shelf.address}@{bundles[1].version}", cache=str(tmp_path)).version == bundles[1].version


def test_parts_are_fetched_once_and_only_those_that_run(
    bundles: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeprec.objects import S3Objects

    shelf = Shelf.make("s3://models/fetched")
    for bundle in bundles:
        shelf.push(bundle)
    fetched: list[str] = []
    get = S3Objects.get

    def noted(self: S3Objects, name: str, target: Path) -> None:
        fetched.append(name)
        get(self, name, target)

    monkeypatch.setattr(S3Objects, "get", noted)
    parts = bundles[0].info["parts"]
    source = find_source(f"{shelf.address}@{bundles[0].version}", str(tmp_path))
    source.open(lambda serve: needs_of("trm"))
    assert not any(parts["policy"] in name for name in fetched)
    source.open(lambda serve: needs_of("policy", remote=True))
    assert any(name.startswith(f"{PARTS}/{parts['policy']}/tokenizer") for name in fetched)
    assert not any(name.startswith(f"{PARTS}/{parts['policy']}") and "safetensors" in name for name in fetched)
    source.open()
    before = list(fetched)
    source.open()
    assert fetched == before, "what is in the cache is not fetched again"
    assert source.open().catalogue == bundles[0].catalogue
    (tmp_path / PARTS / parts["trm"] / "model.safetensors").write_bytes(b"damaged")
    assert source.open().version == bundles[0].version, "what was damaged in the cache is fetched anew"
    name = f"{PARTS}/{parts['trm']}/model.safetensors"
    open_objects(shelf.address).write(name, b"changed")
    with pytest.raises(ArtifactError, match=r"s3://models/fetched/PARTS/.*hash of model\.safetensors differs"):
        find_source(f"{shelf.address}@{bundles[1].version}", str(tmp_path / "fresh")).open()
    assert not (tmp_path / "fresh" / PARTS / parts["trm"]).exists()


def test_a_policy_server_fetches_its_part_alone(bundles: tuple[Bundle, Bundle], tmp_path: Path) -> None:
    shelf = Shelf.make("s3://models/policies")
    shelf.promote(shelf.push(bundles[0]).version)
    arguments = ["serve", "policy", shelf.address, "--set", f"serving.cache={tmp_path}", "--print-command"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    parts = bundles[0].info["parts"]
    assert str(tmp_path / PARTS / parts["policy"]) in shlex.split(result.output)
    assert (tmp_path / PARTS / parts["policy"] / "model.safetensors").is_file()
    assert not (tmp_path / PARTS / parts["trm"]).exists()


def test_a_policy_is_evaluated_from_a_shelf_in_object_storage(
    bundles: tuple[Bundle, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy and the TRM are fetched; what is asked for then is the dataset."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shelf = Shelf.make("s3://models/evaluated")
    shelf.promote(shelf.push(bundles[0]).version)
    for options in ((), ("--dataset", tmp_path / "absent", "--trm", shelf.address)):
        result = CliRunner().invoke(app, ["policy", "evaluate", shelf.address, *map(str, options)])
        assert "--dataset is missing" in str(result.exception) or "absent" in str(result.exception)
    fetched = {path.name for path in (tmp_path / "deeprec" / PARTS).iterdir()}
    assert fetched == {bundles[0].info["parts"][name] for name in ("policy", "trm")}


class Careless(BaseHTTPRequestHandler):
    """An S3 server that takes every write, whatever its condition."""

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(200)

    def do_DELETE(self) -> None:
        self._answer(204)

    def do_GET(self) -> None:
        listing = "list-type" in self.path or "location" in self.path
        name = "LocationConstraint" if "location" in self.path else "ListBucketResult"
        rows = "<Name>models</Name><Prefix></Prefix><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated>"
        body = f'<{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{rows}</{name}>'
        missing = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>"
        self._answer(200 if listing else 404, (body if listing else missing).encode())

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def careless() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Careless)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_store_that_ignores_the_condition_is_refused(careless: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", careless)
    with pytest.raises(StoreError, match="ignores the condition of a conditional write"):
        Shelf.make("s3://models/shelf")


def test_credentials_come_from_a_file_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(StoreError, match="S3 needs credentials"):
        open_objects("s3://models/x")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id = key\naws_secret_access_key = secret\n")
    place = open_objects("s3://models/file")
    place.write("a", b"1")
    found = place.read("a")
    assert found is not None
    assert found.content == b"1"
    assert [listed.name for listed in place.names()] == ["a"]
    assert place.read("b") is None
    place.remove("a")
    deadline = time.monotonic() + 5
    while place.names() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert place.names() == []
