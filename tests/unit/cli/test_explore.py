"""``deeprec explore`` on a bundle of a toy TRM, with a policy that is a script at the port."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deeprec.cli import explore as command
from deeprec.data.dataset import Dataset
from deeprec.errors import ArtifactError, ConfigError, DataError, DeepRecError, TrmError
from deeprec.evaluation.reading import read_call
from deeprec.features.directory import DirectoryPlace
from deeprec.store import write_artifact
from deeprec.types import Call, Catalogue, Item, RetrievedItem

app = typer.Typer()
command.register(app)


@pytest.fixture(scope="module")
def policy(scripted_policy: Any) -> Any:
    return scripted_policy("[red]drama; comedy", k=10)


@pytest.fixture
def bundle(
    make_bundle: Callable[..., Path],
    dataset: Dataset,
    policy: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.setenv("COLUMNS", "170")
    monkeypatch.setattr("deeprec.explore.loading.load_policy", lambda path: policy)
    (tmp_path / "run").mkdir()
    return make_bundle(tmp_path / "run" / "bundle", [item.title for item in dataset.catalogue.items])


def run(*arguments: object, **environment: str) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments], env=environment, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def fails(kind: type[DeepRecError], *arguments: object) -> str:
    with pytest.raises(kind) as caught:
        run(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def titles(dataset: Dataset, *rows: int) -> str:
    return "; ".join(dataset.catalogue.items[row].title for row in rows)


def test_each_turn_the_answer_and_the_end_are_shown(bundle: Path, dataset: Dataset) -> None:
    shown = run(bundle, "--history", titles(dataset, 1, 2, 3))
    assert "history: 3 items, newest first" in shown
    first, second, answer = re.split(r"turn 2  |first found by", shown)
    assert "  A broad look first.\nturn 1  “anything”  20 items, 20 new" in first
    assert first.count(" + ") == 20
    assert "“[red]drama; comedy”  20 items, " in second
    found_again = second.count("also turn 1")
    assert found_again == second.count(" · ")
    assert f"20 items, {20 - found_again} new" in second
    assert "turn 1 “anything”" in answer
    assert "ended: answered: the policy answered; 2 calls" in answer
    assert "the format holds" in answer
    assert "\x1b" not in shown


def test_json_says_where_each_item_came_from(bundle: Path, dataset: Dataset) -> None:
    told = json.loads(run(bundle, "--history", titles(dataset, 1, 2), "--history", titles(dataset, 3), "--json"))
    assert told["history"] == [dataset.catalogue.items[row].item_id for row in (1, 2, 3)]
    first, second = told["turns"]
    assert (first["preference"], first["phrases"], first["thought"]) == ("anything", [], "A broad look first.")
    assert second["phrases"] == ["[red]drama", "comedy"]
    before = {item["id"] for item in first["items"]}
    assert all(item["new"] == (item["id"] not in before) for item in second["items"])
    assert all(item["first_turn"] == (2 if item["new"] else 1) for item in second["items"])
    assert [line["rank"] for line in told["answer"]] == list(range(1, 11))
    for line in told["answer"]:
        assert told["turns"][line["turn"] - 1]["items"][line["rank_there"] - 1]["id"] == line["id"]
    assert [line["id"] for line in told["answer"]] == [item["id"] for item in told["trm"]]
    assert [line["trm_rank"] for line in told["answer"]] == list(range(1, 11))
    assert (told["end"], told["valid"], told["violations"]) == ("answered", True, [])
    assert not before & set(told["history"])


def test_conditions_hold_in_every_call_and_k_cuts(bundle: Path, dataset: Dataset) -> None:
    arguments = (bundle, "--history", titles(dataset, 1), "--filter", "year >= 1990", "-p", "Horror; anything", "-k", 3)
    told = json.loads(run(*arguments, "--json"))
    assert told["preference"] == ["horror"]
    years = [dataset.catalogue[item["id"]].attributes["year"] for turn in told["turns"] for item in turn["items"]] + [
        dataset.catalogue[item["id"]].attributes["year"] for item in told["trm"]
    ]
    assert min(int(year) for year in years) >= 1990  # type: ignore[arg-type]
    assert len(told["answer"]) == len(told["trm"]) == 3
    assert "asked for in every call besides: horror" in run(*arguments)


def test_a_turn_is_shown_as_soon_as_it_has_happened(
    bundle: Path, dataset: Dataset, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, seen = io.StringIO(), []
    generation = type(policy.start([[1]]))
    generate = generation.generate

    def watched(self: Any, rows: Any, **options: Any) -> Any:
        seen.append(stream.getvalue().count("\nturn "))
        return generate(self, rows, **options)

    monkeypatch.setattr(generation, "generate", watched)
    monkeypatch.setattr(sys, "stdout", stream)
    command.explore(str(bundle), history=[titles(dataset, 4)])
    assert seen == [0, 1, 2]


def test_colour_only_where_it_is_wanted(bundle: Path, dataset: Dataset) -> None:
    arguments = (bundle, "--history", titles(dataset, 1))
    coloured = run(*arguments, FORCE_COLOR="1", TERM="xterm-256color")
    assert re.search(r"\x1b\[[0-9;]*36m", coloured)
    plain = run(*arguments, FORCE_COLOR="1", TERM="xterm-256color", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", plain)


def test_hostile_titles_and_thoughts_are_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    from deeprec.cli.turns import show_call, show_history, terminal

    hostile = "[bold red]x[/] :smile: \x1b[2J\x1b]0;owned\x07\r"
    catalogue = Catalogue((Item("a", hostile, phrases=(hostile,)),))
    call = read_call(1, Call(hostile, (hostile,), (RetrievedItem("a", 0.5),)), f"thought {hostile}", {}, catalogue)
    show_history(terminal(), catalogue, ["a"], hostile)
    show_call(terminal(), call, {})
    shown = capsys.readouterr().out
    assert not set("\x1b\x07\r") & set(shown)
    assert shown.count("[bold red]x[/] :smile:") >= 4


def test_a_rollout_that_ends_badly_is_shown_for_what_it_is(
    bundle: Path, dataset: Dataset, scripted_policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.explore.loading.load_policy", lambda path: scripted_policy(" ; "))
    shown = run(bundle, "--history", titles(dataset, 1))
    assert "ended: empty_preference: a preference names nothing; 1 call" in shown
    assert "the format is broken: " in shown
    told = json.loads(run(bundle, "--history", titles(dataset, 1), "--json"))
    assert (told["valid"], told["answer"], len(told["trm"])) == (False, [], 10)


def test_temperature_and_another_policy(
    bundle: Path, dataset: Dataset, policy: Any, toy_trm: Path, sample_dataset: Path, tmp_path: Path
) -> None:
    policy.temperatures.clear()
    other = tmp_path / "other"
    with write_artifact(other, "policy", parents=[sample_dataset, toy_trm]) as work:
        (work / "explore.json").write_text('{"prompt": "compact", "items_per_call": 4}', encoding="utf-8")
    arguments = ("--history", titles(dataset, 1), "--json")
    told = json.loads(run(bundle, *arguments, "--temperature", 0.7, "--seed", 5, "--policy", other))
    assert policy.temperatures == {0.7}
    assert (told["temperature"], told["seed"]) == (0.7, 5)
    assert [len(turn["items"]) for turn in told["turns"]] == [4, 4]
    with write_artifact(tmp_path / "foreign", "policy", parents=[sample_dataset]) as work:
        (work / "explore.json").write_text("{}", encoding="utf-8")
    assert "not made from the TRM" in fails(ArtifactError, bundle, *arguments, "--policy", tmp_path / "foreign")


def test_a_user_of_a_dataset_or_of_the_feature_store(
    bundle: Path, dataset: Dataset, sample_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = next(iter(dataset.sequences))
    told = json.loads(run(bundle, "--user", user, "--dataset", sample_dataset, "--json"))
    assert told["history"] == list(dataset.sequences[user])
    assert f"no user 'nobody'; name one it has, for example {user}" in fails(
        DataError, bundle, "--user", "nobody", "--dataset", sample_dataset
    )
    assert "no feature store beside it" in fails(ConfigError, bundle, "--user", user)

    class Published:
        def history(self, user_id: str) -> tuple[str, ...] | None:
            return ("gone", *dataset.sequences[user]) if user_id == user else None

    def opened(place: DirectoryPlace, name: str) -> Published:
        assert (place.path, name) == (bundle.parent / "features", "f00d")
        return Published()

    monkeypatch.setattr(DirectoryPlace, "open", opened)
    (bundle.parent / "features").mkdir()
    assert f"history of {user}: {len(dataset.sequences[user])} items" in run(bundle, "--user", user)
    assert "no user 'x'" in fails(DataError, bundle, "--user", "x")


def test_the_bundle_is_found_in_a_run_or_is_the_newest(
    bundle: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--history", titles(dataset, 1))
    assert f"in {bundle}" in run(bundle.parent, *arguments)
    monkeypatch.chdir(tmp_path)
    assert "no run with a bundle in runs/" in fails(ConfigError, *arguments)
    for age, name in enumerate(("newer", "older")):
        shutil.copytree(bundle, tmp_path / "runs" / name / "bundle")
        os.utime(tmp_path / "runs" / name / "bundle" / "bundle.json", (1000 - age, 1000 - age))
    assert "in runs/newer/bundle" in run(*arguments)
    assert "neither a bundle nor a shelf nor the directory of a run" in fails(ConfigError, tmp_path, *arguments)


def test_bad_requests_get_one_clear_error(bundle: Path, dataset: Dataset) -> None:
    title = dataset.catalogue.items[3].title
    assert "one of the two" in fails(ConfigError, bundle)
    assert "one of the two" in fails(ConfigError, bundle, "--user", "u", "--history", title)
    assert f"did you mean '{title}'" in fails(TrmError, bundle, "--history", title[:-1])
    assert "not of the form" in fails(TrmError, bundle, "--history", title, "--filter", "year > 3")
    assert "no item has a column 'colour'" in fails(TrmError, bundle, "--history", title, "--filter", "colour = red")


def test_the_help_has_examples() -> None:
    assert "deeprec explore" in run("--help").partition("Examples")[2]
