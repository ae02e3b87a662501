"""The how-to page of training on a cluster: its commands have the options it names, and its arithmetic is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from deeprec.cli import app
from deeprec.config import HealthConfig, PolicyConfig, load_config
from deeprec.policy.arguments import MOST_CORRECTION

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "how-to" / "cluster-training.md").read_text(encoding="utf-8")
PROFILE = load_config(ROOT / "configs" / "qwen2.5-7b.yaml")
GIB = 2**30


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


COMMANDS = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("deeprec ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_exist_with_their_options(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    name, *arguments = arguments
    with command.commands[name].make_context(name, arguments, resilient_parsing=False) as context:
        assert context.params["config"] == "qwen2.5-7b"


def test_there_are_commands() -> None:
    assert len(COMMANDS) == 3


def test_the_sections_shown_are_those_of_the_profile() -> None:
    [shown] = blocks("yaml")
    policy = PolicyConfig.model_validate(yaml.safe_load(shown)["policy"])
    for name in ("model", "dtype", "parallel", "generation", "lora"):
        assert getattr(policy, name) == getattr(PROFILE.policy, name)
    assert f"({HealthConfig().max_logprob_gap} nats)" in PAGE
    assert f"at most {MOST_CORRECTION:g}," in PAGE


def test_the_memory_adds_up() -> None:
    """Qwen2.5-7B: 28 layers, width 3,584, 4 heads of 128 for keys and values, inner width 18,944."""
    width, keys, inner, vocabulary, layers = 3584, 512, 18944, 152064, 28
    layer = 2 * (width * width + keys * width + keys) + width + 3 * width * inner + 2 * width
    parameters = 2 * vocabulary * width + layers * layer + width
    assert f"{parameters:,} parameters" in PAGE
    assert f"{16 * parameters / GIB:.1f} / 8 | {2 * parameters / GIB:.1f}" in PAGE
    assert f"{4 * parameters / GIB:.1f} GiB" in PAGE
    cache = 2 * layers * keys * 2
    assert cache == 56 * 1024
    share = PROFILE.policy.generation.gpu_memory_utilization * 80
    assert f"| {share:.1f} | asleep" in PAGE
    assert (share - 2 * parameters / GIB - 2) * GIB / cache == pytest.approx(370_000, rel=0.01)
    tokens = PROFILE.policy.stage1.micro_batch * PROFILE.explore.max_context
    assert f"| {layers * tokens * width * 2 / GIB:.1f} |" in PAGE
    assert f"MLP {3 * tokens * inner * 2 / GIB:.1f}" in PAGE
    adapters = 64 * layers * (2 * 2 * width + 2 * (width + keys) + 3 * (width + inner))
    assert f"gradients and moments {16 * adapters / GIB:.1f}" in PAGE
    assert f"{128 * 16384 * cache // GIB} GiB of cache" in PAGE
