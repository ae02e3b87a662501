"""The schedule of training runs: one recurring run on KFP's server, by its name.

KFP cannot change a recurring run and lets several have one name. So a schedule is changed in steps: the new one is made
paused, the old one paused, the new one enabled, the old one deleted. Which step is next is read from what the server
lists, after each step: a command that was killed is finished by running it again, and two commands at work at the same
time end at the same place. Two are never enabled, and none is for no longer than the time between two requests.

What a step can tell from the list: one recurring run alone, paused, was paused by a person, and stays so when it is
changed. Several, all paused, are what a command left that was killed, unless the newest says that it was made paused.

No tick is caught up: KFP starts the newest missed one when a recurring run is enabled, so that one made before the last
tick is made anew instead.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from deeprec.errors import ConfigError, PipelineError
from deeprec.release.cron import Cron
from deeprec.release.kfp_server import KfpServer, NotThere, Order, RecurringRun

EACH_TICK = {"data_version": "[[ScheduledTime]]"}
"""Arguments of each run: KFP writes the tick's time there, so that no run takes an earlier one's results."""
ENABLED = "Made by deeprec schedule, which replaces it rather than changes it."
PAUSED = f"{ENABLED} Paused when it was made: deeprec schedule resume lets it go on."
MOST_STEPS = 100
"""More steps than any list of recurring runs needs, unless something undoes them."""


@dataclass(frozen=True)
class Step:
    """What to do next: with the recurring run ``run``, or by making one as ``order`` says."""

    kind: Literal["make", "enable", "pause", "delete"]
    run: RecurringRun | None = None
    order: Order | None = None
    enabled: bool = True
    description: str = ENABLED

    def told(self) -> str:
        """As a line that begins with the kind: ``make a recurring run, paused``."""
        if self.run is None:
            return "make a recurring run" if self.enabled else "make a recurring run, paused"
        return f"{self.kind} the recurring run {self.run.id} ({self.run.order.cron or 'by an interval'})"


Rule = Callable[[Sequence[RecurringRun], datetime], Step | None]
"""From the recurring runs of the name, the oldest first, and the time: the next step, None where nothing is to do."""


def content_name(file: Path) -> str:
    """The name of a compiled pipeline's version: a hash of its lines but the comments.

    KFP's compiler sorts the keys, and in the comments above them it does not.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    return hashlib.sha256("\n".join(line for line in lines if not line.startswith("#")).encode()).hexdigest()[:16]


def to_set(order: Order, cron: Cron) -> Rule:
    """The rule of ``set``: one recurring run with this order, enabled unless it was paused.

    ``cron`` is what ``order`` says, on the server's clock.
    """

    def rule(found: Sequence[RecurringRun], now: datetime) -> Step | None:
        paused = bool(found) and _is_paused(found)
        fitting = [one for one in found if _does(one.order, order)]
        if len(found) > 1:
            fitting = [one for one in fitting if one.enabled or _reusable(one, cron, now, paused)]
        kept = next((one for one in fitting if one.enabled), fitting[0] if fitting else None)
        if kept is None:
            return Step("make", order=order, enabled=not found, description=PAUSED if paused else ENABLED)
        if paused or kept.enabled:
            return _delete_but(kept, found)
        enabled = next((one for one in found if one.enabled), None)
        return Step("pause", enabled) if enabled else Step("enable", kept)

    return rule


def to_pause(found: Sequence[RecurringRun], now: datetime) -> Step | None:
    """The rule of ``pause``: one, paused."""
    kept = _the_one(found)
    return _delete_but(kept, found) or (Step("pause", kept) if kept.enabled else None)


def to_resume(found: Sequence[RecurringRun], now: datetime) -> Step | None:
    """The rule of ``resume``: one, enabled, and made after the pause."""
    kept = _the_one(found)
    return _delete_but(kept, found) if kept.enabled else Step("make", order=kept.order)


def to_remove(found: Sequence[RecurringRun], now: datetime) -> Step | None:
    """The rule of ``remove``: none."""
    return Step("delete", found[-1]) if found else None


def settle(server: KfpServer, name: str, rule: Rule) -> Iterator[Step]:
    """Take the steps of ``rule``, each told before the next is looked for.

    Raises:
        PipelineError: the server refused or is away, or another command works against this one.
    """
    for _ in range(MOST_STEPS):
        step = rule(server.recurring(name), datetime.now(UTC))
        if step is None:
            return
        with contextlib.suppress(*(() if step.run is None else (NotThere,))):  # another command was quicker
            _take(server, name, step)
        yield step
    raise PipelineError(
        f"{name} is not as it should be after {MOST_STEPS} steps; another command works on it, or this machine's clock "
        f"differs from that of {server.host}: end the one or correct the other, and run this again"
    )


def foretell(server: KfpServer, name: str, rule: Rule) -> Iterator[Step]:
    """The steps that ``settle`` would take, with nothing changed."""
    now = datetime.now(UTC)
    found = server.recurring(name)
    for number in range(MOST_STEPS):
        step = rule(found, now)
        if step is None:
            return
        found = _after(found, step, number, now)
        yield step


def _take(server: KfpServer, name: str, step: Step) -> None:
    if step.kind == "make":
        assert step.order is not None
        server.make_recurring(name, step.order, step.description, enabled=step.enabled)
        return
    assert step.run is not None
    {"enable": server.enable, "pause": server.disable, "delete": server.delete}[step.kind](step.run.id)


def _after(found: Sequence[RecurringRun], step: Step, number: int, now: datetime) -> list[RecurringRun]:
    if step.kind == "make":
        assert step.order is not None
        return [*found, RecurringRun(f"new-{number}", step.enabled, now, step.description, step.order)]
    changed = [] if step.run is None or step.kind == "delete" else [replace(step.run, enabled=step.kind == "enable")]
    return [after for one in found for after in (changed if one == step.run else [one])]


def _is_paused(found: Sequence[RecurringRun]) -> bool:
    if any(one.enabled for one in found):
        return False
    newest = [one for one in found if one.made == found[-1].made]
    return len(found) == 1 or any(one.description == PAUSED for one in newest)


def _reusable(one: RecurringRun, cron: Cron, now: datetime, paused: bool) -> bool:
    """Whether a paused one that a command left can be the new one: enabling it starts no missed tick."""
    return (one.description == PAUSED) == paused and cron.next_ticks(one.made, 1)[0] > now


def _does(order: Order, wanted: Order) -> bool:
    """Whether an order is the wanted one; the server may have added arguments of its own."""
    return replace(order, arguments={}) == replace(wanted, arguments={}) and all(
        order.arguments.get(key) == value for key, value in wanted.arguments.items()
    )


def _the_one(found: Sequence[RecurringRun]) -> RecurringRun:
    """The enabled one, else the newest.

    Raises:
        ConfigError: there is none.
    """
    if not found:
        raise ConfigError("there is no schedule of this name on KFP's server; make it with deeprec schedule set")
    return next((one for one in found if one.enabled), found[-1])


def _delete_but(kept: RecurringRun, found: Sequence[RecurringRun]) -> Step | None:
    """Delete another one, the enabled first."""
    others = sorted((one for one in found if one != kept), key=lambda one: not one.enabled)
    return Step("delete", others[0]) if others else None
