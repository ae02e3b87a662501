"""The compiled pipeline in containers: what a pod gets is what its task has, and what fails fails with its sentence.

That all of it runs is what `make pipeline-in-containers` shows. KFP reads annotations as objects, so this file does
without postponed ones.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kfp import compiler, dsl

from deeprec.config import Config, GpuPool, PodTemplate, SampleConfig
from deeprec.data.sample import read_sample
from deeprec.pipelines import pods, training
from tests.kube.engine import image, unavailable
from tests.kube.played import Namespace, Played, play

pytestmark = [pytest.mark.kube, pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "")]

Play = Callable[..., dict[str, Played]]
STORE = {"store": {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}}


@pytest.fixture
def claims(tmp_path: Path) -> dict[str, Path]:
    """A claim with generated data, and an empty one."""
    found = {name: tmp_path / name for name in ("data", "features")}
    for path in (*found.values(), tmp_path, *tmp_path.parents):
        path.mkdir(exist_ok=True)
        path.chmod(path.stat().st_mode | 0o005)
    for path in found.values():
        path.chmod(0o777)
    source = read_sample(SampleConfig(users=80, items=60, mean_history=10), 0)
    source.interactions.write_parquet(found["data"] / "interactions.parquet")
    source.items.write_parquet(found["data"] / "items.parquet")
    return found


@pytest.fixture
def run(claims: dict[str, Path], tmp_path: Path) -> Play:
    """``run(secrets, section={…})``: play the training pipeline as far as it comes."""

    def played(secrets: dict[str, dict[str, str]] = STORE, **sections: Any) -> dict[str, Played]:
        volumes = [{"claim": "data", "path": "/data"}, {"claim": "features", "path": "/features"}]
        pod = {"cpu": "1", "memory": "2Gi", "volumes": volumes, "secrets": {"store": list(STORE["store"])}}
        tree = {
            "data": {"source": "table", "path": "/data", "text_columns": ["genres"]},
            "features": {"path": "/features/histories"},
            "text": {"provider": "hashing", "width": 32},
            "pipeline": {"image": image("train"), "allow_tags": True, "default": pod},
        }
        training.compile(Config.model_validate(tree | sections), tmp_path / "train.yaml")
        return play(tmp_path / "train.yaml", Namespace(secrets, claims), tmp_path / "played")

    return played


def test_a_task_that_fails_ends_the_run_with_its_sentence(run: Play, claims: dict[str, Path], tmp_path: Path) -> None:
    (claims["data"] / "items.parquet").write_bytes(b"no table")
    played = run()
    assert {name: task.state for name, task in played.items()} == {
        "preflight": "succeeded", "resolve-data": "succeeded", "ingest": "failed",
    }  # fmt: skip
    assert played["ingest"].said.startswith("error: DataError: cannot read /data/items.parquet")
    assert played["ingest"].said in (tmp_path / "played" / "logs" / "ingest.log").read_text()


def test_a_refusal_ends_the_run_where_nothing_costs(run: Play) -> None:
    played = run(checks={"min_users": 100_000})
    assert [*played][-2:] == ["check-data", "require-data"]
    assert played["check-data"].state == "succeeded"
    assert played["require-data"].state == "failed"
    assert played["require-data"].said.startswith("error: CheckFailed: ")
    assert "100,000" in played["require-data"].said


@pytest.mark.parametrize(
    ("secrets", "said"),
    [
        ({}, 'Error: secret "store" not found'),
        ({"store": {"AWS_ACCESS_KEY_ID": "key"}}, "Error: couldn't find key AWS_SECRET_ACCESS_KEY in Secret store"),
    ],
)
def test_a_missing_secret_ends_the_run_before_anything(
    run: Play, secrets: dict[str, dict[str, str]], said: str
) -> None:
    [(name, task)] = run(secrets).items()
    assert (name, task.state, task.said) == ("preflight", "failed", said)


def test_a_missing_claim_ends_the_run_before_anything(run: Play, claims: dict[str, Path]) -> None:
    del claims["features"]
    [(name, task)] = run().items()
    assert (name, task.state, task.said) == ("preflight", "failed", 'Error: persistentvolumeclaim "features" not found')


@pytest.mark.parametrize("status", [0, 3])
def test_a_container_has_what_its_pod_has_and_its_status_is_told(
    claims: dict[str, Path], tmp_path: Path, status: int
) -> None:
    tag = image("train")

    @dsl.component(base_image=tag, install_kfp_package=False)
    def look(status: int):
        import subprocess

        command = """
        id -u; id -g
        touch /opt/x 2>/dev/null || echo root is read-only
        touch $HOME/x && touch /data/made && echo home and claim are written
        echo $TOKEN $WHO; ls /data/folder
        grep CapEff /proc/self/status
        """
        subprocess.run(["sh", "-c", command], check=True)
        raise SystemExit(status)

    pod = PodTemplate.model_validate(
        {
            "image": tag,
            "volumes": [
                {"claim": "data", "path": "/data"}, {"claim": "features", "path": "/data/folder", "sub_path": "part"},
            ],
            "env": {"WHO": "everybody"},
            "secrets": {"hub": {"token": "TOKEN"}},
        }
    )  # fmt: skip

    @dsl.pipeline(name="looking")
    def looking():
        task = look(status=status)
        pods.dress(task, pod, GpuPool(), {})

    compiler.Compiler().compile(looking, str(tmp_path / "look.yaml"))
    (claims["features"] / "part").mkdir()
    (claims["features"] / "part" / "inside").touch()
    played = play(tmp_path / "look.yaml", Namespace({"hub": {"token": "t0ken"}}, claims), tmp_path / "played")
    assert played["look"].state == ("failed" if status else "succeeded")
    log = (tmp_path / "played" / "logs" / "look.log").read_text()
    seen = ("1000", "0", "root is read-only", "home and claim are written", "t0ken everybody", "inside")
    assert "\n".join((*seen, "CapEff:\t0000000000000000")) in log
    assert (claims["data"] / "made").stat().st_uid == 1000
