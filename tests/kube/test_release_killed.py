"""A release killed before and after each of its requests, and at each line that it says: what serves then is whole.

On the next start, by whoever settles what has died or by running it again, the cluster ends on the version before or on
the new one, never between, while clients ask all the time and each is answered.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator

import pytest

from deeprec.bundle import answers
from deeprec.release.cluster import Cluster
from deeprec.release.protocol import begin, resume
from deeprec.release.record import Records
from deeprec.release.service import as_service, of_recommender
from tests.kube.deploying import deploy
from tests.kube.valid import definitions
from tests.kube.world import SHOP, World, opened
from tests.standins.api import Asked
from tests.standins.kserve import SERVICES, SERVING
from tests.standins.objects import Key

pytestmark = [pytest.mark.slow, pytest.mark.skipif(definitions() is None, reason="there are no definitions at hand")]

CHECKS = 20
LEAST = 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "COUNT", CHECKS)
        with opened(tmp_path_factory.mktemp("world"), serve="trm") as world:
            patch.setenv("KUBECONFIG", str(world.place / "kubeconfig"))
            yield world


def serve_first(world: World) -> None:
    """The first version alone, and no release: without a moment in which nothing serves."""
    config, first = world.config(), world.versions[0]
    key = Key(SERVING, SERVICES, SHOP, "deeprec")
    service = as_service(SHOP, "deeprec", of_recommender(config.release, SHOP, world.shelf.address, first, False))
    world.api.objects.apply(key, service, "deeprec", force=True)
    world.controller.settled()
    world.shelf.promote(first)
    for one in world.shelf.objects.names("RELEASES"):
        world.shelf.objects.remove(one.name)
    world.shelf.objects.remove("release.json")


def next_start(world: World, again: bool) -> str:
    """Run it again, or settle what has died; the version that serves then."""
    first, second = world.versions
    config, cluster = world.config(), Cluster(SHOP)
    release = resume(config, cluster, world.shelf, lambda line: None)
    if again:
        begin(config, cluster, world.shelf, second, lambda line: None).deploy()
    elif release is not None:
        release.settle("its process had died")
    world.controller.settled()
    [(serves, weight)] = world.told()
    assert weight == 100
    assert serves in (first, second)
    assert serves == second or not again, "a release that is run again comes to its end"
    assert world.shelf.pointer("live") == serves, "servers that follow the shelf serve the same"
    assert Records(world.shelf).under_way() is None
    assert {one.version for one in world.controller.workloads.values()} == {serves}, "no pod of another is left"
    return serves


def test_killed_at_any_moment_it_ends_on_the_old_version_or_on_the_new(world: World) -> None:
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.kube.deploying"])
    serve_first(world)
    kubeconfig, second = str(world.place / "kubeconfig"), world.versions[1]
    said: list[str] = []
    before = world.api.asked
    begin(world.config(), Cluster(SHOP), world.shelf, second, said.append).deploy()
    requests, lines = world.api.asked - before, len(said)
    moments = [("before", number) for number in range(requests)]
    moments += [("after", number) for number in range(requests)]
    moments += [("says", number) for number in range(lines)]
    assert len(moments) >= LEAST
    ended: Counter[tuple[str, bool]] = Counter()
    with world.callers(1) as callers:
        for count, (when, number) in enumerate(moments):
            serve_first(world)
            last = number if when == "says" else None
            child = forks.Process(target=deploy, args=(world.config(), kubeconfig, second, last))
            begun, mine = threading.Event(), world.api.asked

            def kill(asked: Asked, child=child, begun=begun, at=mine + number) -> None:  # type: ignore[no-untyped-def]
                if asked.number == at:
                    begun.wait()
                    os.kill(child.pid, signal.SIGKILL)

            world.api.faults = kill if when == "before" else lambda asked: None
            world.api.answers = kill if when == "after" else lambda asked: None
            child.start()
            begun.set()
            child.join()
            world.api.faults = world.api.answers = lambda asked: None
            again = count % 2 == 0
            ended[next_start(world, again), again] += 1
            assert not callers.failures, f"{when} request {number}: {callers.failures}"
    first, second = world.versions
    print(dict(ended))
    assert ended[first, False], "one that died before its promotion goes back"
    assert ended[second, False], "one that died after its promotion is finished"
