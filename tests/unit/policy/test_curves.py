"""What a stage logs: hand-computed figures of a batch, the record, the line and the plots."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import pytest

from deeprec.policy.charts import PANELS, stage_figures
from deeprec.policy.curves import SHOWN, Curves, batch_statistics, trajectory_figures
from deeprec.types import Call, EndReason, Trajectory

Make = Callable[..., Trajectory]


def asking(made: Trajectory, *preferences: str, **changes: Any) -> Trajectory:
    """The trajectory with calls of these preferences, phrases apart by ``;``, none for a broad call."""
    calls = tuple(Call(words, tuple(words.split("; ")) if words else (), ()) for words in preferences)
    return replace(made, calls=calls, **changes)


@pytest.fixture
def batch(trajectory: Make) -> list[Trajectory]:
    """Two groups of two: the first earns 2 and 0, the second −1 twice."""

    def make(format_value: float, listwise: float | None) -> Trajectory:
        parts = {"format": (format_value, 1.0), "listwise": (listwise, 2.0)}
        return trajectory("u@1", [1, 2], [3, 4, 5], [1, 0, 1], parts)

    return [
        asking(make(0.0, 1.0), "", "comedy; drama", "drama; comedy"),
        asking(make(0.0, 0.0), "", "comedy; drama", ""),
        asking(make(-1.0, None), "comedy"),
        asking(make(-1.0, None), end=EndReason.SEGMENT_LIMIT),
    ]


def test_figures_of_a_batch(batch: list[Trajectory]) -> None:
    record = batch_statistics([trajectory_figures(one) for one in batch], group=2)
    assert record["format"] == -0.5
    assert record["listwise"] == 0.5
    assert record["reward"] == 0.0
    assert record["reward_std"] == pytest.approx((6 / 4) ** 0.5)
    assert record["valid_rate"] == 0.5
    assert record["mean_calls"] == pytest.approx(7 / 4)
    assert record["answered"] == 0.75
    assert (record["completion_tokens"], record["policy_tokens"]) == (3.0, 2.0)
    assert record["zero_variance_groups"] == 0.5
    # Four calls after a first one: the order of phrases makes no other preference, a broad call repeats a broad one.
    assert record["repeated_preferences"] == 0.5
    # comedy; drama is asked after the first call by two of the four.
    assert record["top_preference_share"] == 0.5


def test_a_batch_without_later_calls_or_scores(trajectory: Make) -> None:
    silent = trajectory("u@1", [1], [2], [1], {"format": (-1.0, 1.0), "listwise": (None, 1.0)})
    record = batch_statistics([trajectory_figures(silent)] * 2, group=2)
    assert record["repeated_preferences"] is None
    assert record["top_preference_share"] == 0.0
    assert record["listwise"] is None
    assert record["valid_rate"] == 0.0


def finished(place: Path, batch: list[Trajectory], **options: Any) -> tuple[Curves, list[str]]:
    lines: list[str] = []
    curves = Curves(place / "curves.json", {"format": 1.0, "listwise": 2.0}, 2, lines.append, **options)
    curves.rolled_out(1, batch, seconds=2.0, kl=0.25)
    curves.measured["logprob_gap"] += [0.01, 0.03]
    curves.updated({"loss": 1.0, "entropy": 2.0, "clip_ratio/region_mean": 0.5, "grad_norm": float("inf")})
    curves.updated({"loss": 3.0, "entropy": 4.0, "num_tokens": 7.0})
    curves.finish()
    return curves, lines


def test_a_record_and_its_line(batch: list[Trajectory], tmp_path: Path) -> None:
    curves, (line,) = finished(tmp_path, batch)
    (record,) = curves.records
    assert json.loads((tmp_path / "curves.json").read_text()) == [record]
    assert (record["loss"], record["entropy"], record["clip_ratio"]) == (2.0, 3.0, 0.5)
    assert record["logprob_gap"] == pytest.approx(0.02)
    assert record["kl"] == 0.25
    assert "grad_norm" not in record
    assert record["rollout_tokens_per_second"] == 8 / 2.0
    assert record["training_tokens_per_second"] > 0
    assert line.startswith("step 1: reward 0.000 (format -0.500 listwise 0.500) valid 0.500 calls 1.750")
    for _, title in SHOWN:
        assert f" {title} " in line
    assert "\n" not in line


def test_processes_keep_one_record_of_all_trajectories(batch: list[Trajectory], tmp_path: Path) -> None:
    """Each hands in half; the second neither writes nor speaks."""
    whole, _ = finished(tmp_path, batch)
    handed: list[Any] = []
    silent = Curves(tmp_path, {}, 2, print, gather=lambda values: handed.extend(values) or values)  # type: ignore[func-returns-value]
    silent.rolled_out(1, batch[:2], 1.0, None)
    curves, lines = finished(tmp_path / "nowhere", batch[2:], gather=lambda values: [*handed, *values], writes=False)
    assert lines == []
    assert not (tmp_path / "nowhere").exists()
    for name in ("reward", "valid_rate", "listwise", "repeated_preferences", "reward_std", "kl"):
        assert curves.records[0][name] == whole.records[0][name]
    assert curves.records[0]["rollout_seconds"] == 2.0


def test_a_resumed_stage_keeps_the_records_before_its_checkpoint(batch: list[Trajectory], tmp_path: Path) -> None:
    first, _ = finished(tmp_path, batch)
    later = Curves(tmp_path / "curves.json", {}, 2, print)
    later.resume(0)
    assert later.records == []
    later.resume(1)
    assert later.records == first.records


def test_every_figure_has_a_plot(batch: list[Trajectory], tmp_path: Path) -> None:
    curves, _ = finished(tmp_path, batch)
    plotted = {name for name, _ in PANELS}
    assert {name for name, _ in SHOWN} <= plotted
    figures = stage_figures([record | {"step": step} for step in (1, 2) for record in curves.records])
    measured = [title for name, title in PANELS if isinstance(curves.records[0].get(name), int | float)]
    assert len(figures) == len(measured)
    assert all(escape(title) in figure for title, figure in zip(measured, figures, strict=True))
    assert stage_figures(curves.records) == []
