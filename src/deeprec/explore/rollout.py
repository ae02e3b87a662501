"""Batched rollouts: many users explore together, one ``generate`` and one ``retrieve`` per turn for all still open.

A bad rollout is data, never an exception: every example yields one ``Trajectory`` whose ``end`` says what happened.
Token ids, loss mask and log-probabilities are appended as they arise and never tokenised again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet

import numpy as np

from deeprec.config import ExploreConfig
from deeprec.errors import ProtocolError
from deeprec.explore.answers import AnswerRules
from deeprec.explore.environment import Episode, Limits
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import ANSWER_CLOSE, PREFERENCE_CLOSE, TitleBook
from deeprec.explore.timing import RolloutClock
from deeprec.types import Call, EndReason, Example, Filter, Generation, Policy, Query, Retriever, Trajectory

_SLICE = 32
"""Tokens generated between two looks at the clock when there is a deadline."""


def rollout(
    policy: Policy,
    retriever: Retriever,
    titles: TitleBook,
    examples: Sequence[Example],
    config: ExploreConfig,
    *,
    temperature: float,
    seed: int | None,
    deadline: float | None = None,
    on_turn: Callable[[int, int], None] | None = None,
    on_call: Callable[[int, Call, str], None] | None = None,
    filters: tuple[Filter, ...] = (),
    exclude: AbstractSet[str] = frozenset(),
    preference: tuple[str, ...] = (),
    allow_seen: bool = False,
    clock: RolloutClock | None = None,
) -> list[Trajectory]:
    """Roll the policy out once per example, in order; repeat an example to get a group.

    Args:
        temperature: 0 is greedy.
        seed: fixes sampling; batches of ``config.batch_size`` draw from seeds derived from it.
        deadline: ``time.monotonic()`` seconds after which open rollouts end with ``DEADLINE``. It is looked at between
            turns and every few tokens.
        on_turn: called before each turn with the turn's number in its batch (from 1) and the rollouts still open.
        on_call: called when a call's list has come back, with the example's place, the call, and the text that made it.
        filters, exclude, allow_seen: passed on with every call of the retriever.
        preference: phrases added to those of every call, for a user who asked for something.
        clock: is told where the time goes.

    Raises:
        ProtocolError: the policy's tokenizer splits the markup at which generation has to stop.
    """
    loop = _Loop(policy, retriever, titles, config, temperature, deadline, on_turn)
    loop.filters, loop.exclude, loop.preference, loop.allow_seen = filters, frozenset(exclude), preference, allow_seen
    loop.on_call, loop.clock = on_call, clock or RolloutClock()
    trajectories: list[Trajectory] = []
    with loop.clock.measure("total"):
        for batch, start in enumerate(range(0, len(examples), config.batch_size)):
            chunk = examples[start : start + config.batch_size]
            loop.first = start
            trajectories.extend(loop.run(chunk, _batch_seed(seed, batch)))
    return trajectories


def stop_ids(policy: Policy) -> frozenset[int]:
    """Token ids that end a segment: the closing markup of preference and answer, and the end of text.

    Raises:
        ProtocolError: one of them is not a single token.
    """
    found = {policy.eos_id}
    for markup in (PREFERENCE_CLOSE, ANSWER_CLOSE):
        tokens = policy.encode(markup)
        if len(tokens) != 1:
            raise ProtocolError(
                f"the policy's tokenizer reads {markup} as {len(tokens)} tokens; add the protocol's markup to it as "
                f"special tokens (building the policy does so)"
            )
        found.add(tokens[0])
    return frozenset(found)


def _batch_seed(seed: int | None, batch: int) -> int | None:
    return None if seed is None else int(np.random.SeedSequence([seed, batch]).generate_state(1)[0])


class _Loop:
    """What stays the same over the batches of one ``rollout``."""

    filters: tuple[Filter, ...] = ()
    exclude: frozenset[str] = frozenset()
    preference: tuple[str, ...] = ()
    allow_seen: bool = False
    on_call: Callable[[int, Call, str], None] | None = None
    first: int = 0
    """Place of the batch's first example."""

    def __init__(
        self,
        policy: Policy,
        retriever: Retriever,
        titles: TitleBook,
        config: ExploreConfig,
        temperature: float,
        deadline: float | None,
        on_turn: Callable[[int, int], None] | None,
    ) -> None:
        self._policy, self._retriever, self._titles, self._config = policy, retriever, titles, config
        self._temperature, self._deadline, self._on_turn = temperature, deadline, on_turn
        self.clock = RolloutClock()
        self._encoded: dict[str, list[int]] = {}
        self._prompts = PromptBuilder(config, titles)
        self._limits = Limits.of(config, stop_ids(policy))
        held = config.answers == "retrieved"
        self._rules = AnswerRules(policy, titles, config.answer_size) if held else None

    def run(self, examples: Sequence[Example], seed: int | None) -> list[Trajectory]:
        self._encoded = {}
        texts = {history: self._prompts.text(history) for history in dict.fromkeys(one.history for one in examples)}
        episodes = [Episode(one, self._encode(texts[one.history]), self._limits) for one in examples]
        with self.clock.measure("engine"):
            generation = self._policy.start([episode.prompt_ids for episode in episodes], seed=seed)
        turn = 0
        while waiting := [row for row, episode in enumerate(episodes) if episode.end is None]:
            turn += 1
            if self._on_turn is not None:
                self._on_turn(turn, len(waiting))
            self._write(generation, episodes, waiting)
            self._retrieve(generation, episodes, waiting)
        return [episode.trajectory() for episode in episodes]

    def _write(self, generation: Generation, episodes: list[Episode], waiting: list[int]) -> None:
        """Let the policy write one segment for every waiting row, and read it."""
        writing = [row for row in waiting if self._allowance(episodes[row]) > 0]
        rules = {row: self._rules.rule(episodes[row].calls) for row in writing} if self._rules else {}
        while writing:
            if self._late():
                break
            room = max(self._allowance(episodes[row]) for row in writing)
            budget = room if self._deadline is None else min(room, _SLICE)
            with self.clock.measure("engine"):
                segments = generation.generate(
                    writing,
                    stop_ids=self._limits.stop_ids,
                    max_new_tokens=budget,
                    temperature=self._temperature,
                    rules=[rules[row] for row in writing] if rules else (),
                )
            complete = [episodes[row].write(segment) for row, segment in zip(writing, segments, strict=True)]
            writing = [
                row
                for row, done in zip(writing, complete, strict=True)
                if not done and self._allowance(episodes[row]) > 0
            ]
        late = set(writing)
        with self.clock.measure("parsing"):
            for row in waiting:
                if row in late:
                    episodes[row].stop(EndReason.DEADLINE, self._policy)
                else:
                    episodes[row].read(self._policy, self._titles)

    def _retrieve(self, generation: Generation, episodes: list[Episode], waiting: list[int]) -> None:
        """Ask the TRM for every row that called it, and append the lists."""
        asking = [(row, episodes[row]) for row in waiting if episodes[row].request is not None]
        if self._late():
            for _, episode in asking:
                episode.stop(EndReason.DEADLINE, self._policy)
            return
        if not asking:
            return
        queries = [self._query(episode) for _, episode in asking]
        with self.clock.measure("retrieval"):
            lists = self._retriever.retrieve(queries, self._config.items_per_call)
        rows, tokens = [], []
        for (row, episode), items in zip(asking, lists, strict=True):
            appended = episode.receive(tuple(items), self._encode, self._titles, self._config)
            if appended:
                rows.append(row)
                tokens.append(appended)
                if self.on_call is not None:
                    self.on_call(self.first + row, *episode.newest)
        with self.clock.measure("engine"):
            generation.append(rows, tokens)

    def _encode(self, text: str) -> list[int]:
        """Token ids, each text of a batch once: rollouts of a group share their prompt and often a list."""
        if text not in self._encoded:
            self._encoded[text] = self._policy.encode(text)
        return self._encoded[text]

    def _query(self, episode: Episode) -> Query:
        assert episode.request is not None
        phrases = tuple(dict.fromkeys((*self.preference, *episode.request.phrases)))
        return Query(
            history=episode.example.history,
            preference=phrases,
            exclude=self.exclude | episode.retrieved if self._config.fresh_lists else self.exclude,
            filters=self.filters,
            allow_seen=self.allow_seen,
        )

    def _allowance(self, episode: Episode) -> int:
        """Tokens the policy may still write in this segment."""
        return min(self._config.max_new_tokens - episode.segment_length, episode.room)

    def _late(self) -> bool:
        return self._deadline is not None and time.monotonic() >= self._deadline
