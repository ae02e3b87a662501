"""Cost: hand-computed prices, no money without a price, and the table in a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.config.operation import PriceConfig
from deeprec.evaluation.cost import Spent, cost, cost_sentence, cost_table, money, spent_on
from deeprec.store import write_artifact

TASKS = {"ingest": Spent(360.0), "train-stage-1": Spent(7200.0, 4)}
MILLISECONDS = {"policy": 36.0, "trm": 3.6}
PRICES = PriceConfig(cpu=0.5, accelerator=2.0)


def test_seconds_times_price() -> None:
    found = cost(TASKS, MILLISECONDS, {"policy": 1}, PRICES)
    assert found["tasks"]["ingest"] == {"seconds": 360.0, "accelerators": 0, "price": pytest.approx(0.05)}
    assert found["tasks"]["train-stage-1"]["price"] == pytest.approx(2 * (0.5 + 4 * 2.0))
    assert found["total"] == {"seconds": 7560.0, "price": pytest.approx(17.05)}
    assert found["per_1000"]["policy"] == {"seconds": 36.0, "accelerators": 1, "price": pytest.approx(0.025)}
    assert found["per_1000"]["trm"]["price"] == pytest.approx(0.0005)
    assert cost_sentence(found) == (
        "The tasks up to the evaluation took 126.0 minutes and cost 17.05; 1,000 recommendations, asked one at a time, "
        "cost 0.025 by the policy, 0.0005 by the TRM."
    )


def test_one_price_is_enough() -> None:
    found = cost(TASKS, MILLISECONDS, {}, PriceConfig(accelerator=2.0))
    assert found["tasks"]["ingest"]["price"] == 0
    assert found["total"]["price"] == pytest.approx(16.0)


def test_without_a_price_there_are_seconds_and_no_money() -> None:
    found = cost(TASKS, MILLISECONDS, {}, PriceConfig())
    assert {row["price"] for row in (*found["tasks"].values(), *found["per_1000"].values(), found["total"])} == {None}
    assert cost_sentence(found) == ""
    header, rows = cost_table(found)
    assert header == ("", "seconds", "accelerators")
    assert rows == [
        ("ingest", "360.0", "0"),
        ("train-stage-1", "7,200.0", "4"),
        ("all of these", "7,560.0", ""),
        ("1,000 recommendations, policy", "36.0", "0"),
        ("1,000 recommendations, TRM", "3.6", "0"),
    ]


def test_with_a_price_every_row_has_one() -> None:
    header, rows = cost_table(cost(TASKS, MILLISECONDS, {}, PRICES))
    assert header[-1] == "price"
    assert [row[-1] for row in rows] == ["0.05", "17.00", "17.05", "0.005", "0.0005"]


@pytest.mark.parametrize(
    ("price", "shown"), [(0, "0.00"), (1234.567, "1,234.57"), (0.0123, "0.012"), (0.00000234, "2.3e-06")]
)
def test_small_prices_keep_two_digits(price: float, shown: str) -> None:
    assert money(price) == shown


def test_an_artifact_says_what_its_process_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPREC_GPUS", "2")
    with write_artifact(tmp_path / "there", "thing"):
        pass
    found = spent_on(tmp_path / "there")
    assert found.seconds > 0
    assert found.accelerators == 2
    monkeypatch.delenv("DEEPREC_GPUS")
    with write_artifact(tmp_path / "here", "thing"):
        pass
    assert spent_on(tmp_path / "here").accelerators == 0
