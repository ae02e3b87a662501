"""The how-to page of the policy: its Python runs, and its commands have the options it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from deeprec import config
from deeprec.cli import app
from deeprec.explore.trajectories import write_trajectories
from deeprec.policy.curves import SHOWN
from deeprec.types import Call, EndReason, RewardPart, Trajectory

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "policy.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = Call("anything", (), ())
    rewards = (RewardPart("format", 0.0, 1.0), RewardPart("listwise", 2.8, 0.5))
    one = Trajectory("ann@3", "ann", (), (), (), (), "", (call,), ("a",), EndReason.ANSWERED, rewards)
    write_trajectories(tmp_path / "kept.parquet", [one, one])
    [code] = blocks("python")
    code = code.replace("models/prompts.rollouts/trajectories.parquet", str(tmp_path / "kept.parquet"))
    exec(compile(code, "docs/how-to/policy.md", "exec"), {})
    assert capsys.readouterr().out == "ann answered 1 ('a',)\n" * 2


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_exist_with_their_options(line: str) -> None:
    program, name, *arguments = shlex.split(line)
    assert program == "deeprec"
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    if hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    with command.make_context(name, arguments, resilient_parsing=False):
        pass


def test_every_command_of_the_policy_is_shown() -> None:
    group = get_command(app).commands["policy"]  # type: ignore[attr-defined]
    assert all(f"deeprec policy {name} " in PAGE for name in group.commands)


def test_numbers_are_those_of_the_configuration() -> None:
    assert f"`evaluation.trajectories` ({config.EvaluationConfig().trajectories})" in PAGE


def test_every_bound_on_health_is_explained_with_its_default() -> None:
    for name, field in config.HealthConfig.model_fields.items():
        assert re.search(rf"`{name}`[^|\n]* \({field.default:g}[:)]", PAGE), name
    for _, title in SHOWN:
        assert f"| `{title}` |" in PAGE
