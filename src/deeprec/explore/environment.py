"""One rollout as it grows: its tokens, mask and log-probabilities, its calls, and how it ends.

An episode knows the protocol and the limits; it does not know the model or the retriever. The rollout loop hands it
what the policy wrote and the lists that calls brought back, and takes the finished ``Trajectory``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeprec.config import ExploreConfig
from deeprec.explore.protocol import (
    AnswerText,
    Outside,
    PreferenceText,
    TitleBook,
    parse_segment,
    render_list,
)
from deeprec.types import Call, EndReason, Example, Policy, RetrievedItem, Segment, Trajectory


@dataclass(frozen=True)
class Limits:
    """Token ids that end a segment, and the two configured limits a single rollout is held to."""

    stop_ids: frozenset[int]
    max_calls: int
    max_context: int

    @classmethod
    def of(cls, config: ExploreConfig, stop_ids: frozenset[int]) -> Limits:
        return cls(stop_ids, config.max_calls, config.max_context)


class Episode:
    """A rollout in progress. ``end`` is None while it is open; ``request`` is the call it waits for."""

    def __init__(self, example: Example, prompt_ids: list[int], limits: Limits) -> None:
        self.example = example
        self.prompt_ids = tuple(prompt_ids)
        self.end: EndReason | None = None
        self.request: PreferenceText | None = None
        self._limits = limits
        self._ids: list[int] = []
        self._mask: list[int] = []
        self._logprobs: list[float] = []
        self._segment: list[int] = []
        self._text: list[str] = []
        self._calls: list[Call] = []
        self._answer: tuple[str | None, ...] = ()

    @property
    def room(self) -> int:
        """Tokens that still fit the context, one kept for the end of text after the answer."""
        return self._limits.max_context - len(self.prompt_ids) - len(self._ids) - 1

    @property
    def retrieved(self) -> frozenset[str]:
        """Ids of the items that the calls so far have returned."""
        return frozenset(item.item_id for call in self._calls for item in call.items)

    @property
    def calls(self) -> tuple[Call, ...]:
        """The calls so far."""
        return tuple(self._calls)

    @property
    def newest(self) -> tuple[Call, str]:
        """The latest call, whose list has just been received, and the text that made it."""
        return self._calls[-1], self._text[-2]

    @property
    def segment_length(self) -> int:
        """Tokens written since the last list."""
        return len(self._segment)

    def write(self, segment: Segment) -> bool:
        """Take tokens the policy wrote, as many as fit; True when they end in a stop token."""
        kept = min(len(segment.token_ids), max(self.room, 0))
        tokens = segment.token_ids[:kept]
        self._ids.extend(tokens)
        self._mask.extend([1] * kept)
        self._logprobs.extend(segment.logprobs[:kept])
        self._segment.extend(tokens)
        return bool(tokens) and tokens[-1] in self._limits.stop_ids

    def read(self, policy: Policy, titles: TitleBook) -> None:
        """Read the segment written since the last list: ask for a call, or end."""
        text = policy.decode(self._segment)
        stopped = bool(self._segment) and self._segment[-1] in self._limits.stop_ids
        self._segment = []
        self._text.append(text)
        if not stopped:
            self.end = EndReason.CONTEXT_LIMIT if self.room <= 0 else EndReason.SEGMENT_LIMIT
            return
        parsed = parse_segment(text)
        if isinstance(parsed, Outside):
            self.end = EndReason.OUTSIDE_PROTOCOL
        elif isinstance(parsed, AnswerText):
            self._answer = tuple(titles.resolve(title, self.retrieved) for title in parsed.titles)
            self.end = EndReason.ANSWERED
            self._append([policy.eos_id])
        elif parsed.empty:
            self.end = EndReason.EMPTY_PREFERENCE
        elif len(self._calls) >= self._limits.max_calls:
            self.end = EndReason.CALL_LIMIT
        else:
            self.request = parsed

    def receive(
        self,
        items: tuple[RetrievedItem, ...],
        encode: Callable[[str], list[int]],
        titles: TitleBook,
        config: ExploreConfig,
    ) -> list[int]:
        """Append the list a call brought back and return its tokens; none, and the end, when it does not fit."""
        assert self.request is not None
        text = render_list(items, titles, config)
        tokens = encode(text)
        request, self.request = self.request, None
        if len(tokens) >= self.room:
            self.end = EndReason.CONTEXT_LIMIT
            return []
        self._calls.append(Call(request.preference, request.phrases, items))
        self._text.append(text)
        self._append(tokens)
        return tokens

    def stop(self, reason: EndReason, policy: Policy) -> None:
        """End an open rollout from outside (its deadline)."""
        if self._segment:
            self._text.append(policy.decode(self._segment))
            self._segment = []
        self.request = None
        self.end = reason

    def trajectory(self) -> Trajectory:
        """The finished rollout."""
        assert self.end is not None
        return Trajectory(
            example_key=self.example.key,
            user_id=self.example.user_id,
            prompt_ids=self.prompt_ids,
            completion_ids=tuple(self._ids),
            loss_mask=tuple(self._mask),
            logprobs=tuple(self._logprobs),
            text="".join(self._text),
            calls=tuple(self._calls),
            answer=self._answer,
            end=self.end,
        )

    def _append(self, tokens: list[int]) -> None:
        self._ids.extend(tokens)
        self._mask.extend([0] * len(tokens))
        self._logprobs.extend([0.0] * len(tokens))
