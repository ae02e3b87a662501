"""Later events: which list held what users took, counted by hand, and how events are read."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from deeprec.errors import DataError
from deeprec.evaluation.later import CAVEAT, later_events, read_events
from deeprec.evaluation.shadow import evaluate_shadow
from deeprec.evaluation.shadow_report import render, sentences, tables

NOON = datetime(2025, 11, 21, 12, tzinfo=UTC)
HOUR = 3600.0


def requests(*rows: tuple[str | None, float, str, str]) -> pl.DataFrame:
    """Rows of shadow mode: user, hours after noon, items of the TRM and of the policy (single letters)."""
    return pl.DataFrame(
        [
            {
                "at": NOON + timedelta(hours=hours),
                "user": user,
                "trm_items": list(trm),
                "policy_items": list(policy),
                "reason": None,
                "turns": [1.0],
                "milliseconds": 1.0,
                "version": "v",
            }
            for user, hours, trm, policy in rows
        ],
        schema_overrides={"user": pl.String, "policy_items": pl.List(pl.String), "reason": pl.String},
    )


def took(*rows: tuple[str, float, str]) -> pl.DataFrame:
    """Events: user, hours after noon, item."""
    return pl.DataFrame(
        [(user, item, NOON.timestamp() + hours * HOUR) for user, hours, item in rows],
        schema={"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Float64},
        orient="row",
    )


def test_figures_are_those_counted_by_hand() -> None:
    rows = requests(
        ("u1", 0, "abcd", "badc"),
        ("u1", 2, "abcd", "efgh"),
        ("u2", 0, "abcd", "dcba"),
        ("u3", 0, "abcd", "dcba"),
        (None, 0, "abcd", "dcba"),
    )
    events = took(("u1", 1, "b"), ("u1", 3, "z"), ("u2", 5, "a"), ("u2", 6, "b"), ("u3", 30, "a"), ("u4", 1, "a"))
    later = later_events(rows, events, k=3, window_hours=24, resamples=200)
    # u1's first request: {b, z}; TRM b at the second place, policy b at the first. Its second: {z}, neither.
    # u2: {a, b}; TRM a, b at the first two, policy's first three d c b: b at the third. u3 took a too late.
    two = 1 + 1 / math.log2(3)
    trm = [(1 / math.log2(3) / two + 0) / 2, 1.0]
    policy = [(1 / two + 0) / 2, (1 / math.log2(4)) / two]
    assert (later.requests, later.users, later.taken) == (3, 2, 5)
    ndcg, hits = later.metrics["ndcg@3"], later.metrics["hit_rate@3"]
    assert ndcg.trm.mean == pytest.approx(sum(trm) / 2)
    assert ndcg.policy.mean == pytest.approx(sum(policy) / 2)
    assert ndcg.difference.mean == pytest.approx((sum(policy) - sum(trm)) / 2)
    assert hits.trm.mean == hits.policy.mean == pytest.approx((0.5 + 1) / 2)
    assert hits.difference.mean == 0


def test_an_event_counts_after_the_request_and_within_the_window_only() -> None:
    rows = requests(("u1", 1, "ab", "ba"))
    for hours, counts in ((0.99, False), (1.0, False), (1.01, True), (3.0, True), (3.01, False)):
        if counts:
            assert later_events(rows, took(("u1", hours, "a")), k=2, window_hours=2, resamples=10).taken == 1
        else:
            with pytest.raises(DataError, match=r"within 2 hours.*2025-11-21 13:00 UTC"):
                later_events(rows, took(("u1", hours, "a")), k=2, window_hours=2, resamples=10)


def test_an_item_taken_twice_is_taken_once() -> None:
    rows = requests(("u1", 0, "ab", "ba"))
    later = later_events(rows, took(("u1", 1, "a"), ("u1", 2, "a")), k=2, resamples=10)
    assert later.taken == 1
    assert later.metrics["ndcg@2"].trm.mean == 1


def test_hashed_users_are_joined_and_plain_ones_too() -> None:
    events = took(("alice", 1, "a"))
    hashed = later_events(requests(("#ecila", 0, "ab", "ba")), events, k=2, user_hash=lambda u: "#" + u[::-1])
    plain = later_events(requests(("alice", 0, "ab", "ba")), events, k=2, user_hash=lambda u: "#" + u[::-1])
    assert hashed == plain


def _world(better: str, users: int = 300) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Requests of many users of whom most took the first item of ``better``'s list and some that of the other's."""
    draw = np.random.default_rng(0)
    lists = {"trm": "ab", "policy": "cd"}
    other = next(name for name in lists if name != better)
    first = [lists[better if draw.random() < 0.8 else other][0] for _ in range(users)]
    rows = requests(*((f"u{number}", 0, lists["trm"], lists["policy"]) for number in range(users)))
    return rows, took(*((f"u{number}", 1, item) for number, item in enumerate(first)))


