"""A run's working directory: what is claimed, cleared, resolved and swapped."""

from pathlib import Path

import pytest

from deeprec.config import Config
from deeprec.errors import ConfigError, DataError, PipelineError
from deeprec.pipelines import run
from deeprec.pipelines.environment import environment
from deeprec.store import read_artifact, write_artifact


def test_resolve_makes_local_paths_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    raw = {"data": {"source": "movielens", "path": "ml"}, "bundle": {"uri": "out"}}
    config = run.resolve(Config.model_validate(raw), tmp_path / "run")

    assert config.features.path == str(tmp_path / "run" / "features")
    assert config.data.path == str(tmp_path / "ml")
    assert config.bundle.uri == str(tmp_path / "out")


def test_what_is_promoted_goes_to_the_runs_own_shelf_where_none_is_named(tmp_path: Path) -> None:
    def uri(**bundle: object) -> str:
        return run.resolve(Config.model_validate({"bundle": bundle}), tmp_path).bundle.uri

    assert uri() == ""
    assert uri(promote=True) == str(tmp_path / "shelf")
    assert uri(promote=True, uri="s3://a/b") == "s3://a/b"


def test_resolve_leaves_addresses_alone(tmp_path: Path) -> None:
    raw = {"data": {"source": "table", "path": "s3://a/b"}, "bundle": {"uri": "s3://c/d"}, "features": {"path": "/f"}}
    config = run.resolve(Config.model_validate(raw), tmp_path)

    assert (config.data.path, config.bundle.uri, config.features.path) == ("s3://a/b", "s3://c/d", "/f")


@pytest.mark.parametrize("path", ["", "/nowhere/at/all"])
def test_missing_data_is_found_before_any_task(tmp_path: Path, path: str) -> None:
    config = Config.model_validate({"data": {"source": "movielens", "path": path}})
    with pytest.raises(DataError, match=r"data\.path=DIR"):
        run.run_training(config, tmp_path / "run")
    assert not (tmp_path / "run" / "pipeline").exists()


def test_a_directory_of_someone_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine").touch()
    with pytest.raises(ConfigError, match="which no run made"):
        run.run_training(Config(), tmp_path)
    assert (tmp_path / "logs" / "mine").exists()


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with run._claimed(tmp_path, False), pytest.raises(PipelineError, match="another run"), run._claimed(tmp_path, True):
        pass


def test_a_fresh_run_clears_what_the_last_one_left_but_its_bundle(tmp_path: Path) -> None:
    with run._claimed(tmp_path, False):
        for name in ("cache", "bundle"):
            (tmp_path / name).mkdir()
        (tmp_path / "metrics.json").touch()
    with run._claimed(tmp_path, True):
        assert (tmp_path / "cache").exists()
        assert (tmp_path / "metrics.json").exists()
    with run._claimed(tmp_path, False):
        assert not (tmp_path / "cache").exists()
        assert not (tmp_path / "metrics.json").exists()
        assert (tmp_path / "bundle").exists()


def test_swap_replaces_a_bundle_by_another_as_it_is(tmp_path: Path) -> None:
    for name in ("new", "current"):
        with write_artifact(tmp_path / name, "bundle") as work:
            (work / name).touch()
            (work / "metrics.json").write_text("{}")

    digest = read_artifact(tmp_path / "new").digest
    run._swap(tmp_path / "new", tmp_path / "current")

    assert read_artifact(tmp_path / "current", "bundle").digest == digest, "a finished artifact is not written again"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current", "new"]


def test_hub_is_asked_only_where_a_model_must_be_fetched() -> None:
    named = {"policy": {"model": "some/model"}}
    assert environment(Config.model_validate({"explore": {"prompt": "compact"}}))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in environment(Config.model_validate(named))
    assert "HF_HUB_OFFLINE" not in environment(Config.model_validate({"text": {"provider": "sentence-transformers"}}))
