"""Whether answers come in time whatever becomes of the policy: ``python -m benchmarks.serving_faults BUNDLE``.

The bundle's own policy, in its process, is made slow (half a second a turn), stuck (asleep, or keeping the
interpreter to itself), wrong (it raises, or writes rubbish) or dead (it ends its process), always from its second turn
on. For each the table shows the share of ``--requests`` answered within the deadline and 50 ms, the slowest, what
failed (an exception, or over HTTP a status that is not 200), which paths answered, and how many answers held an item
that is not in the catalogue, was excluded, filtered out or repeated. ``good`` leaves the policy alone. Requests are
random histories, preferences, filters, exclusions and k.

``own clock`` is the same share by the milliseconds that the answers name: over HTTP, what lies between is the way there
and back and the client. ``bare timer`` is the share of a second process's sleeps of the same length that ended in time,
beside each mode: where it is below 100 % the machine was too busy for the figure to be read as ours.

With ``--features`` the feature store is made hung (its calls end only when it is well again), slow (half a second each)
or gone (it raises) while the policy is good, and the requests are those of known users with a preference. A line below
each of these says when the first answer did not wait for the store, and after how many seconds of a store that is well
again users were known.

``--http`` asks a server in a process of its own, as ``deeprec serve recommender`` starts it, instead of the recommender
in this one; the client's own time counts then.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.serving import Connection, free_port
from deeprec.bundle.bundle import Bundle
from deeprec.config import ServingConfig
from deeprec.errors import FeatureError
from deeprec.recommender import loading
from deeprec.recommender.reading import read_request
from deeprec.recommender.users import Histories
from deeprec.recommender.worker.loop import Loop, Make
from deeprec.trm.filters import filter_mask
from deeprec.types import Catalogue, Generation, JsonDict, Policy, Rule, Segment
from deeprec.wire.request import RecommendRequest

MODES = ("good", "slow", "asleep", "holding", "raising", "rubbish", "dying")
STORE_MODES = ("store hung", "store slow", "store gone")
NOT_ASKED = "has failed again and again"
"""What the reason of an answer says that did not wait for the store."""
SLACK_MS = 50.0
SLOW_SECONDS, FOR_EVER = 0.5, 3600.0
START_SECONDS = 180.0
ANSWER_SECONDS = 60.0
"""After this a request counts as failed; it is an ``OSError``, as a connection that breaks."""

Ask = Callable[[JsonDict], Awaitable[JsonDict]]
"""One request to its answer; raises where there is none."""


# ------------------------------------------------------------------------------------------------------- the policy


@dataclass(frozen=True)
class FaultyMake:
    """Makes the bundle's loop, with a policy in the mode that the file names."""

    make: Make
    mode: Path

    def __call__(self) -> Loop:
        loop = self.make()
        return replace(loop, policy=FaultyPolicy(loop.policy, self.mode), until=None)


class FaultyPolicy:
    """A policy that misbehaves as a file says."""

    def __init__(self, policy: Policy, mode: Path) -> None:
        self._policy, self.mode = policy, mode
        self.encode, self.decode = policy.encode, policy.decode

    @property
    def eos_id(self) -> int:
        return self._policy.eos_id

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        return FaultyGeneration(self, self._policy.start(prompts, seed=seed))


class FaultyGeneration:
    """The policy's own first turn, and then what its mode does."""

    def __init__(self, policy: FaultyPolicy, generation: Generation) -> None:
        self._policy, self._generation, self._appended = policy, generation, False

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        self._appended = True
        self._generation.append(rows, token_ids)

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        mode = self._policy.mode.read_text() if self._appended else "good"
        if mode == "rubbish":
            return [Segment((self._policy.eos_id,), (0.0,)) for _ in rows]
        _misbehave(mode)
        return self._generation.generate(
            rows, stop_ids=stop_ids, max_new_tokens=max_new_tokens, temperature=temperature, rules=rules
        )


