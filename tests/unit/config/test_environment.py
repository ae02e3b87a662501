"""Keys of the configuration from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeprec.cli.profiles import read_config
from deeprec.cli.serve.options import read_serving
from deeprec.config import Config
from deeprec.config.environment import environment_overrides, variable
from deeprec.errors import ConfigError


def test_values_are_yaml_and_keys_may_lie_deep() -> None:
    environment = {
        "DEEPREC__SERVING__PORT": "9000",
        "DEEPREC__SERVING__LOG__PATH": "/var/log/deeprec",
        "DEEPREC__POLICY__STAGE1__STEPS": "3",
        "DEEPREC__PIPELINE__GPU_POOL__NODE_SELECTOR": "{pool: gpu}",
        "DEEPREC__PIPELINE__TASKS": "{evaluate: {cpu: '4'}}",
        "DEEPREC__NAME": "shop",
        "HOME": "/root",
        "DEEPREC_TEST_DATA": "elsewhere",
    }
    names = {variable(key): key for key in ("serving.port", "serving.log.path", "policy.stage1.steps", "name")}
    assert set(names) <= set(environment)
    found = environment_overrides(Config, environment)
    assert set(found) == {
        "serving.port=9000",
        "serving.log.path=/var/log/deeprec",
        "policy.stage1.steps=3",
        "pipeline.gpu_pool.node_selector={pool: gpu}",
        "pipeline.tasks={evaluate: {cpu: '4'}}",
        "name=shop",
    }


def test_the_file_gives_way_to_the_environment_and_that_to_set_and_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("serving: {port: 1, threads: 1, batch: 1, max_k: 1}", encoding="utf-8")
    for name, value in {"PORT": "2", "THREADS": "2", "BATCH": "2"}.items():
        monkeypatch.setenv(f"DEEPREC__SERVING__{name}", value)

    serving = read_serving(str(file), ["serving.threads=3"], port=4)

    assert (serving.port, serving.threads, serving.batch, serving.max_k) == (4, 3, 2, 1)
    assert read_config(None, None).serving.port == 2
    assert read_config("quickstart", None).serving.port == 2


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("DEEPREC__SERVING__PROT", "1", "nearest: DEEPREC__SERVING__PORT"),
        ("DEEPREC__SERVNIG__LOG__PATH", "1", "nearest: DEEPREC__SERVING__LOG__PATH"),
        ("DEEPREC__", "1", "names no key"),
        ("DEEPREC__SERVING", "{port: 1}", "names no key"),
        ("DEEPREC__SERVING__PORT", "[1", "not valid YAML"),
        ("DEEPREC__SERVING__PORT", "many", "serving.port"),
    ],
)
def test_what_is_wrong_is_said(monkeypatch: pytest.MonkeyPatch, name: str, value: str, part: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        read_config(None, None)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)
