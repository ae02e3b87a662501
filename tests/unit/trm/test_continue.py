"""A training that begins with another TRM's weights: what is taken over, what must fit, what it may have seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.former import former_trm, pinned
from deeprec.bundle.refit import refit
from deeprec.bundle.shelf import Shelf
from deeprec.config import BundleConfig, TextConfig, TrmConfig
from deeprec.data.dataset import Dataset, write_dataset
from deeprec.data.splits import everything_sequences, standalone_sequences, trm_sequences
from deeprec.errors import ArtifactError, TrmError
from deeprec.store import read_artifact
from deeprec.trm.artifact import TrainedTrm, read_measured, read_record, read_trm
from deeprec.trm.extend import extend_trm
from deeprec.trm.former import digest, read_former, take_over
from deeprec.trm.model import Trm
from deeprec.trm.recommender import TrmRecommender
from deeprec.trm.run import train_directory
from deeprec.trm.text import HashingEmbedder
from deeprec.trm.training import EpochReport, fit, train_split
from deeprec.types import Catalogue, Item

TOY = {"width": 16, "layers": 1, "heads": 2, "max_length": 12, "bf16": False}
ONE = TrmConfig(**TOY, epochs=1)
TEXT = TextConfig(provider="hashing", width=48)


@pytest.fixture(scope="module")
def data(world: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world without its newest two interactions of every third user: what the former TRM learns from."""
    return written(world, grown(world, 0), tmp_path_factory.mktemp("former") / "dataset")


def grown(world: Dataset, more: int) -> dict[str, tuple[str, ...]]:
    """The histories, those of every third user with ``more`` of its newest two interactions."""
    return {
        user: items if number % 3 else items[: len(items) - 2 + more]
        for number, (user, items) in enumerate(world.sequences.items())
    }


def written(world: Dataset, sequences: Mapping[str, Sequence[str]], place: Path) -> Path:
    rows = [(user, item, step) for user, items in sequences.items() for step, item in enumerate(items)]
    write_dataset(
        place,
        pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row"),
        pl.DataFrame([{"item_id": one.item_id, "title": one.title, **one.attributes} for one in world.catalogue.items]),
        source="table",
        time_unit="order",
        text_columns=["genres"],
        year_column="year",
        policy_positions=1,
    )
    return place


