"""What is held out reaches nothing that is trained: other validation and test items leave every weight as it was."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from deeprec.config import (
    HistoriesConfig,
    PolicyConfig,
    RewardsConfig,
    SelectConfig,
    StageConfig,
    TinyConfig,
    TrmConfig,
    WarmStartConfig,
)
from deeprec.data.dataset import Dataset, read_dataset, write_dataset
from deeprec.policy.build import build_policy
from deeprec.policy.stage import train_stage
from deeprec.trm.training import train
from tests.unit.policy.world import EXPLORE, TEXT, choose_prompts

STAGE = StageConfig(
    steps=2, prompts_per_step=4, rollouts=4, sequences_per_update=16, micro_batch=16, learning_rate=1e-3
)
POLICY = PolicyConfig(
    tiny=TinyConfig(width=32, layers=1, upper_layers=1, heads=2, inner=64),
    warm_start=WarmStartConfig(
        trajectories=600, epochs=8, batch_size=16, learning_rate=1e-2, judge="histories",
        histories=HistoriesConfig(passes=1),
    ),
    select=SelectConfig(candidates=16, rollouts=2, stage2="found"),
    stage1=STAGE,
    stage2=STAGE,
)  # fmt: skip
HELD = EXPLORE.model_copy(update={"answers": "retrieved", "fresh_lists": True, "temperature": 0.3})


def with_others(data: Dataset, places: Sequence[int], out: Path) -> Dataset:
    """The dataset written to ``out`` with other items at some places of every user's sequence."""
    rows = []
    for number, (user, items) in enumerate(data.sequences.items()):
        unseen = [item.item_id for item in data.catalogue.items if item.item_id not in items]
        changed = list(items)
        for place in places:
            changed[place] = unseen[(number + place) % len(unseen)]
        rows += [(user, item, time) for time, item in enumerate(changed)]
    items = pl.DataFrame(
        {
            "item_id": [item.item_id for item in data.catalogue.items],
            "title": [item.title for item in data.catalogue.items],
            "genres": ["|".join(item.phrases) for item in data.catalogue.items],
        }
    )
    interactions = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    write_dataset(
        out, interactions, items, source="test", time_unit="order", text_columns=["genres"], year_column=None,
        policy_positions=data.policy_positions,
    )  # fmt: skip
    return read_dataset(out)


def trained(dataset: Path, place: Path) -> dict[str, torch.Tensor]:
    """Every weight of the TRM, the start and both stages, by artifact and name."""
    quiet = {"progress": lambda line: None}
    train(dataset, TrmConfig(width=32, layers=1, epochs=1), TEXT, 0, place / "trm", place / "trm.html")
    build_policy(dataset, place / "trm", POLICY, HELD, TEXT, 0, place / "start", **quiet)
    world, rewards = (dataset, place / "trm"), RewardsConfig()
    choose_prompts(*world, place / "start", POLICY, HELD, rewards, TEXT, 0, place / "prompts")
    before = place / "start"
    for stage in ("stage1", "stage2"):
        train_stage(
            stage, *world, before, place / "prompts", POLICY, HELD, rewards, TEXT, 0, place / stage,
            place / f"{stage}.html", **quiet,
        )  # fmt: skip
        before = place / stage
    return {
        f"{name} {key}": weight
        for name in ("trm", "start", "stage1", "stage2")
        for key, weight in load_file(place / name / "model.safetensors").items()
    }


@pytest.fixture(scope="module")
def data(sample_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("leak") / "dataset"
    with_others(read_dataset(sample_dataset), (), out)
    return out


@pytest.fixture(scope="module")
def learnt(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    return trained(data, tmp_path_factory.mktemp("learnt"))


def differ(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Artifacts with a weight that differs."""
    assert first.keys() == second.keys()
    return {key.split()[0] for key, weight in first.items() if not torch.equal(weight, second[key])}


def test_held_out_items_change_no_weight(data: Path, learnt: dict[str, torch.Tensor], tmp_path: Path) -> None:
    before = read_dataset(data).sequences
    after = with_others(read_dataset(data), (-1, -2), tmp_path / "dataset").sequences
    assert all(after[user][-2] != items[-2] and after[user][-1] != items[-1] for user, items in before.items())
    assert differ(learnt, trained(tmp_path / "dataset", tmp_path)) == set()


def test_the_policys_targets_change_what_is_rewarded_for_them(
    data: Path, learnt: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert with_others(read_dataset(data), (-3,), tmp_path / "dataset").policy_positions == 1
    found = differ(learnt, trained(tmp_path / "dataset", tmp_path))
    assert "stage2" in found, "which is rewarded for them"
    assert not found & {"trm", "start"}, "neither is taught with them: demonstrations answer with what was found"
