"""Shadow mode's comparison on a log small enough to count by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deeprec.errors import DataError
from deeprec.evaluation.shadow import ShadowEvaluation, evaluate_shadow, kendall_tau, paired, shadow_rows
from deeprec.evaluation.shadow_report import render, sentences, tables
from deeprec.types import Catalogue, Item

NOON = datetime(2025, 11, 21, 12, tzinfo=UTC)
CATALOGUE = Catalogue(tuple(Item(name, name.upper()) for name in "abcdefgh"))
COUNTS = np.array([15, 7, 3, 1, 0, 0, 0, 0])
"""With one added to each of the eight, 34 in all."""


def row(
    trm: str,
    policy: str,
    *,
    user: str | None = "u1",
    reason: str | None = None,
    turns: Sequence[float] = (),
    minutes: int = 0,
    **other: Any,
) -> dict[str, Any]:
    """One row of a log; items are single letters."""
    return {
        "at": NOON + timedelta(minutes=minutes),
        "user": user,
        "model": "deeprec",
        "path": "trm",
        "reason": reason,
        "shadow": True,
        "items": list(trm),
        "trm_items": list(trm),
        "policy_items": list(policy),
        "milliseconds": 5.0,
        "turns": list(turns),
        "deadline_ms": 1000,
        "k": 4,
        "version": "v1",
        **other,
    }


SCHEMA = {
    "user": pl.String,
    "reason": pl.String,
    "policy_items": pl.List(pl.String),
    "trm_items": pl.List(pl.String),
    "turns": pl.List(pl.Float64),
}


def log_of(*rows: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides=SCHEMA)


SMALL = log_of(
    # three shared of four; b a d in the policy's order against a b d: one pair of three turned round, tau 1/3
    row("abcd", "bade", turns=(10.0, 20.0)),
    # the same list
    row("abcd", "abcd", user="u2", turns=(10.0, 10.0, 20.0), minutes=1),
    # nothing shared; cut to the policy's two
    row("abcd", "ef", user="u2", turns=(50.0,), minutes=2, milliseconds=9.0),
    row("abcd", "", user=None, reason="the policy did not finish within 250 ms", turns=(250.0,), minutes=3),
    row("abcd", "", user="u3", reason="the policy did not finish within 1000 ms", minutes=4),
    row("ab", "", user="u3", reason="the user is unknown", path="popularity", trm_items=[], minutes=5),
)


@pytest.fixture(scope="module")
def found() -> ShadowEvaluation:
    return evaluate_shadow(shadow_rows(SMALL), k=4, catalogue=CATALOGUE, counts=COUNTS)


def test_requests_are_counted(found: ShadowEvaluation) -> None:
    assert (found.requests, found.users, found.anonymous, found.answered) == (6, 3, 1, 3)
    assert found.answered_share == 0.5
    assert (found.first, found.last) == (NOON, NOON + timedelta(minutes=5))
    assert found.versions == {"v1": 6}
    assert found.unanswered == {"the policy did not finish within … ms": 2, "the user is unknown": 1}


def test_agreement_is_that_counted_by_hand(found: ShadowEvaluation) -> None:
    agreement = found.agreement
    assert agreement is not None
    assert agreement.requests == 3
    assert agreement.overlap == pytest.approx((3 / 4 + 1 + 0) / 3)
    assert agreement.rank_correlation == pytest.approx((1 / 3 + 1) / 2)
    assert agreement.correlated == 2
    assert agreement.first_item == pytest.approx(1 / 3)
    assert agreement.identical == pytest.approx(1 / 3)
    assert agreement.shared == {0: 1, 3: 1, 4: 1}


def test_what_the_lists_hold_is_that_counted_by_hand(found: ShadowEvaluation) -> None:
    trm, policy = found.lists["trm"], found.lists["policy"]
    # TRM: abcd, abcd, ab. Policy: bade, abcd, ef.
    assert (trm.distinct, trm.coverage) == (4, 0.5)
    assert trm.popularity == pytest.approx((3 * 15 + 3 * 7 + 2 * 3 + 2 * 1) / 10)
    bits = {name: math.log2(34 / (count + 1)) for name, count in zip("abcdefgh", COUNTS, strict=True)}
    assert trm.novelty == pytest.approx((3 * bits["a"] + 3 * bits["b"] + 2 * bits["c"] + 2 * bits["d"]) / 10)
    assert (policy.distinct, policy.coverage) == (6, 0.75)
    assert policy.popularity == pytest.approx((2 * 15 + 2 * 7 + 3 + 2 * 1) / 10)
    assert policy.novelty == pytest.approx(sum(bits[item] for item in "badeabcdef") / 10)


def test_latency_is_by_turns(found: ShadowEvaluation) -> None:
    assert {turns: (row.requests, row.p50) for turns, row in found.policy_ms.items()} == {
        1: (1, 50.0),
        2: (1, 30.0),
        3: (1, 40.0),
    }
    assert found.policy_ms_all is not None
    assert (found.policy_ms_all.requests, found.policy_ms_all.p50) == (3, 40.0)
    assert found.policy_ms_all.p99 == pytest.approx(49.8)
    assert (found.answer_ms.requests, found.answer_ms.p50) == (6, 5.0)


def test_k_cuts_both_lists() -> None:
    agreement = evaluate_shadow(shadow_rows(SMALL), k=1).agreement
    assert agreement is not None
    assert agreement.overlap == agreement.first_item == pytest.approx(1 / 3)
    assert agreement.rank_correlation is None


def test_without_a_bundle_its_figures_are_left_out() -> None:
    lists = evaluate_shadow(shadow_rows(SMALL), k=4).lists
    assert {name: (one.distinct, one.coverage, one.novelty) for name, one in lists.items()} == {
        "trm": (4, None, None),
        "policy": (6, None, None),
    }


def test_a_policy_that_never_answered_is_a_finding_not_an_error() -> None:
    rows = shadow_rows(log_of(row("abcd", "", reason="the policy is starting again")))
    found = evaluate_shadow(rows, catalogue=CATALOGUE, counts=COUNTS)
    assert found.agreement is None
    assert found.policy_ms == {}
    assert found.answered_share == 0
    assert sentences(found)[0].startswith("The policy answered 0 of 1 requests (0.0%)")
    assert "Why the policy did not answer" in render(found, "log")


def test_many_reasons_are_summed_up() -> None:
    rows = [row("ab", "", reason=f"reason {chr(ord('a') + number)}") for number in range(14)]
    found = evaluate_shadow(shadow_rows(log_of(*rows)))
    assert len(found.unanswered) == 11
    assert found.unanswered["other reasons"] == 4


# ------------------------------------------------------------------------------------------------------ what is read


def test_only_shadow_rows_of_the_recommender_count() -> None:
    live = row("abcd", "badc", shadow=False, path="policy")
    alone = row("abcd", "", model="deeprec-trm", shadow=False)
    assert len(shadow_rows(log_of(live, alone, row("abcd", "badc")))) == 1
    with pytest.raises(DataError, match=r"none of the log's 2 rows.*--shadow"):
        shadow_rows(log_of(live, alone))


def test_a_bundle_chooses_its_own_rows() -> None:
    mixed = log_of(row("ab", "ba"), row("ab", "ab", version="v2"), row("ab", "ab", version="v2"))
    assert len(shadow_rows(mixed, "v2")) == 2
    assert evaluate_shadow(shadow_rows(mixed)).versions == {"v2": 2, "v1": 1}
    assert any("Several bundles" in line for line in sentences(evaluate_shadow(shadow_rows(mixed))))
    with pytest.raises(DataError, match=r"bundle v9 answered none.*these did: v1, v2"):
        shadow_rows(mixed, "v9")


def test_an_item_that_the_bundle_has_not_is_named() -> None:
    with pytest.raises(DataError, match="'z'"):
        evaluate_shadow(shadow_rows(log_of(row("az", "ab"))), catalogue=CATALOGUE, counts=COUNTS)


# --------------------------------------------------------------------------------------------------------- properties

lists = st.lists(st.sampled_from("abcdefgh"), unique=True, max_size=8)


@given(lists, lists)
def test_tau_is_symmetric_and_changes_sign_with_the_order(one: list[str], other: list[str]) -> None:
    tau = kendall_tau(one, other)
    if tau is None:
        assert len(set(one) & set(other)) < 2
        return
    assert -1 <= tau <= 1
    assert kendall_tau(other, one) == pytest.approx(tau)
    assert kendall_tau(one[::-1], other) == pytest.approx(-tau)
    assert kendall_tau(one, one) == 1


@given(lists, lists, st.integers(1, 10))
def test_lists_are_cut_to_one_length(trm: list[str], policy: list[str], k: int) -> None:
    first, second = paired(trm, policy, k)
    assert len(first) == len(second) == min(k, len(trm), len(policy))
    assert list(first) == trm[: len(first)]


# ------------------------------------------------------------------------------------------------------------ reports


class _Page(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_nothing_and_escapes_everything() -> None:
    nasty = row("ab", "", reason="<script>alert(1)</script>")
    page = render(evaluate_shadow(shadow_rows(log_of(nasty, row("ab", "ba", turns=(1.0,))))), "logs/<b>")
    parsed = _Page(page)
    assert not {"script", "link", "img", "iframe", "b"} & {tag for tag, _ in parsed.tags}
    assert not any(name in ("src", "href") for _, attributes in parsed.tags for name in attributes)
    assert "logs/&lt;b&gt;" in page
    assert page.count("<h2") == len(tables(evaluate_shadow(shadow_rows(log_of(nasty, row("ab", "ba"))))))


def test_figures_are_plain_json(found: ShadowEvaluation) -> None:
    values = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert values["answered_share"] == 0.5
    assert values["first"] == "2025-11-21T12:00:00+00:00"
    assert values["agreement"]["shared"] == {"0": 1, "3": 1, "4": 1}


def test_every_row_has_its_columns(found: ShadowEvaluation) -> None:
    for table in tables(found):
        assert all(len(cells) == len(table.columns) for cells in table.rows)
