"""The page on running the pipeline on KFP: commands, pods, parameters, overrides and artifacts are those there are."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from typer.main import get_command

from deeprec.cli import app
from deeprec.config import Config, PipelineConfig
from deeprec.config.run import from_parameters, to_parameters
from deeprec.pipelines import training

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "pipeline.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    return [dedent(block) for block in found]


def test_its_commands_exist_with_their_options() -> None:
    [compiled, played] = blocks("sh")
    _, name, *arguments = shlex.split(compiled)
    group = get_command(app).commands[name]  # type: ignore[attr-defined]
    with group.commands[arguments[0]].make_context(name, arguments[1:], resilient_parsing=True) as context:
        assert context.params["config"] == "cluster"
    assert f"\n{played.strip().removeprefix('make ')}:" in (ROOT / "Makefile").read_text(encoding="utf-8")


def test_its_pods_are_settings() -> None:
    [pods] = blocks("yaml")
    found = PipelineConfig.model_validate(yaml.safe_load(pods)["pipeline"])
    assert found.pod("ingest").secrets["deeprec-hub"] == {"token": "HF_TOKEN"}
    assert {mount.path for mount in found.pod("ingest").volumes} == {"/data"}


def test_its_overrides_are_taken() -> None:
    [lines] = blocks("text")
    found = from_parameters(to_parameters(Config()), lines, {})
    assert (found.data.path, found.policy.stage2.steps, found.seed) == ("s3://shop/2026-11", 120, 11)


@pytest.mark.parametrize("row", re.findall(r"^   \| (`.*?) \|", PAGE, re.MULTILINE))
def test_its_parameters_are_the_pipelines(row: str) -> None:
    parameters = training.build(Config().pipeline).pipeline_spec.root.input_definitions.parameters
    assert set(re.findall(r"`(\w+)`", row)) <= set(parameters)


def test_its_artifacts_are_the_tasks() -> None:
    graph = training.build(Config().pipeline).pipeline_spec
    kinds: dict[str, dict[str, str]] = {}
    for task in graph.root.dag.tasks.values():
        outputs = graph.components[task.component_ref.name].output_definitions
        kinds[task.task_info.name] = {
            key: one.artifact_type.schema_title.removeprefix("system.") for key, one in outputs.artifacts.items()
        }
    rows = re.findall(r"^\| (`.*?) \| `(\w+)` \((\w+)\)", PAGE, re.MULTILINE)
    assert len(rows) == 1
    for tasks, artifact, kind in rows:
        assert {name for name, found in kinds.items() if found.get(artifact) == kind} == set(
            re.findall(r"`([a-z0-9-]+)`", tasks)
        )
    assert {name for name, found in kinds.items() if found.get("outcome") == "Markdown"} == set(
        re.findall(r"`([a-z0-9-]+)`", rows[0][0])
    )
    assert all("rollouts" in found for name, found in kinds.items() if name.startswith("rollout-"))
