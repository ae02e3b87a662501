"""Training in processes of its own: one that is killed and gone on with, and two that train together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deeprec.config import (
    ExploreConfig,
    PolicyConfig,
    RewardsConfig,
    SelectConfig,
    StageConfig,
    TextConfig,
    TinyConfig,
    WarmStartConfig,
)
from deeprec.errors import PolicyError
from deeprec.explore.loading import load_policy
from deeprec.policy import processes
from deeprec.policy.build import build_policy, read_curves
from deeprec.policy.select import select_prompts
from deeprec.policy.trl_adapter import _shares, newest_checkpoint
from tests.unit.policy import toy

ROOT = Path(__file__).parents[3]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments from the repository's root, with as many threads as this process has."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_a_killed_process_changes_no_bit_of_the_result(tmp_path: Path) -> None:
    """Weights, moments of the optimiser, rate, random states and the place in the prompts all come back."""
    stage = toy.STAGE.model_copy(update={"steps": 4, "schedule": "linear"})
    whole, expected, expected_keys = toy.train(tmp_path / "whole", stage, progress=lambda line: None)
    script = (
        "from pathlib import Path; from tests.unit.policy import toy;"
        f"stage = toy.STAGE.model_copy(update={{'steps': 4, 'schedule': 'linear'}});"
        f"toy.train(Path({str(tmp_path / 'cut')!r}), stage, die_at=2)"
    )
    killed = launch("-u", "-c", script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = newest_checkpoint(tmp_path / "cut")
    assert last is not None
    assert last.name == "checkpoint-4"
    assert "step 2:" in killed.stdout
    resumed, records, keys = toy.train(tmp_path / "cut", stage, progress=lambda line: None)
    assert keys == expected_keys[2:]
    assert same(resumed.state_dict(), whole.state_dict())
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    for name in ("reward", "loss", "grad_norm", "learning_rate", "kl"):
        assert [record[name] for record in records] == [record[name] for record in expected]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes that trained together left, and what they printed."""
    place = tmp_path_factory.mktemp("together")
    done = launch(*LAUNCHER, "-m", "tests.unit.policy.toy", str(place))
    assert done.returncode == 0, done.stderr[-4000:]
    return place, done.stdout


def read(place: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / f"{name} {rank}.json").read_text())
    return found


@pytest.mark.parametrize("name", toy.SCHEDULES)
def test_two_processes_train_one_policy(together: tuple[Path, str], name: str, tmp_path: Path) -> None:
    place, printed = together
    first, second = (torch.load(place / f"{name} {rank}.pt") for rank in range(2))
    assert same(first, second)
    start, _ = toy.build()
    assert not same(first, start.state_dict())

    alone, records, seen = toy.train(tmp_path, toy.SCHEDULES[name], progress=lambda line: None)
    shares = [read(place, name, rank) for rank in range(2)]
    for step, keys in enumerate(seen):
        assert [key for share in shares for key in share["seen"][step]] == keys
        for share in shares:
            groups = [share["seen"][step][begin : begin + 4] for begin in range(0, 8, 4)]
            assert all(len(set(group)) == 1 for group in groups)

    def updates(checkpoints: Path) -> int:
        last = newest_checkpoint(checkpoints)
        assert last is not None
        return int(json.loads((last / "trainer_state.json").read_text())["global_step"])

    assert updates(place / name) == updates(tmp_path)
    written = json.loads((place / name / "curves.json").read_text())
    assert written == shares[0]["records"]
    assert printed.count("step 1:") == len(toy.SCHEDULES)
    # The first batch is rolled out with the same weights: its figures are those of one process, whoever rolled it out.
    for share in shares:
        for figure in ("reward", "reward_std", "policy_tokens", "completion_tokens", "zero_variance_groups"):
            assert share["records"][0][figure] == pytest.approx(records[0][figure])
    if name == "one update":
        # An update of the whole batch is the same sum, in another order.
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(first[key], value, rtol=1e-2, atol=1e-3)


def test_processes_share_a_batch_evenly_or_not_at_all() -> None:
    stage = StageConfig(prompts_per_step=8, rollouts=4, sequences_per_update=16, micro_batch=4)
    assert _shares(stage, 1) == (4, 4)
    assert _shares(stage, 2) == (4, 2)
    assert _shares(stage, 8) == (2, 1)
    for count in (3, 16):
        with pytest.raises(PolicyError, match=f"{count} processes cannot share 8 prompts"):
            _shares(stage, count)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world_size()) == (0, 1)
    processes.join()
    assert processes.gather([1, 2]) == [1, 2]


STAGE_PROGRAM = """
import json, os, sys
from pathlib import Path
from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, TextConfig
from deeprec.policy.stage import train_stage

place, *inputs = map(Path, sys.argv[1:])
given = json.loads((place / "config.json").read_text())
kinds = {"policy": PolicyConfig, "explore": ExploreConfig, "rewards": RewardsConfig, "text": TextConfig}
sections = [kind.model_validate(given[name]) for name, kind in kinds.items()]
verdict, metrics = train_stage(
    "stage1", *inputs, *sections, 0, place / "out", place / "report.html", place / "checkpoints"
)
(place / f"{os.environ['RANK']}.json").write_text(json.dumps([json.loads(verdict.to_json()), metrics]))
"""


def test_two_processes_run_a_stage_as_one_task(sample_dataset: Path, toy_trm: Path, tmp_path: Path) -> None:
    """One artifact, one report, one verdict that both return, and no checkpoint left."""
    policy = PolicyConfig(
        tiny=TinyConfig(width=32, layers=1, heads=2, inner=32),
        warm_start=WarmStartConfig(trajectories=0),
        select=SelectConfig(candidates=8, rollouts=2),
        stage1=StageConfig(steps=1, prompts_per_step=2, rollouts=2, sequences_per_update=4, micro_batch=2),
    )
    explore = ExploreConfig(
        prompt="compact", items_per_call=5, answer_size=3, prompt_history=4, max_calls=2, max_new_tokens=8,
        max_context=200,
    )  # fmt: skip
    rewards, text = RewardsConfig(), TextConfig(provider="hashing", width=32)
    start, prompts = tmp_path / "start", tmp_path / "prompts"
    build_policy(sample_dataset, toy_trm, policy, explore, text, 0, start, progress=lambda line: None)
    select_prompts(
        sample_dataset, toy_trm, start, policy, explore, rewards, text, 0, prompts, progress=lambda line: None
    )
    sections = {"policy": policy, "explore": explore, "rewards": rewards, "text": text}
    given = {name: section.model_dump(mode="json") for name, section in sections.items()}
    (tmp_path / "config.json").write_text(json.dumps(given))
    (tmp_path / "program.py").write_text(STAGE_PROGRAM)
    inputs = [str(path) for path in (sample_dataset, toy_trm, start, prompts)]
    done = launch(*LAUNCHER, str(tmp_path / "program.py"), str(tmp_path), *inputs)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[1]["validation_users"] > 100
    assert len(read_curves(tmp_path / "out")) == 1
    assert (tmp_path / "report.html").is_file()
    assert not (tmp_path / "checkpoints").exists()
    assert done.stdout.count("step 1:") == 1
    trained, before = (load_policy(path).model.state_dict() for path in (tmp_path / "out", start))
    assert trained.keys() == before.keys()
