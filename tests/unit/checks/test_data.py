"""The data gate on hand-made datasets: one that passes, and one for each way to fail."""

import json
import socket
import time
from pathlib import Path

import polars as pl
import pytest

from deeprec.checks.data import check_dataset
from deeprec.config import ChecksConfig
from deeprec.errors import ConfigError, DataError

CHECKS = ChecksConfig(min_users=3, min_items=4, min_interactions=12)
START = 978_300_760
DAY = 86_400


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    rows = [(f"u{user}", f"i{item}", START + DAY * item) for user in range(3) for item in range(5)]
    interactions = pl.DataFrame(rows, schema={"user_id": str, "item_id": str, "timestamp": pl.Int64}, orient="row")
    items = pl.DataFrame({"item_id": [f"i{n}" for n in range(5)], "title": [f"Title {n}" for n in range(5)]})
    return interactions, items


def write(place: Path, interactions: pl.DataFrame, items: pl.DataFrame, **info) -> Path:
    place.mkdir()
    interactions.write_parquet(place / "interactions.parquet")
    items.write_parquet(place / "items.parquet")
    settings = {"time_unit": "seconds", "policy_positions": 1, "missing_titles": 0, "source": "hand", **info}
    (place / "dataset.json").write_text(json.dumps(settings), encoding="utf-8")
    return place


def failed(place: Path, checks: ChecksConfig = CHECKS) -> list[str]:
    """Names of the failed checks; the report is there and says so."""
    report = place.parent / "reports" / "data.html"
    verdict = check_dataset(place, checks, report)
    page = report.read_text(encoding="utf-8")
    assert ("✔ Passed" if verdict.passed else "✘ Failed") in page
    names = [row.name for row in verdict.rows if row.passed is False]
    assert verdict.passed == (not names)
    assert len(verdict.reason.splitlines()) == 1
    return names


def test_a_sound_dataset_passes_without_a_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the gate opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert failed(write(tmp_path / "dataset", *tables())) == []


def set_value(frame: pl.DataFrame, column: str, row: int, value) -> pl.DataFrame:
    values = frame[column].to_list()
    values[row] = value
    return frame.with_columns(pl.Series(column, values, dtype=frame.schema[column]))


INTERACTION_FAULTS = {
    "null user": (lambda f: set_value(f, "user_id", 3, None), {"interactions: user_id is present"}),
    "empty user": (lambda f: set_value(f, "user_id", 3, ""), {"interactions: user_id is not empty"}),
    "unknown item": (
        lambda f: set_value(f, "item_id", 3, "gone"),
        {"interactions: items that are not in the catalogue"},
    ),
    "numeric ids": (lambda f: f.with_columns(user_id=pl.lit(7)), {"interactions: type of user_id"}),
    "timestamps as text": (
        lambda f: f.with_columns(pl.col("timestamp").cast(str)),
        {"interactions: type of timestamp"},
    ),
    "before the earliest": (lambda f: set_value(f, "timestamp", 0, 12), {"interactions: earliest timestamp"}),
    "in the future": (
        lambda f: set_value(f, "timestamp", 0, int(time.time()) + DAY),
        {"interactions: latest timestamp"},
    ),
    "milliseconds": (
        lambda f: f.with_columns(pl.col("timestamp") * 1_000_000),
        {"interactions: latest timestamp"},
    ),
    "a repeat": (lambda f: pl.concat([f, f.head(1)]), {"interactions: repeated (user, item, timestamp)"}),
    "too few": (lambda f: f.head(6), {"interactions: number", "interactions: distinct users"}),
    "no rows": (lambda f: f.clear(), {"interactions: number", "interactions: distinct users"}),
    "no timestamp": (lambda f: f.drop("timestamp"), {"interactions: columns"}),
}


@pytest.mark.parametrize("fault", INTERACTION_FAULTS)
def test_a_fault_of_interactions_fails_its_check(tmp_path, fault):
    change, expected = INTERACTION_FAULTS[fault]
    interactions, items = tables()
    assert expected <= set(failed(write(tmp_path / "dataset", change(interactions), items)))


