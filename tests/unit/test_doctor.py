"""What is looked for before a run: every check is told, and what is missing says what to do."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from deeprec import doctor
from deeprec.cli import app
from deeprec.components.preflight import preflight
from deeprec.config import Config, GpuPool
from deeprec.config.run import to_parameters
from deeprec.errors import ConfigError, PipelineError, StoreError

SHELF = "store, bundle.uri"


def config(**sections: Any) -> Config:
    return Config.model_validate(sections)


def test_all_checks_are_told_whatever_the_others_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = config(
        data={"source": "movielens", "path": str(tmp_path / "gone")},
        features={"path": str(tmp_path / "file" / "features")},
        bundle={"uri": str(tmp_path / "file" / "shelf")},
        explore={"engine": {"kind": "vllm"}},
    )
    findings = {finding.name: finding for finding in doctor.examine(doctor.training_checks(wrong))}
    assert [name for name, finding in findings.items() if not finding.passed] == [
        "data",
        "feature place",
        SHELF,
        "vLLM, explore.engine.kind",
    ]
    assert "there is nothing at" in findings["data"].sentence
    assert "deeprec[train,gpu]" in findings["vLLM, explore.engine.kind"].sentence
    with pytest.raises(PipelineError, match=r"4 of 5 checks did not pass: data: .*; and feature place: .*; and store"):
        doctor.require_all(list(findings.values()))


def test_where_all_is_there_nothing_is_left_behind(tmp_path: Path) -> None:
    fine = config(features={"path": str(tmp_path / "features")}, bundle={"uri": str(tmp_path / "shelf")})
    findings = doctor.examine(doctor.training_checks(fine))
    assert all(finding.passed for finding in findings), findings
    assert [finding.name for finding in findings] == ["settings", "data", "feature place", SHELF]
    assert list(tmp_path.iterdir()) == []
    doctor.require_all(findings)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_shelf_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError):
        doctor.store(str(tmp_path / "shelf"))


class Answering:
    """A hub that answers every question alike."""

    def __init__(self, status: int, code: str = "") -> None:
        from huggingface_hub import errors

        kinds = {"GatedRepo": errors.GatedRepoError, "RepoNotFound": errors.RepositoryNotFoundError}
        response = httpx.Response(status, request=httpx.Request("GET", "https://hub"))
        self.error = kinds.get(code, errors.HfHubHTTPError)("told", response=response)

    def model_info(self, model: str, timeout: float) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (403, "GatedRepo", r"'some/model' may not be read by this account; accept its licence .*HF_TOKEN"),
        (404, "RepoNotFound", r"no model 'some/model' for this account; correct the name, or give a token"),
        (503, "", r"the hub answers 503 for 'some/model'"),
    ],
)
def test_what_the_hub_says_is_told_with_a_cure(
    monkeypatch: pytest.MonkeyPatch, status: int, code: str, message: str
) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: Answering(status, code))
    with pytest.raises(ConfigError, match=message):
        doctor.hub("some/model")


def test_without_a_network_only_the_cache_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="not in the cache, and HF_HUB_OFFLINE is 1"):
        doctor.hub("some/model")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda model, name: "/cache/config.json")
    assert doctor.hub("some/model") == "it is in the cache"


def test_models_that_lie_on_a_disk_are_not_asked_for(tmp_path: Path) -> None:
    named = config(policy={"model": str(tmp_path)}, text={"provider": "sentence-transformers", "model": "BAAI/bge"})
    names = [check.name for check in doctor.training_checks(named)]
    assert [name for name in names if name.startswith("model")] == ["model BAAI/bge"]


def test_vllm_is_not_looked_for_where_its_tasks_have_images_of_their_own() -> None:
    task = {"gpus": 8, "image": "r/with-vllm@sha256:" + "0" * 64}
    named = config(explore={"engine": {"kind": "vllm"}}, pipeline={"tasks": {"train-stage-1": task}})
    assert "train-stage-1 run in images of their own" in doctor.vllm("explore.engine.kind", named)
    with pytest.raises(ConfigError, match=r"deeprec\[train,gpu\]"):
        doctor.vllm("explore.engine.kind", config(explore={"engine": {"kind": "vllm"}}))


def test_some_node_of_the_pool_has_what_the_largest_task_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [({"pool": "gpu"}, {"nvidia.com/gpu": "4"}), ({"pool": "other"}, {"nvidia.com/gpu": "8"}), ({}, {})]
    pool = GpuPool(node_selector={"pool": "gpu"})
    monkeypatch.setattr(doctor, "_nodes", lambda: nodes)
    assert "a node has the 4" in doctor.accelerators({"train-trm": 1, "train-stage-1": 4}, pool)
    with pytest.raises(ConfigError, match=r"train-stage-1\.gpus is 8, and the 1 nodes with pool=gpu have at most 4 of"):
        doctor.accelerators({"train-trm": 1, "train-stage-1": 8}, pool)
    monkeypatch.setattr(doctor, "_nodes", lambda: None)
    assert "not looked at" in doctor.accelerators({"train-trm": 1}, pool)


def test_the_command_ends_with_1_where_something_is_missing(tmp_path: Path) -> None:
    shelf = ("--set", f"bundle.uri={tmp_path / 'shelf'}")
    told = CliRunner().invoke(app, ["doctor", *shelf])
    assert (told.exit_code, told.output.count("✓"), told.output.count("✗")) == (0, 4, 0)
    told = CliRunner().invoke(app, ["doctor", *shelf, "--set", "data.source=movielens", "--set", "data.path=/nowhere"])
    assert (told.exit_code, told.output.count("✓"), told.output.count("✗")) == (1, 3, 1)


def settle(overrides: str = "", pods: Any = None, **sections: Any) -> Any:
    """What the pipeline's first task makes of a configuration."""
    given = to_parameters(config(**sections))
    return preflight.python_func(**given, overrides=overrides, pods=pods or {})


