"""An ``Explorer`` whose loop lives in a process of its own, because a thread that is stuck cannot be cancelled.

Contract: nothing waits on the policy but the future of whoever asked. A process that is stuck, dies or cannot load is
replaced, after pauses that grow for as long as no exploration succeeds; what waited for it fails at once with
``Unavailable``, and so does what is asked until the next one has loaded. Stuck is a process that

- has not ended an exploration ``PolicyTimeouts.grace`` seconds after its deadline (those that it has not begun do
  not count while it is at others),
- is idle and gives no sign of life, or
- loads for too long.

``most`` bounds what waits, late requests included that the process has not given up yet. Callers may come from any
event loop; one thread supervises.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from deeprec.recommender.exploration import Exploration, OnStep, Step, Unavailable
from deeprec.recommender.worker.loop import (
    Answer,
    Ask,
    Begun,
    Done,
    Encoded,
    Loaded,
    Make,
    Message,
    Ping,
    Told,
    Wanted,
    run,
)
from deeprec.recommender.worker.process import WorkerProcess
from deeprec.recommender.worker.supervision import Supervised, SupervisionTimeouts
from deeprec.types import FloatArray, Query
from deeprec.wire.reason import Reason, ReasonKind

logger = logging.getLogger(__name__)

Encode = Callable[[Sequence[str], Callable[[FloatArray | None], None]], None]
"""Has texts encoded and calls back with their vectors, or None."""


def _away(sentence: str) -> Reason:
    return Reason(kind=ReasonKind.RESTARTING, sentence=sentence)


_SHUT_DOWN = _away("the policy was shut down")
_RESTARTING = _away("the policy is being restarted")
_BUSY = Reason(kind=ReasonKind.BUSY, sentence="the policy is busy with other requests")
_Process = WorkerProcess[Make, Message, Answer]


@dataclass(frozen=True)
class PolicyTimeouts(SupervisionTimeouts):
    """Those of the policy's process; ``silence`` is that after a sign of life was asked for."""

    grace: float = 2.0
    """After a request's deadline."""
    heartbeat: float = 2.0
    """Between two signs of life of an idle process."""


@dataclass(eq=False)
class _Waiting:
    """A request without an answer; ``deadline`` in ``time.monotonic`` seconds."""

    future: Future[Exploration]
    deadline: float
    tell: Callable[[Step], None] | None
    begun: bool = False


