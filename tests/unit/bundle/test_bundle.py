"""The bundle artifact: what it serves, and that changed or foreign parts are refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import save_file

from deeprec.bundle.bundle import Bundle, needs_of
from deeprec.bundle.opening import open_bundle
from deeprec.bundle.publish import choose, extend_bundle, publish
from deeprec.bundle.shelf import Shelf
from deeprec.checks.gate import Verdict
from deeprec.config import ExploreConfig, TextConfig
from deeprec.data.catalogue import write_catalogue
from deeprec.data.dataset import Dataset, write_dataset
from deeprec.errors import ArtifactError, TrmError
from deeprec.explore.protocol import TitleBook
from deeprec.recommender.loading import load_recommender
from deeprec.store import read_artifact, write_artifact
from deeprec.trm.artifact import read_trm
from deeprec.trm.text import load_embedder
from deeprec.types import Catalogue, Item
from deeprec.wire.request import TrmOnlyRequest

PASSED = Verdict("evaluation", True, "evaluation: passed, 2 of 2 checks", ())
METRICS: dict[str, Any] = {
    "policy": {"stage2": {"ndcg@10": 0.2}},
    "baselines": {"trm": {"ndcg@10": 0.1}, "trm_everything": {"ndcg@10": 0.15}},
    "verdict": {"serve": "policy"},
}
ITEMS = 12


def make_trm(out: Path, parents: list[Path], ids: list[str], identity: str = "hashing-16") -> None:
    with write_artifact(out, "trm", parents=parents) as work:
        write_catalogue(work, Catalogue(tuple(Item(item_id, f"Title {item_id}") for item_id in ids)))
        (work / "config.json").write_text(json.dumps({"text_identity": identity}))
        save_file({"weight": np.zeros(3, dtype=np.float32)}, work / "model.safetensors")


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, Path]:
    """One run's artifacts, with stand-ins for the models."""
    names = ("dataset", "trm", "policy", "evaluation", "features")
    paths = {name: tmp_path / "run" / name for name in names}
    ids = [f"i{row}" for row in range(ITEMS)]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "title": [f"Title {row}" for row in range(ITEMS)],
            "genres": ["Comedy|Drama"] * ITEMS,
            "year": [1990] * ITEMS,
        }
    )
    rows = [(f"u{user}", ids[(user + step) % ITEMS], 1000 + step) for user in range(6) for step in range(6)]
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    write_dataset(
        paths["dataset"],
        interactions,
        items,
        source="test",
        time_unit="seconds",
        text_columns=("genres",),
        year_column="year",
        policy_positions=1,
    )
    make_trm(paths["trm"], [paths["dataset"]], ids)
    with write_artifact(paths["policy"], "policy", parents=[paths["dataset"], paths["trm"]]) as work:
        (work / "config.json").write_text("{}")
    for name in ("evaluation", "features"):
        with write_artifact(paths[name], name, parents=[paths["dataset"]]) as work:
            (work / "metrics.json").write_text(json.dumps(METRICS))
            (work / "record.json").write_text(json.dumps({"publication": "f00d"}))
    return paths


def make(parts: dict[str, Path], out: Path, verdict: Verdict = PASSED) -> None:
    text = TextConfig(provider="hashing", width=16)
    publish(**parts, text=text, explore=ExploreConfig(), verdict=verdict, out=out)