def _misbehave(mode: str) -> None:
    if mode == "slow":
        time.sleep(SLOW_SECONDS)
    elif mode == "asleep":
        time.sleep(FOR_EVER)
    elif mode == "holding":
        sum(range(10**15))
    elif mode == "raising":
        raise RuntimeError("a wrong policy")
    elif mode == "dying":
        os._exit(3)


class FaultyHistories:
    """A feature store that misbehaves as a file says."""

    def __init__(self, histories: Histories, mode: Path) -> None:
        self._histories, self._mode = histories, mode

    def history(self, user_id: str) -> tuple[str, ...] | None:
        return self.histories([user_id])[0]

    def histories(self, user_ids: Sequence[str]) -> list[tuple[str, ...] | None]:
        while (mode := self._mode.read_text()) == "store hung":
            time.sleep(0.05)
        if mode == "store slow":
            time.sleep(SLOW_SECONDS)
        elif mode == "store gone":
            raise FeatureError("no such store")
        return self._histories.histories(user_ids)

    def find(self, text: str, limit: int) -> Sequence[Any]:
        return self._histories.find(text, limit)


@contextmanager
def faulty_policy(mode: Path) -> Iterator[None]:
    """Within this block recommenders are loaded with a policy in the mode that the file names."""
    own = loading.WorkerExplorer

    def faulty(make: Make, *given: Any, **other: Any) -> Any:
        return own(FaultyMake(make, mode), *given, **other)

    loading.WorkerExplorer = faulty  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        loading.WorkerExplorer = own  # type: ignore[misc]


# ------------------------------------------------------------------------------------------------------- the machine

TIMERS = """
import asyncio, sys
ended = []
async def one(seconds):
    loop = asyncio.get_running_loop()
    while True:
        began = loop.time()
        await asyncio.sleep(seconds)
        ended.append(loop.time() - began - seconds)
async def main(seconds, slack):
    timers = [asyncio.create_task(one(seconds)) for _ in range(8)]
    await asyncio.to_thread(sys.stdin.read)
    print(sum(late <= slack for late in ended) / max(len(ended), 1), flush=True)
    for timer in timers:
        timer.cancel()
asyncio.run(main(float(sys.argv[1]), float(sys.argv[2])))
"""


class BareTimers:
    """Eight timers in a process that does nothing else."""

    def __init__(self, seconds: float) -> None:
        command = [sys.executable, "-c", TIMERS, str(seconds), str(SLACK_MS / 1000)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def share(self) -> float:
        """End them; the share that ended in time."""
        out, _ = self._process.communicate()
        return float(out)


# ----------------------------------------------------------------------------------------------------- the requests


def draw(catalogue: Catalogue, generator: random.Random) -> JsonDict:
    """A request at random."""
    ids = catalogue.items
    request: JsonDict = {
        "history": [item.item_id for item in generator.sample(ids, min(len(ids), generator.choice((1, 5, 20))))],
        "k": generator.choice((1, 5, 10, 20)),
        "exclude": [item.item_id for item in generator.sample(ids, min(len(ids), generator.choice((0, 0, 20))))],
    }
    if generator.random() < 0.3:
        request["preference"] = generator.sample(catalogue.phrases, min(len(catalogue.phrases), 2))
    if generator.random() < 0.3:
        column, value = generator.choice([pair for pair in generator.choice(ids).attributes.items() if pair[1]])
        value = str(value).split("|")[0] if isinstance(value, str) else value
        request["filters"] = [{"column": column, "operator": generator.choice(("=", "!=")), "value": value}]
    return request


def draw_known(catalogue: Catalogue, generator: random.Random, users: Sequence[str]) -> JsonDict:
    """A request of a known user with a preference."""
    return {
        "user_id": generator.choice(users),
        "preference": [generator.choice(catalogue.phrases)],
        "k": generator.choice((1, 5, 10, 20)),
    }


def is_wrong(answer: JsonDict, asked: JsonDict, catalogue: Catalogue, had: AbstractSet[str] = frozenset()) -> bool:
    """Whether an answer holds what it must not; ``had`` counts where the answer knows the user."""
    request = read_request(RecommendRequest, asked, ServingConfig())
    found = [item["id"] for item in answer["items"]]
    masks = [filter_mask(catalogue, condition) for condition in request.conditions]
    barred = set(request.exclude) | set(request.history or ()) | (had if answer["user_known"] else set())
    return len(set(found)) != len(found) or not all(
        item in catalogue and item not in barred and all(mask[catalogue.index[item]] for mask in masks)
        for item in found
    )


@dataclass
class Tally:
    """What became of the requests of one mode."""

    milliseconds: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    """As the answers say themselves."""
    paths: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    began: float = field(default_factory=time.monotonic)
    not_asked: float | None = None
    """Seconds until the first answer that did not wait for the store."""

    def figures(self, deadline_ms: int) -> JsonDict:
        """The row of the table; a request without an answer is not in time."""
        asked = len(self.milliseconds) + self.failed.total()
        ordered = sorted(self.milliseconds) or [0.0]
        most = deadline_ms + SLACK_MS
        return {
            "requests": asked,
            "in time": sum(value <= most for value in self.milliseconds) / asked,
            "own clock": sum(value <= most for value in self.own) / asked,
            "p50": ordered[len(ordered) // 2],
            "p99": ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))],
            "p99.9": ordered[min(len(ordered) - 1, int(len(ordered) * 0.999))],
            "worst": ordered[-1],
            "paths": dict(self.paths),
            "failed": dict(self.failed),
            "wrong": self.wrong,
        }


