"""A stage that was cut off is gone on with: the task itself, from artifacts to an artifact, in this process.

What a killed process leaves, and what several processes leave, is in ``test_processes``.
"""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import (
    HealthConfig,
    RewardsConfig,
    StageConfig,
)
from deeprec.errors import PolicyError, StoreError
from deeprec.explore.loading import load_policy
from deeprec.policy.build import read_curves
from deeprec.policy.stage import train_stage
from deeprec.policy.trl_adapter import newest_checkpoint
from tests.unit.policy.world import EXPLORE, POLICY, TEXT, World

STAGE = StageConfig(
    steps=3, prompts_per_step=4, rollouts=4, sequences_per_update=8, micro_batch=4, learning_rate=1e-3,
    schedule="linear", save_every=1,
)  # fmt: skip


class CutOff(Exception):
    """What ends an attempt in the middle."""


@dataclass(frozen=True)
class Task:
    """Stage 1 of three steps."""

    world: World

    def attempt(self, place: Path, *, until: str | None = None, seed: int = 0, **changes: Any) -> list[str]:
        """How the lines begin that an attempt printed; its checkpoints and the policy lie below ``place``.

        It is cut off when a line begins with ``until``. ``changes`` are those of the stage's configuration.
        """
        lines: list[str] = []

        def progress(line: str) -> None:
            lines.append(line.partition(":")[0].partition(" from ")[0])
            if lines[-1] == until:
                raise CutOff

        world = self.world
        policy = POLICY.model_copy(update={"stage1": STAGE.model_copy(update=changes)})
        with suppress(CutOff):
            train_stage(
                "stage1", world.dataset, world.trm, world.start, world.prompts, policy, EXPLORE, RewardsConfig(), TEXT,
                seed, place / "out", place / "report.html", place / "checkpoints", progress=progress,
            )  # fmt: skip
        return lines


@pytest.fixture(scope="module")
def task(world: World) -> Task:
    return Task(world)


@pytest.fixture(scope="module")
def unharmed(task: Task, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights that the stage ends with when nothing interrupts it."""
    place = tmp_path_factory.mktemp("unharmed")
    assert task.attempt(place)[:3] == ["step 1", "step 2", "step 3"]
    return weights(place)


@pytest.fixture(scope="module")
def left(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an attempt left that was cut off in step 2, after its record and before its checkpoint was written."""
    place = tmp_path_factory.mktemp("left")
    assert task.attempt(place, until="step 2") == ["step 1", "step 2"]
    assert newest_checkpoint(place / "checkpoints") == place / "checkpoints" / "checkpoint-2"
    assert not (place / "out").exists()
    return place


@pytest.fixture
def place(left: Path, tmp_path: Path) -> Path:
    """A copy of what was left, for one more attempt."""
    return Path(shutil.copytree(left, tmp_path / "left"))


def weights(place: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(place / "out").model.state_dict())


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_a_stage_that_was_cut_off_rolls_out_later_steps_alone_and_ends_with_the_same_weights(
    task: Task, unharmed: dict[str, torch.Tensor], place: Path
) -> None:
    assert task.attempt(place)[:3] == ["resuming after step 1", "step 2", "step 3"]
    assert same(weights(place), unharmed)
    assert not same(unharmed, dict(load_policy(task.world.start).model.state_dict()))
    assert [record["step"] for record in read_curves(place / "out")] == [1, 2, 3]
    assert not (place / "checkpoints").exists()


@pytest.mark.parametrize("blocked", ["out", "report.html"])
def test_what_could_not_be_written_is_not_trained_again(
    task: Task, unharmed: dict[str, torch.Tensor], place: Path, blocked: str
) -> None:
    (place / blocked).mkdir()
    (place / blocked / "thesis.txt").touch()
    with pytest.raises(StoreError):
        task.attempt(place)
    shutil.rmtree(place / blocked)
    lines = task.attempt(place)
    assert lines[0] == "resuming after step 3"
    assert not [line for line in lines if line.startswith("step ")]
    assert same(weights(place), unharmed)


@pytest.mark.parametrize("changes", [{"learning_rate": 2e-3}, {"steps": 4}, {"seed": 1}], ids=str)
def test_another_configuration_starts_anew(task: Task, place: Path, changes: dict[str, Any]) -> None:
    """What the other one left is removed, so that nothing goes on with it by accident."""
    assert task.attempt(place, until="step 1", **changes) == ["step 1"]
    assert newest_checkpoint(place / "checkpoints") is None


def test_other_bounds_on_health_do_not(task: Task, place: Path) -> None:
    """They are there to be moved when a stage stopped; the new ones hold from the next step on."""
    with pytest.raises(PolicyError, match=r"after step 2 .*min_mean_calls = 99"):
        task.attempt(place, health=HealthConfig(min_valid_rate=0, min_mean_calls=99, patience=1))
    assert task.attempt(place, until="step 2", health=HealthConfig(patience=9)) == ["resuming after step 1", "step 2"]
