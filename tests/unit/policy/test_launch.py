"""A stage that several processes run as one task: copies or shards, what comes back, and what goes wrong."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deeprec.checks.gate import Verdict
from deeprec.config import (
    ExploreConfig,
    ParallelConfig,
    RewardsConfig,
    StageConfig,
)
from deeprec.errors import ArtifactError, PolicyError
from deeprec.explore.loading import load_policy
from deeprec.policy import launch, trl_adapter
from deeprec.policy.build import read_curves
from deeprec.policy.launch import train_stage
from deeprec.policy.stage import affordable
from deeprec.store import read_artifact
from tests.unit.policy import toy
from tests.unit.policy.world import EXPLORE, POLICY, TEXT, World

pytestmark = pytest.mark.usefixtures("forked")

STAGE = StageConfig(steps=1, prompts_per_step=4, rollouts=4, sequences_per_update=16, micro_batch=4, learning_rate=1e-3)


def train(world: World, place: Path, parallel: ParallelConfig, dataset: Path | None = None) -> Any:
    """Verdict, figures and lines of stage 1."""
    lines: list[str] = []
    verdict, figures = train_stage(
        "stage1", dataset or world.dataset, world.trm, world.start, world.prompts,
        POLICY.model_copy(update={"stage1": STAGE, "parallel": parallel}), EXPLORE, RewardsConfig(), TEXT, 0,
        place / "out", place / "report.html", place / "checkpoints", progress=lines.append,
    )  # fmt: skip
    return verdict, figures, lines


def weights(policy: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(policy).model.state_dict())


def test_two_processes_run_a_stage_as_one_task(world: World, tmp_path: Path) -> None:
    """As copies and as shards: one artifact, one report, one verdict, the same weights, and no checkpoint left."""
    found = {}
    for strategy in ("ddp", "fsdp"):
        place = tmp_path / strategy
        parallel = ParallelConfig(per_node=2, strategy=strategy)  # type: ignore[arg-type]
        verdict, figures, lines = train(world, place, parallel)
        assert isinstance(verdict, Verdict)
        assert verdict.passed
        assert figures["validation_users"] > 100
        assert len(read_curves(place / "out")) == 1
        assert (place / "report.html").is_file()
        assert not (place / "checkpoints").exists()
        assert len([line for line in lines if line.startswith("step 1:")]) == 1
        assert lines[-1] == verdict.reason
        assert set(read_artifact(place / "out", "policy").files) == set(read_artifact(world.start, "policy").files)
        found[strategy] = weights(place / "out")
    before = weights(world.start)
    assert before.keys() == found["ddp"].keys() == found["fsdp"].keys()
    assert any(not torch.equal(value, found["fsdp"][name]) for name, value in before.items())
    for name, value in found["ddp"].items():
        torch.testing.assert_close(found["fsdp"][name], value, rtol=1e-4, atol=1e-5)


def test_an_error_in_a_process_is_raised_here(world: World, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere"):
        train(world, tmp_path, ParallelConfig(per_node=2), dataset=tmp_path / "nowhere")
    assert not (tmp_path / "out").exists()


def test_several_machines_are_not_for_one(world: World, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"nodes is 2, but this is one machine; .*`deeprec policy trainjob`"):
        train(world, tmp_path, ParallelConfig(nodes=2))


def test_each_process_needs_an_accelerator_where_there_are_any(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(PolicyError, match=r"per_node is 2, .* but this machine has 1; set per_node to 1"):
        train(world, tmp_path, ParallelConfig(per_node=2))


def test_a_single_process_takes_one_accelerator_of_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer would spread each batch over all it sees (DataParallel), which TRL refuses with a bare ValueError."""
    made = trl_adapter.GRPOConfig.__post_init__

    def sees_two(config: Any) -> None:
        made(config)
        config._n_gpu = 2

    monkeypatch.setattr(trl_adapter.GRPOConfig, "__post_init__", sees_two)
    _, records, _ = toy.train(tmp_path, toy.STAGE, progress=lambda line: None)
    assert len(records) == toy.STAGE.steps


def test_what_is_measured_at_once_fits_the_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """A place of Qwen2.5-7B's cache takes 2 · 28 · 4 · 128 numbers: 1.75 GiB for 16,384 in float32."""
    shape = SimpleNamespace(num_hidden_layers=28, num_key_value_heads=4, num_attention_heads=28, hidden_size=3584)
    weight = SimpleNamespace(device=SimpleNamespace(type="cuda"), element_size=lambda: 4)
    model = SimpleNamespace(config=shape, parameters=lambda: iter([weight]))
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    explore = ExploreConfig(batch_size=128, max_context=16384)
    for free, fits in ((40, 11), (1000, 128), (1, 1)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (free * 2**30, 80 * 2**30))
        assert affordable(model, explore).batch_size == fits
    weight.device.type = "cpu"
    assert affordable(model, explore) is explore


def test_a_single_process_runs_here(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does each of several that a launcher has started already."""
    ran = []
    monkeypatch.setattr(launch, "run_here", lambda *given, **more: ran.append(given) or (None, {}))
    train(world, tmp_path, ParallelConfig())
    monkeypatch.setenv("WORLD_SIZE", "2")
    train(world, tmp_path, ParallelConfig(per_node=2))
    assert len(ran) == 2


def test_processes_that_die_without_a_word_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="ended with status 137"):
        launch._read(tmp_path, 137)
    (tmp_path / "error-1.json").write_text(json.dumps({"kind": "SystemExit", "message": "odd"}))
    with pytest.raises(PolicyError, match="odd"):
        launch._read(tmp_path, 1)
