"""Releases on a stand-in for the cluster, whose pods are two real servers: what comes about, and what is said."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from deeprec.bundle.bundle import Bundle
from deeprec.cli import app
from deeprec.errors import ReleaseError
from deeprec.release import STEPS
from deeprec.release.cluster import Cluster
from deeprec.release.protocol import Release, Waits, begin, resume
from deeprec.release.record import Records
from deeprec.release.service import as_service, of_recommender
from deeprec.release.steps import end_run, run_step, to_markdown
from tests.kube.valid import definitions
from tests.kube.world import SHOP, World, opened
from tests.policy_server import serving_policy
from tests.standins.api import Asked
from tests.standins.kserve import SERVICES, SERVING, Plan, Server, Shim
from tests.standins.objects import Key, Refused

pytestmark = [pytest.mark.kube, pytest.mark.skipif(definitions() is None, reason="there are no definitions at hand")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with opened(tmp_path_factory.mktemp("world")) as world:
        yield world


@pytest.fixture
def world(whole: World, monkeypatch: pytest.MonkeyPatch) -> World:
    whole.clear()
    monkeypatch.setenv("KUBECONFIG", str(whole.place / "kubeconfig"))
    return whole


def release(world: World, version: str, said: list[str] | None = None, **settings: Any) -> Release:
    config = world.config(**settings)
    say = (said if said is not None else []).append
    return begin(config, Cluster(config.release.namespace), world.shelf, version, say)


def test_a_first_release_serves_as_soon_as_it_answers(world: World) -> None:
    first, _ = world.versions
    release(world, first).deploy()
    assert world.told() == [(first, 100)]
    [record] = Records(world.shelf).all()
    assert (record.ending, record.before, record.version) == ("released", None, first)
    assert world.shelf.pointer("live") == first


def test_a_second_release_takes_over_by_canary_and_nobody_is_left_without_an_answer(world: World) -> None:
    first, second = world.versions
    release(world, first).deploy()
    said: list[str] = []
    with world.callers() as callers:
        release(world, second, said, ramp={"step_seconds": 0.5}).deploy()
    assert world.told() == [(second, 100)]
    assert world.shelf.pointer("live") == second
    assert not callers.failures
    assert callers.versions.keys() == {first, second}
    record = Records(world.shelf).all()[0]
    assert [step.name for step in record.steps] == [
        "canary", "smoke", "ramp 1", "ramp 10", "ramp 50", "promote", "soak",
    ]  # fmt: skip
    smoked = record.steps[1].figures["deeprec"]
    assert (smoked["lists that differ"], smoked["check answers"]) == (0, 32)
    assert smoked["largest score gap"] < 1e-3
    release(world, second).deploy()
    assert world.told() == [(second, 100)], "what serves is not released again"


@pytest.fixture
def served(world: World) -> World:
    """A world in which the first version serves."""
    release(world, world.versions[0]).deploy()
    return world


def refused(world: World, **settings: Any) -> str:
    """Why the second version is not released; after which the first serves alone, and nobody was left without."""
    first, second = world.versions
    with world.callers(1) as callers, pytest.raises(ReleaseError) as why:
        release(world, second, **settings).deploy()
    assert world.told() == [(first, 100)]
    assert world.shelf.pointer("live") == first
    assert not callers.failures
    [record] = [one for one in Records(world.shelf).all() if one.version == second]
    assert record.ending == "rolled back"
    assert record.reason in str(why.value)
    assert f"{first} serves as before" in str(why.value)
    return str(why.value)


@pytest.mark.parametrize(
    ("plan", "settings", "said"),
    [
        (Plan(ready_after=60), {"ready_seconds": 1}, "was not ready within 1 s (release.ready_seconds)"),
        (Plan(failure="the index is damaged"), {}, "cannot be loaded: ModelLoadFailed: the index is damaged"),
        (Plan(crash_after=1.5), {"ramp": {"step_seconds": 10}}, "is not ready any more"),
    ],
    ids=["never ready", "cannot be loaded", "ready, then crashing"],
)
def test_a_canary_whose_pods_fail(
    served: World, plan: Plan, settings: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.release.protocol._LOOK_SECONDS", 0.2)
    served.controller.plans[served.versions[1]] = plan
    assert said in refused(served, **settings)


def test_a_canary_that_is_another_version(served: World) -> None:
    first, second = served.versions
    served.controller.altered[second] = served.controller.servers[first]
    assert f"answers with version {first}, and is to be {second}" in refused(served)


def test_a_canary_that_is_slow(served: World) -> None:
    shim = Shim(served.controller.servers[served.versions[1]], seconds=2.0, after=40)  # the check answers
    served.controller.altered[served.versions[1]] = shim.server
    assert "more than 3 times" in refused(served, smoke={"requests": 6, "max_p99_ratio": 3})
    shim.close()


def _other_scores(told: Any) -> Any:
    for one in told["predictions"]:
        for item in one["items"]:
            item["score"] += 0.01
    return told


def _too_few(told: Any) -> Any:
    return {"predictions": [{**one, "items": one["items"][1:]} for one in told["predictions"]]}


@pytest.mark.parametrize(
    ("alter", "said"), [(_other_scores, "scores apart by 0.01"), (_too_few, "otherwise than V1 (and 3 more)")]
)
def test_a_canary_with_wrong_answers(served: World, alter: Any, said: str) -> None:
    shim = Shim(served.controller.servers[served.versions[1]], alter=alter)
    served.controller.altered[served.versions[1]] = shim.server
    assert said in refused(served)
    shim.close()


def test_figures_that_cannot_be_had(served: World) -> None:
    assert "Prometheus at http://127.0.0.1:9 cannot be asked" in refused(served, prometheus="http://127.0.0.1:9")


def test_too_few_requests_are_waited_for_and_then_decided_as_configured(served: World) -> None:
    ramp = {"step_seconds": 0.1, "wait_seconds": 0.3, "inconclusive": "fail", "min_requests": 10**6}
    assert "1000000 needed" in refused(served, ramp=ramp)


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ({"denied": {"patch inferenceservices"}}, "may not patch inferenceservices"),
        ({"definitions": {}}, "KServe is not installed"),
    ],
)
def test_what_a_cluster_lacks_is_said_before_anything_is_changed(
    served: World, missing: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in missing.items():
        monkeypatch.setattr(served.api, name, value)
    before = served.service()
    with pytest.raises(ReleaseError, match="not ready for a release") as why:
        release(served, served.versions[1]).deploy()
    assert said in str(why.value)
    assert served.service() == before


def test_what_serves_already_stays_when_it_is_released_again_and_something_is_missing(served: World) -> None:
    first = served.versions[0]
    served.api.denied = {"patch inferenceservices"}
    with pytest.raises(ReleaseError, match="not ready for a release"):
        release(served, first).deploy()
    assert served.told() == [(first, 100)]


def test_a_first_release_that_fails_leaves_nothing(world: World) -> None:
    world.controller.plans[world.versions[0]] = Plan(failure="no such file")
    with pytest.raises(ReleaseError, match="no such file; nothing serves, as before"):
        release(world, world.versions[0]).deploy()
    assert world.service() is None


def test_a_quota_that_is_used_up_and_a_runtime_that_is_missing_are_said_at_once(served: World) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "pods"}}
    status = {"status": {"hard": {"pods": "3"}, "used": {"pods": "3"}}}
    served.api.objects.create(Key("v1", "resourcequotas", SHOP, "pods"), {**quota, **status}, "admin")
    told = refused(served, runtime="nowhere")
    assert "the quota of pods is used up (3 of 3)" in told
    assert "there is no ServingRuntime nowhere" in told


def test_an_api_server_that_fails_now_and_then_is_asked_again(served: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deeprec.release.cluster._SECONDS", 0.5)

    def faults(asked: Asked) -> None:
        if asked.number % 5 == 0:
            raise Refused(503, "ServiceUnavailable", "the server is currently unable to handle the request")
        if asked.number % 13 == 0 and "proxy" not in asked.path:
            time.sleep(0.8)  # which is longer than is waited for

    served.api.faults = faults
    release(served, served.versions[1]).deploy()
    assert served.told() == [(served.versions[1], 100)]


def test_an_api_server_that_is_gone_leaves_a_release_that_is_settled_later(
    served: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deeprec.release.cluster.PATIENCE_SECONDS", 0.3)
    first, second = served.versions
    config = served.config()
    mine = begin(config, Cluster(SHOP), served.shelf, second, lambda line: None)
    mine.canary()

    def gone(asked: Asked) -> None:
        raise Refused(500, "InternalError", "etcdserver: leader changed")

    served.api.faults = gone
    with pytest.raises(ReleaseError, match="the API server fails"):
        mine.rollback("it was asked for")
    served.api.faults = lambda asked: None
    again = resume(config, Cluster(SHOP), served.shelf, lambda line: None)
    assert again is not None
    again.settle("its process had died")
    assert served.told() == [(first, 100)]
    assert resume(config, Cluster(SHOP), served.shelf, lambda line: None) is None


def test_of_two_releases_at_once_the_second_is_told(served: World) -> None:
    first, second = served.versions
    release(served, second).canary()
    with pytest.raises(ReleaseError, match=f"has been releasing {second} since"):
        release(served, first)
    release(served, second).deploy()
    assert served.told() == [(second, 100)], "the same version goes on"


def _edit(world: World, patch: dict[str, Any]) -> None:
    world.api.objects.merge(Key(SERVING, SERVICES, SHOP, "deeprec"), patch, "kubectl-edit")


def test_a_persons_edit_of_the_canary_ends_the_release_and_names_the_person(served: World) -> None:
    first, second = served.versions
    mine = release(served, second)
    mine.canary()
    spec = (served.service() or {})["spec"]
    _edit(served, {"spec": {"canary": [{**spec["canary"][0], "trafficPercent": 33}]}})
    with pytest.raises(ReleaseError, match="kubectl-edit"), mine.or_back():
        mine.ramp()
    assert served.told() == [(first, 100)]


def test_a_persons_edit_that_takes_the_canary_out_is_said(served: World) -> None:
    first, second = served.versions
    mine = release(served, second)
    mine.canary()
    _edit(served, {"spec": {"canary": None}})
    with pytest.raises(ReleaseError, match=f"somebody has taken {second} out"), mine.or_back():
        mine.ramp()
    assert served.told() == [(first, 100)]


def test_a_persons_replicas_stay(served: World) -> None:
    _edit(served, {"spec": {"predictor": {"minReplicas": 3}}})
    release(served, served.versions[1]).deploy()
    assert (served.service() or {})["spec"]["predictor"]["minReplicas"] == 3


def test_what_helm_has_made_is_taken_over_when_that_is_asked_for(world: World) -> None:
    first, second = world.versions
    config = world.config()
    made = as_service(SHOP, "deeprec", of_recommender(config.release, SHOP, world.shelf.address, first, False))
    del made["spec"]["predictor"]["name"], made["spec"]["predictor"]["model"]["storageUri"]
    world.api.objects.create(Key(SERVING, SERVICES, SHOP, "deeprec"), made, "helm")
    with pytest.raises(ReleaseError, match=r'conflict with "helm".*--take-over'):
        release(world, second).deploy()
    mine = release(world, second)
    mine.take_over = True
    mine.deploy()
    assert world.told() == [(second, 100)]


def test_a_person_promotes_or_goes_back(served: World) -> None:
    first, second = served.versions
    with pytest.raises(Waits, match="deeprec release promote"):
        release(served, second, approval="manual").deploy()
    assert served.told() == [(first, 50), (second, 50)]
    mine = resume(served.config(), Cluster(SHOP), served.shelf, lambda line: None)
    assert mine is not None
    assert mine.record.waiting
    mine.promote()
    assert served.told() == [(second, 100), (first, 0)], "the one before stays warm"
    mine.rollback("somebody thought better of it")
    assert served.told() == [(first, 100)]
    assert served.shelf.pointer("live") == first


def test_in_a_pool_without_room_the_new_one_takes_the_place_of_the_old(served: World) -> None:
    first, second = served.versions
    release(served, second, strategy="replace").deploy()
    assert served.told() == [(second, 100)]
    served.controller.plans[first] = Plan(failure="no such file")
    with pytest.raises(ReleaseError, match=f"no such file; {second} serves as before"):
        release(served, first, strategy="replace").deploy()
    assert served.told() == [(second, 100)]


def sections(world: World, **settings: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The sections ``release`` and ``bundle``, as a pipeline's tasks are given them."""
    config = world.config(**settings)
    return config.release.model_dump(mode="json"), config.bundle.model_dump(mode="json")


