"""A shelf in a directory: what is pushed stays, pointers move by compare-and-set, and nothing else moves them."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from deeprec.bundle.bundle import Bundle, needs_of
from deeprec.bundle.delivery import deliver
from deeprec.bundle.opening import everything, find_source, open_bundle
from deeprec.bundle.publish import extend_bundle
from deeprec.bundle.shelf import PARTS, Shelf
from deeprec.config import BundleConfig
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, StoreError
from deeprec.explore.protocol import TitleBook
from deeprec.objects import LocalObjects, MovedError
from deeprec.types import Item


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> Bundle:
    return Bundle.load(make_bundle(tmp_path / "bundle", list(TitleBook(dataset.catalogue).titles)))


@pytest.fixture
def other(bundle: Bundle, tmp_path: Path) -> Bundle:
    """The same with one item more."""
    return extend_bundle(bundle, [Item("n1", "A film; nobody: knows")], tmp_path / "other")


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf.make(tmp_path / "shelf")


def files(place: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's inode and content."""
    return {
        path.relative_to(place).as_posix(): (path.stat().st_ino, path.read_bytes())
        for path in place.rglob("*")
        if path.is_file()
    }


def test_pushing_sets_the_candidate_and_promoting_moves_what_serves(
    shelf: Shelf, bundle: Bundle, other: Bundle
) -> None:
    assert shelf.push(bundle).written
    assert (shelf.pointer("candidate"), shelf.pointer("live")) == (bundle.version, None)
    with pytest.raises(ArtifactError, match="nothing is live on the shelf"):
        open_bundle(shelf.address)
    move = shelf.promote(bundle.version)
    assert (move.before, move.after) == (None, bundle.version)
    shelf.push(other)
    assert (shelf.pointer("candidate"), shelf.pointer("live")) == (other.version, bundle.version)
    assert open_bundle(shelf.address).version == bundle.version
    assert open_bundle(f"{shelf.address}@{other.version}").catalogue == other.catalogue
    [newest, oldest] = sorted(shelf.versions(), key=lambda one: "live" in one.pointers)
    assert (newest.version, newest.pointers) == (other.version, ("candidate",))
    assert (oldest.version, oldest.pointers) == (bundle.version, ("live",))
    assert oldest.info["serve"] == "policy"


def test_rolling_back_goes_to_what_served_before_each_promotion(shelf: Shelf, bundle: Bundle, other: Bundle) -> None:
    brake = shelf.push(bundle, "trm").version
    for one in (bundle, other):
        shelf.push(one)
    for version in (bundle.version, other.version, brake):
        shelf.promote(version)
    assert shelf.promote(brake).before == brake, "which is no move"
    assert shelf.rollback().after == other.version
    assert shelf.rollback().after == bundle.version
    with pytest.raises(ArtifactError, match=f"nothing was live on the shelf .* before {bundle.version}"):
        shelf.rollback()
    assert [(move.before, move.after, move.why) for move in shelf.moves("live")] == [
        (None, bundle.version, "promote"),
        (bundle.version, other.version, "promote"),
        (other.version, brake, "promote"),
        (brake, other.version, "rollback"),
        (other.version, bundle.version, "rollback"),
    ]
    assert all("@" in move.by and move.at.endswith("+00:00") for move in shelf.moves("live"))


def test_pushing_what_is_there_writes_nothing(shelf: Shelf, bundle: Bundle) -> None:
    first = shelf.push(bundle)
    before = files(Path(shelf.address))
    again = shelf.push(bundle)
    assert (again.version, again.written) == (first.version, False)
    assert files(Path(shelf.address)) == before


def test_the_same_parts_under_another_decision_are_another_version(shelf: Shelf, bundle: Bundle) -> None:
    shelf.push(bundle)
    brake = shelf.push(bundle, "trm")
    assert brake.version != bundle.version
    found = open_bundle(f"{shelf.address}@{brake.version}")
    assert (found.serve, found.version) == ("trm", brake.version)
    assert "pushed with --serve trm" in found.why
    assert len(list((Path(shelf.address) / PARTS).iterdir())) == 2, "parts are shared"
    assert shelf.push(found, "policy").version == bundle.version, "and the way back is the version that was"


