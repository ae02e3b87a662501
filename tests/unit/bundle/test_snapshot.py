"""The snapshot of training data: counted by hand, read back as it was written, and deciding no answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deeprec.bundle.bundle import Bundle, index_files, version_of
from deeprec.bundle.publish import extend_bundle
from deeprec.bundle.shelf import Shelf
from deeprec.bundle.snapshot import (
    BINS,
    DAY,
    FILE,
    GROUPS,
    Bins,
    Distribution,
    Snapshot,
    make_snapshot,
    read_snapshot,
    write_snapshot,
)
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError
from deeprec.explore.protocol import TitleBook
from deeprec.store import read_artifact
from deeprec.types import Catalogue, Item

ITEMS = ("a", "b", "c", "d")
CATALOGUE = Catalogue(tuple(Item(name, f"Title {name}") for name in ITEMS))


def dataset(rows: Mapping[str, list[tuple[str, int]]], time_unit: str = "seconds") -> Dataset:
    """Users' (item, timestamp)."""
    return Dataset(
        CATALOGUE,
        {user: tuple(item for item, _ in own) for user, own in rows.items()},
        {user: tuple(time for _, time in own) for user, own in rows.items()},
        {"time_unit": time_unit},
    )


def made(data: Dataset) -> Snapshot:
    snapshot = make_snapshot(data)
    assert snapshot is not None
    return snapshot


def test_it_is_counted_by_hand() -> None:
    """Twenty interactions, the newest two of them on day 9: ``a`` and ``d`` by one user, who had eight before."""
    old = [(item, DAY * day) for day, item in enumerate("aabbaabc")]
    rows = {"u": [*old, ("d", DAY * 9), ("a", DAY * 9 + 5)], "v": [("c", day) for day in range(10)]}
    found = made(dataset(rows))
    assert (found.users, found.interactions, found.fewest, found.last) == (2, 20, 10, DAY * 9 + 5)
    assert found.recent_since == DAY * 9
    # before: c 11, a 4, b 3, d 0; the half of 18 is 9, within c
    assert found.groups == (1, 1, 0, 1)
    assert found.popularity.counts == (0, 2)
    assert found.history == Bins((8.0,), Distribution((1, 0), 1.0))
    assert found.activity == Bins((2.0,), Distribution((1, 0), 1.0))


def test_of_an_order_each_users_last_tenth_is_described() -> None:
    rows = {user: [("a", place) for place in range(9)] + [(last, 9)] for user, last in (("u", "b"), ("v", "c"))}
    found = made(dataset(rows, "order"))
    assert (found.recent_since, found.history, found.activity) == (None, None, None)
    assert found.groups == (0, 1, 1, 1)
    assert found.popularity.counts == (0, 2)


def test_shares_and_groups_come_of_different_interactions() -> None:
    """Of items that are equally popular, the groups have equal shares; made from the same ones, the first had more."""
    generator = np.random.default_rng(0)
    items = [f"i{number}" for number in range(300)]
    catalogue = Catalogue(tuple(Item(name, name) for name in items))
    drawn = generator.integers(0, 300, size=(600, 20))
    sequences = {f"u{user}": tuple(items[row] for row in rows) for user, rows in enumerate(drawn)}
    times = {user: tuple(DAY * day for day in range(20)) for user in sequences}
    found = made(Dataset(catalogue, sequences, times, {"time_unit": "seconds"}))
    assert len(found.popularity.counts) == GROUPS
    first, last = sum(found.popularity.counts[:5]), sum(found.popularity.counts[-5:])
    sizes = np.bincount(found.groups)
    assert sizes[:5].sum() < sizes[-5:].sum(), "the first groups have the items with the most interactions by chance"
    assert first / sizes[:5].sum() == pytest.approx(last / sizes[-5:].sum(), rel=0.2)
    assert found.history is not None
    assert len(found.history.edges) < BINS


def test_users_who_take_alike_are_worth_less_than_their_interactions() -> None:
    """One hundred users with ten interactions each in one cell or the other are worth about one hundred draws."""
    rows = {f"u{user}": [("a", 0)] * 90 + [("abcd"[user % 4], DAY * 9)] * 10 for user in range(100)}
    alike = made(dataset(rows)).popularity
    assert sum(alike.counts) == 1000
    assert 80 < alike.effective < 125
    rows = {f"u{user}": [("a", 0)] * 9 + [("abcd"[user % 4], DAY * 9)] for user in range(100)}
    assert made(dataset(rows)).popularity.effective == pytest.approx(100, rel=0.05)


def test_values_on_an_edge_are_in_the_bin_below() -> None:
    bins = Bins((1.0, 4.0), Distribution((1, 1, 1), 3.0))
    assert bins.of(np.array([0, 1, 2, 4, 5])).tolist() == [0, 0, 1, 1, 2]
    assert bins.labels == ("≤ 1", "≤ 4", "> 4")


@pytest.mark.parametrize("unit", ["seconds", "order"])
def test_it_reads_back(tmp_path: Path, unit: str) -> None:
    snapshot = made(dataset({"u": [("a", 1), ("b", DAY), ("c", 2 * DAY)]}, unit))
    write_snapshot(tmp_path, snapshot)
    assert read_snapshot(tmp_path) == snapshot


def test_none_is_no_error_and_a_damaged_one_is(tmp_path: Path) -> None:
    assert make_snapshot(dataset({})) is None
    write_snapshot(tmp_path, None)
    assert read_snapshot(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({"schema": 99}))
    assert read_snapshot(tmp_path) is None
    (tmp_path / FILE).write_text(json.dumps({"schema": 1}))
    with pytest.raises(ArtifactError, match=r"cannot read .*snapshot\.json: .*; make the bundle again"):
        read_snapshot(tmp_path)


def test_a_bundle_has_it_keeps_it_and_is_no_other_for_it(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    """On a shelf and extended by new items, too; without it a bundle loads, extends and has its version."""
    bundle = Bundle.load(make_bundle(tmp_path / "bundle", list(TitleBook(dataset.catalogue).titles)))
    assert read_snapshot(bundle.index) == make_snapshot(dataset)
    shelf = Shelf.make(tmp_path / "shelf")
    shelf.push(bundle)
    assert read_snapshot(shelf.open(bundle.version, lambda serve: (), tmp_path).index) == make_snapshot(dataset)
    extended = extend_bundle(bundle, [Item("new", "A new title")], tmp_path / "extended")
    assert read_snapshot(extended.index) == make_snapshot(dataset)

    bare = replace(bundle, index=tmp_path / "bare")
    bare.index.mkdir()
    assert FILE in index_files(bundle.index)
    for name in set(index_files(bundle.index)) - {FILE}:
        (bare.index / name).write_bytes((bundle.index / name).read_bytes())
    manifests = {name: read_artifact(path) for name, path in bundle.parts.items()}
    versions = {version_of(one.index, manifests, one.serve, one.publication) for one in (bundle, bare)}
    assert versions == {bundle.version}
    other = Shelf.make(tmp_path / "other")
    assert other.push(bare).version == bundle.version
    assert read_snapshot(other.open(bundle.version, lambda serve: (), tmp_path).index) is None