def test_the_task_fails_with_all_that_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settle(data={"source": "movielens", "path": "/nowhere"}, explore={"engine": {"kind": "vllm"}})
    _, second, *_, last = capsys.readouterr().out.splitlines()
    assert second.startswith("✗ data: there is nothing at /nowhere")
    assert last.startswith("error: PipelineError: 2 of 4 checks did not pass: data: there is nothing at /nowhere")
    assert settle()._asdict() == to_parameters(config())


def test_the_task_lays_what_somebody_overrides_over_the_sections(capsys: pytest.CaptureFixture[str]) -> None:
    lines = """
    # a longer training
    trm.epochs = 7
    policy.stage2={steps: 3}
    policy.tiny.width=64
    data.year_column=
    name=longer
    seed=11
    """
    found = settle(lines, trm={"width": 32})._asdict()
    assert (found["name"], found["seed"]) == ("longer", 11)
    assert (found["trm"]["epochs"], found["trm"]["width"]) == (7, 32)
    assert (found["stage2"]["steps"], found["stage1"]) == (3, to_parameters(config())["stage1"])
    assert (found["policy"]["tiny"]["width"], found["data"]["year_column"]) == (64, "")
    assert "stage2" not in found["policy"]


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        ("trm.epochs=3\n\ntrm.width", "ConfigError: overrides, line 3: 'trm.width' is not of the form"),
        ("trm.epochs=[", "ConfigError: overrides, line 1: 'trm.epochs=[': the value is not valid YAML"),
        ("trm.epoch=3", "ConfigError: the run's parameters: unknown key trm.epoch"),
        ("trm.epochs=-3", "ConfigError: the run's parameters: trm.epochs:"),
        ("seed.x=3", "ConfigError: overrides, line 1: 'seed.x=3': seed is a value, not a section"),
        ("pipeline.default.cpu=3", "ConfigError: overrides, line 1: pipeline is no parameter of a run; compile the"),
        ("serving.port=3", "ConfigError: overrides, line 1: serving is no parameter of a run; set it where the server"),
        ("policy.parallel.per_node=4", "settings: pipeline.tasks.train-stage-1.gpus is 2, but"),
        ("explore.engine={kind: server, url: http://p}", "settings: explore.engine.kind is 'server'"),
        (
            "bundle.uri=/other",
            "ConfigError: bundle.uri is '/other', which lies on no volume of the pod of publish-bundle",
        ),
    ],
)
def test_what_cannot_be_overridden_ends_the_run_in_one_line(
    overrides: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pods = {
        "pipeline": {"tasks": {"train-stage-1": {"gpus": 2}, "train-stage-2": {"gpus": 2}}},
        "mounted": {"bundle": {"publish-bundle": ["/shelf"]}},
    }
    with pytest.raises(SystemExit) as ended:
        settle(overrides, pods, policy={"parallel": {"per_node": 2}}, features={"place": "directory", "path": "s3://f"})
    assert ended.value.code
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("error: ")
    assert complaint in last
