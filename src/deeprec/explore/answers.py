"""Answers decoded from what was retrieved only: which tokens may follow once a policy has opened its answer.

With ``explore.answers: retrieved`` an answer has its form from the decoder: numbered lines, each the title of an item
that the rollout retrieved and has not answered yet, as many as are asked for or as there are. What is left to the
policy is which title stands where. Thoughts and preferences stay free. An engine asks the rule for the tokens allowed
next and tells it what was written; the trainer asks it again about a finished trajectory, so that both give the
log-probabilities of one distribution.

With ``explore.list_weight`` the lists have a say in that: λ times the logarithm of an item's merged reciprocal rank is
added to the logit of its title, as shallow fusion adds a language model's to a recogniser's (Gulcehre et al., On Using
Monolingual Corpora in Neural Machine Translation, 2015). Where titles begin alike, a token has the sum of theirs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from deeprec.errors import ProtocolError
from deeprec.explore.fusion import merged_weights
from deeprec.explore.protocol import ANSWER_CLOSE, ANSWER_OPEN, TitleBook
from deeprec.types import Call, Policy, Trajectory

if TYPE_CHECKING:
    from deeprec.config import ExploreConfig

Tokens = tuple[int, ...]

_DESCRIBED = TypeAdapter(
    tuple[
        tuple[int, Tokens, tuple[Tokens, ...], Tokens, str, str], list[tuple[Tokens, float]], float, int, Tokens,
        Tokens | None,
    ]
)  # fmt: skip
"""The fields of a form, and of a rule in its present state."""


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """The tokens of an answer around its titles, as one tokenizer writes them; ``size`` lines at most."""

    opening: int
    head: Tokens
    """From the opening markup to the first line's number."""
    numbers: tuple[Tokens, ...]
    """Before each line's title."""
    closing: Tokens
    """After the last title; ends with the closing markup."""
    before: str
    """What a title's own tokens spell in front of it."""
    after: str
    """What they spell behind it."""

    @classmethod
    def of(cls, policy: Policy, titles: TitleBook, size: int) -> AnswerForm:
        """How this policy's tokenizer cuts an answer into lines: in front of the line break, or behind it.

        Raises:
            ProtocolError: the tokenizer does not give an answer back as it was written.
        """
        shown = titles.titles[: min(2, size)]
        sample = "".join(f"\n{line}. {title}" for line, title in enumerate(shown, start=1)) + "\n"
        in_front = [*(part for line, title in enumerate(shown, start=1) for part in (f"\n{line}. ", title)), "\n"]
        joined = [token for part in in_front for token in policy.encode(part)]
        opening, close = policy.encode(ANSWER_OPEN), tuple(policy.encode(ANSWER_CLOSE))
        lines = range(1, size + 1)
        if joined == policy.encode(sample):
            numbers = tuple(tuple(policy.encode(f"\n{line}. ")) for line in lines)
            form = cls(opening[0], (), numbers, (*policy.encode("\n"), *close), "", "")
        else:
            numbers = tuple(tuple(policy.encode(f"{line}.")) for line in lines)
            form = cls(opening[0], tuple(policy.encode("\n")), numbers, close, " ", "\n")
        written = [
            token
            for number, title in zip(form.numbers, shown, strict=False)
            for token in (*number, *policy.encode(form.spelled(title)))
        ]
        whole = f"{ANSWER_OPEN}{sample}{ANSWER_CLOSE}"
        if policy.decode([*opening, *form.head, *written, *form.closing]) != whole:
            raise ProtocolError(
                f"the policy's tokenizer does not give back {whole!r} line by line, so explore.answers cannot be "
                f"'retrieved' with it; set it to 'free'"
            )
        return form

    def spelled(self, title: str) -> str:
        """The text of a title's own tokens in its line."""
        return f"{self.before}{title}{self.after}"