class WorkerExplorer(Supervised[Make, Message, Answer]):
    """The policy in a supervised process, which is started at once.

    Args:
        make: loads what explores; called in the process, so it has to be picklable.
        answer_size: items in a valid answer.
        most: explorations waiting or running.
        timeouts: when a process is given up.
        vectors: of a preference's phrases, those that the process is told the vectors of.
        encode: calls back with the (texts, width) vectors of texts that the policy wrote, or with None; from any
            thread, and without waiting.
        imports: modules that it loads with.
    """

    def __init__(
        self,
        make: Make,
        answer_size: int,
        *,
        most: int = 64,
        timeouts: PolicyTimeouts | None = None,
        vectors: Callable[[Sequence[str]], tuple[tuple[str, ...], FloatArray] | None] | None = None,
        encode: Encode | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        self._timeouts = timeouts or PolicyTimeouts()
        super().__init__(run, make, "policy", "the policy", self._timeouts, imports)
        self._vectors, self._encode = vectors, encode
        self._size, self._most = answer_size, most
        self._waiting: dict[int, _Waiting] = {}
        self._unavailable: Reason | None = _away("the policy is being loaded")
        self._pinged: float | None = None
        self._supervise()

    @property
    def answer_size(self) -> int:
        """Items in a valid answer."""
        return self._size

    @property
    def available(self) -> bool:
        """Whether it can be asked now."""
        return self._unavailable is None

    @property
    def waiting(self) -> int:
        """Explorations waiting or running."""
        return len(self._waiting)

    async def explore(self, user_id: str, query: Query, deadline: float, on_step: OnStep | None = None) -> Exploration:
        """Explore in the process; see ``Explorer``. A batch that fails is tried again, and tells its steps again."""
        told = None if self._vectors is None else self._vectors(query.preference)
        waiting = _Waiting(Future(), deadline, None if on_step is None else _in_this_loop(on_step))
        with self._lock:
            if self._unavailable is not None or self._process is None:
                raise Unavailable(self._unavailable or _SHUT_DOWN)
            if len(self._waiting) >= self._most:
                raise Unavailable(_BUSY)
            number = next(self._numbers)
            self._waiting[number] = waiting
            self._process.put(Ask(number, user_id, query, deadline, on_step is not None, told))
        try:
            return await asyncio.wrap_future(waiting.future)
        finally:
            waiting.tell = None

    async def loaded(self, timeout: float) -> None:
        """Wait until the first process has loaded.

        Raises:
            Unavailable: it could not, or not within ``timeout`` seconds.
        """
        if why := await self._loading_ended(timeout):
            raise Unavailable(_away(why))

    def _begin(self) -> None:
        self._pinged = None

    def _overdue(self, process: _Process) -> str | None:
        """An idle process may be asked for a sign of life."""
        now, timeouts = time.monotonic(), self._timeouts
        begun = [waiting for waiting in self._waiting.values() if waiting.begun]
        if any(now > waiting.deadline + timeouts.grace for waiting in begun or self._waiting.values()):
            return (
                f"the policy did not end an exploration within {timeouts.grace:g} s after its deadline; "
                f"raise serving.grace_ms if it is only slow"
            )
        if self._pinged is not None and process.sign > self._pinged:
            self._pinged = None
        if self._pinged is None and not self._waiting and now - process.sign > timeouts.heartbeat:
            self._pinged = now
            process.put(Ping())
        silent = self._pinged is not None and now - self._pinged > timeouts.silence
        return "the policy's process gives no sign of life" if silent else None

    def _withdraw(self) -> None:
        reason = _SHUT_DOWN if self._closed.is_set() else _RESTARTING
        with self._lock:
            self._unavailable = reason
            waiting, self._waiting = list(self._waiting.values()), {}
        for one in waiting:
            if one.future.set_running_or_notify_cancel():
                one.future.set_exception(Unavailable(reason))

    # ------------------------------------------------------------------------------------- what the process says

    def _on_answer(self, process: _Process, answer: Answer) -> None:
        if isinstance(answer, Loaded):
            self._on_loaded(process, answer)
        elif isinstance(answer, Begun):
            with self._lock:
                for number in answer.numbers:
                    if number in self._waiting:
                        self._waiting[number].begun = True
        elif isinstance(answer, Told):
            with self._lock:
                waiting = self._waiting.get(answer.number)
                tell = waiting.tell if waiting is not None else None
            if tell is not None:
                tell(answer.step)
        elif isinstance(answer, Done):
            self._on_done(answer)
        elif isinstance(answer, Wanted):
            self._on_wanted(process, answer)

    def _on_loaded(self, process: _Process, answer: Loaded) -> None:
        with self._lock:
            if self._outcome is None:
                self._outcome = answer.refusal or ""
            if answer.refusal is None and process is self._process and not self._closed.is_set():
                self._unavailable = None
        if answer.refusal is not None:
            logger.error("the policy cannot be loaded: %s", answer.refusal)

    def _on_wanted(self, process: _Process, answer: Wanted) -> None:
        def tell(vectors: FloatArray | None) -> None:
            process.put(Encoded(answer.number, vectors))

        if self._encode is None:
            tell(None)
        else:
            self._encode(answer.texts, tell)

    def _on_done(self, answer: Done) -> None:
        with self._lock:
            waiting = self._waiting.pop(answer.number, None)
            self._useful |= answer.exploration is not None
        if waiting is None or not waiting.future.set_running_or_notify_cancel():
            return
        if answer.reason is not None:
            waiting.future.set_exception(Unavailable(answer.reason))
        elif answer.exploration is not None:
            waiting.future.set_result(answer.exploration)


def _in_this_loop(on_step: OnStep) -> Callable[[Step], None]:
    """``on_step`` for other threads: called in the event loop that runs here, in order."""
    loop = asyncio.get_running_loop()

    def tell(step: Step) -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(on_step, step)

    return tell
