"""A process that is replaced when it dies, is stuck or cannot load: what the policy and the text encoder share.

Contract: one thread starts a process, stays with it, and starts the next, after pauses that grow for as long as none
was of use. What waits on a process fails as soon as that has to be given up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from typing import Generic, TypeVar

from deeprec.recommender.worker import fork_server
from deeprec.recommender.worker.process import WorkerProcess

logger = logging.getLogger(__name__)

_TICK, _LOOK = 0.1, 0.02
"""Seconds between two looks at what is overdue, and at whether it has loaded."""

Make = TypeVar("Make")
Message = TypeVar("Message")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class SupervisionTimeouts:
    """How long a process is waited for, in seconds."""

    silence: float = 10.0
    """For what it was asked and is to answer at once."""
    loading: float = 600.0
    """For it to load."""
    first_pause: float = 0.5
    """Before it is replaced; doubled for each one in a row that was of no use."""
    longest_pause: float = 30.0


class Supervised(ABC, Generic[Make, Message, Answer]):
    """One process after another. Subclasses know what is asked of it; ``_supervise`` starts the first.

    Args:
        run: the process's life, see ``WorkerProcess``.
        make: what it loads with; picklable.
        name: of the process.
        says: what the process is to people, as a sentence's subject.
        timeouts: when it is given up.
        imports: modules that it loads with.
    """

    def __init__(
        self,
        run: Callable[[Connection, Make], None],
        make: Make,
        name: str,
        says: str,
        timeouts: SupervisionTimeouts,
        imports: Sequence[str],
    ) -> None:
        fork_server.hold()
        self._start = partial(WorkerProcess[Make, Message, Answer], run, make, name, imports)
        self._name, self._says, self._waits = name, says, timeouts
        self._lock = threading.Lock()
        self._numbers = count()
        self._process: WorkerProcess[Make, Message, Answer] | None = None
        self._outcome: str | None = None
        """How loading ended: empty in order, else why not."""
        self._useful = False
        self._restarts = 0
        self._closed = threading.Event()

    @property
    @abstractmethod
    def available(self) -> bool:
        """Whether it can be asked now."""

    @property
    def restarts(self) -> int:
        """Processes started after the first."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The process that is asked now; None while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None and self.available else None

    def close(self) -> None:
        """End the process, and what waits for it; returns at once."""
        with self._lock:
            if self._closed.is_set():
                return
            self._closed.set()
        self._withdraw()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        fork_server.release()

    @abstractmethod
    def _on_answer(self, process: WorkerProcess[Make, Message, Answer], answer: Answer) -> None:
        """The process says something; called from one thread."""

    @abstractmethod
    def _overdue(self, process: WorkerProcess[Make, Message, Answer]) -> str | None:
        """Why a process that has loaded has to be given up; None for no reason. Called with the lock held."""

    @abstractmethod
    def _withdraw(self) -> None:
        """From now on nothing is asked, and what waits has failed."""

    def _begin(self) -> None:
        """A process is about to be started; called with the lock held."""

    def _supervise(self) -> None:
        threading.Thread(target=self._lives, name=f"{self._name}-supervisor", daemon=True).start()

    async def _loading_ended(self, timeout: float) -> str:
        """Why it has not loaded; empty where it has."""
        end = time.monotonic() + timeout
        while self._outcome is None and time.monotonic() < end and not self._closed.is_set():
            await asyncio.sleep(_LOOK)
        return f"{self._says} did not load within {timeout:g} seconds" if self._outcome is None else self._outcome

    def _lives(self) -> None:
        pause = self._waits.first_pause
        while not self._closed.is_set():
            why = self._one_life()
            if self._closed.is_set():
                return
            pause = self._waits.first_pause if self._useful else min(2 * pause, self._waits.longest_pause)
            logger.error("%s; another process is started in %.1f s", why, pause)
            self._closed.wait(pause)
            self._restarts += 1

    def _one_life(self) -> str:
        """Start a process and stay with it; returns why it has ended, or had to."""
        process = self._start()
        with self._lock:
            self._useful, self._process = False, process
            self._begin()
        born, why = time.monotonic(), None
        try:
            process.start(partial(self._on_answer, process))
        except Exception as error:
            why = f"{self._says}'s process cannot be started: {error}"
        while why is None and not self._closed.is_set():
            ended = process.ended.wait(_TICK)
            why = f"{self._says}'s process ended" if ended else self._given_up(process, born)
        with self._lock:
            self._process = None
            self._outcome = why if self._outcome is None else self._outcome
        self._withdraw()
        if not self._closed.is_set():
            process.abort()
        process.kill()
        return why or f"{self._says} was shut down"

    def _given_up(self, process: WorkerProcess[Make, Message, Answer], born: float) -> str | None:
        with self._lock:
            if self.available:
                return self._overdue(process)
        seconds = self._waits.loading
        late = time.monotonic() - born > seconds
        return f"{self._says} did not load within {seconds:g} seconds" if late else None
