"""The text encoder in a supervised process of its own, so that it shares no interpreter with the event loop.

Contract: ``encode`` returns at once with a future, which ends when the vector has been kept, or with ``Away``. A
process that dies, is silent over a text or cannot load is replaced, after pauses that grow for as long as none gives a
vector; what it was asked ends at once, and so does what is asked until the next one has loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from deeprec.errors import DeepRecError
from deeprec.recommender.worker.supervision import Supervised, SupervisionTimeouts
from deeprec.recommender.worker.texts import Answer, Make, Refused, Text, Vector, Warm, run
from deeprec.types import FloatArray

logger = logging.getLogger(__name__)


class Away(DeepRecError):
    """There is no encoder now, or none for this text."""


class EncoderProcess(Supervised[Make, Text, Answer]):
    """The process, which is started at once.

    Args:
        make: loads the encoder; called in the process, so it has to be picklable.
        keep: is given texts with their (texts, width) vectors as they come.
        timeouts: when a process is given up; ``silence`` is that over one text.
        imports: modules that it loads with.
    """

    def __init__(
        self,
        make: Make,
        keep: Callable[[Sequence[str], FloatArray], None],
        timeouts: SupervisionTimeouts | None = None,
        imports: Sequence[str] = (),
    ) -> None:
        super().__init__(run, make, "text", "the text encoder", timeouts or SupervisionTimeouts(), imports)
        self._keep = keep
        self._asked: dict[int, tuple[str, Future[float], float]] = {}
        """Text, what waits for it, and since when."""
        self._loaded = False
        self._supervise()

    @property
    def available(self) -> bool:
        """Whether it can be asked now."""
        return self._loaded

    def encode(self, text: str) -> Future[float]:
        """Have the text's vector kept; the result is the seconds of a core that it took, the error ``Away``."""
        future: Future[float] = Future()
        with self._lock:
            if self._loaded and self._process is not None:
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
        if why := await self._loading_ended(timeout):
            raise Away(why)

    def _overdue(self, process: Any) -> str | None:
        silence = self._waits.silence
        if any(time.monotonic() - since > silence for _, _, since in self._asked.values()):
            return f"the text encoder was at one text for more than {silence:g} seconds"
        return None

    def _withdraw(self) -> None:
        with self._lock:
            self._loaded = False
            asked, self._asked = list(self._asked.values()), {}
        for _, future, _ in asked:
            future.set_exception(Away("the text encoder's process ended"))

    def _on_answer(self, process: Any, answer: Answer) -> None:
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
                self._outcome, self._loaded = "", True

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