@pytest.fixture(scope="module")
def policys(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The TRM of the pipeline: held away from validation, test and one target of the policy's."""
    out = tmp_path_factory.mktemp("policys") / "trm"
    train_split(data, trm_sequences, ONE, TEXT, 0, out)
    return out


@pytest.fixture(scope="module")
def anew(data: Path, policys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is served in its place, trained anew on everything."""
    out = tmp_path_factory.mktemp("anew") / "trm"
    refit(data, policys, "trm", ONE, TEXT, BundleConfig(), 1, out, progress=lambda line: None)
    return out


# ------------------------------------------------------------------------------------------------- what is taken over


def test_rows_go_by_id_and_new_items_begin_with_their_text_alone(
    trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder
) -> None:
    new = Item("new", "Title nobody knows", {}, ("comedy",))
    ids = ("new", *(item.item_id for item in world.catalogue.items[::-1] if item.item_id != "m3"))
    text = torch.from_numpy(embedder.embed([new.title] * len(ids)))
    model = Trm(trained.model.config, text)
    take_over(model, ids, trained)
    assert not model.item_ids.weight[0].any()
    theirs = trained.model.state_dict()
    for row, item_id in enumerate(ids[1:], start=1):
        assert torch.equal(model.item_ids.weight[row], theirs["item_ids.weight"][trained.catalogue.index[item_id]])
    others = {name: value for name, value in model.state_dict().items() if name != "item_ids.weight"}
    assert all(torch.equal(value, theirs[name]) for name, value in others.items())
    with torch.inference_mode():
        torch.testing.assert_close(model.item_table()[:1], model.item_adaptor(text[:1]))


def test_it_goes_on_where_the_former_was_and_takes_its_share_of_the_epochs(
    trained: TrainedTrm, world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder
) -> None:
    short = trm_config.model_copy(update={"epochs": 10, "continue_share": 0.11, "learning_rate": 1e-4})
    found, curves = fit(world.catalogue, world.sequences, short, embedder, 1, former=trained)
    assert [point["epoch"] for point in curves] == [1.0, 2.0]
    _, afresh = fit(world.catalogue, world.sequences, short, embedder, 1)
    assert curves[0]["loss"] < 0.7 * afresh[0]["loss"]
    before, after = trained.model.item_ids.weight, found.model.item_ids.weight
    assert 0 < (after - before).abs().max() < 0.1


def test_an_item_that_is_new_is_learnt(trained: TrainedTrm, world: Dataset, embedder: HashingEmbedder) -> None:
    """An item the former does not know gets an ID embedding of its own from its interactions."""
    fewer = Catalogue(tuple(item for item in world.catalogue.items if item.item_id != "m3"))
    known = {user: [item for item in items if item != "m3"] for user, items in world.sequences.items()}
    former, _ = fit(fewer, known, ONE.model_copy(update={"epochs": 2}), embedder, 3)
    found, _ = fit(world.catalogue, world.sequences, ONE, embedder, 3, former=former)
    assert found.model.item_ids.weight[world.catalogue.index["m3"]].any()


def test_killed_and_gone_on_with_the_weights_are_the_same_and_another_former_is_refused(
    trained: TrainedTrm, world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, tmp_path: Path
) -> None:
    short = trm_config.model_copy(update={"epochs": 4, "continue_share": 0.5})
    whole, _ = fit(world.catalogue, world.sequences, short, embedder, 1, former=trained)

    def stop(line: EpochReport) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(world.catalogue, world.sequences, short, embedder, 1, former=trained, checkpoint=tmp_path, progress=stop)
    with pytest.raises(TrmError, match="the TRM it begins with changed"):
        fit(world.catalogue, world.sequences, short, embedder, 1, former=whole, checkpoint=tmp_path)
    found, _ = fit(world.catalogue, world.sequences, short, embedder, 1, former=trained, checkpoint=tmp_path)
    assert digest(found) == digest(whole) != digest(trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"width": 32}, "trm.width is 32 and was 16; set"),
        ({"layers": 2, "max_length": 20}, "trm.layers is 2 and was 1; trm.max_length is 20 and was 12; set"),
        ({"heads": 1}, "trm.heads is 1 and was 2"),
    ],
)
def test_other_shapes_are_refused_by_their_keys(
    trained: TrainedTrm, world: Dataset, trm_config: TrmConfig, embedder: HashingEmbedder, change: Any, said: str
) -> None:
    other = trm_config.model_copy(update=change)
    with pytest.raises(TrmError, match=said):
        fit(world.catalogue, world.sequences, other, embedder, 1, former=trained)


def test_another_text_encoder_is_refused(trained: TrainedTrm, world: Dataset, trm_config: TrmConfig) -> None:
    with pytest.raises(TrmError, match=r"text encoder is hashing.*48.*, and the section text says hashing.*32"):
        fit(world.catalogue, world.sequences, trm_config, HashingEmbedder(32), 1, former=trained)


def test_a_name_alone_does_not_begin_anything(data: Path, tmp_path: Path) -> None:
    with pytest.raises(TrmError, match=r"trm\.continue_from is 'shelf', but no TRM was given"):
        train_directory(data, ONE.model_copy(update={"continue_from": "shelf"}), TEXT, 0, tmp_path / "trm")


# --------------------------------------------------------------------------------------------------- what it has seen


@pytest.mark.parametrize("more", [0, 1, 2])
def test_what_the_former_has_seen_is_in_no_target_of_data_that_grew(world: Dataset, more: int) -> None:
    """The rule of ``former``: as many newest interactions left out of the smaller data, or more, are enough."""
    before, after = replace(world, sequences=grown(world, 0)), replace(world, sequences=grown(world, more))
    for seen, new in ((trm_sequences, trm_sequences), (trm_sequences, standalone_sequences)):
        former, now = seen(before), new(after)
        assert all(now[user][: len(items)] == items for user, items in former.items())


def test_a_trm_says_what_it_was_held_away_from(data: Path, policys: Path, anew: Path, tmp_path: Path) -> None:
    assert read_record(policys).held_out == 3
    train_directory(data, ONE, TEXT, 0, tmp_path / "alone")
    assert read_record(tmp_path / "alone").held_out == 2
    assert read_record(anew).held_out == 0


def test_one_trained_anew_on_everything_keeps_the_weights_from_before(policys: Path, anew: Path) -> None:
    before, served = read_trm(policys), read_trm(anew)
    measured, held_out = read_measured(anew)
    assert held_out == 3
    assert digest(measured) == digest(before) != digest(served)
    counted = before.vocabulary.popularity > 0
    assert ((measured.vocabulary.popularity > 0) == counted).all()
    assert digest(read_former(anew, 3)) == digest(before)


def test_figures_of_what_continues_are_not_of_what_was_seen(
    data: Path, world: Dataset, anew: Path, policys: Path, tmp_path: Path
) -> None:
    """Continued from the one trained anew and from the one that it stands in for: the same weights, to the bit."""
    now = written(world, grown(world, 2), tmp_path / "now")
    for name, begin in (("anew", anew), ("policys", policys)):
        train_split(now, trm_sequences, ONE, TEXT, 0, tmp_path / name, begin=begin)
    assert digest(read_trm(tmp_path / "anew")) == digest(read_trm(tmp_path / "policys"))
    assert read_artifact(tmp_path / "anew").parents["trm"] == read_artifact(anew).digest


def test_what_has_seen_the_targets_or_does_not_say_is_refused(
    data: Path, toy_trm: Path, anew: Path, policys: Path, tmp_path: Path
) -> None:
    train_directory(data, ONE, TEXT, 0, tmp_path / "alone")
    with pytest.raises(TrmError, match="the newest 2 interactions of each user, but this training is from 3"):
        train_split(data, trm_sequences, ONE, TEXT, 0, tmp_path / "out", begin=tmp_path / "alone")
    with pytest.raises(TrmError, match="does not say how many"):
        read_former(toy_trm, 0)
    TrmRecommender.load(anew).save(tmp_path / "saved")
    with pytest.raises(ArtifactError, match="keeps no weights that were held away"):
        read_former(tmp_path / "saved", 0)
    assert not (tmp_path / "out").exists()
    train_split(data, everything_sequences, ONE, TEXT, 0, tmp_path / "all", begin=policys, measure=False)
    with pytest.raises(TrmError, match="the newest 0 interactions"):
        read_former(tmp_path / "all", 2)


def test_with_items_added_the_weights_from_before_are_still_there(anew: Path, tmp_path: Path) -> None:
    extend_trm(anew, [Item("new", "Title nobody knows", {})], tmp_path / "extended")
    measured, held_out = read_measured(tmp_path / "extended")
    assert held_out == 3
    assert measured.vocabulary.item_ids[-1] == "new"
    assert not measured.model.item_ids.weight[-1].any()
    assert torch.equal(measured.model.item_ids.weight[:-1], read_measured(anew)[0].model.item_ids.weight)
    assert measured.vocabulary.popularity[-1] == 0


# ------------------------------------------------------------------------------------------------------ which bundle


@pytest.fixture
def shelf(make_bundle: Callable[..., Path], tmp_path: Path) -> Shelf:
    """Two versions; the first is live."""
    shelf = Shelf.make(tmp_path / "shelf")
    for name, titles in (("one", ["A film"]), ("two", ["A film", "Another"])):
        pushed = shelf.push(Bundle.load(make_bundle(tmp_path / name, titles)))
        if name == "one":
            shelf.promote(pushed.version)
    return shelf


FITS = TrmConfig(width=16, layers=1, heads=2, max_length=12)


def test_a_shelf_is_pinned_to_what_is_live(shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    live = shelf.live()
    settled = pinned(FITS.model_copy(update={"continue_from": "shelf"}))
    assert settled.continue_from == f"{tmp_path / 'shelf'}@{live}"
    other = next(one.version for one in shelf.versions() if one.version != live)
    shelf.promote(other)
    assert former_trm(settled) == former_trm(FITS.model_copy(update={"continue_from": f"shelf@{live}"}))
    assert pinned(settled) == settled
    assert pinned(FITS.model_copy(update={"continue_from": str(tmp_path / "shelf")})) != settled
    assert pinned(FITS) is FITS
    assert former_trm(FITS) is None


def test_a_bundles_directory_is_pinned_to_its_version(make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    place = make_bundle(tmp_path / "bundle", ["A film"])
    settled = pinned(FITS.model_copy(update={"continue_from": str(place)}))
    assert settled.continue_from == f"{place}@{Bundle.load(place).version}"
    assert former_trm(settled) == place.resolve() / "trm"
    make_bundle(tmp_path / "bundle", ["A film", "Another"])
    with pytest.raises(ArtifactError, match=r"holds version .* and not .*, which trm.continue_from names"):
        former_trm(settled)


def test_what_does_not_fit_is_said_before_anything_is_trained(
    make_bundle: Callable[..., Path], anew: Path, tmp_path: Path
) -> None:
    place = make_bundle(tmp_path / "bundle", ["A film"])
    with pytest.raises(TrmError, match=r"trm\.width is 32 and was 16"):
        pinned(FITS.model_copy(update={"continue_from": str(place), "width": 32}))
    with pytest.raises(ArtifactError, match="nothing is live"):
        pinned(FITS.model_copy(update={"continue_from": str(Shelf.make(tmp_path / "empty").address)}))


def test_the_first_task_settles_the_version(shelf: Shelf) -> None:
    """``preflight`` hands on the section that names one version, by which later tasks are cached."""
    from deeprec.components.preflight import preflight
    from deeprec.config import Config
    from deeprec.config.run import to_parameters

    config = Config.model_validate(
        {"trm": {**FITS.model_dump(), "continue_from": shelf.address}, "text": TEXT.model_dump()}
    )
    settled = preflight.python_func(**to_parameters(config), overrides="", pods={})
    assert settled.trm["continue_from"] == f"{shelf.address}@{shelf.live()}"
    assert np.isclose(settled.trm["continue_share"], 0.25)
