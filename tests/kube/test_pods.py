"""The chart's pods, played from the built image on real stores: they become ready, do their work, and come back.

In order, as in a cluster: the migration's pod, a publication, the events server, the runtimes' pods, the test's.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.postgres import PostgresServer, find_postgres
from deeprec.config import FeaturesConfig
from tests import services
from tests.integration.parts import make_run
from tests.kube.engine import image, unavailable
from tests.kube.kubeplay import PlayedPod, playing
from tests.kube.rendered import CHART, Pod, Rendered, pods, render

MISSING = unavailable() or (
    None if find_postgres() and shutil.which("redis-server") else "postgresql and redis-server are not installed"
)
pytestmark = [pytest.mark.kube, pytest.mark.skipif(bool(MISSING), reason=MISSING or "")]

SHELF = "s3://deeprec/bundles"


@dataclass
class Cluster:
    """What is rendered, the Secrets that it names, and a place for files."""

    objects: list[Rendered]
    secrets: dict[str, dict[str, str]]
    place: Path

    def pod(self, component: str, kind: str = "") -> Pod:
        """The one pod of a component."""
        found = [
            pod
            for pod in pods(self.objects)
            if pod.labels["app.kubernetes.io/component"] == component and kind in ("", pod.of.kind)
        ]
        return found[0]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Stores with a bundle on a shelf, whose features are published once the tables are there."""
    image("serve")
    place = tmp_path_factory.mktemp("cluster")
    for name in ("redis", "seaweed"):
        (place / name).mkdir()
    for path in (place, *place.parents):  # which the image's user has to go through
        path.chmod(path.stat().st_mode | 0o005)
    redis, postgres = services.RedisServer(place / "redis"), PostgresServer()
    try:
        with services.seaweed(place / "seaweed", "deeprec") as address:
            store = {"AWS_ACCESS_KEY_ID": services.KEY, "AWS_SECRET_ACCESS_KEY": services.SECRET}
            features = {
                "DEEPREC_DATABASE": postgres.make(),
                "DEEPREC_REDIS": f"127.0.0.1:{redis.port},password={services.PASSWORD}",
            }
            os.environ.update(store, AWS_ENDPOINT_URL=address, AWS_REGION="us-east-1", **features)
            objects = render(
                "--set", f"images.registry=localhost/,store.endpoint={address},events.tokenSecret=events-token",
                "--set", f"serving.bootstrap.enabled=true,serving.bootstrap.bundle={SHELF},test.user=u01",
            )  # fmt: skip
            secrets = {"deeprec-store": store, "deeprec-features": features, "events-token": {"token": "t0ken"}}
            yield Cluster(objects, secrets, place)
    finally:
        redis.stop()
        postgres.close()


@pytest.fixture(scope="module")
def migrated(cluster: Cluster) -> str:
    """What the migration's pod said, after which the bundle is on the shelf and its features are published."""
    with playing(cluster.pod("migrate"), cluster.objects, cluster.secrets, cluster.place, restart="Never") as pod:
        assert pod.wait_end() == 0, pod.log
        said = pod.log
    from deeprec.bundle.delivery import deliver
    from deeprec.config import BundleConfig

    published = FeaturesConfig(
        place="cluster", database="${DEEPREC_DATABASE}", redis="${DEEPREC_REDIS}", offline="s3://deeprec/features"
    )
    run = make_run(cluster.place / "run", published)
    deliver(run / "bundle", BundleConfig(uri=SHELF, promote=True))
    return said


@pytest.fixture(scope="module")
def events(cluster: Cluster, migrated: str) -> Iterator[PlayedPod]:
    with playing(cluster.pod("events"), cluster.objects, cluster.secrets, cluster.place) as pod:
        pod.wait_ready()
        yield pod


@pytest.fixture(scope="module")
def recommender(cluster: Cluster, migrated: str) -> Iterator[PlayedPod]:
    with playing(cluster.pod("recommender"), cluster.objects, cluster.secrets, cluster.place) as pod:
        pod.wait_ready()
        yield pod


def test_the_migration_makes_the_tables(migrated: str) -> None:
    assert "were made" in migrated


def test_the_recommenders_runtime_answers_under_its_services_name(recommender: PlayedPod) -> None:
    asked = {"instances": [{"user_id": "u01", "k": 5}]}
    answer = httpx.post(f"{recommender.url}/v1/models/deeprec:predict", json=asked, timeout=60).json()
    [prediction] = answer["predictions"]
    assert (prediction["user_known"], len(prediction["items"])) == (True, 5)
    assert httpx.get(f"{recommender.url}/metrics", timeout=10).status_code == 404, "figures are at the other door"
    metrics = httpx.get(f"http://127.0.0.1:{recommender.admin}/metrics", timeout=10)
    assert "deeprec_bundle_info" in metrics.text


def test_the_trms_runtime_answers(cluster: Cluster, migrated: str) -> None:
    with playing(
        cluster.pod("trm"), cluster.objects, cluster.secrets, cluster.place,
        DEEPREC_BUNDLE=SHELF, DEEPREC__SERVING__NAME="deeprec-trm",
    ) as pod:  # fmt: skip
        pod.wait_ready()
        asked = {"instances": [{"history": [], "k": 3}]}
        answer = httpx.post(f"{pod.url}/v1/models/deeprec-trm:predict", json=asked, timeout=60).json()
    assert len(answer["predictions"][0]["items"]) == 3


