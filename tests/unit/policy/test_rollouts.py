"""The rollout task with a scripted policy: whom it is for, what is kept, and what whoever reads it can rely on."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest

from deeprec.config import (
    ExploreConfig,
    PolicyConfig,
    RewardsConfig,
    SelectConfig,
    StageConfig,
    TextConfig,
)
from deeprec.data.dataset import read_dataset
from deeprec.data.splits import test_examples as held_out_examples
from deeprec.data.splits import validation_examples
from deeprec.errors import ArtifactError, ConfigError
from deeprec.explore.rollouts import open_rollouts, rollouts_of
from deeprec.explore.trajectories import read_trajectories
from deeprec.policy.rollouts import REQUESTS, candidates, roll_policy_out
from deeprec.policy.select import select_prompts
from deeprec.store import read_artifact, write_artifact
from deeprec.types import Trajectory

EXPLORE = ExploreConfig(
    items_per_call=8, answer_size=5, max_calls=3, max_new_tokens=900, max_context=9000, prompt="compact", batch_size=8
)
TEXT = TextConfig(provider="hashing", width=32)
SELECT = SelectConfig(candidates=40, rollouts=2)
RollOut = Callable[..., dict[str, float]]


def quiet(line: str) -> None:
    """No progress."""


@pytest.fixture
def roll_out(sample_dataset: Path, toy_trm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RollOut:
    """``roll_out(users, policy, name)``: a policy rolled out into ``tmp_path / name``, as that of ``start``."""
    start = tmp_path / "start"
    with write_artifact(start, "policy") as work:
        (work / "weights.txt").write_text("none", encoding="utf-8")

    def run(users: Any, policy: Any, name: str = "rollouts", **more: Any) -> dict[str, float]:
        monkeypatch.setattr("deeprec.policy.rollouts.open_policy", lambda *_: policy)
        explore = more.pop("explore", EXPLORE)
        return roll_policy_out(
            users, sample_dataset, toy_trm, start, SELECT, explore, TEXT, 0, tmp_path / name,
            **{"progress": quiet, **more},
        )  # fmt: skip

    return run


@pytest.mark.usefixtures("few_objects")
def test_rollouts_are_written_as_they_come_and_memory_holds_a_batch(
    roll_out: RollOut, scripted_policy: Any, tmp_path: Path
) -> None:
    held: list[int] = []
    before = sum(isinstance(one, Trajectory) for one in gc.get_objects())

    def count(line: str) -> None:
        held.append(sum(isinstance(one, Trajectory) for one in gc.get_objects()) - before)

    policy = scripted_policy(repeats=5)
    figures = roll_out("candidates", policy, progress=count)
    assert (figures["rollouts"], figures["mean_calls"]) == (80.0, 2.0)
    assert policy.starts == 40 * 2 / EXPLORE.batch_size
    assert policy.closed == 1
    assert policy.temperatures == {EXPLORE.temperature}
    assert 0 < max(held) <= 3 * EXPLORE.batch_size
    file = pq.ParquetFile(tmp_path / "rollouts" / "trajectories.parquet").metadata
    assert {file.row_group(group).num_rows for group in range(file.num_row_groups)} == {EXPLORE.batch_size}


def test_prompts_are_chosen_without_the_policy_or_the_trm(
    roll_out: RollOut, scripted_policy: Any, sample_dataset: Path, tmp_path: Path
) -> None:
    roll_out("candidates", scripted_policy(repeats=5))
    stage = StageConfig(steps=1, prompts_per_step=4, rollouts=2, sequences_per_update=2, micro_batch=2)
    settings = PolicyConfig(select=SELECT, stage1=stage, stage2=stage)
    places = sample_dataset, tmp_path / "rollouts"
    metrics = select_prompts(*places, settings, EXPLORE, RewardsConfig(), 0, tmp_path / "prompts", progress=quiet)
    assert metrics["candidates"] == 40
    kept = list(read_trajectories(tmp_path / "rollouts" / "trajectories.parquet"))
    valid = [len(set(one.answer)) == EXPLORE.answer_size for one in kept]
    assert 0 < sum(valid) < len(valid)
    assert metrics["valid_rate"] == pytest.approx(sum(valid) / len(valid))
    chosen = [pl.read_parquet(tmp_path / "prompts" / f"{name}.parquet") for name in ("stage1", "stage2")]
    assert [len(table) for table in chosen] == [4, 4]
    assert not set(chosen[0]["user_id"]) & set(chosen[1]["user_id"])
    other = settings.model_copy(update={"select": SelectConfig(candidates=41, rollouts=2)})
    with pytest.raises(ArtifactError, match="of other users"):
        select_prompts(*places, other, EXPLORE, RewardsConfig(), 0, tmp_path / "others", progress=quiet)
    assert not (tmp_path / "others").exists()


def test_every_user_is_rolled_out_greedily_before_the_item_of_a_split(
    roll_out: RollOut, scripted_policy: Any, sample_dataset: Path, tmp_path: Path
) -> None:
    data = read_dataset(sample_dataset)
    for users, examples in (("test", held_out_examples(data)), ("validation", validation_examples(data))):
        policy = scripted_policy()
        figures = roll_out(users, policy, users)
        found = list(rollouts_of(tmp_path / users, 1, examples))
        assert [(example, one.example_key) for example, [one] in found] == [(each, each.key) for each in examples]
        assert figures == {"rollouts": len(examples), "mean_calls": 2.0, "answered": 1.0}
        assert policy.temperatures == {0.0}
    with pytest.raises(ArtifactError, match="of other users"):
        list(rollouts_of(tmp_path / "test", 1, validation_examples(data)))
    with pytest.raises(ArtifactError, match="of other users"):
        list(rollouts_of(tmp_path / "test", 1, held_out_examples(data)[:-1]))


def test_candidates_are_the_policys_own_examples(sample_dataset: Path) -> None:
    data = read_dataset(sample_dataset)
    chosen = candidates(data, SELECT, 0)
    assert len({example.key for example in chosen}) == 40
    assert all(len(example.history) < len(data.sequences[example.user_id]) - 2 for example in chosen)
    assert all(example.target not in data.sequences[example.user_id][-2:] for example in chosen)


def test_single_requests_are_timed_where_that_is_asked_for(
    roll_out: RollOut, scripted_policy: Any, sample_dataset: Path, tmp_path: Path
) -> None:
    roll_out("test", scripted_policy(), "plain")
    assert open_rollouts(tmp_path / "plain", [sample_dataset]).milliseconds == {}
    policy = scripted_policy()
    roll_out("test", policy, "timed", timed=True)
    assert policy.starts == -(-len(read_dataset(sample_dataset).sequences) // EXPLORE.batch_size) + REQUESTS
    taken = open_rollouts(tmp_path / "timed", [sample_dataset]).milliseconds
    assert set(taken) == {"policy", "trm"}
    assert all(value > 0 for value in taken.values())
    assert {"dataset", "trm", "policy"} <= set(read_artifact(tmp_path / "timed", "rollouts").parents)
    with pytest.raises(ArtifactError, match=r"were not made with .*plain; roll the policy out again"):
        open_rollouts(tmp_path / "timed", [sample_dataset, tmp_path / "plain"])


def test_other_users_are_refused(roll_out: RollOut, scripted_policy: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no users 'all' .* candidates, validation, test"):
        roll_out("all", scripted_policy())
    assert [entry.name for entry in tmp_path.iterdir()] == ["start"]


def test_interrupted_it_leaves_nothing(roll_out: RollOut, scripted_policy: Any, tmp_path: Path) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    policy = scripted_policy()
    with pytest.raises(KeyboardInterrupt):
        roll_out("candidates", policy, progress=interrupt)
    assert policy.closed == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["start"]