def test_a_bundle_reads_back_from_a_read_only_directory(parts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    make(parts, out)
    for path in (*out.rglob("*"), out):
        path.chmod(0o555 if path.is_dir() else 0o444)
    bundle = Bundle.load(out)
    assert (bundle.serve, len(bundle.catalogue), bundle.text_identity) == ("policy", ITEMS, "hashing-16")
    assert bundle.catalogue.items[0].phrases == ("comedy", "drama", "1990s")
    assert bundle.catalogue.items[0].attributes["year"] == 1990
    assert bundle.counts.sum() == 6 * 3
    assert set(bundle.metrics["seconds"]) == {
        "ingest",
        "train-trm",
        "train-stage-2",
        "evaluate",
        "publish-features",
        "total",
    }
    assert len(bundle.version) == 16
    assert bundle.info["example_user"] == "u0"
    assert not [path for path in out.rglob("*") if path.suffix in (".pkl", ".pt", ".bin", ".npy")]
    for path in (out, *out.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_the_text_encoder_is_a_part_where_no_package_brings_it(parts: dict[str, Path], tmp_path: Path) -> None:
    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "model.safetensors").write_bytes(b"weights")
    text = TextConfig(provider="sentence-transformers", model=str(encoder))
    ids = [f"i{row}" for row in range(ITEMS)]
    make_trm(parts["trm"], [parts["dataset"]], ids, identity=load_embedder(text).identity)
    with write_artifact(parts["policy"], "policy", parents=[parts["dataset"], parts["trm"]]) as work:
        (work / "config.json").write_text("{}")
    publish(**parts, text=text, explore=ExploreConfig(), verdict=PASSED, out=tmp_path / "bundle")
    shutil.rmtree(encoder)
    bundle = Bundle.load(tmp_path / "bundle")
    assert set(bundle.parts) == {"trm", "policy", "encoder"}
    assert load_embedder(bundle.text).identity == bundle.text_identity, "by its digest, wherever it lies"
    assert (bundle.part("encoder") / "model.safetensors").read_bytes() == b"weights"
    shelf = Shelf.make(tmp_path / "shelf")
    shelf.push(bundle)
    found = open_bundle(f"{shelf.address}@{bundle.version}", lambda serve: needs_of("trm"))
    assert set(found.parts) == {"trm", "encoder"}
    assert load_embedder(found.text).identity == bundle.text_identity


def test_what_is_served_and_why() -> None:
    assert choose(METRICS, PASSED)[0] == "policy"
    serve, why = choose({**METRICS, "verdict": {"serve": "trm"}}, PASSED)
    assert serve == "trm"
    assert why.endswith(
        "NDCG@10 of the policy 0.2000, of the TRM alone 0.1000, of the TRM trained on everything before each user's "
        "last two items 0.1500"
    )
    for verdict in ({}, {"verdict": None}, {"verdict": {"serve": "best"}}, {"serve": "policy"}):
        with pytest.raises(ArtifactError, match=r"verdict\.serve is .*, neither 'policy' nor 'trm'; evaluate again"):
            choose({"policy": METRICS["policy"], "baselines": METRICS["baselines"], **verdict}, PASSED)
    failed = Verdict("evaluation", False, "evaluation: failed 1 of 2 checks", ())
    assert choose(METRICS, failed) == ("trm", "this bundle serves the TRM alone: evaluation: failed 1 of 2 checks")


def test_changed_missing_and_extra_files_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "bundle")
    for spoil in (
        lambda place: (place / "policy" / "config.json").write_text("{ }"),
        lambda place: (place / "catalogue.json").unlink(),
        lambda place: (place / "extra.bin").write_text("x"),
        lambda place: (place / "manifest.json").write_text("{"),
    ):
        place = tmp_path / "spoilt"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(tmp_path / "bundle", place)
        spoil(place)
        with pytest.raises(ArtifactError):
            Bundle.load(place)
    with pytest.raises(ArtifactError):
        Bundle.load(tmp_path / "absent")
    with pytest.raises(ArtifactError, match="kind"):
        Bundle.load(parts["trm"])


def test_what_is_not_run_is_not_read(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "bundle")
    (tmp_path / "bundle" / "policy" / "config.json").unlink()
    assert set(Bundle.load(tmp_path / "bundle", needs_of("trm")).parts) == {"trm"}
    with pytest.raises(ArtifactError, match=r"policy/config\.json is missing"):
        Bundle.load(tmp_path / "bundle")


def test_parts_of_different_runs_are_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    ids = [f"i{row}" for row in range(ITEMS)]
    make_trm(tmp_path / "other", [parts["dataset"]], ids, identity="hashing-17")
    with pytest.raises(ArtifactError, match="not made from this TRM"):
        make({**parts, "trm": tmp_path / "other"}, tmp_path / "bundle")
    make_trm(parts["trm"], [parts["dataset"]], ids[:-1])
    with write_artifact(parts["policy"], "policy", parents=[parts["dataset"], parts["trm"]]) as work:
        (work / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="another catalogue"):
        make(parts, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".bundle")]


def test_a_bundle_put_together_by_hand_is_refused(parts: dict[str, Path], tmp_path: Path) -> None:
    make(parts, tmp_path / "bundle")
    work_path = tmp_path / "mixed"
    with write_artifact(work_path, "bundle") as work:
        shutil.copytree(tmp_path / "bundle", work, dirs_exist_ok=True)
        shutil.rmtree(work / "trm")
        make_trm(work / "trm", [], [f"i{row}" for row in range(ITEMS)], identity="hashing-99")
    with pytest.raises(ArtifactError, match="its trm is not the one it was made with"):
        Bundle.load(work_path)


