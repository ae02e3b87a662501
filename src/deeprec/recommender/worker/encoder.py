"""The text encoder in a supervised process of its own, so that it shares no interpreter with the event loop.

Contract: ``encode`` returns at once with a future, which ends when the vector has been kept, or with ``Away``. A
process that dies, is silent over a text or cannot load is replaced, after pauses that grow for as long as none gives a
vector; what it was asked ends at once, and so does what is asked until the next one has loaded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from itertools import count

from deeprec.errors import DeepRecError
from deeprec.recommender.worker.process import WorkerProcess
from deeprec.recommender.worker.texts import Answer, Make, Refused, Text, Vector, Warm, run
from deeprec.types import FloatArray

logger = logging.getLogger(__name__)

_Process = WorkerProcess[Make, Text, Answer]
_TICK = 0.1
"""Seconds between two looks at what is overdue."""


class Away(DeepRecError):
    """There is no encoder now, or none for this text."""


@dataclass(frozen=True)
class EncoderTimeouts:
    """How long a process is waited for, in seconds."""

    silence: float = 10.0
    """For the vector of a text."""
    loading: float = 600.0
    """For it to load."""
    first_pause: float = 0.5
    """Before it is replaced; doubled for each one in a row that gave no vector."""
    longest_pause: float = 30.0


class EncoderProcess:
    """The process, which is started at once.

    Args:
        make: loads the encoder; called in the process, so it has to be picklable.
        keep: is given texts with their (texts, width) vectors as they come.
        patience: when a process is given up.
    """

    def __init__(
        self, make: Make, keep: Callable[[Sequence[str], FloatArray], None], patience: EncoderTimeouts | None = None
    ) -> None:
        self._make, self._keep, self._patience = make, keep, patience or EncoderTimeouts()
        self._lock = threading.Lock()
        self._numbers = count()
        self._asked: dict[int, tuple[str, Future[float], float]] = {}
        """Text, what waits for it, and since when."""
        self._process: _Process | None = None
        self._available, self._useful, self._restarts = False, False, 0
        self._outcome: str | None = None
        """How the last load ended: empty in order, else why not."""
        self._closed = threading.Event()
        # The process ends with the thread that started it, so one starts and keeps it.
        threading.Thread(target=self._supervise, name="text-supervisor", daemon=True).start()

    @property
    def available(self) -> bool:
        """Whether it can be asked now."""
        return self._available

    @property
    def restarts(self) -> int:
        """Processes started after the first."""
        return self._restarts

    @property
    def pid(self) -> int | None:
        """The process that is asked now; None while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None and self._available else None

    def encode(self, text: str) -> Future[float]:
        """Have the text's vector kept; the result is the seconds of a core that it took, the error ``Away``."""
        future: Future[float] = Future()
        with self._lock:
            if self._available and self._process is not None:
                number = next(self._numbers)
                self._asked[number] = text, future, time.monotonic()
                self._process.put(Text(number, text))
                return future
        future.set_exception(Away("there is no text encoder now"))
        return future

    async def loaded(self, timeout: float) -> None:
        """Wait until it has loaded, or could not.

        Raises:
            Away: it could not, or not within ``timeout`` seconds.
        """
        end = time.monotonic() + timeout
        while self._outcome is None and time.monotonic() < end and not self._closed.is_set():
            await asyncio.sleep(_TICK / 5)
        if self._outcome != "":
            raise Away(self._outcome or f"the text encoder did not load within {timeout:g} seconds")

    def close(self) -> None:
        """End the process, and what waits with Away; returns at once."""
        self._closed.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._withdraw()

    # --------------------------------------------------------------------------------------------------- supervision

    def _supervise(self) -> None:
        pause = self._patience.first_pause
        while not self._closed.is_set():
            why = self._one_life()
            if self._closed.is_set():
                return
            pause = self._patience.first_pause if self._useful else min(2 * pause, self._patience.longest_pause)
            logger.error("%s; another process is started in %.1f s", why, pause)
            self._closed.wait(pause)
            self._restarts += 1

    def _one_life(self) -> str:
        """Start a process and stay with it; returns why it has ended, or had to."""
        process = _Process(run, self._make, "text")
        with self._lock:
            self._useful, self._process = False, process
        born, why = time.monotonic(), None
        try:
            process.start(partial(self._on_answer, process))
        except Exception as error:
            why = f"the text encoder's process cannot be started: {error}"
        while why is None and not self._closed.is_set():
            ended = process.ended.wait(_TICK)
            why = "the text encoder's process ended" if ended else self._overdue(born)
        with self._lock:
            self._process = None
            self._outcome = why if self._outcome is None else self._outcome
        self._withdraw()
        if not self._closed.is_set():
            process.abort()
        process.kill()
        return why or "it was shut down"

    def _overdue(self, born: float) -> str | None:
        now, patience = time.monotonic(), self._patience
        with self._lock:
            if not self._available:
                late = now - born > patience.loading
                return f"the text encoder did not load within {patience.loading:g} seconds" if late else None
            if any(now - since > patience.silence for _, _, since in self._asked.values()):
                return f"the text encoder was at one text for more than {patience.silence:g} seconds"
        return None

    def _withdraw(self) -> None:
        """From now on nothing is asked, and what waits has failed."""
        with self._lock:
            self._available = False
            asked, self._asked = list(self._asked.values()), {}
        for _, future, _ in asked:
            future.set_exception(Away("the text encoder's process ended"))

    def _on_answer(self, process: _Process, answer: Answer) -> None:
        if isinstance(answer, Vector):
            self._on_vector(answer)
            return
        if isinstance(answer, Warm):
            self._keep(answer.texts, answer.vectors)
        with self._lock:
            if isinstance(answer, Refused):
                self._outcome = answer.sentence
                logger.error("the text encoder cannot be loaded: %s", answer.sentence)
            elif process is self._process and not self._closed.is_set():
                self._outcome, self._available = "", True

    def _on_vector(self, answer: Vector) -> None:
        with self._lock:
            text, future, _ = self._asked.pop(answer.number, ("", None, 0.0))
            self._useful |= answer.vector is not None
        if future is None:
            return
        if answer.vector is None:
            future.set_exception(Away("this text cannot be encoded"))
        else:
            self._keep([text], answer.vector[None])
            future.set_result(answer.seconds)