def test_the_steps_of_a_pipeline_are_a_release_that_its_run_names(served: World) -> None:
    second = served.versions[1]
    settings = sections(served)
    for step in STEPS:
        record = run_step(step, "run-1", second, *settings)
    assert served.told() == [(second, 100)]
    assert (record.id, record.ending) == ("run-1", "released")
    assert "| promote | pass |" in to_markdown(record)
    end_run("run-1", "", *settings)
    assert served.told() == [(second, 100)], "what has ended well is left alone"
    end_run("run-2", "", *settings)
    assert served.told() == [(second, 100)], "a run that came to no release ends nothing"


@pytest.mark.parametrize("made", range(1, 5))
def test_behind_the_steps_of_a_pipeline_what_was_not_promoted_goes_back(served: World, made: int) -> None:
    first, second = served.versions
    settings = sections(served)
    for step in STEPS[:made]:
        run_step(step, "run-1", second, *settings)
    end_run("run-1", "trm.epochs=3\n# nothing of the bundle\n", *settings)
    promoted = "promote" in STEPS[:made]
    assert served.told() == [(second if promoted else first, 100)]
    assert Records(served.shelf).all()[0].ending == ("released" if promoted else "rolled back")
    if not promoted:
        with pytest.raises(ReleaseError, match="was rolled back meanwhile"):
            run_step("soak", "run-1", second, *settings)


