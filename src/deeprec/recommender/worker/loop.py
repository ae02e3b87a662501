"""The worker process: a policy, a retriever, and the rollouts of all requests that wait, in one batch.

Contract: ``run`` is the whole life of the process. It loads (``make``), says so, and then answers everything it is
asked over the connection until its other end closes. Each answer is sent as soon as its own rollout has ended. What is
late before it begins, or would be before it ends (``worker.batch_time``), is not begun. An error of the policy is an
answer, not an end: a batch that fails is tried again request by request. Pickle crosses the connection, between a
process and the child it started.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, pairwise
from multiprocessing.connection import Connection

from deeprec.config import ExploreConfig
from deeprec.errors import DeepRecError, TrmError
from deeprec.explore.protocol import TitleBook
from deeprec.explore.rollout import rollout
from deeprec.explore.written import thought_of
from deeprec.recommender.exploration import Exploration, Step
from deeprec.recommender.worker.batch_time import BatchTimeModel
from deeprec.recommender.worker.process import settle_in
from deeprec.rewards.format import format_violations
from deeprec.trm.text import KeptTexts
from deeprec.types import (
    Call,
    Conditions,
    EndReason,
    Example,
    FloatArray,
    Policy,
    Query,
    Retriever,
    Trajectory,
)
from deeprec.wire.reason import Reason, ReasonKind

logger = logging.getLogger(__name__)

_LATE = Reason(kind=ReasonKind.BUSY, sentence="the policy was busy until the deadline")
_BUSY = Reason(kind=ReasonKind.BUSY, sentence="the policy is busy with other requests until the deadline")
_FAILED = Reason(kind=ReasonKind.POLICY_FAILED, sentence="the policy failed")
TEXT_SECONDS = 15.0
"""For the vectors of a text that the policy wrote."""
_NICE = 10
"""Where cores are scarce the server, which keeps the deadlines, comes before the policy."""


@dataclass(frozen=True)
class Loop:
    """What explores.

    Args:
        batch: requests that advance together at most.
        threads: rollouts side by side, each of one batch; for a policy that other machines run.
        until: the same for work that is of no use after a deadline (``time.monotonic`` seconds), where calls of other
            machines can be told of one.
        texts: the vectors of phrases that the policy writes; those that it has not are asked of the parent.
    """

    policy: Policy
    retriever: Retriever
    titles: TitleBook
    config: ExploreConfig
    batch: int = 64
    threads: int = 1
    until: Callable[[float], Loop] | None = None
    texts: KeptTexts | None = None


Make = Callable[[], Loop]
"""Loads what explores; has to be picklable, since it is called in the worker process."""


@dataclass(frozen=True, slots=True)
class Ask:
    """Explore; ``steps``: tell of every step. ``vectors``: of phrases that are not to be encoded again."""

    number: int
    user_id: str
    query: Query
    deadline: float
    steps: bool
    vectors: tuple[tuple[str, ...], FloatArray] | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """Answer when nothing is before this."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The (texts, width) vectors that were wanted; None where they cannot be had."""

    number: int
    vectors: FloatArray | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """Loading has ended: in order, or with the sentence that says why not."""

    refusal: str | None = None


@dataclass(frozen=True, slots=True)
class Begun:
    """These requests are explored now."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """A step of one request."""

    number: int
    step: Step


@dataclass(frozen=True, slots=True)
class Done:
    """The end of one request: an exploration, or why there is none."""

    number: int
    exploration: Exploration | None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to ``Ping``."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The vectors of these texts are needed."""

    number: int
    texts: tuple[str, ...]


Message = Ask | Ping | Encoded
Answer = Loaded | Begun | Told | Done | Pong | Wanted


def run(connection: Connection, make: Make) -> None:
    """Load, answer until the other end closes, and end the process."""
    settle_in(_NICE)
    asked: queue.SimpleQueue[Ask | Ping] = queue.SimpleQueue()
    lock = threading.Lock()

    def send(answer: Answer) -> None:
        with lock:
            connection.send(answer)

    parent = _Parent(send)
    threading.Thread(target=_read, args=(connection, asked, parent), name="asked", daemon=True).start()

    try:
        loop = make()
    except Exception as error:
        if not isinstance(error, DeepRecError):
            logger.exception("the policy cannot be loaded")
        send(Loaded(str(error) or type(error).__name__))
        return
    if loop.texts is not None:
        loop.texts.elsewhere = parent.encode
    send(Loaded())
    threads = [threading.Thread(target=_Turns(loop, asked, send).run, daemon=True) for _ in range(loop.threads - 1)]
    for thread in threads:
        thread.start()
    _Turns(loop, asked, send).run()


class _Parent:
    """The process that started this one, as far as it is asked for the vectors of texts."""

    def __init__(self, send: Callable[[Answer], None]) -> None:
        self._send = send
        self._numbers = count()
        self._waiting: dict[int, queue.SimpleQueue[FloatArray | None]] = {}

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """(texts, width) vectors.

        Raises:
            TrmError: they cannot be had, or not within ``TEXT_SECONDS``.
        """
        number, answer = next(self._numbers), queue.SimpleQueue[FloatArray | None]()
        self._waiting[number] = answer
        self._send(Wanted(number, tuple(texts)))
        vectors = None
        with suppress(queue.Empty):
            vectors = answer.get(timeout=TEXT_SECONDS)
        del self._waiting[number]
        if vectors is None:
            raise TrmError(f"{texts[0]!r:.80} cannot be encoded now")
        return vectors

    def answered(self, message: Encoded) -> None:
        """Hand vectors to whoever waits for them."""
        waiting = self._waiting.get(message.number)
        if waiting is not None:
            waiting.put(message.vectors)


