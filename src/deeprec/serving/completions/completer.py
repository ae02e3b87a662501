"""One engine for many callers: prompts that are alike are completed together, within a bounded queue.

One thread asks the engine. While it is at one batch the next gathers; a batch is the prompt that has waited longest
and those that may share its ``generate``: equal stop tokens, limit and temperature, and no seed to keep where it
samples. An engine that fails on a batch is asked for each of its prompts alone.

Contract of ``ready``: the engine has lately written a token. An idle one is asked for one again and again; one that
fails to, or gives no sign for ``stuck`` seconds while it writes, is not ready until it does.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from deeprec.errors import PolicyError
from deeprec.explore.answers import AnswerRule
from deeprec.explore.tokens import TokenizedPolicy
from deeprec.recommender.batching import Overloaded
from deeprec.types import Rule, Segment

logger = logging.getLogger(__name__)

PROBE_SECONDS, STUCK_SECONDS, CLOSING_SECONDS = 10.0, 60.0, 10.0
_LOOK_SECONDS = 0.02
_SLICE = 32
"""Tokens after which the engine shows a sign of life, texts that end a completion are looked for, and prompts that
nobody waits for any more are dropped."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids to continue by at most ``limit`` tokens.

    ``stop_ids`` and ``stops`` (texts) end it. ``seed`` fixes what is sampled, whatever else is asked at the time;
    ``rule`` is a rule of ``explore.answers`` as it describes itself, empty for none.
    """

    tokens: tuple[int, ...]
    limit: int
    stop_ids: frozenset[int]
    stops: tuple[str, ...] = ()
    temperature: float = 0.0
    seed: int | None = None
    rule: str = ""

    @property
    def alike(self) -> Hashable | None:
        """Equal for prompts that may be completed together; None where it has to be alone."""
        alone = self.temperature > 0 and self.seed is not None
        return None if alone else (self.stop_ids, self.limit, self.temperature)


@dataclass(frozen=True, slots=True)
class Written:
    """What was written, the stop token or the stop text's last token included.

    ``stop`` is the token or the text that ended it; None at the limit. ``text`` is cut behind a stop text.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stop: int | str | None = None


@dataclass(eq=False)
class _Place:
    """A prompt in the queue; ``gone``: nobody waits for it."""

    prompt: Prompt
    future: Future[Written] = field(default_factory=Future)
    gone: bool = False