def test_one_that_fails_after_its_promotion_goes_back_too(served: World) -> None:
    first, second = served.versions
    settings = sections(served, soak_seconds=5)
    for step in STEPS[:4]:
        run_step(step, "run-1", second, *settings)
    served.controller.plans[second] = Plan(failure="out of memory")
    served.api.objects.merge(Key(SERVING, SERVICES, SHOP, "deeprec"), {"metadata": {"labels": {"look": "now"}}}, "test")
    served.controller.settled()
    with pytest.raises(ReleaseError, match="is not ready any more"):
        run_step("soak", "run-1", second, *settings)
    with pytest.raises(ReleaseError, match=f"{first} serves as before"):
        end_run("run-1", "", *settings)
    assert served.told() == [(first, 100)]
    assert served.shelf.pointer("live") == first


def test_a_pipeline_waits_for_a_person_and_goes_back_without_one(served: World) -> None:
    first, second = served.versions
    settings = sections(served, approval="manual", approval_seconds=30)
    for step in STEPS[:3]:
        run_step(step, "run-1", second, *settings)

    def a_person_promotes(seconds: float) -> None:
        ran = CliRunner().invoke(app, ["release", "promote", *options(served)])
        assert ran.exit_code == 0, ran.output

    run_step("promote", "run-1", second, *settings, sleep=a_person_promotes)
    assert run_step("soak", "run-1", second, *settings).ending == "released", "by the person's command already"
    assert served.told() == [(second, 100)]
    settings = sections(served, approval="manual", approval_seconds=0)
    for step in STEPS[:3]:
        run_step(step, "run-2", first, *settings)
    with pytest.raises(ReleaseError, match=f"nobody has promoted {first} within 0 s"):
        run_step("promote", "run-2", first, *settings)


