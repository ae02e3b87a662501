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
from pydantic import ValidationError

from deeprec.config import ParallelConfig, PolicyConfig, StageConfig
from deeprec.errors import PolicyError
from deeprec.policy import processes
from deeprec.policy.arguments import arguments, shares
from deeprec.policy.trl_adapter import newest_checkpoint
from deeprec.types import JsonDict
from tests import forkserver
from tests.unit.policy import toy

ROOT = Path(__file__).parents[3]
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def launch(*command: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments from the repository's root, with as many threads as this process has."""
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "HF_HUB_OFFLINE": "1"}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        environment.pop(name, None)
    return forkserver.run([sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.fixture(scope="module")
def unharmed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[JsonDict], list[list[str]]]:
    """Model, records and prompts of the stage that nothing interrupts."""
    return toy.train(tmp_path_factory.mktemp("unharmed"), toy.LONGER, chance=True, progress=lambda line: None)


@pytest.mark.parametrize(
    ("save_every", "die_at", "die_after", "finished"),
    [
        pytest.param(1, 2, 0, 2, id="rolling out, just after a checkpoint"),
        pytest.param(2, 3, 0, 3, id="rolling out, a step after the last checkpoint"),
        pytest.param(1, 2, 1, 2, id="between a batch's two updates"),
    ],
)
def test_a_killed_process_changes_no_bit_of_the_result(
    unharmed: tuple[Any, list[JsonDict], list[list[str]]], tmp_path: Path, save_every: int, die_at: int,
    die_after: int, finished: int,
) -> None:  # fmt: skip
    """Weights, moments of the optimiser, rate, random states and the place in the prompts all come back.

    Rollouts draw from the random states. What was done since the last checkpoint is done again, records included.
    """
    whole, expected, expected_keys = unharmed
    stage = toy.LONGER.model_copy(update={"save_every": save_every})
    script = (
        "from pathlib import Path; from tests.unit.policy import toy;"
        f"stage = toy.LONGER.model_copy(update={{'save_every': {save_every}}});"
        f"toy.train(Path({str(tmp_path)!r}), stage, die_at={die_at}, die_after={die_after}, chance=True)"
    )
    killed = launch("-u", "-c", script)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = newest_checkpoint(tmp_path)
    assert last is not None
    assert last.name == "checkpoint-4"
    assert len(json.loads((tmp_path / "curves.json").read_text())) == finished
    assert f"step {finished}:" in killed.stdout
    resumed, records, keys = toy.train(tmp_path, stage, chance=True, progress=lambda line: None)
    assert keys == expected_keys[2:]
    assert same(resumed.state_dict(), whole.state_dict())
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert json.loads((tmp_path / "curves.json").read_text()) == records
    for name in ("reward", "loss", "grad_norm", "learning_rate", "kl"):
        assert [record[name] for record in records] == [record[name] for record in expected]


def test_a_checkpoint_that_was_cut_off_is_passed_over(tmp_path: Path) -> None:
    """The trainer's state is written last: without it the rest cannot be trusted, and the one before is taken."""
    stage = toy.LONGER.model_copy(update={"steps": 6})
    whole, _, expected_keys = toy.train(tmp_path, stage, chance=True, progress=lambda line: None)
    last = newest_checkpoint(tmp_path)
    assert last == tmp_path / "checkpoint-12"
    (last / "trainer_state.json").unlink()
    (last / "model.safetensors").write_bytes(b"half")
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    resumed, _, keys = toy.train(tmp_path, stage, chance=True, progress=lambda line: None)
    assert keys == expected_keys[5:]
    assert same(resumed.state_dict(), whole.state_dict())
    assert newest_checkpoint(tmp_path) == last


def train_together(place: Path, strategy: str) -> tuple[Path, str]:
    program = (*LAUNCHER, "-m", "tests.unit.policy.toy", str(place), strategy)
    killed = launch(*program, "killed")
    assert "Signal 9 (SIGKILL)" in killed.stderr, killed.stderr[-4000:]
    last = newest_checkpoint(place / "killed")
    assert last is not None
    assert last.name == "checkpoint-4"
    done = launch(*program)
    assert done.returncode == 0, done.stderr[-4000:]
    return place, done.stdout


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What two processes that trained together left, and what they printed; one of them had been killed before."""
    return train_together(tmp_path_factory.mktemp("together"), "ddp")


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that had a half of the weights each."""
    return train_together(tmp_path_factory.mktemp("sharded"), "fsdp")[0]


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
    assert printed.count("step 1:") == len(toy.SCHEDULES) + 1
    # The first batch is rolled out with the same weights: its figures are those of one process, whoever rolled it out.
    for share in shares:
        for figure in ("reward", "reward_std", "policy_tokens", "completion_tokens", "zero_variance_groups"):
            assert share["records"][0][figure] == pytest.approx(records[0][figure])
    if name == "one update":
        # An update of the whole batch is the same sum, in another order.
        for key, value in alone.state_dict().items():
            torch.testing.assert_close(first[key], value, rtol=1e-2, atol=1e-3)


def test_shards_learn_what_copies_learn(together: tuple[Path, str], sharded: Path, tmp_path: Path) -> None:
    """With tied embeddings as copies in two processes do, without as one process does; process 0 has all weights."""
    alone, _, _ = toy.train(tmp_path, toy.SCHEDULES["one update"], progress=lambda line: None, tied=False)
    copies = torch.load(together[0] / "two updates 0.pt")
    for name, expected in (("two updates", copies), ("one update", alone.state_dict())):
        shares = [read(sharded, name, rank) for rank in range(2)]
        assert all(share["sharded"] for share in shares)
        first, second = (torch.load(sharded / f"{name} {rank}.pt") for rank in range(2))
        assert second == {}
        assert first.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(first[key], value, rtol=1e-3, atol=1e-4)
        assert all(record["logprob_gap"] < 1e-5 for record in shares[0]["records"])


def test_whole_for_a_while_each_process_makes_passes_of_its_own(sharded: Path) -> None:
    """One pass in one process, three in the other, and the same scores."""
    first, second = (read(sharded, "two updates", rank)["scores"] for rank in range(2))
    assert first == second


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_go_on_where_one_of_them_was_killed(strategy: str, request: pytest.FixtureRequest) -> None:
    """As copies and as shards, to the same bits, though the rate falls and each draws from random states of its own."""
    place = request.getfixturevalue("together")[0] if strategy == "ddp" else request.getfixturevalue("sharded")
    for process in range(2):
        whole, resumed = (torch.load(place / f"{name} {process}.pt") for name in ("not killed", "killed"))
        assert same(whole, resumed)
        expected, found = (read(place, name, process) for name in ("not killed", "killed"))
        assert found["seen"] == expected["seen"][2:]
        assert [record["step"] for record in found["records"]] == [1, 2, 3, 4]
        for name in ("reward", "loss", "learning_rate", "kl"):
            assert [record[name] for record in found["records"]] == [record[name] for record in expected["records"]]


def test_one_process_has_nothing_to_shard() -> None:
    with pytest.raises(ValidationError, match="there is one process, and nothing to shard over"):
        ParallelConfig(strategy="fsdp")
    policy = PolicyConfig(parallel=ParallelConfig(per_node=2, strategy="fsdp"))
    with pytest.raises(PolicyError, match="this process is the only one"):
        arguments(toy.STAGE, policy, {"good": 1.0}, 1.0, 0, 0, Path("nowhere"))


def test_processes_share_a_batch_evenly_or_not_at_all() -> None:
    stage = StageConfig(prompts_per_step=8, rollouts=4, sequences_per_update=16, micro_batch=4)
    assert shares(stage, 1) == (4, 4)
    assert shares(stage, 2) == (4, 2)
    assert shares(stage, 8) == (2, 1)
    for count in (3, 16):
        with pytest.raises(PolicyError, match=f"{count} processes cannot share 8 prompts"):
            shares(stage, count)


def test_without_a_launcher_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert (processes.rank(), processes.world_size()) == (0, 1)
    processes.join()
    assert processes.gather([1, 2]) == [1, 2]
