"""A stage's job with its artifacts in object storage, as a machine of a TrainJob runs it: a real S3 server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
from deeprec.policy.build import build_policy
from deeprec.policy.job import OUTCOME, StageJob
from deeprec.store import get_directory, put_directory, read_artifact
from tests import forkserver
from tests.unit.policy.world import choose_prompts

STORE = "s3://models/stage-job"


def quiet(line: str) -> None:
    """No progress."""


def test_artifacts_are_copied_from_the_store_and_to_it(
    sample_dataset: Path, toy_trm: Path, client: Any, tmp_path: Path
) -> None:
    policy = PolicyConfig(
        tiny=TinyConfig(width=32, layers=1, heads=2, inner=32),
        warm_start=WarmStartConfig(trajectories=0),
        select=SelectConfig(candidates=4, rollouts=2),
        stage1=StageConfig(steps=0),
    )
    explore = ExploreConfig(
        prompt="compact", items_per_call=5, answer_size=3, prompt_history=4, max_calls=2, max_new_tokens=4,
        max_context=200,
    )  # fmt: skip
    rewards, text = RewardsConfig(), TextConfig(provider="hashing", width=32)
    start, prompts = tmp_path / "start", tmp_path / "prompts"
    build_policy(sample_dataset, toy_trm, policy, explore, text, 0, start, progress=quiet)
    choose_prompts(sample_dataset, toy_trm, start, policy, explore, rewards, text, 0, prompts)
    for name, place in (("dataset", sample_dataset), ("trm", toy_trm), ("start", start)):
        put_directory(place, f"{STORE}/{name}")
    job = StageJob(
        stage="stage1", dataset=f"{STORE}/dataset", trm=f"{STORE}/trm", start=f"{STORE}/start", prompts=str(prompts),
        policy=policy, explore=explore, rewards=rewards, text=text, seed=0, out=f"{STORE}/stage1",
        report=str(tmp_path / "kept" / "report.html"), outcome=str(tmp_path / "kept"),
    )  # fmt: skip
    command = [sys.executable, "-m", "deeprec.policy.job", job.model_dump_json()]
    environment = os.environ | {"TMPDIR": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    forkserver.run(command, env=environment, check=True, capture_output=True)
    noted = json.loads((tmp_path / "kept" / OUTCOME).read_text())
    assert noted["verdict"]["passed"] is True
    assert noted["figures"]["validation_users"] > 100
    assert (tmp_path / "kept" / "report.html").is_file()
    assert not list(tmp_path.glob("deeprec-stage-*"))
    trained = read_artifact(get_directory(f"{STORE}/stage1", tmp_path / "trained"), "policy")
    weights = "model.safetensors"
    assert trained.files[weights] == read_artifact(start, "policy").files[weights]

    absent = job.model_copy(update={"trm": f"{STORE}/nowhere"})
    failed = forkserver.run([*command[:-1], absent.model_dump_json()], env=environment, capture_output=True, text=True)
    assert failed.returncode == 2
    error = json.loads((tmp_path / "kept" / "error-0.json").read_text())
    assert error["kind"] == "ArtifactError"
    assert "nowhere" in error["message"]