def options(world: World, **settings: Any) -> list[str]:
    """Options of ``deeprec release …``: the world's configuration."""
    file = world.place / "release.yaml"
    config = world.config(**settings)
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", include={"release", "bundle"})), encoding="utf-8")
    return ["--config", str(file)]


def run_command(*command: str) -> str:
    ran = CliRunner().invoke(app, ["release", *command])
    assert ran.exit_code == 0, (ran.output, ran.exception)
    return ran.output


def test_by_the_command_line(world: World) -> None:
    first, second = world.versions
    world.shelf.push(Bundle.load(world.place / "second"))
    where = options(world)
    assert "has all that a release needs" in run_command("preflight", *where)
    assert "there is no InferenceService deeprec" in run_command("status", *where)
    assert f"{first} serves; ask it at http://deeprec-shop.shop.example" in run_command("deploy", first, *where)
    assert f"{second} serves" in run_command("deploy", *where), "the candidate, where no version is named"
    told = run_command("status", *where)
    assert f"{second}: 100 %, ready" in told
    assert "no release is under way" in told
    assert f"{first} serves again" in run_command("rollback", "--why", "clicks fell", *where)
    assert world.told() == [(first, 100)]
    assert "waits: `deeprec release promote`" in run_command("deploy", *options(world, approval="manual"))
    assert "waits" in run_command("status", *where)
    assert "was rolled back" in run_command("rollback", *where)
    records = json.loads(run_command("history", "--json", *where))
    assert [(one["version"], one["ending"]) for one in records] == [
        (second, "rolled back"), (first, "released"), (second, "released"), (first, "released"),
    ]  # fmt: skip
    assert "ramp 50: inconclusive" in run_command("history", "--id", records[2]["id"], *where)
    ran = CliRunner().invoke(app, ["release", "promote", *where])
    assert "no release is under way" in str(ran.exception)