class Completer:
    """Completes prompts with a policy's engine, in a thread that starts at once.

    Args:
        policy: asked from that thread alone; its text side is asked from others too.
        batch: prompts completed together at most.
        waiting: prompts waiting at most.
        probe: seconds after which an idle engine is asked for a token.
        stuck: seconds without a sign after which a busy engine is not ready.
    """

    def __init__(
        self,
        policy: TokenizedPolicy,
        *,
        batch: int,
        waiting: int,
        probe: float = PROBE_SECONDS,
        stuck: float = STUCK_SECONDS,
    ) -> None:
        self._policy, self._batch, self._most = policy, batch, waiting
        self._probe, self._stuck = probe, stuck
        self._waiting: deque[_Place] = deque()
        self._changed = threading.Condition()
        self._alive = self._closed = False
        self._tried = threading.Event()
        self._sign: float | None = None
        """When the busy engine last gave a sign; None while it is idle."""
        self._thread = threading.Thread(target=self._run, name="completer", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """See the module's contract."""
        sign = self._sign
        return self._alive and not self._closed and (sign is None or time.monotonic() - sign < self._stuck)

    @property
    def waiting(self) -> int:
        """Prompts that wait for the engine to come to them."""
        with self._changed:
            return sum(not place.gone for place in self._waiting)

    async def complete(self, prompts: Sequence[Prompt]) -> list[Written]:
        """What was written after each prompt, in order. A caller that is cancelled leaves its prompts to nobody.

        Raises:
            Overloaded: the queue has no room for them.
            DeepRecError: the engine fails on one of them alone.
        """
        places = [_Place(prompt) for prompt in prompts]
        with self._changed:
            if self._closed or len(self._waiting) + len(places) > self._most:
                raise Overloaded(f"{len(self._waiting)} prompts wait for the policy, which takes {self._most}")
            self._waiting.extend(places)
            self._changed.notify()
        try:
            return [await asyncio.wrap_future(place.future) for place in places]
        finally:
            for place in places:
                place.gone = True

    async def started(self) -> None:
        """Return when the engine has written its first token.

        Raises:
            PolicyError: it cannot.
        """
        while not self._tried.is_set():
            await asyncio.sleep(_LOOK_SECONDS)
        if not self._alive:
            raise PolicyError("the policy's engine does not write; see the log above for its error")

    def close(self) -> None:
        """Complete what waits, then stop the engine; returns when that is done, or after ``CLOSING_SECONDS``."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(CLOSING_SECONDS)

    # ------------------------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        self._ask_for_a_token()
        while True:
            with self._changed:
                if not self._waiting and not self._closed:
                    self._changed.wait(self._probe)
                batch = self._gather()
            if batch:
                self._answer(batch)
            elif self._closed:
                self._policy.close()
                return
            else:
                self._ask_for_a_token()

    def _gather(self) -> list[_Place]:
        """The next batch, taken from the queue; prompts that nobody waits for are dropped."""
        waiting = [place for place in self._waiting if not place.gone]
        batch = waiting[:1]
        if batch and batch[0].prompt.alike is not None:
            alike = [place for place in waiting if place.prompt.alike == batch[0].prompt.alike]
            batch = alike[: self._batch]
        taken = set(batch)
        self._waiting = deque(place for place in waiting if place not in taken)
        return [place for place in batch if place.future.set_running_or_notify_cancel()]

    def _answer(self, batch: list[_Place]) -> None:
        try:
            written = self._complete(batch)
        except Exception as error:
            if len(batch) > 1:
                logger.warning(
                    "the engine failed on %d prompts together (%s); asking for each alone", len(batch), error
                )
                for place in batch:
                    self._answer([place])
                return
            logger.exception("the engine failed")
            batch[0].future.set_exception(error)
            self._ask_for_a_token()
            return
        for place, one in zip(batch, written, strict=True):
            place.future.set_result(one)

    def _complete(self, batch: Sequence[_Place]) -> list[Written]:
        first = batch[0].prompt
        texts = [_Text(self._policy, place.prompt) for place in batch]
        rules: list[Rule] = [_read_rule(place.prompt.rule) for place in batch]
        ruled = any(place.prompt.rule for place in batch)
        self._sign = time.monotonic()
        try:
            generation = self._policy.start([place.prompt.tokens for place in batch], seed=first.seed)
            left = first.limit
            while left and (rows := [row for row, text in enumerate(texts) if text.open and not batch[row].gone]):
                segments = generation.generate(
                    rows,
                    stop_ids=first.stop_ids,
                    max_new_tokens=min(left, _SLICE),
                    temperature=first.temperature,
                    rules=[rules[row] for row in rows] if ruled else (),
                )
                self._sign = time.monotonic()
                for row, segment in zip(rows, segments, strict=True):
                    texts[row].add(segment)
                left -= min(left, _SLICE)
        finally:
            self._sign = None
        return [text.written() for text in texts]

    def _ask_for_a_token(self) -> None:
        """One token, to see whether the engine still writes; one that raises anything does not."""
        place = _Place(Prompt((self._policy.eos_id,), 1, frozenset({self._policy.eos_id})))
        try:
            self._complete([place])
        except Exception:
            logger.exception("the engine does not write")
            self._alive = False
        else:
            self._alive = True
        self._tried.set()


class _Text:
    """What is written after one prompt, as it grows."""

    def __init__(self, policy: TokenizedPolicy, prompt: Prompt) -> None:
        self._policy, self._prompt = policy, prompt
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._stop: int | str | None = None

    @property
    def open(self) -> bool:
        """Nothing has ended it."""
        return self._stop is None

    def add(self, segment: Segment) -> None:
        """Append a segment, up to the token that completes a stop text."""
        known = len(self._tokens)
        self._tokens.extend(segment.token_ids)
        self._logprobs.extend(segment.logprobs)
        if self._found(len(self._tokens)) is not None:
            end = next(end for end in range(known + 1, len(self._tokens) + 1) if self._found(end) is not None)
            self._stop = self._found(end)
            del self._tokens[end:], self._logprobs[end:]
        elif self._tokens[-1] in self._prompt.stop_ids:
            self._stop = self._tokens[-1]

    def written(self) -> Written:
        return Written(tuple(self._tokens), tuple(self._logprobs), self._stop)

    def _found(self, end: int) -> str | None:
        """The stop text that stands in the first ``end`` tokens, the earliest of several."""
        if not self._prompt.stops:
            return None
        text = self._policy.decode(self._tokens[:end])
        places = {text.find(stop): stop for stop in reversed(self._prompt.stops) if stop in text}
        return places[min(places)] if places else None


class _Free:
    """The rule of a prompt without one, in a batch where others have theirs."""

    allowed: None = None

    def take(self, token: int) -> None:
        """Anything may follow."""

    def describe(self) -> str:
        return ""


def _read_rule(described: str) -> Rule:
    return AnswerRule.read(described) if described else _Free()