def _read(connection: Connection, asked: queue.SimpleQueue[Ask | Ping], parent: _Parent) -> None:
    try:
        while True:
            message: Message = connection.recv()
            if isinstance(message, Encoded):
                parent.answered(message)
            else:
                asked.put(message)
    except (EOFError, OSError):
        os._exit(0)


class _Turns:
    """Takes what waits and explores it, again and again: no more at a time than can end before its deadlines."""

    def __init__(self, loop: Loop, asked: queue.SimpleQueue[Ask | Ping], send: Callable[[Answer], None]) -> None:
        self._loop, self._asked, self._send = loop, asked, send
        self._most = loop.batch if loop.threads == 1 else 1
        self._times = BatchTimeModel()
        self._held: list[Ask] = []
        """Asked before the batch that ran last, and left for the next."""
        self._last = ""

    def run(self) -> None:
        while True:
            self._begin(self._gather())

    def _gather(self) -> list[Ask]:
        """What waits; one thread of several takes one, and leaves the others theirs."""
        asks, self._held = self._held, []
        new = [] if asks else [self._asked.get()]
        with suppress(queue.Empty):
            while self._loop.threads == 1 or not new:
                new.append(self._asked.get_nowait())
        asks += [one for one in new if isinstance(one, Ask)]
        for one in new:
            if isinstance(one, Ping):
                self._send(Pong())
        return asks

    def _begin(self, asks: Sequence[Ask]) -> None:
        now = time.monotonic()
        for ask in asks:
            if ask.deadline <= now:
                self._send(Done(ask.number, None, _LATE))
        asks = [ask for ask in asks if ask.deadline > now]
        if not asks:
            return
        choice = self._times.choose([ask.deadline - now for ask in asks], self._most)
        for place in choice.refused:
            self._send(Done(asks[place].number, None, _BUSY))
        self._held = [asks[place] for place in choice.later]
        begun = [asks[place] for place in choice.now]
        self._send(Begun(tuple(ask.number for ask in begun)))
        open_ = self._explore(begun)
        if len(begun) > 1:
            open_ = [ask for one in open_ for ask in self._explore([one])]
        for ask in open_:
            self._send(Done(ask.number, None, _FAILED))

    def _log(self, error: Exception) -> None:
        """With its traces when it is another error than the last."""
        known, self._last = self._last, repr(error)
        logger.error("the policy failed: %s", self._last, exc_info=self._last != known)

    def _explore(self, asks: Sequence[Ask]) -> list[Ask]:
        """Explore together; returns those that an error has left without an answer."""
        loop, watch, began = self._loop, _Watch(asks, self._loop.config, self._send), time.monotonic()
        for texts, vectors in (ask.vectors for ask in asks if ask.vectors is not None):
            if loop.texts is not None:
                loop.texts.prime(texts, vectors)
        if loop.until is not None:
            loop = loop.until(max(ask.deadline for ask in asks))
        try:
            rollout(
                loop.policy,
                loop.retriever,
                loop.titles,
                [Example(ask.user_id, ask.query.history, target="") for ask in asks],
                loop.config,
                temperature=0.0,
                seed=0,
                conditions=[_conditions(ask) for ask in asks],
                on_turn=watch.on_turn,
                on_call=watch.on_call,
                on_end=watch.on_end,
            )
        except Exception as error:
            self._log(error)
        else:
            self._times.saw(len(asks), time.monotonic() - began, cut=watch.cut)
        return [ask for row, ask in enumerate(asks) if row not in watch.ended]


class _Watch:
    """Turns the rollout's events into what each request is told."""

    def __init__(self, asks: Sequence[Ask], config: ExploreConfig, send: Callable[[Answer], None]) -> None:
        self._asks, self._config, self._send = asks, config, send
        self._marks: list[list[float]] = [[] for _ in asks]
        self.ended: set[int] = set()
        self.cut = False
        """Whether a deadline has ended the last of them that ended."""

    def on_turn(self, turn: int, rows: Sequence[int]) -> None:
        for row in rows:
            self._marks[row].append(time.monotonic())
            self._tell(row, Step(turn))

    def on_call(self, row: int, call: Call, text: str) -> None:
        self._tell(row, Step(len(self._marks[row]), call, thought_of(text)))

    def on_end(self, row: int, trajectory: Trajectory) -> None:
        marks = [*self._marks[row], time.monotonic()]
        turns = tuple(round(1000 * (after - before), 2) for before, after in pairwise(marks))
        violations = format_violations(trajectory, self._config, strict=True)
        self.ended.add(row)
        self.cut = trajectory.end is EndReason.DEADLINE
        self._send(Done(self._asks[row].number, Exploration(trajectory, violations, turns)))

    def _tell(self, row: int, step: Step) -> None:
        if self._asks[row].steps:
            self._send(Told(self._asks[row].number, step))


def _conditions(ask: Ask) -> Conditions:
    query = ask.query
    return Conditions(query.preference, query.exclude, query.filters, query.allow_seen, ask.deadline)