async def load(
    ask: Ask, catalogue: Catalogue, requests: int, at_once: int, seed: int, known: Mapping[str, AbstractSet[str]]
) -> Tally:
    """Ask so many requests, ``at_once`` under way at a time; drawn before the first, looked at after the last.

    ``known``: the users who ask and what each has had; without any the requests bring their histories.
    """
    generator, users = random.Random(seed), list(known)
    drawn = [draw_known(catalogue, generator, users) if users else draw(catalogue, generator) for _ in range(requests)]
    left, answers, tally = iter(drawn), [], Tally()

    async def caller() -> None:
        for asked in left:
            began = time.perf_counter()
            try:
                answer = await ask(asked)
            except Exception as error:
                tally.failed[f"{type(error).__name__}: {error}"[:80]] += 1
                continue
            tally.milliseconds.append(1000 * (time.perf_counter() - began))
            if tally.not_asked is None and NOT_ASKED in ((answer.get("reason") or {}).get("sentence") or ""):
                tally.not_asked = time.monotonic() - tally.began
            answers.append((asked, answer))

    await asyncio.gather(*(caller() for _ in range(at_once)))
    for asked, answer in answers:
        tally.own.append(answer["milliseconds"]["total"])
        tally.paths[answer["path"]] += 1
        tally.wrong += is_wrong(answer, asked, catalogue, known.get(asked.get("user_id", ""), frozenset()))
    return tally


async def measure(ask: Ask, catalogue: Catalogue, mode: Path, arguments: argparse.Namespace) -> JsonDict:
    """Every mode after the other, each begun with a policy that answers; prints as it goes."""
    figures: JsonDict = {}
    known = users_of(arguments.features) if arguments.features else {}
    columns = ("in time", "own clock", "bare timer", "p50", "p99", "p99.9", "worst", "failed", "wrong")
    print(f"{'mode':10} " + " ".join(f"{column:>10}" for column in columns) + "  paths", flush=True)
    for seed, name in enumerate(arguments.modes):
        mode.write_text("good")
        back = await recovery(ask, catalogue)
        mode.write_text(name)
        timers = BareTimers(arguments.deadline_ms / 1000)
        asking = known if name in STORE_MODES else {}
        tally = await load(ask, catalogue, arguments.requests, arguments.at_once, seed, asking)
        row = {**tally.figures(arguments.deadline_ms), "bare timer": await asyncio.to_thread(timers.share)}
        figures[name] = {**row, "seconds until the policy was there": back}
        shares = " ".join(f"{row[column]:10.2%}" for column in columns[:3])
        times = " ".join(f"{row[column]:10.1f}" for column in columns[3:7])
        failed = sum(row["failed"].values())
        print(f"{name:10} {shares} {times} {failed:10} {row['wrong']:10}  {row['paths']}", flush=True)
        if asking:
            mode.write_text("good")
            figures[name] |= {"not asked after": tally.not_asked, "known again after": await known_again(ask, known)}
            print(f"{'':10} {spoken(figures[name])}", flush=True)
    mode.write_text("good")
    figures["seconds to recover"] = await recovery(ask, catalogue)
    print(f"the policy answered again {figures['seconds to recover']:.1f} s after the last of them", flush=True)
    return figures


