"""Batched rollouts: many users explore together, one ``generate`` and one ``retrieve`` per turn for all still open.

A bad rollout is data, never an exception: every example yields one ``Trajectory`` whose ``end`` says what happened.
Token ids, loss mask and log-probabilities are appended as they arise and never tokenised again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np

from deeprec.config import ExploreConfig
from deeprec.errors import ProtocolError
from deeprec.explore.answers import answer_rules
from deeprec.explore.environment import Episode, Limits
from deeprec.explore.prompt import PromptBuilder
from deeprec.explore.protocol import ANSWER_CLOSE, PREFERENCE_CLOSE, TitleBook
from deeprec.explore.timing import RolloutClock
from deeprec.types import Call, Conditions, EndReason, Example, Generation, Policy, Query, Retriever, Trajectory

_SLICE = 32
"""Tokens generated between two looks at the clock when a rollout has a deadline."""

OnTurn = Callable[[int, Sequence[int]], None]
OnCall = Callable[[int, Call, str], None]
OnEnd = Callable[[int, Trajectory], None]


def rollout(
    policy: Policy,
    retriever: Retriever,
    titles: TitleBook,
    examples: Sequence[Example],
    config: ExploreConfig,
    *,
    temperature: float,
    seed: int | None,
    conditions: Sequence[Conditions] = (),
    on_turn: OnTurn | None = None,
    on_call: OnCall | None = None,
    on_end: OnEnd | None = None,
    clock: RolloutClock | None = None,
) -> list[Trajectory]:
    """Roll the policy out once per example, in order; repeat an example to get a group.

    Args:
        temperature: 0 is greedy.
        seed: fixes sampling; batches of ``config.batch_size`` draw from seeds derived from it.
        conditions: one per example, or none at all. A rollout whose deadline has passed ends with ``DEADLINE`` while
            the others go on; the clock is looked at between turns and every few tokens.
        on_turn: called before each turn with the turn's number in its batch (from 1) and the places, among the
            examples, of the rollouts still open.
        on_call: called when a call's list has come back, with the example's place, the call, and the text that made it.
        on_end: called with the example's place and its rollout as soon as that has ended.
        clock: is told where the time goes.

    Raises:
        ProtocolError: the policy's tokenizer splits the markup at which generation has to stop.
    """
    held = list(conditions) or [Conditions()] * len(examples)
    if len(held) != len(examples):
        raise ValueError(f"{len(examples)} examples have {len(held)} conditions; give one each, or none")
    loop = _Loop(policy, retriever, titles, config, temperature, clock or RolloutClock())
    loop.on_turn, loop.on_call, loop.on_end = on_turn, on_call, on_end
    trajectories: list[Trajectory] = []
    with loop.clock.measure("total"):
        for batch, start in enumerate(range(0, len(examples), config.batch_size)):
            part = slice(start, start + config.batch_size)
            loop.first = start
            trajectories.extend(loop.run(examples[part], held[part], _batch_seed(seed, batch)))
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

    on_turn: OnTurn | None = None
    on_call: OnCall | None = None
    on_end: OnEnd | None = None
    first: int = 0
    """Place of the batch's first example."""

    def __init__(
        self,
        policy: Policy,
        retriever: Retriever,
        titles: TitleBook,
        config: ExploreConfig,
        temperature: float,
        clock: RolloutClock,
    ) -> None:
        self._policy, self._retriever, self._titles, self._config = policy, retriever, titles, config
        self._temperature, self.clock = temperature, clock
        self._encoded: dict[str, list[int]] = {}
        self._conditions: Sequence[Conditions] = ()
        self._prompts = PromptBuilder(config, titles)
        self._limits = Limits.of(config, stop_ids(policy))
        self._rules = answer_rules(policy, titles, config)

    def run(self, examples: Sequence[Example], conditions: Sequence[Conditions], seed: int | None) -> list[Trajectory]:
        self._encoded, self._conditions = {}, conditions
        texts = {history: self._prompts.text(history) for history in dict.fromkeys(one.history for one in examples)}
        episodes = [Episode(one, self._encode(texts[one.history]), self._limits) for one in examples]
        with self.clock.measure("engine"):
            generation = self._policy.start([episode.prompt_ids for episode in episodes], seed=seed)
        ended: dict[int, Trajectory] = {}
        waiting = list(range(len(episodes)))
        turn = 0
        while waiting:
            turn += 1
            if self.on_turn is not None:
                self.on_turn(turn, [self.first + row for row in waiting])
            self._write(generation, episodes, waiting)
            self._retrieve(generation, episodes, waiting)
            for row in (row for row in waiting if episodes[row].end is not None):
                ended[row] = episodes[row].trajectory()
                if self.on_end is not None:
                    self.on_end(self.first + row, ended[row])
            waiting = [row for row in waiting if row not in ended]
        return [ended[row] for row in range(len(episodes))]

    def _write(self, generation: Generation, episodes: list[Episode], waiting: list[int]) -> None:
        """Let the policy write one segment for every waiting row, and read it."""
        writing = [row for row in waiting if self._allowance(episodes[row]) > 0]
        rules = {row: self._rules.rule(episodes[row].calls) for row in writing} if self._rules else {}
        late: set[int] = set()
        while True:
            late |= self._late(writing)
            writing = [row for row in writing if row not in late]
            if not writing:
                break
            room = max(self._allowance(episodes[row]) for row in writing)
            timed = any(self._conditions[row].deadline is not None for row in writing)
            with self.clock.measure("engine"):
                segments = generation.generate(
                    writing,
                    stop_ids=self._limits.stop_ids,
                    max_new_tokens=min(room, _SLICE) if timed else room,
                    temperature=self._temperature,
                    rules=[rules[row] for row in writing] if rules else (),
                )
            complete = [episodes[row].write(segment) for row, segment in zip(writing, segments, strict=True)]
            writing = [
                row
                for row, done in zip(writing, complete, strict=True)
                if not done and self._allowance(episodes[row]) > 0
            ]
        with self.clock.measure("parsing"):
            for row in waiting:
                if row in late:
                    episodes[row].stop(EndReason.DEADLINE, self._policy)
                else:
                    episodes[row].read(self._policy, self._titles)

    def _retrieve(self, generation: Generation, episodes: list[Episode], waiting: list[int]) -> None:
        """Ask the TRM for every row that called it, and append the lists."""
        asking = [row for row in waiting if episodes[row].request is not None]
        late = self._late(asking)
        for row in late:
            episodes[row].stop(EndReason.DEADLINE, self._policy)
        asking = [row for row in asking if row not in late]
        if not asking:
            return
        queries = [self._query(episodes[row], self._conditions[row]) for row in asking]
        with self.clock.measure("retrieval"):
            lists = self._retriever.retrieve(queries, self._config.items_per_call)
        rows, tokens = [], []
        for row, items in zip(asking, lists, strict=True):
            appended = episodes[row].receive(tuple(items), self._encode, self._titles, self._config)
            if appended:
                rows.append(row)
                tokens.append(appended)
                if self.on_call is not None:
                    self.on_call(self.first + row, *episodes[row].newest)
        with self.clock.measure("engine"):
            generation.append(rows, tokens)

    def _encode(self, text: str) -> list[int]:
        """Token ids, each text of a batch once: rollouts of a group share their prompt and often a list."""
        if text not in self._encoded:
            self._encoded[text] = self._policy.encode(text)
        return self._encoded[text]

    def _query(self, episode: Episode, held: Conditions) -> Query:
        assert episode.request is not None
        return Query(
            history=episode.example.history,
            preference=tuple(dict.fromkeys((*held.preference, *episode.request.phrases))),
            exclude=held.exclude | episode.retrieved if self._config.fresh_lists else held.exclude,
            filters=held.filters,
            allow_seen=held.allow_seen,
        )

    def _allowance(self, episode: Episode) -> int:
        """Tokens the policy may still write in this segment."""
        return min(self._config.max_new_tokens - episode.segment_length, episode.room)

    def _late(self, rows: Sequence[int]) -> set[int]:
        """Those rows whose deadline has passed."""
        deadlines = {row: self._conditions[row].deadline for row in rows}
        timed = {row: deadline for row, deadline in deadlines.items() if deadline is not None}
        now = time.monotonic() if timed else -math.inf
        return {row for row, deadline in timed.items() if now >= deadline}