# ------------------------------------------------------------------------------------------------------- new items

NEW = (Item("n1", "A film; nobody: knows", {"genres": "Comedy"}), Item("n2", "", {}))


def test_an_extended_bundle_serves_the_trm_when_its_policy_cannot_name_the_items(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    titles = list(TitleBook(dataset.catalogue).titles)
    old = Bundle.load(make_bundle(tmp_path / "bundle", titles))
    assert old.serve == "policy"
    new = extend_bundle(Bundle.load(tmp_path / "bundle"), NEW, tmp_path / "bundle-2")
    assert new.serve == "trm"
    assert "its policy was built before new items (2) were added and cannot name them" in new.why
    assert new.version != old.version
    assert [item.item_id for item in new.catalogue.items[-2:]] == ["n1", "n2"]
    assert new.catalogue == read_trm(new.part("trm")).catalogue
    assert new.counts.tolist() == [*old.counts.tolist(), 0, 0]
    assert read_artifact(new.part("policy")).digest == read_artifact(old.part("policy")).digest
    assert Bundle.load(tmp_path / "bundle").version == old.version

    recommender = load_recommender(new)
    try:
        request = TrmOnlyRequest(history=(), preference=("comedy",), k=100)
        answer = asyncio.run(recommender.retrieve(request)).raw
        assert {"n1", "n2"} <= {item["id"] for item in answer["items"]}
        answer = asyncio.run(recommender.retrieve(TrmOnlyRequest(history=("n1",), k=3))).raw
        assert len(answer["items"]) == 3
    finally:
        recommender.close()


def test_extended_twice(make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path) -> None:
    make_bundle(tmp_path / "one", list(TitleBook(dataset.catalogue).titles))
    extend_bundle(Bundle.load(tmp_path / "one"), NEW[:1], tmp_path / "two")
    why = Bundle.load(tmp_path / "two").why
    third = extend_bundle(Bundle.load(tmp_path / "two"), NEW[1:], tmp_path / "three")
    assert third.why == why
    assert len(third.catalogue) == len(dataset.catalogue) + 2
    with pytest.raises(TrmError, match="already in the catalogue"):
        extend_bundle(Bundle.load(tmp_path / "three"), NEW, tmp_path / "four")
    assert not (tmp_path / "four").exists()


def test_a_policy_that_can_write_the_new_titles_still_serves(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    later = Catalogue((*dataset.catalogue.items, Item("n1", "A film; nobody: knows"), Item("n2", "Item n2")))
    old = make_bundle(tmp_path / "bundle", list(TitleBook(later).titles))
    new = extend_bundle(Bundle.load(old), NEW, tmp_path / "bundle-2")
    assert new.serve == "policy"
    assert new.why == Bundle.load(old).why


def test_a_bundle_that_serves_its_trm_keeps_its_reason(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    titles = list(TitleBook(dataset.catalogue).titles)
    old = make_bundle(tmp_path / "bundle", titles, serve="trm")
    assert extend_bundle(Bundle.load(old), NEW, tmp_path / "bundle-2").why == Bundle.load(old).why


def test_a_policy_of_another_trm_is_still_refused(
    make_bundle: Callable[..., Path], dataset: Dataset, tmp_path: Path
) -> None:
    titles = list(TitleBook(dataset.catalogue).titles)
    make_bundle(tmp_path / "bundle", titles)
    extended = extend_bundle(Bundle.load(tmp_path / "bundle"), NEW, tmp_path / "bundle-2").index
    other = make_bundle(tmp_path / "other", titles)
    with write_artifact(tmp_path / "stranger", "policy") as work:
        (work / "config.json").write_text("{}")
    for trm, policy in ((extended / "trm", tmp_path / "stranger"), (other / "trm", tmp_path / "stranger")):
        with write_artifact(tmp_path / "mixed", "bundle") as work:
            shutil.copytree(extended, work, dirs_exist_ok=True)
            for name, place in (("trm", trm), ("policy", policy)):
                shutil.rmtree(work / name)
                shutil.copytree(place, work / name)
        with pytest.raises(ArtifactError, match="is not the one it was made with"):
            Bundle.load(tmp_path / "mixed")
