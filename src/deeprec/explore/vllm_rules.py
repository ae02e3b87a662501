"""vLLM decodes by rules (``explore.answers``): a logits processor for any vLLM of an environment with deeprec in it.

vLLM finds it through the entry point group ``vllm.logits_processors`` and loads it whatever it serves, so nothing may
fail here that a request does not ask for, and a request that brings no rule is left alone. It implements both of
vLLM's interfaces in one class, because an entry point cannot know which of its model runners will be started, and each
refuses what lacks its own: the first one's (``VLLM_USE_V2_MODEL_RUNNER=0``, the only one before 0.31) and V2's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from deeprec.explore.answers import AnswerRule
from deeprec.explore.masks import Choices, hold_
from deeprec.explore.vllm_engine import RULE_ARGUMENT

try:
    from vllm.v1.sample.logits_processor import LogitsProcessor as FirstRunner  # type: ignore[import-not-found]
except ImportError:
    FirstRunner = type("FirstRunner", (), {})
try:
    from vllm.v1.worker.gpu.sample.logits_processor import (  # type: ignore[import-not-found]
        LogitsProcessor as SecondRunner,
    )
except ImportError:
    SecondRunner = type("SecondRunner", (), {})

NEVER = (-2, 0)
"""Two tokens that no output has in a row."""


class Follower:
    """The rule of one request, told the tokens of its output as they come."""

    def __init__(self, described: str) -> None:
        self._rule = AnswerRule.read(described)
        self.told = 0

    @property
    def allowed(self) -> dict[int, float] | None:
        """Token ids that may come next → what is added to their logits; None where any may."""
        return self._rule.allowed

    def tell(self, tokens: Sequence[int]) -> None:
        """What the output has beyond the tokens told before.

        Raises:
            RuntimeError: vLLM has put a placeholder where a token should be.
        """
        for token in tokens:
            if token < 0:
                raise RuntimeError(
                    "vLLM shows its logits processors placeholders instead of tokens; start it with "
                    "--no-async-scheduling to decode by the rules of explore.answers"
                )
            self._rule.take(token)
        self.told += len(tokens)

    def copy(self) -> Follower:
        """One that goes on from here on its own."""
        return Follower(self._rule.describe())


class RuleProcessor(FirstRunner, SecondRunner):  # type: ignore[misc]
    """Holds a batch's requests to their rules (``masks.hold_``). It changes which token is the likeliest."""

    def __init__(self, vllm_config: Any, *given: Any) -> None:
        """``given``: V2's view of the requests' tokens, or the first runner's device and whether memory is pinned."""
        self._tokens = given[0] if len(given) == 1 else None
        self._ruled: dict[int, Any] = {}
        """Row of the batch → follower and output (first runner), or slot → follower (V2)."""

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse an unreadable rule with ValueError, when a request comes in; make the first runner show its tokens.

        Under async scheduling that runner gives processors of entry points −1 for each token, unless a request in
        the batch has forbidden words or penalties (vllm-project/vllm#52461). Forbidding what never comes is for free.
        """
        described = _described(sampling_params)
        if described is None:
            return
        try:
            AnswerRule.read(described)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{RULE_ARGUMENT} is no rule that deeprec has described: {error}") from error
        if not sampling_params.bad_words and hasattr(sampling_params, "_bad_words_token_ids"):
            sampling_params._bad_words_token_ids = [list(NEVER)]

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        """First runner: requests enter, leave and change rows."""
        if batch_update is None:
            return
        from vllm.v1.sample.logits_processor.builtin import process_dict_updates  # type: ignore[import-not-found]

        process_dict_updates(self._ruled, batch_update, _first_entry)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """V2: a request enters the slot, with or without tokens written before. Returns whether it has a rule."""
        described = _described(sampling_params)
        if described is None:
            self._ruled.pop(req_idx, None)
            return False
        self._ruled[req_idx] = Follower(described)
        return True

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Hold the logits (rows, vocabulary) in place; ``ctx`` is V2's batch, in which rows are slots' by turns."""
        if self._ruled:
            hold_(logits, self._rows() if ctx is None else self._rows_of(ctx))
        return logits

    def _rows(self) -> Choices:
        held = {}
        for row, (follower, output) in self._ruled.items():
            follower.tell(output[follower.told :])
            if (allowed := follower.allowed) is not None:
                held[row] = allowed
        return held

    def _rows_of(self, ctx: Any) -> Choices:
        """Rows that read a prompt are left out; a row after drafts is held to what may come after them."""
        held: dict[int, dict[int, float]] = {}
        if not self._ruled.keys() & set(ctx.idx_mapping_np.tolist()):
            return held
        columns = (ctx.expanded_idx_mapping, ctx.pos, ctx.input_ids, ctx.expanded_local_pos)
        last: dict[int, Follower] = {}
        for row, (slot, position, read, drafts) in enumerate(torch.stack([one.long() for one in columns], 1).tolist()):
            if slot not in self._ruled:
                continue
            follower = last[slot].copy() if drafts else self._ruled[slot]
            follower.tell([read] if drafts else self._written(slot, follower.told, position, read))
            last[slot] = follower
            if position + 1 >= self._prompt(slot) and (allowed := follower.allowed) is not None:
                held[row] = allowed
        return held

    def _written(self, slot: int, told: int, position: int, read: int) -> list[int]:
        """The slot's output up to the token ``read`` at ``position``, without the first ``told``."""
        start = self._prompt(slot) + told
        if position <= start:
            return [read] if position == start else []
        assert self._tokens is not None
        return [int(token) for token in self._tokens.all_token_ids.gpu[slot, start : position + 1].tolist()]

    def _prompt(self, slot: int) -> int:
        assert self._tokens is not None
        return int(self._tokens.prompt_len.np[slot])


def _described(sampling_params: Any) -> str | None:
    return (sampling_params.extra_args or {}).get(RULE_ARGUMENT)


def _first_entry(params: Any, prompt_ids: list[int] | None, output: list[int]) -> tuple[Follower, list[int]] | None:
    """What is kept of a request; ``output`` is the runner's own list, which grows."""
    described = _described(params)
    return None if described is None else (Follower(described), output)