def test_a_release_whose_process_has_died_is_said_and_repaired(served: World) -> None:
    first, second = served.versions
    release(served, second).canary()
    where = options(served)
    assert f"`deeprec release deploy {second}` goes on" in " ".join(run_command("status", *where).split())
    assert f"{first}: 100 %, ready" in run_command("status", "--repair", *where)
    assert served.told() == [(first, 100)]


class TestPolicyApart:
    """The policy of each version has a server of its own, and the recommender its address."""

    @pytest.fixture
    def apart(self, served: World) -> Iterator[World]:
        with serving_policy(served.place / "run" / "policy") as url:
            served.controller.policy = Server(url, url)
            yield served
            served.controller.policy = None

    def services(self, world: World) -> list[str]:
        return [one["metadata"]["name"] for one in world.api.objects.list(SERVING, SERVICES, SHOP)]

    def test_each_version_has_its_own(self, apart: World) -> None:
        first, second = apart.versions
        release(apart, second, policy=True).deploy()
        assert self.services(apart) == ["deeprec", f"deeprec-policy-{second}"]
        env = {one["name"]: one["value"] for one in (apart.service() or {})["spec"]["predictor"]["model"]["env"]}
        assert env["DEEPREC__SERVING__POLICY_URL"] == f"http://deeprec-policy-{second}-predictor.shop.svc"
        release(apart, first, policy=True).deploy()
        assert self.services(apart) == ["deeprec", f"deeprec-policy-{first}"], "the one that nobody asks any more ends"

    def test_where_there_is_room_for_one_the_old_one_ends_first_and_comes_back(self, apart: World) -> None:
        first, second = apart.versions
        release(apart, first, policy=True, name="deeprec").deploy()
        said: list[str] = []
        release(apart, second, said, policy=True, strategy="replace").deploy()
        assert any(f"deeprec-policy-{first}: ends, to make room; the TRM answers until" in line for line in said)
        assert self.services(apart) == ["deeprec", f"deeprec-policy-{second}"]
        with pytest.raises(ReleaseError, match="the stable one's"):
            release(apart, first, policy=True, strategy="replace", smoke={"max_p99_ratio": 1e-9}).deploy()
        assert self.services(apart) == ["deeprec", f"deeprec-policy-{second}"], "it is there again"
        assert apart.told() == [(second, 100)]
