"""``deeprec features``: tables are moved on, publications listed and swept, in a directory or by a configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.delivery import sweep_features
from deeprec.bundle.shelf import Shelf
from deeprec.cli import app
from deeprec.config import BundleConfig, FeaturesConfig
from deeprec.data.dataset import Dataset
from deeprec.features import place as place_module
from deeprec.features.directory import DirectoryPlace
from deeprec.features.publish import publish


def run(*arguments: object) -> str:
    told = CliRunner().invoke(app, ["features", *map(str, arguments)])
    assert told.exit_code == 0, told
    return told.output


@pytest.fixture
def names(sample_dataset: Path, tmp_path: Path) -> list[str]:
    """Three publications in the place ``features``, the oldest first."""
    place = DirectoryPlace(tmp_path / "features")
    for length in (5, 6, 7):
        features = FeaturesConfig(path=str(tmp_path / "features"), history_length=length)
        publish(sample_dataset, features, tmp_path / f"published-{length}")
    return [one.name for one in reversed(place.publications())]


def test_tables_are_made_and_moved_on(tmp_path: Path) -> None:
    (tmp_path / "place.yaml").write_text(json.dumps({"features": {"path": str(tmp_path / "features")}}))
    place = tmp_path / "features"
    assert run("migrate", tmp_path / "place.yaml") == f"the tables of {place} were made; of version 2\n"
    assert run("migrate", place) == f"the tables of {place} are of version 2\n"


def test_publications_are_listed(names: list[str], tmp_path: Path, dataset: Dataset) -> None:
    told = run("list", tmp_path / "features")
    assert [told.index(name) for name in names] == sorted((told.index(name) for name in names), reverse=True)
    assert f"{len(dataset.catalogue):,}" in told


def test_what_no_shelf_uses_is_swept(
    names: list[str], tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path / "bundle", ["A"], publication=names[0])
    shelf = Shelf.make(tmp_path / "shelf")
    shelf.push(Bundle.load(bundle))
    assert shelf.publications() == ({names[0]}, {names[0]})
    place = tmp_path / "features"
    assert run("sweep", place, "--shelf", shelf.address).endswith(f"0 removed, 3 left in {place}\n")
    told = run("sweep", place, "--shelf", shelf.address, "--grace-hours", 0)
    assert told == f"removed {names[1]}\n1 removed, 2 left in {place}\n"


def test_a_run_sweeps_what_older_bundles_of_its_shelf_were_made_with(
    names: list[str], tmp_path: Path, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What live named before is what a rollback goes back to; what no bundle here names may be another shelf's."""
    shelf = Shelf.make(tmp_path / "shelf")
    settings = BundleConfig(uri=shelf.address)
    assert sweep_features(tmp_path / "published-5", BundleConfig()) == []
    versions = []
    for number, name in enumerate((names[0], "gone", names[2])):
        bundle = make_bundle(tmp_path / f"bundle-{number}", ["A"], publication=name)
        versions.append(shelf.push(Bundle.load(bundle)).version)
        shelf.promote(versions[-1])
    assert shelf.publications()[0] == {"gone", names[2]}
    assert sweep_features(tmp_path / "published-5", settings) == []  # all are young
    monkeypatch.setattr(place_module.FeaturePlace.sweep, "__defaults__", (0.0,))
    assert sweep_features(tmp_path / "published-5", settings) == [names[0]]
    assert {one.name for one in DirectoryPlace(tmp_path / "features").publications()} == {names[1], names[2]}
