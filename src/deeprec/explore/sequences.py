"""Generations of engines that are handed every sequence whole and cache what they have read before by themselves.

vLLM and its like recognise the beginning of a sequence (prefix caching), so that a turn costs them its new tokens
only. What is kept here is the rows' tokens, and each row's own random stream: a row's samples depend on the seed, the
row and its length alone, so that groups of equal prompts differ and rows may leave and come back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from deeprec.errors import PolicyError
from deeprec.types import Rule, Segment


@dataclass(frozen=True, slots=True)
class Request:
    """A sequence to extend by at most ``limit`` tokens; ``seed`` is below 2³¹, None when sampling is not fixed.

    ``rule`` describes what may be written (``types.Rule``); empty where anything may.
    """

    tokens: tuple[int, ...]
    limit: int
    seed: int | None
    rule: str = ""


Complete = Callable[[Sequence[Request], AbstractSet[int], float], Sequence[Segment]]
"""Requests, stop ids and temperature → one segment per request, in order; all of them are one batch."""


class SequenceGeneration:
    """A batch of growing sequences. Row numbers are the prompts' order.

    Args:
        prompts: token ids; a prompt of no tokens is refused with PolicyError.
        seed: fixes sampling; None leaves it to the engine.
        longest: tokens of the longest sequence the engine takes; 0 where that is not known.
        complete: asks the engine.
    """

    def __init__(self, prompts: Sequence[Sequence[int]], seed: int | None, longest: int, complete: Complete) -> None:
        self._tokens = [list(prompt) for prompt in prompts]
        if not all(self._tokens):
            raise PolicyError("a prompt has no tokens; give the tokenizer the protocol's vocabulary")
        self._seed, self._longest, self._complete = seed, longest, complete

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        """Append tokens the environment wrote; the engine reads them with the row's next ``generate``."""
        for row, tokens in zip(rows, token_ids, strict=True):
            self._tokens[row].extend(tokens)

    def generate(
        self,
        rows: Sequence[int],
        *,
        stop_ids: AbstractSet[int],
        max_new_tokens: int,
        temperature: float,
        rules: Sequence[Rule] = (),
    ) -> list[Segment]:
        """Extend the rows until a stop token or the limit; one segment per row, in the order given.

        A row that would outgrow the engine's longest sequence is extended as far as that allows.

        Raises:
            PolicyError: the engine fails, answers with something else, or has no room for a row's next token.
        """
        if not rows or max_new_tokens < 1:
            return [Segment((), ()) for _ in rows]
        described = [rule.describe() for rule in rules] or [""] * len(rows)
        requests = [self._request(row, max_new_tokens, rule) for row, rule in zip(rows, described, strict=True)]
        segments = self._complete(requests, stop_ids, temperature)
        if len(segments) != len(requests):
            raise PolicyError(f"the engine was given {len(requests)} sequences and extended {len(segments)}")
        kept = [_checked(*pair, stop_ids) for pair in zip(segments, requests, strict=True)]
        for rule, segment in zip(rules, kept, strict=False):
            _follow(rule, segment)
        for row, segment in zip(rows, kept, strict=True):
            self._tokens[row].extend(segment.token_ids)
        return kept

    def _request(self, row: int, most: int, rule: str) -> Request:
        tokens = self._tokens[row]
        limit = min(most, self._longest - len(tokens)) if self._longest else most
        if limit < 1:
            raise PolicyError(
                f"a sequence has {len(tokens)} tokens, and the engine takes {self._longest} at most; lower "
                f"explore.max_context to that or start the engine with more"
            )
        return Request(tuple(tokens), limit, self._row_seed(row), rule)

    def _row_seed(self, row: int) -> int | None:
        if self._seed is None:
            return None
        state = np.random.SeedSequence([self._seed, row, len(self._tokens[row])]).generate_state(1)
        return int(state[0]) >> 1


def _follow(rule: Rule, segment: Segment) -> None:
    """Tell the rule what was written; PolicyError where the engine did not keep to it."""
    for token in segment.token_ids:
        allowed = rule.allowed
        if allowed is not None and token not in allowed:
            raise PolicyError(
                f"the engine wrote token {token} where an answer allows {len(allowed)} others: it does not decode by "
                f"rules; run vLLM where deeprec is installed, or set explore.answers to 'free'"
            )
        rule.take(token)


def _checked(segment: Segment, request: Request, stop_ids: AbstractSet[int]) -> Segment:
    """The segment up to its first stop token."""
    if not 1 <= len(segment.token_ids) <= request.limit or len(segment.logprobs) != len(segment.token_ids):
        raise PolicyError(
            f"the engine was asked for 1 to {request.limit} tokens and returned {len(segment.token_ids)} with "
            f"{len(segment.logprobs)} log-probabilities"
        )
    end = next((place for place, token in enumerate(segment.token_ids, start=1) if token in stop_ids), None)
    return segment if end is None else Segment(segment.token_ids[:end], segment.logprobs[:end])