def users_of(features: Path) -> dict[str, AbstractSet[str]]:
    """What each user of a feature store has had."""
    from deeprec.features.directory import DirectoryPlace

    published = DirectoryPlace(features).newest()
    users = [user.user_id for user in published.find("", limit=1000)]
    histories = published.histories(users)
    return {user_id: set(history or ()) for user_id, history in zip(users, histories, strict=True)}


async def known_again(ask: Ask, known: Mapping[str, AbstractSet[str]]) -> float:
    """Seconds until a known user is known; an error after ``START_SECONDS``."""
    began = time.monotonic()
    while not (await ask({"user_id": next(iter(known)), "k": 1}))["user_known"]:
        if time.monotonic() - began > START_SECONDS:
            raise SystemExit("users are not known again, though the feature store is well")
        await asyncio.sleep(0.05)
    return time.monotonic() - began


def spoken(row: JsonDict) -> str:
    """The line of a store's mode."""
    after = row["not asked after"]
    alone = "every request waited for the store" if after is None else f"the store was left alone after {after:.2f} s"
    return f"{alone}; {row['known again after']:.2f} s after it was well again, users were known"


async def recovery(ask: Ask, catalogue: Catalogue) -> float:
    """Seconds until the policy answers; an error after ``START_SECONDS``."""
    began = time.monotonic()
    request = {"history": [item.item_id for item in catalogue.items[:5]], "k": 1, "deadline_ms": 10_000}
    while (await ask(request))["path"] != "policy":
        if time.monotonic() - began > START_SECONDS:
            raise SystemExit("the policy does not answer; this benchmark needs one whose answers are valid")
        await asyncio.sleep(0.2)
    return time.monotonic() - began


# ------------------------------------------------------------------------------------------------------ who is asked


async def within(bundle: Bundle, serving: ServingConfig, mode: Path, arguments: argparse.Namespace) -> JsonDict:
    """The recommender in this process."""
    histories = _histories(mode, arguments.features)
    recommender = loading.load_recommender(bundle, histories, serving, force_policy=True)
    try:
        await loading.warm_up(recommender)
        loading.settle_memory()
        read = recommender.catalogue

        async def ask(asked: JsonDict) -> JsonDict:
            return (await recommender.recommend(read_request(RecommendRequest, asked, serving))).raw

        return await measure(ask, read, mode, arguments)
    finally:
        recommender.close()


async def over_http(bundle: Bundle, url: str, mode: Path, arguments: argparse.Namespace) -> JsonDict:
    """A server at ``url``, each caller with a connection of its own that is open already."""
    path = "/v1/models/deeprec:predict"
    idle = [Connection(url, path) for _ in range(arguments.at_once)]
    for connection in idle:
        await connection.open()

    async def ask(asked: JsonDict) -> JsonDict:
        connection = idle.pop()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                status, answer = await connection.post(json.dumps({"instances": [asked]}).encode())
        except (OSError, EOFError):
            connection = Connection(url, path)
            raise
        finally:
            idle.append(connection)
        if status != 200:
            raise RuntimeError(f"status {status}")
        found: JsonDict = json.loads(answer)["predictions"][0]
        return found

    return await measure(ask, bundle.catalogue, mode, arguments)


