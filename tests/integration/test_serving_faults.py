"""Recommenders with real worker processes: whatever becomes of the policy, every answer is in time and right."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import serving_faults
from deeprec.config import ServingConfig
from deeprec.recommender.batching import Batcher
from deeprec.recommender.recommender import AsyncRecommender
from deeprec.recommender.worker.explorer import PolicyTimeouts, WorkerExplorer
from deeprec.trm.filters import filter_mask
from deeprec.trm.retriever import TrmRetriever
from deeprec.types import JsonDict
from deeprec.wire.request import RecommendRequest, TrmOnlyRequest
from tests import forkserver
from tests.unit.recommender.policies import CATALOGUE, CONFIG, ListRetriever, Make

REQUESTS, AT_ONCE = 200, 20
DEADLINE_MS = 700
"""Less than two turns of a slow policy."""
SLACK_MS = 2000
"""What a busy machine may add; the figure is the benchmark's (``benchmarks.serving_faults``)."""
SECONDS = 60.0
QUICK = PolicyTimeouts(grace=0.3, heartbeat=0.3, silence=2.0, first_pause=0.05, longest_pause=0.2)
LIMITS = ServingConfig(deadline_ms=DEADLINE_MS)


@pytest.fixture(scope="module")
def workers_forked() -> Iterator[None]:
    """Worker processes are forked, from one that is there before any clock runs."""
    forkserver.run([sys.executable, "-c", ""], check=True)
    with forkserver.routed():
        yield


@pytest.fixture(scope="module")
def moody(
    workers_forked: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[AsyncRecommender, WorkerExplorer, Path]]:
    """A recommender whose policy is in the mood that the file names."""
    mood = tmp_path_factory.mktemp("mood") / "mood"
    mood.write_text("good")
    counts = np.arange(len(CATALOGUE), 0, -1)
    explorer = WorkerExplorer(Make(file=mood), CONFIG.answer_size, timeouts=QUICK)
    recommender = AsyncRecommender(CATALOGUE, counts, Batcher(ListRetriever(), 64), explorer=explorer, serving=LIMITS)
    yield recommender, explorer, mood
    recommender.close()


@pytest.fixture
def served(moody: tuple[AsyncRecommender, WorkerExplorer, Path]) -> tuple[AsyncRecommender, WorkerExplorer, Path]:
    """The recommender of all moods, its policy in a good one."""
    recommender, explorer, mood = moody
    mood.write_text("good")

    async def run() -> None:
        await explorer.loaded(SECONDS)
        await recovered(recommender)

    asyncio.run(run())
    return moody


async def load(recommender: AsyncRecommender, requests: int = REQUESTS) -> list[JsonDict]:
    """Answers to so many requests, ``AT_ONCE`` at a time."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> JsonDict:
        async with places:
            return (await recommender.recommend(RecommendRequest(history=(f"i{number % 30}",), k=3))).raw

    return await asyncio.gather(*(one(number) for number in range(requests)))


async def recovered(recommender: AsyncRecommender) -> None:
    """Return once the policy answers again."""
    end = time.monotonic() + SECONDS
    while (await load(recommender, 1))[0]["path"] != "policy":
        assert time.monotonic() < end
        await asyncio.sleep(0.05)


def check(answers: list[JsonDict]) -> None:
    """All were answered in time and by the TRM; popularity where the machine was too busy even for that."""
    assert len(answers) == REQUESTS
    paths = Counter(answer["path"] for answer in answers)
    assert paths["trm"] >= 0.9 * REQUESTS
    rest = [answer for answer in answers if answer["path"] != "trm"]
    assert all(
        answer["path"] == "popularity" and "the TRM failed to answer" in answer["reason"]["sentence"] for answer in rest
    )
    assert all(len(answer["items"]) == 3 for answer in answers)
    assert max(answer["milliseconds"]["total"] for answer in answers) < DEADLINE_MS + SLACK_MS


@pytest.mark.parametrize("mood", ["slow", "sleeping", "spinning", "holding", "raising", "rubbish", "dying"])
def test_the_trm_answers_for_a_bad_policy_and_a_good_one_takes_over(served: Any, mood: str) -> None:
    recommender, _, file = served

    async def run() -> None:
        file.write_text(mood)
        check(await load(recommender))
        file.write_text("good")
        await recovered(recommender)

    asyncio.run(run())


def test_the_trm_answers_while_the_process_is_killed_again_and_again(served: Any) -> None:
    recommender, explorer, _ = served
    before = explorer.restarts

    async def run() -> None:
        answers = []
        for _ in range(3):
            await recovered(recommender)
            pid = explorer.pid
            assert pid
            under_way = asyncio.ensure_future(load(recommender))
            await asyncio.sleep(0.02)
            os.kill(pid, signal.SIGKILL)
            answers += await under_way
        assert len(answers) == 3 * REQUESTS
        assert Counter(answer["path"] for answer in answers)["popularity"] <= 0.1 * len(answers)
        assert all(len(answer["items"]) == 3 for answer in answers)
        await recovered(recommender)

    asyncio.run(run())
    assert explorer.restarts - before >= 3


def test_the_benchmark_measures_every_mode_and_finds_what_is_wrong(served: Any) -> None:
    recommender, _, file = served
    modes = ["good", "raising", "dying"]
    arguments = argparse.Namespace(modes=modes, requests=40, at_once=8, deadline_ms=DEADLINE_MS, features=None)
    spoilt = iter([True])

    async def ask(asked: JsonDict) -> JsonDict:
        answer = (await recommender.recommend(RecommendRequest.model_validate(asked))).raw
        if file.read_text() == "dying" and asked["k"] > 1 and next(spoilt, False):
            answer["items"].append(answer["items"][0])
        return answer

    async def run() -> JsonDict:
        return await serving_faults.measure(ask, CATALOGUE, file, arguments)

    figures = asyncio.run(run())
    assert [figures[mode]["requests"] for mode in arguments.modes] == [40] * 3
    assert all(figures[mode]["failed"] == {} for mode in arguments.modes)
    assert [figures[mode]["wrong"] for mode in arguments.modes] == [0, 0, 1]
    assert "policy" in figures["good"]["paths"]
    assert "policy" not in figures["raising"]["paths"]


def test_a_request_without_an_answer_is_not_in_time() -> None:
    tally = serving_faults.Tally([10.0, 349.0, 351.0], [5.0, 300.0, 310.0], Counter(trm=3), Counter(error=1))
    figures = tally.figures(300)
    assert (figures["requests"], figures["in time"], figures["own clock"]) == (4, 0.5, 0.75)
    assert (figures["p50"], figures["worst"]) == (349.0, 351.0)
    assert serving_faults.Tally(failed=Counter(error=2)).figures(300)["in time"] == 0


# ------------------------------------------------------------------------------------------------------- never wrong


@pytest.fixture(scope="module")
def real(workers_forked: None, toy_trm: Path) -> Iterator[tuple[AsyncRecommender, TrmRetriever]]:
    """A recommender over a real, tiny TRM, in this process and in the policy's."""
    trm = TrmRetriever.load(toy_trm)
    explorer = WorkerExplorer(Make(trm=toy_trm), CONFIG.answer_size)
    limits = ServingConfig(deadline_ms=20_000)
    recommender = AsyncRecommender(trm.catalogue, trm.popularity, Batcher(trm, 64), explorer=explorer, serving=limits)
    yield recommender, trm
    recommender.close()