@pytest.mark.parametrize(("better", "said"), [("policy", "The policy beats the TRM"), ("trm", "is below the TRM")])
def test_the_verdict_names_the_better_list(better: str, said: str) -> None:
    later = later_events(*_world(better), k=2, resamples=500)
    assert said in later.verdict
    assert "NDCG@2" in later.verdict
    assert "Few users" not in later.verdict
    difference = later.metrics["ndcg@2"].difference
    assert difference.low < difference.mean < difference.high
    assert (difference.mean > 0) == (better == "policy")


def test_equal_lists_are_not_called_a_draw() -> None:
    rows, events = _world("trm", 200)
    same = later_events(rows.with_columns(policy_items="trm_items"), events, k=2)
    assert same.verdict.startswith("Both lists held the same later items for every user")


def test_requests_of_one_user_are_not_taken_for_many_users() -> None:
    """The same answers by one user ten times over leave every figure as it is."""
    rows, events = _world("policy", 60)
    repeated = pl.concat([rows, *[rows.filter(pl.col("user") == "u0")] * 10])
    assert later_events(repeated, events, k=2).metrics == later_events(rows, events, k=2).metrics


def test_few_users_are_said_to_be_few_and_the_caveat_is_always_there() -> None:
    rows = requests(("u1", 0, "ab", "ba"))
    later = later_events(rows, took(("u1", 1, "a")), k=2, resamples=50)
    assert "Few users have later events yet (1)" in later.verdict
    found = evaluate_shadow(rows, k=2, later=later)
    assert CAVEAT in sentences(found)
    page = render(found, "log")
    assert "Users saw only the TRM" in page
    assert tables(found)[-1].title == "What users took afterwards"
    assert json.loads(json.dumps(found.to_json()))["later"]["caveat"] == CAVEAT


def test_what_cannot_be_joined_is_explained() -> None:
    events = took(("u9", 1, "a"))
    with pytest.raises(DataError, match="leave out --events"):
        later_events(requests(("u1", 0, "ab", "")), events, k=2)
    with pytest.raises(DataError, match=r"none of the 1 users with events is among the 1 .*needs its file `key`"):
        later_events(requests(("u1", 0, "ab", "ba")), events, k=2)
    with pytest.raises(DataError, match=r"none of the 1 users.*keep the log's key beside it"):
        later_events(requests(("u1", 0, "ab", "ba")), events, k=2, user_hash=str.upper)


# ------------------------------------------------------------------------------------------------------------ reading


def _line(**values: Any) -> str:
    return json.dumps({"user_id": "u1", "item_id": "a", "timestamp": 5, **values}) + "\n"


def test_json_lines_and_parquet_are_read_together(tmp_path: Path) -> None:
    place = tmp_path / "events" / "day"
    place.mkdir(parents=True)
    (place / "one.jsonl").write_text(_line(user_id=7, extra="x") + "\n" + _line(timestamp=6.5))
    pl.DataFrame({"user_id": ["u2"], "item_id": [3], "timestamp": [datetime(1970, 1, 1, 0, 1)]}).write_parquet(
        place / "two.parquet"
    )
    expected = [("7", "a", 5.0), ("u1", "a", 6.5), ("u2", "3", 60.0)]
    assert read_events(tmp_path).rows() == expected
    assert read_events(place).rows() == expected
    assert read_events(place / "one.jsonl").rows() == expected[:2]


def test_a_line_that_is_being_written_is_left_for_later(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(_line() + _line()[:20])
    assert len(read_events(file)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "{}\n",
        "nonsense\n",
        '{"user_id": "u", "item_id": "i", "timestamp": "noon"}\n',
        "[]\n",
        _line(timestamp=math.nan),
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "events.jsonl"
    file.write_text(_line() + line + _line())
    with pytest.raises(DataError, match=r"events\.jsonl line 2 is no event"):
        read_events(file)


def test_what_holds_no_events_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing does not exist"):
        read_events(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no \.jsonl or \.parquet file"):
        read_events(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no events"):
        read_events(tmp_path)
    (tmp_path / "a.jsonl").write_text(_line(timestamp=1_763_726_400_000))
    with pytest.raises(DataError, match="not milliseconds"):
        read_events(tmp_path)
    pl.DataFrame({"user": ["u"]}).write_parquet(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet is no file of events"):
        read_events(tmp_path)
