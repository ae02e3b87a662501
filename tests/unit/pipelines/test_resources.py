"""What a task's pod asks for: what ``pipeline.tasks`` names of it, and for the rest ``pipeline.default``."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from deeprec.config import Config
from deeprec.pipelines import training


def test_a_task_that_names_some_resources_keeps_the_others_of_the_default(tmp_path: Path) -> None:
    default = {"memory": "64Gi", "retries": 5, "volumes": [{"claim": "c", "path": "/features"}]}
    named = {"allow_tags": True, "default": default, "tasks": {"evaluate": {"gpus": 1}, "ingest": {"retries": 0}}}
    config = Config.model_validate({"pipeline": named, "features": {"path": "/features"}})
    for pipeline in (config.pipeline, Config.model_validate(config.model_dump()).pipeline):
        evaluate, ingest = pipeline.tasks["evaluate"], pipeline.tasks["ingest"]
        assert (evaluate.memory, evaluate.retries, evaluate.gpus, evaluate.cpu) == ("64Gi", 5, 1, "2")
        assert (ingest.memory, ingest.retries, ingest.gpus) == ("64Gi", 0, 0)
    training.compile(config, tmp_path / "train.yaml")
    compiled = next(yaml.safe_load_all((tmp_path / "train.yaml").read_text(encoding="utf-8")))
    executors = compiled["deploymentSpec"]["executors"]
    for name in ("evaluate", "ingest", "check-data"):
        assert executors[f"exec-{name}"]["container"]["resources"]["resourceMemoryRequest"] == "64Gi"


def test_a_bad_default_is_named_alone() -> None:
    with pytest.raises(ValidationError, match=r"pipeline\.default\.gpus") as caught:
        Config.model_validate({"pipeline": {"default": {"gpus": -1}, "tasks": {"evaluate": {"gpus": 1}}}})
    assert caught.value.error_count() == 1