def test_a_version_is_of_what_decides_an_answer(
    make_bundle: Callable[..., Path], bundle: Bundle, dataset: Dataset, tmp_path: Path
) -> None:
    again = Bundle.load(make_bundle(tmp_path / "again", list(TitleBook(dataset.catalogue).titles)))
    assert again.version == bundle.version
    assert again.info["parts"]["policy"] != bundle.info["parts"]["policy"], "which were made at other times"
    fewer = Bundle.load(make_bundle(tmp_path / "fewer", list(TitleBook(dataset.catalogue).titles)[:-1]))
    assert fewer.version != bundle.version


def test_a_part_that_is_there_is_never_changed(shelf: Shelf, bundle: Bundle) -> None:
    shelf.push(bundle)
    root = Path(shelf.address)
    before = {name: content for name, (_, content) in files(root / PARTS).items()}
    shelf.push(bundle, "trm")
    assert {name: content for name, (_, content) in files(root / PARTS).items()} == before


def test_what_cannot_be_swept_is_no_fault_of_a_push(
    shelf: Shelf, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Shelf, grace: float = 0) -> list[str]:
        raise StoreError("may not delete")

    monkeypatch.setattr(Shelf, "sweep", refuse)
    assert shelf.push(bundle).version == shelf.pointer("candidate")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"version": "a", "moves": [{"at": 1}]}'])
def test_a_pointer_that_is_none_is_said_in_one_sentence(shelf: Shelf, bundle: Bundle, content: str) -> None:
    shelf.push(bundle)
    (Path(shelf.address) / "live.json").write_text(content)
    for ask in (shelf.live, shelf.rollback, shelf.versions, lambda: shelf.promote(bundle.version)):
        with pytest.raises(ArtifactError, match=r"live\.json is no.*restore it, or push to another shelf"):
            ask()