class AnswerRule:
    """What may be written next in one segment. It begins with the segment, and is told every token of it.

    A token that was not allowed ends its hold: from there on everything is.

    Args:
        titles: the tokens of each title → its merged weight in the lists, above 0.
        list_weight: how much the logarithm of that counts beside the policy's logits; 0 leaves them as they are.
    """

    def __init__(self, form: AnswerForm, titles: Mapping[Tokens, float], list_weight: float = 0.0) -> None:
        self._form, self._left, self._list_weight = form, dict(titles), list_weight
        self._line = 0
        self._due: Tokens = ()
        self._partial: Tokens | None = None
        """Tokens written of the present title; None outside of one."""
        self._choices: dict[int, float] | None = None
        """What may come next in the present title, once it was asked for."""

    @property
    def allowed(self) -> dict[int, float] | None:
        """Token ids that may come next, in ascending order → what is added to their logits; None where any may."""
        if self._due:
            return {self._due[0]: 0.0}
        if self._partial is None:
            return None
        if self._choices is None:
            self._choices = self._weighed()
        return self._choices

    def _weighed(self) -> dict[int, float]:
        """The tokens that go on with the present title, by the titles left that go on so."""
        assert self._partial is not None
        place = len(self._partial)
        found: dict[int, float] = {}
        for title in self._begun():
            token = title[place] if len(title) > place else self._following()[0]
            found[token] = found.get(token, 0.0) + self._left[title]
        return {token: self._list_weight * math.log(found[token]) for token in sorted(found)}

    def take(self, token: int) -> None:
        """The token was written."""
        allowed = self.allowed
        self._choices = None
        if allowed is None:
            if token == self._form.opening:
                self._due = (*self._form.head, *self._following(0))
            return
        if token not in allowed:
            self._due, self._partial, self._line = (), None, len(self._form.numbers)
        elif self._due:
            self._pass()
        else:
            self._write(token)

    def describe(self) -> str:
        """The rule in its present state as JSON; ``AnswerRule.read`` makes it again in another process."""
        left = list(self._left.items())
        return json.dumps([astuple(self._form), left, self._list_weight, self._line, self._due, self._partial])

    @classmethod
    def read(cls, described: str) -> AnswerRule:
        """The rule that ``describe`` wrote; ValueError for anything else."""
        form, left, list_weight, line, due, partial = _DESCRIBED.validate_json(described)
        rule = cls(AnswerForm(*form), dict(left), list_weight)
        rule._line, rule._due, rule._partial = line, due, partial
        return rule

    def _write(self, token: int) -> None:
        assert self._partial is not None
        longer = (*self._partial, token)
        if not any(title[: len(longer)] == longer for title in self._left):
            self._finish()
            self._pass()
            return
        self._partial = longer
        if self._begun() == [longer]:
            self._finish()

    def _pass(self) -> None:
        """The first token that is due was written; a title begins after the last, as long as lines and titles last."""
        self._due = self._due[1:]
        if not self._due and self._left and self._line < len(self._form.numbers):
            self._partial = ()

    def _finish(self) -> None:
        """The present title is complete; what follows it is due."""
        assert self._partial is not None
        del self._left[self._partial]
        self._partial = None
        self._line += 1
        self._due = self._following(0)

    def _begun(self) -> list[Tokens]:
        """Titles left that begin with what is written."""
        assert self._partial is not None
        return [title for title in self._left if title[: len(self._partial)] == self._partial]

    def _following(self, finished: int = 1) -> Tokens:
        """What comes once ``finished`` more titles are complete: the next line's number, or the end."""
        line = self._line + finished
        more = line < len(self._form.numbers) and len(self._left) > finished
        return self._form.numbers[line] if more else self._form.closing


def answer_rules(policy: Policy, titles: TitleBook, config: ExploreConfig) -> AnswerRules | None:
    """What ``config`` holds this policy's answers to; None where they are free.

    Raises:
        ProtocolError: the policy's tokenizer does not give an answer back as it was written.
    """
    if config.answers == "free":
        return None
    return AnswerRules(policy, titles, config.answer_size, config.list_weight)


class AnswerRules:
    """The rules of one policy's rollouts: what a segment may write after some calls, and might have written."""

    def __init__(self, policy: Policy, titles: TitleBook, size: int, list_weight: float = 0.0) -> None:
        self._policy, self._titles, self._list_weight = policy, titles, list_weight
        self._form = AnswerForm.of(policy, titles, size)
        self._tokens: dict[str, Tokens] = {}

    def rule(self, calls: Sequence[Call]) -> AnswerRule:
        """For the segment that comes after these calls."""
        weights: dict[Tokens, float] = {}
        for item, weight in merged_weights([call.items for call in calls]).items():
            title = self._title(item)
            weights[title] = weights.get(title, 0.0) + weight
        return AnswerRule(self._form, weights, self._list_weight)

    def allowed(self, trajectory: Trajectory) -> dict[int, dict[int, float]]:
        """Place in the completion → ``AnswerRule.allowed`` there, for each place where a rule held."""
        found: dict[int, dict[int, float]] = {}
        lists = 0
        rule = self.rule(())
        before = 0
        for place, (token, own) in enumerate(zip(trajectory.completion_ids, trajectory.loss_mask, strict=True)):
            if own and not before:
                rule = self.rule(trajectory.calls[:lists])
                lists += 1
            if own:
                allowed = rule.allowed
                if allowed is not None:
                    found[place] = allowed
                rule.take(token)
            before = own
        return found

    def _title(self, item_id: str) -> Tokens:
        if item_id not in self._tokens:
            self._tokens[item_id] = tuple(self._policy.encode(self._form.spelled(self._titles.title(item_id))))
        return self._tokens[item_id]
