"""``deeprec serve policy``: where it finds the policy, and that vLLM takes its place."""

from __future__ import annotations

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.bundle.shelf import Shelf
from deeprec.cli import app
from deeprec.errors import ArtifactError, ConfigError, PolicyError
from deeprec.explore.loading import fingerprint
from deeprec.store import read_artifact


@pytest.fixture
def bundle(make_bundle: Callable[..., Path], tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "run" / "bundle", ["A"])


def printed(*arguments: object) -> list[str]:
    """The command that would be run."""
    given = ["serve", "policy", *map(str, arguments), "--print-command"]
    result = CliRunner().invoke(app, given, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return shlex.split(result.output)


def test_a_policy_a_bundle_a_run_and_a_shelf_name_the_same_model(bundle: Path, tmp_path: Path) -> None:
    shelf = Shelf.make(tmp_path / "shelf")
    version = shelf.push(Bundle.load(bundle)).version
    shelf.promote(version)
    name = fingerprint(read_artifact(bundle / "policy"))
    for place in (bundle / "policy", bundle, bundle.parent, tmp_path / "shelf", f"{tmp_path / 'shelf'}@{version}"):
        command = printed(place)
        assert command[command.index("--served-model-name") + 1] == name
        assert fingerprint(read_artifact(Path(command[command.index("--model") + 1]))) == name


def test_keys_and_options_reach_vllm(bundle: Path) -> None:
    command = printed(bundle, "--host", "0.0.0.0", "--port", 9, "--set", "explore.engine.max_model_len=77")
    line = " ".join(command)
    assert command[0] == sys.executable
    assert all(part in line for part in ("--host 0.0.0.0", "--port 9", "--max-model-len 77"))
    more = CliRunner().invoke(app, ["serve", "policy", str(bundle), "--print-command", "--", "--max-num-seqs", "3"])
    assert more.output.rstrip().endswith("--max-num-seqs 3")


def test_port_0_is_a_free_one(bundle: Path) -> None:
    command = printed(bundle, "--port", 0)
    port = int(command[command.index("--port") + 1])
    with socket.create_server(("127.0.0.1", port)) as server:
        assert server.getsockname()[1] == port > 0


def test_a_port_in_use_is_refused_before_vllm_is_started(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
            printed(bundle, "--port", port)


def test_what_is_no_policy_is_refused_with_one_sentence(toy_trm: Path, tmp_path: Path) -> None:
    for place, part in ((toy_trm, "of kind 'trm'"), (tmp_path, "no manifest")):
        with pytest.raises(ArtifactError, match=part):
            printed(place)


def test_without_vllm_it_ends_with_what_to_install(bundle: Path) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    result = CliRunner().invoke(app, ["serve", "policy", str(bundle)])
    assert isinstance(result.exception, PolicyError)
    assert "install deeprec[gpu]" in str(result.exception)
    assert result.exception.exit_code == 2


@pytest.mark.heavy
def test_vllm_takes_the_place_of_the_command(bundle: Path, tmp_path: Path) -> None:
    """A package of the name stands in for vLLM, and says how it was started."""
    server = tmp_path / "site" / "vllm" / "entrypoints" / "openai"
    server.mkdir(parents=True)
    (server / "api_server.py").write_text("import os, sys; print('process', os.getpid(), *sys.argv[1:]); sys.exit(7)")
    code = "from deeprec.cli import main; main()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), *sys.path])}
    command = [sys.executable, "-c", code, "serve", "policy", str(bundle), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    out, _ = process.communicate(timeout=120)
    *introduction, last = out.splitlines()
    assert "by --policy-url http://127.0.0.1:" in introduction[0]
    assert last.startswith(f"process {process.pid} --model {bundle / 'policy'} --served-model-name deeprec-")
    assert process.returncode == 7
