"""``deeprec bundle …``: what an operator reads, and that one command moves what serves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.cli import app
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, ConfigError, DeepRecError
from deeprec.explore.protocol import TitleBook


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["bundle", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def fails(kind: type[DeepRecError], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle", list(TitleBook(dataset.catalogue).titles))


def test_the_way_of_a_bundle_is_one_command_a_step(bundle: Path, tmp_path: Path) -> None:
    shelf, version = tmp_path / "shelf", Bundle.load(bundle).version
    assert run("push", bundle, shelf).splitlines()[-1] == version
    assert "was there already" in run("push", bundle, shelf)
    assert run("promote", shelf, version) == f"live of {shelf}: from nothing to {version}\n"
    brake = run("push", shelf, shelf, "--serve", "trm").splitlines()[-1]
    assert run("promote", shelf, brake) == f"live of {shelf}: from {version} to {brake}\n"
    assert run("rollback", shelf) == f"live of {shelf}: from {brake} to {version}\n"
    listed = {line.split()[0]: line for line in run("list", shelf).splitlines()}
    assert "live" in listed[version]
    assert "serves policy" in listed[version]
    assert "candidate" in listed[brake]
    assert "serves trm" in listed[brake]
    found = json.loads(run("list", shelf, "--json"))
    assert [move["after"] for move in found["moves"]["live"]] == [version, brake, version]
    assert {row["version"] for row in found["versions"]} == {version, brake}


def test_a_bundle_is_inspected_and_verified_by_any_address(bundle: Path, tmp_path: Path) -> None:
    version = run("push", bundle, tmp_path / "shelf").splitlines()[-1]
    for address in (bundle, bundle.parent, f"{tmp_path / 'shelf'}@{version}"):
        shown = run("inspect", address)
        assert f"version   {version}" in shown
        assert "serves    policy: this bundle serves the policy" in shown
        assert f"bundle {version} is whole: its index and policy, trm" in run("verify", address)
    assert json.loads(run("inspect", bundle, "--json"))["info"]["serve"] == "policy"
    (bundle / "policy" / "tokenizer.json").write_text("{}")
    assert "hash of policy/tokenizer.json differs" in fails(ArtifactError, "verify", bundle)


def test_new_items_make_a_new_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,title,genres\nn1,A film nobody knows,Noir\n")
    Shelf.make(tmp_path / "shelf").push(Bundle.load(bundle))
    version = Bundle.load(bundle).version
    shown = run("extend", f"{tmp_path / 'shelf'}@{version}", tmp_path / "new.csv", "--out", tmp_path / "bundle-2")
    loaded = Bundle.load(tmp_path / "bundle-2")
    assert loaded.version != version
    assert "its policy was built before new items" in shown
    assert f"bundle {loaded.version}" in shown
    found = CliRunner().invoke(app, ["trm", "recommend", str(tmp_path / "bundle-2"), "-p", "noir", "-k", "100"])
    assert "A film nobody knows" in found.output


def test_bad_requests_get_one_clear_error(bundle: Path, tmp_path: Path) -> None:
    assert "is no shelf" in fails(ArtifactError, "list", tmp_path / "absent")
    assert "neither a bundle nor a shelf" in fails(ConfigError, "inspect", tmp_path / "absent")
    assert "--serve is 'both'" in fails(ConfigError, "push", bundle, tmp_path / "shelf", "--serve", "both")
    run("push", bundle, tmp_path / "shelf")
    assert "has no version 'beef'" in fails(ArtifactError, "promote", tmp_path / "shelf", "beef")
    assert "has no version 'beef'" in fails(ArtifactError, "inspect", f"{tmp_path / 'shelf'}@beef")
    assert "nothing is live" in fails(ArtifactError, "inspect", tmp_path / "shelf")
    assert "nothing is live" in fails(ArtifactError, "rollback", tmp_path / "shelf")


@pytest.mark.parametrize("command", ["inspect", "verify", "push", "list", "promote", "rollback", "extend"])
def test_the_help_has_examples(command: str) -> None:
    assert f"deeprec bundle {command}" in run(command, "--help").partition("Examples")[2]