ITEM_FAULTS = {
    "null title": (lambda f: set_value(f, "title", 1, None), {"items: title is present"}),
    "repeated title": (lambda f: set_value(f, "title", 1, "Title 0"), {"items: title is unique"}),
    "repeated id": (lambda f: pl.concat([f, f.head(1).with_columns(title=pl.lit("x"))]), {"items: item_id is unique"}),
    "too few": (lambda f: f.head(2), {"items: number", "interactions: items that are not in the catalogue"}),
    "no title": (lambda f: f.drop("title"), {"items: columns"}),
}


@pytest.mark.parametrize("fault", ITEM_FAULTS)
def test_a_fault_of_items_fails_its_check(tmp_path, fault):
    change, expected = ITEM_FAULTS[fault]
    interactions, items = tables()
    assert set(failed(write(tmp_path / "dataset", interactions, change(items)))) == expected


def test_a_history_too_short_to_split_fails(tmp_path):
    assert failed(write(tmp_path / "dataset", *tables(), policy_positions=3)) == ["interactions: shortest history"]


def test_an_order_skips_the_clock_and_says_so(tmp_path):
    interactions, items = tables()
    place = write(
        tmp_path / "dataset", interactions.with_columns(timestamp=pl.lit(5, pl.Int64)), items, time_unit="order"
    )
    verdict = check_dataset(place, CHECKS, tmp_path / "report.html")
    assert verdict.passed
    skipped = [row for row in verdict.rows if row.passed is None]
    assert [row.name for row in skipped] == ["interactions: earliest timestamp", "interactions: latest timestamp"]
    assert "(2 skipped)" in verdict.reason
    assert "timestamps are an order" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(("missing", "expected"), [(0, []), (1, ["items: titles missing at the source"])])
def test_missing_titles_are_those_the_import_counted(tmp_path, missing, expected):
    assert failed(write(tmp_path / "dataset", *tables(), missing_titles=missing)) == expected


def test_missing_titles_are_counted_by_their_stand_ins_otherwise(tmp_path):
    interactions, items = tables()
    place = write(tmp_path / "dataset", interactions, set_value(items, "title", 1, "Item i1"), missing_titles=None)
    assert failed(place) == ["items: titles missing at the source"]
    assert failed(place, CHECKS.model_copy(update={"max_missing_titles": 0.2})) == []


def test_thresholds_allow_repeats(tmp_path):
    interactions, items = tables()
    place = write(tmp_path / "dataset", pl.concat([interactions, interactions.head(1)]), items)
    assert failed(place, CHECKS.model_copy(update={"max_duplicate_interactions": 0.1})) == []


def test_hostile_titles_are_escaped_in_the_report(tmp_path):
    interactions, items = tables()
    hostile = "<img src=x onerror=alert(1)>"
    place = write(tmp_path / "dataset", interactions, items.with_columns(title=pl.lit(hostile)))
    assert failed(place) == ["items: title is unique"]
    page = (tmp_path / "reports" / "data.html").read_text(encoding="utf-8")
    assert "<img" not in page
    assert "&lt;img src=x" in page


@pytest.mark.parametrize("name", ["interactions.parquet", "items.parquet", "dataset.json"])
@pytest.mark.parametrize("corrupt", [False, True])
def test_a_missing_or_corrupt_file_is_a_data_error(tmp_path, name, corrupt):
    place = write(tmp_path / "dataset", *tables())
    if corrupt:
        (place / name).write_bytes(b"PAR1 nothing of the kind")
    else:
        (place / name).unlink()
    with pytest.raises(DataError, match=name):
        check_dataset(place, CHECKS, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_an_earliest_date_that_is_none_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match=r"checks\.earliest"):
        check_dataset(tmp_path, CHECKS.model_copy(update={"earliest": "soon"}), tmp_path / "report.html")
