"""The how-to page of engines: its YAML is configuration, its Python runs, its benchmark has the options it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from deeprec.config import EngineConfig, ExploreConfig, TinyConfig, parse_config
from deeprec.explore.server_engine import KEY_VARIABLE
from deeprec.markup import MARKUP
from deeprec.policy.tiny import build_model, build_tokenizer
from deeprec.store import write_artifact

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "engines.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_yaml_is_configuration() -> None:
    engines = [parse_config(yaml.safe_load(block), "engines.md").explore.engine for block in blocks("yaml")]
    assert [engine.kind for engine in engines] == ["vllm", "server"]


def test_every_key_and_variable_it_names_exists() -> None:
    for key in ("kind", "tensor_parallel", "enforce_eager", "timeout", "prompts"):
        assert f"`{key}" in PAGE
        assert key in EngineConfig.model_fields
    assert f"`{KEY_VARIABLE}`" in PAGE


def test_python_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = blocks("python")
    place = "runs/quickstart/bundle/policy"
    assert place in code
    tokenizer = build_tokenizer(("A Film",), ["comedy"], [], MARKUP, ["History:\n"], ExploreConfig(prompt="compact"))
    with write_artifact(tmp_path / "policy", "policy") as work:
        tokenizer.save_pretrained(work)
        build_model(tokenizer, TinyConfig(width=16, layers=1, heads=2, inner=16), seed=0).save_pretrained(work)
    exec(compile(code.replace(place, str(tmp_path / "policy")), "docs/how-to/engines.md", "exec"), {})
    assert re.search(r"\(-\d", capsys.readouterr().out)


def test_its_benchmark_has_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import rollout_throughput

    [line] = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python -m")]
    _, _, module, *arguments = line.split()
    assert module == rollout_throughput.__name__
    monkeypatch.setattr("sys.argv", [module, *arguments])
    assert rollout_throughput._arguments().run == Path("runs/quickstart")
