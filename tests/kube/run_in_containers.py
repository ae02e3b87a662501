"""Runs the compiled training pipeline in containers as its pods would be, and asks what it made: `make
pipeline-in-containers`.

On generated data that lie on a claim, against SeaweedFS, PostgreSQL and Redis, all of which are started here. Progress
goes to standard error; standard output ends with one line of JSON: ``tasks``, each with its state; ``version``, the
bundle's; and ``served``, the file that holds the serving image's answer for a user.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from benchmarks.postgres import PostgresServer, find_postgres
from tests import services
from tests.kube.engine import CONFINED, checked, image, running, unavailable
from tests.kube.played import Namespace, play

ROOT = Path(__file__).parents[2]
BUCKET = "deeprec"
STORE, FEATURES, DATA, CHECKPOINTS = "deeprec-store", "deeprec-features", "deeprec-data", "deeprec-checkpoints"
"""Names of Secrets and claims."""
STAGE = {"steps": 1, "prompts_per_step": 4, "rollouts": 2, "sequences_per_update": 8, "micro_batch": 8}
CONFIG: dict[str, Any] = {
    "name": "containers",
    "seed": 3,
    "data": {"source": "table", "path": "/data", "text_columns": ["genres", "maker"], "year_column": "year"},
    "features": {
        "place": "cluster",
        "database": "${DEEPREC_DATABASE}",
        "redis": "${DEEPREC_REDIS}",
        "offline": f"s3://{BUCKET}/features",
    },
    "text": {"provider": "hashing", "width": 64},
    "trm": {"width": 32, "layers": 1, "max_length": 20, "epochs": 4, "gate": {"min_ratio_to_popularity": 0}},
    "explore": {
        "prompt": "compact", "prompt_history": 5, "items_per_call": 8, "max_calls": 3, "max_new_tokens": 40,
        "max_context": 320,
    },
    "policy": {
        "tiny": {"width": 32, "layers": 1, "heads": 2, "inner": 64},
        "warm_start": {"trajectories": 400, "epochs": 2},
        "select": {"candidates": 16, "rollouts": 2},
        "stage1": STAGE,
        "stage2": STAGE,
    },
    "evaluation": {"bootstrap_samples": 50, "trajectories": 2},
    "bundle": {"uri": f"s3://{BUCKET}/bundles", "promote": True},
    "pipeline": {
        "allow_tags": True,
        "checkpoints_claim": CHECKPOINTS,
        "default": {
            "cpu": "1",
            "memory": "4Gi",
            "secrets": {
                STORE: ["AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"],
                FEATURES: ["DEEPREC_DATABASE", "DEEPREC_REDIS"],
            },
        },
        "tasks": {
            name: {"volumes": [{"claim": DATA, "path": "/data"}]} for name in ("preflight", "resolve-data", "ingest")
        },
    },
}  # fmt: skip
"""A small run. Nothing here is about how well it learns."""


def main() -> None:
    """Run it; exits with 1, after the sentence, where a task or the server fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="directory for logs, artifacts and the answer; else a new one")
    arguments = parser.parse_args()
    objection = unavailable()
    if objection or find_postgres() is None or shutil.which("redis-server") is None:
        sys.exit(f"error: {objection or 'install the packages postgresql and redis-server'}")
    place = (arguments.keep or Path(tempfile.mkdtemp(prefix="deeprec-containers-"))).absolute()
    place.mkdir(parents=True, exist_ok=True)
    tell(f"building the images; logs go to {place}/logs")
    for path in (place, *place.parents):  # which the images' user has to go through
        path.chmod(path.stat().st_mode | 0o005)
    images = {"train": image("train"), "serve": image("serve")}
    with namespace(place) as (found, user):
        done = run(images, found, user, place)
    print(json.dumps(done))
    if not done["served"]:
        sys.exit(1)


def run(images: dict[str, str], found: Namespace, user: str, place: Path) -> dict[str, Any]:
    """Compile, migrate, play, ask; what came of it."""
    config = CONFIG | {"pipeline": CONFIG["pipeline"] | {"image": images["train"]}}
    written, compiled = place / "config.yaml", place / "train.yaml"
    written.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "deeprec", "pipeline", "compile", "--output", compiled, "--config", written]
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr, cwd=ROOT)
    given = [f"--env={key}={value}" for secret in found.secrets.values() for key, value in secret.items()]
    mounted = ("--volume", f"{written}:/config.yaml:ro", "--tmpfs", "/home/deeprec:mode=1777")
    migrated = (*CONFINED, *mounted, *given, images["train"], "features", "migrate", "/config.yaml")
    tell(checked("podman", "run", "--rm", *migrated).strip())
    played = play(compiled, found, place, told=tell)
    states = {name: task.state for name, task in played.items()}
    if set(states.values()) != {"succeeded"}:
        return {"tasks": states, "version": "", "served": ""}
    served = place / "answer.json"
    told = answer(images["serve"], given, written, user)
    served.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return {"tasks": states, "version": played["publish-bundle"].outputs["version"], "served": str(served)}


def answer(serve: str, given: list[str], config: Path, user: str) -> dict[str, Any]:
    """What the serving image answers for a user, from the shelf and the features that the pipeline published.

    Raises:
        AssertionError: the user is unknown, or gets no items.
    """
    [port] = services.free_ports(1)
    shelf = str(CONFIG["bundle"]["uri"])
    command = ("serve", "recommender", shelf, "--config", "/config.yaml", "--host", "127.0.0.1", "--port", port)
    with running(serve, *command, mounts=[f"{config}:/config.yaml:ro"], options=given) as container:
        url = f"http://127.0.0.1:{port}"
        container.wait_ready(url)
        asked = {"instances": [{"user_id": user, "k": 5}]}
        told = httpx.post(f"{url}/v1/models/deeprec:predict", json=asked, timeout=60).raise_for_status().json()
        [prediction] = told["predictions"]
        assert (prediction["user_known"], len(prediction["items"])) == (True, 5), prediction
        tell(f"the serving image answered by {prediction['path']}")
        return dict(prediction)


@contextmanager
def namespace(place: Path) -> Iterator[tuple[Namespace, str]]:
    """Servers, the Secrets that name them, and claims, one with data, one that is empty; and a user of the data."""
    from deeprec.config import SampleConfig
    from deeprec.data.sample import read_sample

    claims = {name: place / "claims" / name for name in (DATA, CHECKPOINTS)}
    for path in claims.values():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o777)
    source = read_sample(SampleConfig(users=150, items=120, mean_history=12), 3)
    source.interactions.write_parquet(claims[DATA] / "interactions.parquet")
    source.items.write_parquet(claims[DATA] / "items.parquet")
    work = place / "servers"
    for name in ("redis", "seaweed"):
        (work / name).mkdir(parents=True, exist_ok=True)
    redis, postgres = services.RedisServer(work / "redis"), PostgresServer()
    try:
        with services.seaweed(work / "seaweed", BUCKET) as address:
            store = {
                "AWS_ENDPOINT_URL": address,
                "AWS_ACCESS_KEY_ID": services.KEY,
                "AWS_SECRET_ACCESS_KEY": services.SECRET,
                "AWS_REGION": "us-east-1",
            }
            features = {
                "DEEPREC_DATABASE": postgres.make(),
                "DEEPREC_REDIS": f"127.0.0.1:{redis.port},password={services.PASSWORD}",
            }
            yield Namespace({STORE: store, FEATURES: features}, claims), str(source.interactions["user_id"][0])
    finally:
        redis.stop()
        postgres.close()


def tell(line: str) -> None:
    """Progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
