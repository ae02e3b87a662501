"""``deeprec trm``, on a toy TRM with random weights."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.cli.trm import app
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, ConfigError, DataError, DeepRecError, StoreError, TrmError
from deeprec.store import read_artifact
from deeprec.trm.artifact import read_record, read_trm
from deeprec.trm.recommender import TrmRecommender

TINY = (
    "trm.width=16",
    "trm.layers=1",
    "trm.max_length=12",
    "trm.epochs=2",
    "trm.batch_size=16",
    "trm.bf16=false",
    "text.provider=hashing",
    "text.width=32",
)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def titles(dataset: Dataset, *rows: int) -> list[str]:
    return [dataset.catalogue.items[row].title for row in rows]


@pytest.mark.parametrize("command", ["train", "evaluate", "recommend", "similar", "add-items"])
def test_every_command_explains_itself(command: str) -> None:
    assert "deeprec trm" in run(command, "--help").partition("Example")[2]


# ------------------------------------------------------------------------------------------------------- recommend


def test_for_a_user(toy_trm: Path, sample_dataset: Path, dataset: Dataset) -> None:
    user = next(iter(dataset.sequences))
    newest = dataset.catalogue[dataset.sequences[user][-1]].title
    shown = run("recommend", toy_trm, "--user", user, "--dataset", sample_dataset, "-k", 5)
    history, _, found = shown.partition("recommended")
    assert f"history of {user}: {len(dataset.sequences[user])} items" in history
    assert newest in history.splitlines()[4]
    assert newest not in found
    answers = json.loads(run("recommend", toy_trm, "--user", user, "--dataset", sample_dataset, "-k", 5, "--json"))
    assert answers["history"] == list(dataset.sequences[user])
    assert [item["rank"] for item in answers["items"]] == [1, 2, 3, 4, 5]
    assert all(item["title"] in found for item in answers["items"])


def test_for_a_history_of_titles_and_a_preference(toy_trm: Path, dataset: Dataset) -> None:
    first, second, third = titles(dataset, 2, 5, 8)
    together = ("--history", f"{first}; {second}", "--history", third)
    arguments = ("recommend", toy_trm, *together, "--preference", "Drama; 1980s", "-k", 4, "--json")
    answer = json.loads(run(*arguments))
    assert answer["history"] == [dataset.catalogue.items[row].item_id for row in (2, 5, 8)]
    assert answer["preference"] == ["drama", "1980s"]
    wanted = TrmRecommender.load(toy_trm).recommend([first, second, third], "drama; 1980s", 4)
    assert [item["item_id"] for item in answer["items"]] == [item.item_id for item in wanted]
    shown = run("recommend", toy_trm, "--preference", "drama; sunny nonsense")
    assert "recommended, preference: drama; sunny nonsense" in shown
    assert "'sunny nonsense' is no phrase of the catalogue" in shown
    assert "'drama' is no phrase" not in shown


def test_nothing_gives_the_most_popular(toy_trm: Path) -> None:
    shown = run("recommend", toy_trm, "-k", 3)
    assert "no history and no preference: the most popular items" in shown
    assert "1.00" in shown


def test_filters_exclusion_and_seen_items(toy_trm: Path, dataset: Dataset) -> None:
    first, second = titles(dataset, 0, 1)
    whole = ("recommend", toy_trm, "-k", len(dataset.catalogue), "--json")
    answer = json.loads(run(*whole, "--history", first, "--exclude", second, "--filter", "year >= 1990"))
    found = {item["title"] for item in answer["items"]}
    assert not found & {first, second}
    assert all(
        int(dataset.catalogue[item["item_id"]].attributes["year"]) >= 1990  # type: ignore[arg-type]
        for item in answer["items"]
    )
    again = json.loads(run(*whole, "--history", first, "--allow-seen"))
    assert first in {item["title"] for item in again["items"]}
    assert "leave no item" in run("recommend", toy_trm, "--filter", "year >= 3000")


def test_markup_in_titles_is_printed_as_it_is(toy_trm: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,title,genres\nx1,[bold]Ro; ot[/bold],[red]Noir\n")
    run("add-items", toy_trm, tmp_path / "new.csv", "--out", tmp_path / "trm")
    shown = run("recommend", tmp_path / "trm", "--history", "[bold]Ro; ot[/bold]", "-k", 1)
    assert "[bold]Ro; ot[/bold]" in shown
    assert "[red]noir" in shown


def test_similar(toy_trm: Path, dataset: Dataset) -> None:
    [title] = titles(dataset, 4)
    shown = run("similar", toy_trm, title.upper(), "-k", 3)
    assert f"similar to {title}" in shown
    assert len(json.loads(run("similar", toy_trm, dataset.catalogue.items[4].item_id, "-k", 3, "--json"))["items"]) == 3


# -------------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_prints_tables_and_writes_a_report(toy_trm: Path, sample_dataset: Path, tmp_path: Path) -> None:
    shown = run("evaluate", toy_trm, sample_dataset, "--split", "test", "--report", tmp_path / "report.html")
    for text in ("test target, 150 users", "popularity", "half of the target's phrases", "by length of the history"):
        assert text in shown
    figures = json.loads((tmp_path / "report.json").read_text())
    assert f"{figures['metrics']['ndcg@10']:.4f}" in shown
    assert "<svg" in (tmp_path / "report.html").read_text()
    printed = json.loads(run("evaluate", toy_trm, sample_dataset, "--split", "test", "--json"))
    assert printed == figures


# ----------------------------------------------------------------------------------------------------------- train


def train(dataset: Path, out: Path, *more: object) -> str:
    return run("train", dataset, "--out", out, *(text for value in TINY for text in ("--set", value)), *more)


def test_train_stand_alone_and_for_a_policy(sample_dataset: Path, dataset: Dataset, tmp_path: Path) -> None:
    shown = train(sample_dataset, tmp_path / "alone", "--report", tmp_path / "report.html")
    assert len(re.findall(r"TRM epoch \d/2", shown)) == 2
    assert "half_preference_recall@20" in shown
    assert (tmp_path / "report.html").exists()
    train(sample_dataset, tmp_path / "for-policy", "--for-policy", "--set", "seed=3")
    counts = {name: int(read_trm(tmp_path / name).vocabulary.popularity.sum()) for name in ("alone", "for-policy")}
    lengths = [len(items) for items in dataset.sequences.values()]
    assert counts == {"alone": sum(lengths) - 2 * len(lengths), "for-policy": sum(lengths) - 3 * len(lengths)}
    assert read_record(tmp_path / "for-policy").seed == 3
    assert not list(tmp_path.glob("*.checkpoint"))
    command = shlex.split(shown.splitlines()[-1].removeprefix("ask it"))
    assert command[:2] == ["deeprec", "trm"]
    assert "recommended, preference" in run(*command[2:])


class Killed(BaseException):
    """What a kill is to the code it ends."""


def kill_when_written(monkeypatch: pytest.MonkeyPatch, dataset: Path, out: Path) -> None:
    """Train until the artifact is written, and no further."""
    from deeprec.trm import training

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(training, "write_trm", killed)
        with pytest.raises(Killed):
            train(dataset, out)


def test_a_killed_training_goes_on_to_the_same_weights(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(sample_dataset, tmp_path / "whole")
    kill_when_written(monkeypatch, sample_dataset, tmp_path / "trm")
    assert (tmp_path / "trm.checkpoint").is_dir()
    shown = train(sample_dataset, tmp_path / "trm")
    assert "going on with the training" in shown
    assert "TRM epoch" not in shown
    assert not (tmp_path / "trm.checkpoint").exists()
    weights = [read_artifact(tmp_path / name).files["model.safetensors"] for name in ("whole", "trm")]
    assert weights[0] == weights[1]


def test_fresh_begins_again(sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kill_when_written(monkeypatch, sample_dataset, tmp_path / "trm")
    shown = train(sample_dataset, tmp_path / "trm", "--fresh")
    assert "going on" not in shown
    assert "TRM epoch 1/2" in shown
    assert not (tmp_path / "trm.checkpoint").exists()


def test_a_training_with_other_settings_is_not_gone_on_with(
    sample_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_when_written(monkeypatch, sample_dataset, tmp_path / "trm")
    with pytest.raises(TrmError, match=r"trm\.epochs is 2 there and 3 here"):
        train(sample_dataset, tmp_path / "trm", "--set", "trm.epochs=3")


# ------------------------------------------------------------------------------------------------------- add-items


def test_new_items_are_added_and_found(toy_trm: Path, dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("sku,title,genres,year\nn1,A film nobody knows,Noir|Drama,2031\nn2,,Drama,\n")
    out = tmp_path / "trm-2"
    shown = run("add-items", toy_trm, tmp_path / "new.csv", "--out", out, "--column", "item_id=sku")
    assert f"added 2 items to {len(dataset.catalogue)}, for example 'A film nobody knows' (n1)" in shown
    assert "new phrases: 2030s; noir" in shown
    assert "A film nobody knows" in run("recommend", out, "--preference", "noir", "--filter", "year >= 2030")
    assert "n2" in json.loads(run("recommend", out, "--history", "Item n2", "--json"))["history"]
    assert "are already in the catalogue" in fails(
        TrmError, "add-items", out, tmp_path / "new.csv", "--out", tmp_path / "trm-3", "--column", "item_id=sku"
    )
    assert not (tmp_path / "trm-3").exists()


def test_items_without_phrases_are_remarked_on(toy_trm: Path, tmp_path: Path) -> None:
    (tmp_path / "new.jsonl").write_text('{"item_id": 1, "title": "A film nobody knows"}\n')
    assert "none of them has a phrase" in run("add-items", toy_trm, tmp_path / "new.jsonl", "--out", tmp_path / "trm")


# ---------------------------------------------------------------------------------------------------------- errors


def fails(kind: type[DeepRecError], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_bad_requests_get_one_clear_error(
    toy_trm: Path, sample_dataset: Path, dataset: Dataset, tmp_path: Path
) -> None:
    [title] = titles(dataset, 3)
    assert f"did you mean '{title}'" in fails(TrmError, "recommend", toy_trm, "--history", f"{title[:-1]}")
    assert "did you mean" in fails(TrmError, "similar", toy_trm, title[:-2])
    assert "not of the form" in fails(TrmError, "recommend", toy_trm, "--filter", "year > 3")
    assert "no item has a column 'colour'" in fails(TrmError, "recommend", toy_trm, "--filter", "colour = red")
    assert "add --dataset" in fails(ConfigError, "recommend", toy_trm, "--user", "u001")
    both = ("--user", "u001", "--dataset", sample_dataset, "--history", title)
    assert "give one of them" in fails(ConfigError, "recommend", toy_trm, *both)
    nobody = ("--user", "nobody", "--dataset", sample_dataset)
    assert "no user 'nobody'; it has 150" in fails(DataError, "recommend", toy_trm, *nobody)
    assert "does not exist" in fails(ArtifactError, "recommend", tmp_path / "absent")
    assert "not 'trm'" in fails(ArtifactError, "recommend", sample_dataset)
    assert "no split 'train'" in fails(TrmError, "evaluate", toy_trm, sample_dataset, "--split", "train")
    assert "does not exist" in fails(DataError, "add-items", toy_trm, tmp_path / "new.csv", "--out", tmp_path / "x")
    assert "key=value" in fails(
        ConfigError, "add-items", toy_trm, tmp_path / "new.csv", "--out", tmp_path / "x", "--column", "sku"
    )
    assert list(tmp_path.iterdir()) == []


def test_training_checks_its_arguments_first(sample_dataset: Path, tmp_path: Path) -> None:
    unknown = ("--set", "trm.epoch=1")
    assert "unknown key trm.epoch" in fails(ConfigError, "train", sample_dataset, "--out", tmp_path / "x", *unknown)
    assert "does not exist" in fails(ArtifactError, "train", tmp_path / "absent", "--out", tmp_path / "x")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").touch()
    assert "is no artifact" in fails(StoreError, "train", sample_dataset, "--out", tmp_path / "taken")
    assert os.listdir(tmp_path / "taken") == ["thesis.txt"]
    assert "no such profile" in fails(
        ConfigError, "train", sample_dataset, "--out", tmp_path / "x", "--config", "absent"
    )


def test_a_bundle_is_asked_like_its_trm(make_bundle: Callable[..., Path], toy_trm: Path, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle", ["A"])
    arguments = ("--preference", "drama", "--json")
    assert run("recommend", tmp_path / "bundle", *arguments) == run("recommend", toy_trm, *arguments)