@pytest.mark.parametrize("at", ["put_folder", "swap"])
def test_a_push_that_fails_leaves_the_shelf_as_it_was(
    shelf: Shelf, bundle: Bundle, other: Bundle, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    shelf.push(bundle)
    shelf.promote(bundle.version)
    state = [shelf.pointer(name) for name in ("candidate", "live")]
    kept, calls = getattr(LocalObjects, at), []

    def cut(self: LocalObjects, name: str, *rest: object) -> None:
        calls.append(name)
        if at == "swap" or len(calls) == 2:
            raise StoreError("cable cut")
        kept(self, name, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(LocalObjects, at, cut)
        with pytest.raises(StoreError, match="cable cut"):
            shelf.push(other)
    assert [shelf.pointer(name) for name in ("candidate", "live")] == state
    assert open_bundle(shelf.address).version == bundle.version
    assert shelf.push(other).version == other.version
    assert open_bundle(f"{shelf.address}@{other.version}").version == other.version


def test_a_copy_that_fails_halfway_leaves_no_file(
    shelf: Shelf, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    before, copied, copy = files(Path(shelf.address)), [], shutil.copyfile

    def cut(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 12:
            raise OSError(28, "No space left on device")
        copy(source, target)

    with monkeypatch.context() as full:
        full.setattr("deeprec.objects.shutil.copyfile", cut)
        with pytest.raises(StoreError, match="No space left"):
            shelf.push(bundle)
    left = {name for name in files(Path(shelf.address)) if name not in before}
    assert not any(name.startswith(bundle.version) for name in left)


def test_of_many_who_promote_at_once_one_wins_each_state(shelf: Shelf, bundle: Bundle, other: Bundle) -> None:
    for one in (bundle, other):
        shelf.push(one)
    lost: list[str] = []
    idle: list[str] = []

    def promote() -> None:
        for step in range(10):
            try:
                move = Shelf(shelf.address).promote((bundle, other)[step % 2].version)
                idle.extend([move.after] if move.before == move.after else [])
            except MovedError as error:
                lost.append(str(error))

    threads = [threading.Thread(target=promote) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    moves = shelf.moves("live")
    assert len(moves) + len(lost) + len(idle) == 60
    assert all(one.after == two.before for one, two in pairwise(moves)), "no move undoes another's"
    assert all("moved meanwhile" in text for text in lost)


def test_many_who_push_the_same_at_once_are_no_error(tmp_path: Path, bundle: Bundle, other: Bundle) -> None:
    address, failed, start = tmp_path / "new", list[BaseException](), threading.Barrier(8)

    def push(number: int) -> None:
        try:
            start.wait()
            Shelf.make(address).push((bundle, other)[number % 2])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    for one in (bundle, other):
        assert open_bundle(f"{address}@{one.version}").version == one.version


def test_only_the_parts_that_are_run_are_looked_at(shelf: Shelf, bundle: Bundle) -> None:
    shelf.push(bundle)
    shelf.promote(bundle.version)
    policy = Path(shelf.address) / PARTS / bundle.info["parts"]["policy"]
    (policy / "tokenizer.json").write_text("{}")
    found = open_bundle(shelf.address, lambda serve: needs_of("trm"))
    assert set(found.parts) == {"trm"}
    with pytest.raises(ArtifactError, match="was opened without its policy"):
        found.part("policy")
    with pytest.raises(ArtifactError, match=r"hash of tokenizer\.json differs"):
        open_bundle(shelf.address)


def test_parts_that_no_version_names_are_swept_after_a_grace(shelf: Shelf, bundle: Bundle, other: Bundle) -> None:
    shelf.push(bundle)
    shelf.push(other)
    root = Path(shelf.address)
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 90_000,) * 2)
    assert shelf.sweep() == []
    (root / other.version / "manifest.json").unlink()
    os.utime(root / PARTS / other.info["parts"]["trm"] / "manifest.json")
    assert shelf.sweep() == [other.version], "young files keep a part"
    os.utime(root / PARTS / other.info["parts"]["trm"] / "manifest.json", (1, 1))
    assert shelf.sweep() == [f"{PARTS}/{other.info['parts']['trm']}"]
    assert open_bundle(f"{root}@{bundle.version}").version == bundle.version
    assert not (root / other.version).exists()


def test_what_is_no_shelf_or_no_version_is_said_in_one_sentence(shelf: Shelf, bundle: Bundle, tmp_path: Path) -> None:
    shelf.push(bundle)
    with pytest.raises(ArtifactError, match=r"is no shelf: it has no shelf\.json; `deeprec bundle push BUNDLE"):
        Shelf(tmp_path)
    with pytest.raises(ArtifactError, match=f"has no version 'beef'; it has {bundle.version}$"):
        shelf.promote("beef")
    with pytest.raises(ArtifactError, match="has no version '0123456789abcdef'"):
        find_source(f"{shelf.address}@0123456789abcdef")
    with pytest.raises(ArtifactError, match="has no version 'beef'"):
        find_source(f"{shelf.address}@beef")
    with pytest.raises(ArtifactError, match="is neither a bundle nor a shelf"):
        find_source(str(tmp_path))
    with pytest.raises(StoreError, match="holds something and is no shelf"):
        Shelf.make(tmp_path / "bundle")
    mark = Path(shelf.address) / "shelf.json"
    mark.write_text(json.dumps({"kind": "shelf", "schema": 99}))
    with pytest.raises(StoreError, match="has schema 99, this version of deeprec reads 1"):
        Shelf(shelf.address)


@pytest.mark.parametrize(
    ("schema", "said"), [(99, "install a newer deeprec"), (None, "make a new one with deeprec run")]
)
def test_a_bundle_of_another_schema_is_refused_with_the_cure(
    bundle: Bundle, tmp_path: Path, schema: int | None, said: str
) -> None:
    place = bundle.index
    info = json.loads((place / "bundle.json").read_text())
    info["schema"] = schema
    if schema is None:
        del info["schema"]
    manifest = json.loads((place / "manifest.json").read_text())
    (place / "bundle.json").write_text(json.dumps(info))
    from deeprec.store import file_digest

    manifest["files"]["bundle.json"] = file_digest(place / "bundle.json")
    (place / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=said):
        Bundle.load(place)


def test_a_run_delivers_its_bundle_as_it_is_told(bundle: Bundle, tmp_path: Path) -> None:
    assert deliver(bundle.index, BundleConfig()) == bundle.version
    assert not (tmp_path / "there").exists()
    deliver(bundle.index, BundleConfig(uri=str(tmp_path / "there")))
    assert Shelf(tmp_path / "there").pointer("live") is None
    for _ in range(2):
        deliver(bundle.index, BundleConfig(uri=str(tmp_path / "there"), promote=True))
    assert len(Shelf(tmp_path / "there").moves("live")) == 1


def test_a_source_says_when_another_bundle_is_there(shelf: Shelf, bundle: Bundle, other: Bundle) -> None:
    shelf.push(bundle)
    source, named = find_source(shelf.address), find_source(f"{shelf.address}@{bundle.version}")
    assert source.state() == ""
    shelf.promote(bundle.version)
    assert source.state() == named.state() == bundle.version
    shelf.push(other)
    assert source.state() == bundle.version, "pushing moves nothing that serves"
    shelf.promote(other.version)
    assert (source.state(), named.state()) == (other.version, bundle.version)
    assert source.open(everything).version == other.version