def drawn(trm: TrmRetriever, generator: random.Random) -> JsonDict:
    """The fields of a request, at random; some leave few items or none."""
    items = trm.catalogue.items
    ids = [item.item_id for item in items]
    filters = []
    for _ in range(generator.choice((0, 0, 1, 2))):
        column, value = generator.choice([pair for pair in generator.choice(items).attributes.items() if pair[1]])
        value = generator.choice(str(value).split("|")) if isinstance(value, str) else value
        operator = generator.choice(("=", "!=") if isinstance(value, str) else ("=", "!=", ">=", "<="))
        filters.append({"column": column, "operator": operator, "value": value})
    return {
        "history": generator.sample(ids, generator.choice((0, 1, 3, 12))),
        "preference": generator.sample(trm.catalogue.phrases, generator.choice((0, 0, 1, 3))),
        "k": generator.choice((1, 3, 10, 50, 100)),
        "filters": filters,
        "exclude": [*generator.sample(ids, generator.choice((0, 0, 5, 60))), "unknown"],
    }


def wrong(answer: JsonDict, request: Any, trm: TrmRetriever, seen: bool = False) -> list[str]:
    """What an answer must not hold, and whether it is shorter than it may be."""
    catalogue = trm.catalogue
    found = [item["id"] for item in answer["items"]]
    barred = set(request.exclude) | (set() if seen else set(request.history))
    masks = [filter_mask(catalogue, condition) for condition in request.conditions]
    kept = {item.item_id for row, item in enumerate(catalogue.items) if all(mask[row] for mask in masks)} - barred
    faults = [f"{item} is not allowed" for item in found if item not in kept]
    faults += ["repeated"] if len(set(found)) != len(found) else []
    faults += ["ranks"] if [item["rank"] for item in answer["items"]] != list(range(1, len(found) + 1)) else []
    faults += [f"{len(found)} items of {len(kept)}"] if len(found) != min(request.k, len(kept)) else []
    return faults


def test_no_answer_is_wrong(real: Any) -> None:
    recommender, trm = real
    generator = random.Random(5)
    paths: Counter[str] = Counter()

    async def run() -> None:
        await recommender.explorer.loaded(SECONDS)
        for _ in range(25):
            fields = [drawn(trm, generator) for _ in range(AT_ONCE)]
            asked = [RecommendRequest.model_validate(one) for one in fields]
            answers = await asyncio.gather(*(recommender.recommend(one) for one in asked))
            for answer, request in zip(answers, asked, strict=True):
                paths[answer.path] += 1
                assert wrong(answer.raw, request, trm) == []

    asyncio.run(run())
    assert {"policy", "trm", "popularity"} <= paths.keys()


@pytest.mark.parametrize("allow_seen", [False, True])
def test_no_answer_of_the_trm_alone_is_wrong(real: Any, allow_seen: bool) -> None:
    recommender, trm = real
    generator = random.Random(6)

    async def run() -> None:
        for _ in range(200):
            request = TrmOnlyRequest.model_validate({**drawn(trm, generator), "allow_seen": allow_seen})
            assert wrong((await recommender.retrieve(request)).raw, request, trm, allow_seen) == []

    asyncio.run(run())
