"""The look at drift on a hand-made bundle, real events in a real log and answers: what each figure counts, by hand."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from deeprec.bundle.snapshot import DAY
from deeprec.config import DriftConfig
from deeprec.features.directory import DirectoryPlace
from deeprec.features.log import LoggedEvent
from deeprec.release.drift.figure import Bars, Drift, Figure
from deeprec.release.drift.look import NO_LOG, NO_PLACE, NO_SNAPSHOT, look
from deeprec.release.drift.page import write_drift_page
from deeprec.release.drift.seen import Answers
from deeprec.types import Catalogue, Item

HOUR = 3600
NO_POLICY_IN_SHADOW = ("not compared", "in shadow mode the TRM answers")
NOW = 1_000 * DAY
CONFIG = DriftConfig(min_users=1, days=7)
CATALOGUE = Catalogue(tuple(Item(name, f"Title {name}") for name in "abcd"))


class Bundle:
    """A bundle without a snapshot, of which no part is asked for."""

    version, serve, catalogue = "v1", "policy", CATALOGUE

    def __init__(self, index: Path) -> None:
        self.index = index


def place_with(folder: Path, *events: tuple[str, str, int]) -> DirectoryPlace:
    """A feature place with events: user, item, time."""
    place = DirectoryPlace(folder)
    place.prepare()
    with place.log.locked({user for user, _, _ in events}) as users:
        users.append([LoggedEvent(f"e{number}", *event) for number, event in enumerate(events)])
    return place


def answers(*rows: tuple[str | None, int, str, str], **columns: Any) -> Answers:
    """A log: user, seconds before now, path, items as single letters."""
    of_all = {"version": "v1", "model": "deeprec", "shadow": False, **columns}
    found = [
        {"user": user, "at": datetime.fromtimestamp(NOW - ago, UTC), "path": path, "items": list(items), **of_all}
        for user, ago, path, items in rows
    ]
    return Answers(pl.DataFrame(found, schema_overrides={"user": pl.String, "items": pl.List(pl.String)}), None)


def figures(found: Drift) -> dict[str, Figure]:
    return {figure.key: figure for figure in found.figures}


def seen(tmp_path: Path, place: DirectoryPlace | None, log: Answers | None, **settings: Any) -> dict[str, Figure]:
    config = CONFIG.model_copy(update=settings)
    return figures(look(Bundle(tmp_path), place, log, config, NOW))  # type: ignore[arg-type]


def test_what_is_not_named_is_not_compared(tmp_path: Path) -> None:
    found = look(Bundle(tmp_path), None, None, CONFIG, NOW)  # type: ignore[arg-type]
    assert (found.verdict, found.reason) == ("inconclusive", "nothing could be compared")
    assert {key: figure.why for key, figure in figures(found).items()} == {
        "unknown_items": NO_PLACE,
        "popularity": NO_PLACE,
        "history": NO_PLACE,
        "activity": NO_PLACE,
        "popularity_answers": NO_LOG,
        "policy_answers": NO_LOG,
        "hit_loss": NO_LOG,
    }


def test_items_that_the_bundle_does_not_know(tmp_path: Path) -> None:
    """One of four events of these days; older ones do not count."""
    new = [("u", "a", NOW - 5), ("u", "z", NOW - 6), ("v", "b", NOW - DAY), ("w", "c", NOW - 6 * DAY)]
    place = place_with(tmp_path / "features", *new, ("x", "z", NOW - 8 * DAY))
    found = seen(tmp_path, place, None)
    unknown = found["unknown_items"]
    assert (unknown.value, unknown.users, unknown.rule) == (0.25, 3, "at most 0.05")
    by_day = [(day.day, day.value, day.users) for day in unknown.days]
    nobody = [(f"1972-09-{day}", None, 0) for day in range(22, 26)]
    assert by_day == [("1972-09-21", None, 1), *nobody, ("1972-09-26", pytest.approx(1 / 3), 2)]
    assert {found[key].why for key in ("popularity", "history", "activity")} == {NO_SNAPSHOT}


def test_answers_count_by_their_path_in_these_days_and_of_this_bundle(tmp_path: Path) -> None:
    log = answers(
        ("u", 5, "policy", "a"),
        ("u", 6, "popularity", "a"),
        (None, 7, "trm", "a"),
        (None, 8, "policy", "a"),
        ("u", 8 * DAY, "popularity", "a"),
    )
    others = [
        answers(("u", 5, "popularity", "a"), **column) for column in ({"version": "v0"}, {"model": "deeprec-trm"})
    ]
    log = replace(log, rows=pl.concat([log.rows, *(other.rows for other in others)]))
    found = seen(tmp_path, None, log)
    assert (found["popularity_answers"].value, found["popularity_answers"].users) == (0.25, 3)
    assert (found["policy_answers"].value, found["policy_answers"].rule) == (0.5, "at least 0.5")
    shadow = seen(tmp_path, None, answers(("u", 5, "trm", "a"), shadow=True))
    assert (shadow["policy_answers"].state, shadow["policy_answers"].why) == NO_POLICY_IN_SHADOW
    nothing = replace(log, rows=log.rows.clear())
    assert (seen(tmp_path, None, nothing)["policy_answers"].state) == "inconclusive"


def test_of_a_bundle_that_serves_its_trm_no_policy_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Bundle, "serve", "trm")
    found = seen(tmp_path, None, answers(("u", 5, "trm", "a")))["policy_answers"]
    assert (found.state, found.why) == ("not compared", "the bundle serves the TRM alone")


def test_the_hit_share_before_these_days_and_in_them(tmp_path: Path) -> None:
    """Before: 2 of 3 answers that were followed by an event held its item; in these days 1 of 3.

    Half of it is lost. Answers that nothing followed within a day, and those of the last day, do not count.
    """
    before, now = 10 * DAY, 3 * DAY
    log = answers(
        ("u", before, "trm", "ab"),
        ("v", before, "trm", "ab"),
        ("w", before, "trm", "ab"),
        ("x", before, "trm", "ab"),
        ("u", now, "trm", "ab"),
        ("v", now, "trm", "ab"),
        ("w", now, "trm", "ab"),
        ("u", HOUR, "trm", "ab"),
        (None, now, "trm", "ab"),
    )
    events = [
        *((user, item, NOW - before + HOUR) for user, item in (("u", "a"), ("v", "b"), ("w", "c"))),
        ("x", "a", NOW - before + 25 * HOUR),
        *((user, item, NOW - now + HOUR) for user, item in (("u", "a"), ("v", "d"), ("w", "c"))),
        ("u", "a", NOW - 1),
    ]
    found = seen(tmp_path, place_with(tmp_path / "features", *events), log)["hit_loss"]
    assert found.value is None, "a resample of three users can be without a hit, and nothing can be said"
    assert found.why == "there is nothing to measure it against"
    by_day = [(day.day, day.value) for day in found.days if day.users]
    assert by_day == [("1972-09-17", 2 / 3), ("1972-09-24", 1 / 3)]
    many = [(f"{user}{copy}", item, time) for copy in range(30) for user, item, time in events]
    rows = log.rows.drop_nulls("user")
    copies = pl.concat([rows.with_columns(user=pl.col("user") + str(copy)) for copy in range(30)])
    found = seen(tmp_path, place_with(tmp_path / "more", *many), replace(log, rows=copies))["hit_loss"]
    assert (found.value, found.users, found.state) == (pytest.approx(0.5), 90, "drifted")
    few = seen(tmp_path, place_with(tmp_path / "few", *many), replace(log, rows=copies), min_users=100)["hit_loss"]
    assert few.why == "90 users had such answers before these days, and fewer than 100 decide nothing"


def test_the_page_loads_nothing_escapes_and_is_small(tmp_path: Path) -> None:
    days = [("u", "abz"[day % 3], NOW - day * DAY // 4) for day in range(1, 28)] + [
        ("v", "a", NOW - day * DAY // 4) for day in range(1, 28)
    ]
    found = look(Bundle(tmp_path), place_with(tmp_path / "features", *days), None, CONFIG, NOW)  # type: ignore[arg-type]
    bars = Bars("a <b>", ("<i>", "2"), (0.5, 0.5), (0.25, 0.75))
    first = replace(found.figures[0], bars=bars, why="<script>")
    write_drift_page(tmp_path / "drift.html", replace(found, figures=(first, *found.figures[1:])))
    page = (tmp_path / "drift.html").read_text(encoding="utf-8")
    assert len(page) < 300_000
    assert not {sign for sign in ("<script", "http:", "https:", "src=", "<i>", "a <b>") if sign in page}
    assert "prefers-color-scheme: dark" in page
    assert "items it does not know by day (UTC)" in page
    assert page.count("<circle") > len(first.days) > 2
    assert "popularity, neither" not in page
    assert NO_LOG in page