def test_the_policys_runtime_starts_what_its_image_has(cluster: Cluster) -> None:
    """On the image whose base stands for vLLM's, there is no vLLM: the command comes as far as to say so."""
    image("policy")
    objects = render("--values", CHART / "values-gpu.yaml", "--set", "images.registry=localhost/")
    of_policy = Cluster(objects, cluster.secrets, cluster.place).pod("policy")
    with playing(of_policy, objects, cluster.secrets, cluster.place, restart="Never") as pod:
        assert pod.wait_end() != 0
        assert pod.log.strip().startswith("error: vLLM is not installed where deeprec is")


def test_the_charts_own_test_asks_sends_an_event_and_asks_again(
    cluster: Cluster, recommender: PlayedPod, events: PlayedPod
) -> None:
    addresses = {"DEEPREC_TEST_RECOMMENDER": recommender.url, "DEEPREC_TEST_EVENTS": events.url}
    tester = cluster.pod("test")
    with playing(tester, cluster.objects, cluster.secrets, cluster.place, restart="Never", **addresses) as pod:
        assert pod.wait_end() == 0, pod.log
        assert "the event of u01 on" in pod.log
    refused = httpx.post(f"{events.url}/v1/events", json={"events": []}, timeout=10)
    assert refused.status_code == 401, "whoever sends events has to name the token"


def test_a_killed_server_comes_back(events: PlayedPod) -> None:
    before = events.state["Pid"]
    events.kill()
    until = time.monotonic() + 60
    while events.state["Pid"] in (0, before):
        assert time.monotonic() < until, "it was not started again"
        time.sleep(0.2)
    events.wait_ready()


@pytest.mark.parametrize(
    ("component", "secret", "key", "value", "said"),
    [
        (
            "events",
            "deeprec-features",
            "DEEPREC_DATABASE",
            "postgresql://deeprec:wrong@127.0.0.1:{port}/made",
            "password",
        ),
        ("events", "deeprec-features", "DEEPREC_REDIS", "127.0.0.1:{redis},password=wrong", "features.redis"),
        ("recommender", "deeprec-features", "DEEPREC_REDIS", "127.0.0.1:{redis},password=wrong", "features.redis"),
        ("recommender", "deeprec-store", "AWS_SECRET_ACCESS_KEY", "wrong", SHELF),
        ("events", "deeprec-features", "DEEPREC_DATABASE", "", "DEEPREC_DATABASE"),
        ("recommender", "deeprec-features", "DEEPREC_REDIS", "", "DEEPREC_REDIS"),
        ("recommender", "deeprec-store", "AWS_ACCESS_KEY_ID", "", "AWS_ACCESS_KEY_ID"),
        ("migrate", "deeprec-features", "DEEPREC_DATABASE", "", "DEEPREC_DATABASE"),
    ],
)
def test_a_wrong_secret_is_said_in_a_sentence(
    cluster: Cluster, migrated: str, component: str, secret: str, key: str, value: str, said: str
) -> None:
    right = cluster.secrets["deeprec-features"]
    ports = {
        "port": right["DEEPREC_DATABASE"].rpartition(":")[2].partition("/")[0],
        "redis": right["DEEPREC_REDIS"].partition(",")[0].rpartition(":")[2],
    }
    wrong = {**cluster.secrets, secret: {**cluster.secrets[secret], key: value.format(**ports)}}
    with playing(cluster.pod(component), cluster.objects, wrong, cluster.place, restart="Never") as pod:
        until = time.monotonic() + 60
        while said not in pod.log and pod.state["Running"]:
            assert time.monotonic() < until, pod.log[-2000:]
            if pod.probe:
                pod.ready()  # which is what a cluster asks all the time
            time.sleep(0.3)
        if component == "events":
            assert not pod.ready()
        lines = [line for line in pod.log.splitlines() if said in line]
        assert lines, pod.log[-3000:]
        assert "Traceback" not in pod.log
        assert "wrong" not in pod.log, "no secret is told"


@pytest.mark.parametrize("component", ["migrate", "events", "recommender", "trm"])
def test_a_pod_whose_secret_is_missing_or_lacks_a_key_is_not_started_and_the_reason_names_it(
    cluster: Cluster, component: str
) -> None:
    """As a kubelet does (CreateContainerConfigError), since no reference is optional: there is no process to crash."""
    pod = cluster.pod(component)
    [container] = pod.containers
    named = [one["valueFrom"]["secretKeyRef"] for one in container["env"] if "secretKeyRef" in one.get("valueFrom", {})]
    assert named
    without: list[tuple[str, dict[str, dict[str, str]]]] = [
        (reference["name"], {name: keys for name, keys in cluster.secrets.items() if name != reference["name"]})
        for reference in named
    ]
    for reference in named:
        kept = {key: value for key, value in cluster.secrets[reference["name"]].items() if key != reference["key"]}
        without.append((reference["key"], {**cluster.secrets, reference["name"]: kept}))
    for missing, secrets in without:
        with (
            pytest.raises(AssertionError, match=missing),
            playing(pod, cluster.objects, secrets, cluster.place, restart="Never"),
        ):
            pytest.fail("it was started")