@contextmanager
def server(mode: Path, arguments: argparse.Namespace) -> Iterator[str]:
    """This program as a server, from its readiness to its end; yields its address."""
    import httpx

    port = free_port()
    command = [sys.executable, "-m", "benchmarks.serving_faults", str(arguments.bundle), "--serve", str(mode)]
    command += ["--port", str(port), "--deadline-ms", str(arguments.deadline_ms)]
    command += ["--features", str(arguments.features)] if arguments.features else []
    log = mode.with_name("server.log")
    with log.open("w") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            end = time.monotonic() + START_SECONDS
            while True:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the server did not start:\n{log.read_text()[-2000:]}")
                try:
                    if httpx.get(f"{url}/v2/models/deeprec/ready", timeout=2).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()


def _histories(mode: Path, features: Path | None) -> FaultyHistories | None:
    if features is None:
        return None
    from deeprec.features.directory import DirectoryPlace

    return FaultyHistories(DirectoryPlace(features).newest(), mode)


def serve(bundle: str, serving: ServingConfig, mode: Path, features: Path | None) -> None:
    """Be the server."""
    from deeprec.features.directory import DirectoryPlace
    from deeprec.serving.http import bundle_server
    from deeprec.serving.http.address import bind
    from deeprec.serving.http.server import run

    own = bundle_server.load_recommender

    def faulty(loaded: Bundle, histories: Histories | None = None, *given: Any, **other: Any) -> Any:
        return own(loaded, None if histories is None else FaultyHistories(histories, mode), *given, **other)

    bundle_server.load_recommender = faulty  # type: ignore[assignment]
    place = None if features is None else DirectoryPlace(features)
    service = bundle_server.recommender_service(bundle, serving, place, force_policy=True)
    run(service, [bind(serving.host, serving.port)])


def main() -> None:
    """Measure and print, or serve for a measurement."""
    arguments = _arguments()
    serving = ServingConfig(deadline_ms=arguments.deadline_ms, port=arguments.port)
    if arguments.serve:
        with faulty_policy(arguments.serve):
            serve(str(arguments.bundle), serving, arguments.serve, arguments.features)
        return
    with tempfile.TemporaryDirectory() as scratch:
        mode = Path(scratch) / "mode"
        mode.write_text("good")
        figures = _measured(Bundle.load(arguments.bundle), serving, mode, arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _measured(bundle: Bundle, serving: ServingConfig, mode: Path, arguments: argparse.Namespace) -> Any:
    if arguments.http:
        with server(mode, arguments) as url:
            return asyncio.run(over_http(bundle, url, mode, arguments))
    import torch

    torch.set_num_threads(serving.threads)
    with faulty_policy(mode):
        return asyncio.run(within(bundle, serving, mode, arguments))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.serving_faults runs/quickstart/bundle --http --out faults.json",
    )
    parser.add_argument("bundle", type=Path, help="a bundle whose policy gives valid answers")
    parser.add_argument("--requests", type=int, default=10_000, help="of each mode")
    parser.add_argument("--at-once", type=int, default=32, help="requests under way at a time")
    parser.add_argument("--deadline-ms", type=int, default=300)
    parser.add_argument("--features", type=Path, help="the feature store of its users, to be made to fail too")
    every = (*MODES, *STORE_MODES)
    parser.add_argument(
        "--modes", nargs="+", choices=every, metavar="MODE", help=f"of {', '.join(every)}; default: all"
    )
    parser.add_argument("--http", action="store_true", help="ask a server instead of the recommender in this process")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.modes = arguments.modes or [*MODES, *(STORE_MODES if arguments.features else ())]
    if arguments.features is None and set(arguments.modes) & set(STORE_MODES):
        parser.error("to make the feature store fail, name it with --features")
    return arguments


if __name__ == "__main__":
    main()
