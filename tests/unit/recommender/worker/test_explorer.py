"""The worker process, real, with policies that do well and badly: every caller is told, and it comes back."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from deeprec.recommender.exploration import Exploration, Step, Unavailable
from deeprec.recommender.worker.explorer import PolicyTimeouts, WorkerExplorer
from deeprec.types import EndReason, Filter, Query
from tests import forkserver
from tests.unit.recommender.policies import CONFIG, Make

pytestmark = pytest.mark.usefixtures("forked")

QUICK = PolicyTimeouts(grace=0.4, heartbeat=0.3, silence=1.0, loading=20.0, first_pause=0.05, longest_pause=0.2)
SECONDS = 60.0
"""A safety bound for what takes a moment."""


@pytest.fixture
def explorers() -> Iterator[Callable[..., WorkerExplorer]]:
    made: list[WorkerExplorer] = []

    def make(loop: Make, most: int = 64, timeouts: PolicyTimeouts = QUICK, **other: Any) -> WorkerExplorer:
        made.append(WorkerExplorer(loop, CONFIG.answer_size, most=most, timeouts=timeouts, **other))
        return made[-1]

    yield make
    for explorer in made:
        explorer.close()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, SECONDS))


async def ask(explorer: WorkerExplorer, seconds: float = 20.0, item: str = "i1", **other: Any) -> Exploration:
    query = Query((item,), exclude=frozenset({item}), **other)
    return await explorer.explore("ann", query, time.monotonic() + seconds)


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.02)


def test_an_exploration_with_its_conditions_steps_and_times(explorers: Any, tmp_path: Path) -> None:
    log = tmp_path / "asked"
    explorer = explorers(Make(log=log))
    told: list[Step] = []
    query = Query(("i1",), ("funny",), frozenset({"i1", "i28"}), (Filter("year", ">=", 1990),))

    async def explore() -> Exploration:
        await explorer.loaded(SECONDS)
        return await explorer.explore("ann", query, time.monotonic() + 20, told.append)

    done = run(explore())
    assert done.trajectory.end is EndReason.ANSWERED
    assert done.trajectory.answer == ("i29", "i27", "i26")
    assert done.violations == ()
    assert len(done.milliseconds) == 3
    assert [(step.turn, step.thought) for step in told] == [
        (1, ""),
        (1, "A look."),
        (2, ""),
        (2, "Narrow it."),
        (3, ""),
    ]
    assert [step.call for step in told if step.call is not None] == list(done.trajectory.calls)
    asked = log.read_text().splitlines()
    assert "preference=('funny',)" in asked[0]
    assert "preference=('funny', 'comedy')" in asked[1]
    for line in asked:
        assert "'i28'" in line
        assert "Filter(column='year', operator='>=', value=1990)" in line


def test_the_parent_encodes_what_the_policy_writes_and_nothing_that_it_has_told(explorers: Any) -> None:
    wanted: list[tuple[str, ...]] = []
    there = [True]

    def encode(texts: Any, tell: Any) -> None:
        wanted.append(tuple(texts))
        threading.Thread(target=lambda: tell(np.eye(1, 4) if there[0] else None)).start()

    def vectors(phrases: Any) -> Any:
        return (tuple(phrases), np.ones((len(phrases), 4))) if phrases else None

    explorer = explorers(Make(texts=True), encode=encode, vectors=vectors)

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        there[0] = False
        with pytest.raises(Unavailable, match="the policy failed"):
            await ask(explorer, preference=("told",))
        assert set(wanted) == {("comedy",)}
        there[0] = True
        for _ in range(2):
            assert (await ask(explorer, preference=("told",))).trajectory.end is EndReason.ANSWERED
        assert wanted.count(("comedy",)) == len(wanted)

    run(explore())


def test_what_waits_together_is_explored_together(explorers: Any, tmp_path: Path) -> None:
    explorer = explorers(Make("slow", log=tmp_path / "asked", batch=8))

    async def explore() -> list[Exploration]:
        await explorer.loaded(SECONDS)
        first = asyncio.ensure_future(ask(explorer))
        await until(lambda: (tmp_path / "asked").exists())
        others = [asyncio.ensure_future(ask(explorer, item=f"i{29 - row}")) for row in range(10)]
        return await asyncio.gather(first, *others)

    found = run(explore())
    assert [one.trajectory.answer[0] for one in found] == ["i29", "i28", *["i29"] * 9]
    sizes = [line.count("Query(") for line in (tmp_path / "asked").read_text().splitlines()]
    assert sizes == [1, 1, 8, 8, 2, 2]


def test_of_more_than_it_can_take_the_policy_serves_some_and_refuses_the_others(explorers: Any) -> None:
    """All together would take 12 s: none of them would be answered within the 5 s that they have."""
    explorer = explorers(Make("crowded"), timeouts=PolicyTimeouts())

    async def explore() -> list[Exploration | BaseException]:
        await explorer.loaded(SECONDS)
        for _ in range(2):
            await asyncio.gather(*(ask(explorer) for _ in range(4)))
        return await asyncio.gather(*(ask(explorer, 5.0) for _ in range(60)), return_exceptions=True)

    found = run(explore())
    served = [one for one in found if isinstance(one, Exploration) and one.trajectory.end is EndReason.ANSWERED]
    refused = [one for one in found if isinstance(one, Unavailable)]
    assert len(served) >= 4
    assert len(refused) >= 20
    assert {str(one) for one in refused} <= {
        "the policy is busy with other requests until the deadline",
        "the policy was busy until the deadline",
    }


def test_a_passed_deadline_ends_one_exploration_while_others_go_on(explorers: Any) -> None:
    explorer = explorers(Make("slow"), timeouts=PolicyTimeouts())

    async def explore() -> list[Exploration]:
        await explorer.loaded(SECONDS)
        return await asyncio.gather(ask(explorer, 0.2), ask(explorer, 20.0))

    late, fine = run(explore())
    assert late.trajectory.end is EndReason.DEADLINE
    assert fine.trajectory.end is EndReason.ANSWERED
    assert explorer.restarts == 0


def test_remote_policies_are_asked_side_by_side(explorers: Any) -> None:
    explorer = explorers(Make("together", threads=3))

    async def explore() -> list[Exploration]:
        await explorer.loaded(SECONDS)
        return await asyncio.gather(*(ask(explorer) for _ in range(3)))

    assert [one.trajectory.answer for one in run(explore())] == [("i29", "i28", "i27")] * 3


def test_an_error_of_the_policy_is_an_answer(explorers: Any, tmp_path: Path) -> None:
    mood = tmp_path / "mood"
    mood.write_text("raising")
    explorer = explorers(Make(file=mood))

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        for _ in range(3):
            with pytest.raises(Unavailable, match="the policy failed"):
                await ask(explorer)
        mood.write_text("rubbish")
        assert "distinct_items" in (await ask(explorer)).violations
        mood.write_text("good")
        assert (await ask(explorer)).violations == ()

    run(explore())
    assert explorer.restarts == 0


def test_one_that_fails_does_not_spoil_the_others(explorers: Any, tmp_path: Path) -> None:
    mood = tmp_path / "mood"
    mood.write_text("slow")
    explorer = explorers(Make(file=mood, log=tmp_path / "asked"))

    async def explore() -> list[Any]:
        await explorer.loaded(SECONDS)
        first = asyncio.ensure_future(ask(explorer))
        await until(lambda: (tmp_path / "asked").exists())
        mood.write_text("poisoned")
        rest = [asyncio.ensure_future(ask(explorer, item=item)) for item in ("i12", "i13", "i14")]
        return await asyncio.gather(first, *rest, return_exceptions=True)

    found = run(explore())
    assert str(found.pop(2)) == "the policy failed"
    assert [one.trajectory.answer for one in found] == [("i29", "i28", "i27")] * 3


@pytest.mark.parametrize("mood", ["sleeping", "spinning", "holding", "dying"])
def test_a_stuck_or_dead_process_fails_what_waits_and_is_replaced(explorers: Any, tmp_path: Path, mood: str) -> None:
    file = tmp_path / "mood"
    file.write_text(mood)
    explorer = explorers(Make(file=file, batch=2))

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        pid = explorer.pid
        found = await asyncio.gather(*(ask(explorer, 2.0) for _ in range(5)), return_exceptions=True)
        assert [str(one) for one in found] == ["the policy is being restarted"] * 5
        with pytest.raises(Unavailable, match="the policy is being restarted"):
            await ask(explorer)
        assert not explorer.available
        file.write_text("good")
        await until(lambda: explorer.available)
        assert (await ask(explorer)).trajectory.answer == ("i29", "i28", "i27")
        assert explorer.pid != pid
        await until(lambda: not psutil.pid_exists(pid or 0))

    run(explore())
    assert explorer.restarts >= 1


def test_one_that_dies_on_its_own_is_replaced(explorers: Any) -> None:
    explorer = explorers(Make())

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        for number in (signal.SIGKILL, signal.SIGSTOP):
            await ask(explorer)
            before = explorer.restarts
            os.kill(explorer.pid or 0, number)
            await until(lambda before=before: explorer.restarts > before and explorer.available)
        assert (await ask(explorer)).violations == ()

    run(explore())


def test_a_batch_that_takes_its_time_is_not_stuck_for_those_that_wait(explorers: Any, tmp_path: Path) -> None:
    explorer = explorers(Make("slow", batch=1), timeouts=PolicyTimeouts(grace=0.2))

    async def explore() -> list[Any]:
        await explorer.loaded(SECONDS)
        first = asyncio.ensure_future(ask(explorer, 20.0))
        await asyncio.sleep(0.05)
        return await asyncio.gather(first, ask(explorer, 0.1), return_exceptions=True)

    first, late = run(explore())
    assert first.trajectory.end is EndReason.ANSWERED
    assert str(late) == "the policy was busy until the deadline"
    assert explorer.restarts == 0


def test_what_waits_is_bounded_and_counts_callers_that_have_gone(explorers: Any) -> None:
    explorer = explorers(Make("slow"), most=2)

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        gone = asyncio.ensure_future(ask(explorer))
        stays = asyncio.ensure_future(ask(explorer))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(Unavailable, match="busy"):
            await ask(explorer)
        await stays
        await until(lambda: not explorer._waiting)
        await ask(explorer)

    run(explore())


@pytest.mark.parametrize(
    ("mood", "said"), [("refused", "no such policy"), ("unloadable", "process ended"), ("never", "did not load within")]
)
def test_one_that_does_not_load_is_tried_again(explorers: Any, tmp_path: Path, mood: str, said: str) -> None:
    file = tmp_path / "mood"
    file.write_text(mood)
    loading = 6.0 if mood == "never" else SECONDS
    explorer = explorers(Make(file=file), timeouts=PolicyTimeouts(loading=loading, first_pause=0.05, longest_pause=0.1))

    async def explore() -> None:
        with pytest.raises(Unavailable, match="being loaded"):
            await ask(explorer)
        with pytest.raises(Unavailable, match="did not load within 0 seconds"):
            await explorer.loaded(0)
        with pytest.raises(Unavailable, match=said):
            await explorer.loaded(SECONDS)
        with pytest.raises(Unavailable):
            await ask(explorer)
        file.write_text("good")
        await until(lambda: explorer.available)
        assert (await ask(explorer)).violations == ()

    run(explore())


def test_one_that_cannot_be_started_is_tried_again(explorers: Any) -> None:
    explorer = explorers(lambda: None)

    async def explore() -> None:
        with pytest.raises(Unavailable, match="cannot be started"):
            await explorer.loaded(SECONDS)
        await until(lambda: explorer.restarts > 1)
        with pytest.raises(Unavailable, match="being restarted"):
            await ask(explorer)

    run(explore())


def test_closing_ends_the_process_and_what_waits(explorers: Any) -> None:
    explorer = explorers(Make("sleeping"))

    async def explore() -> None:
        await explorer.loaded(SECONDS)
        pid = explorer.pid
        waits = asyncio.ensure_future(ask(explorer))
        await asyncio.sleep(0.1)
        explorer.close()
        for asked in (waits, asyncio.ensure_future(ask(explorer))):
            with pytest.raises(Unavailable, match="shut down"):
                await asked
        await until(lambda: not psutil.pid_exists(pid or 0))

    run(explore())
    assert explorer.restarts == 0


PARENT = """
import asyncio, sys, time
from deeprec.recommender.worker.explorer import WorkerExplorer
from deeprec.types import Query
from tests.unit.recommender.policies import Make

async def main(mood):
    explorer = WorkerExplorer(Make(mood), 3)
    await explorer.loaded(60)
    asked = asyncio.ensure_future(explorer.explore("ann", Query(("i1",)), time.monotonic() + 600))
    await asyncio.sleep(0.5)
    print(explorer.pid, flush=True)
    await asked
    await asyncio.sleep(600)

if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.parametrize("mood", ["good", "sleeping", "holding"])
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process that holds the interpreter's lock outlives it")
def test_the_process_ends_with_a_parent_that_is_killed(tmp_path: Path, mood: str) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    command = [sys.executable, str(program), mood]
    with forkserver.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}
    ) as parent:
        try:
            assert parent.stdout is not None
            pid = int(parent.stdout.readline())
            assert psutil.pid_exists(pid)
        finally:
            parent.kill()
        run(until(lambda: not psutil.pid_exists(pid)))
