"""What a run costs, and a thousand recommendations: seconds times a price per hour, of CPUs and of accelerators.

A task is paid for as long as it ran, with the accelerators that it asked for or used. Requests are counted one at a
time, as they were timed: a server that answers several at once is cheaper. Without a price there are seconds alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deeprec.config.operation import PriceConfig
from deeprec.store import read_artifact
from deeprec.types import JsonDict

REQUESTS = 1000
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Spent:
    """Wall seconds, and how many accelerators were there all the while."""

    seconds: float
    accelerators: int = 0

    def price(self, per_hour: PriceConfig) -> float:
        """What it costs."""
        return self.seconds / _HOUR * (per_hour.cpu + self.accelerators * per_hour.accelerator)


def spent_on(artifact: Path) -> Spent:
    """What the process spent that wrote an artifact, its start included.

    Raises:
        ArtifactError: there is none.
    """
    manifest = read_artifact(artifact, verify=False)
    return Spent(manifest.seconds, manifest.accelerators)


def cost(
    tasks: Mapping[str, Spent],
    milliseconds: Mapping[str, float],
    accelerators: Mapping[str, int],
    per_hour: PriceConfig,
) -> JsonDict:
    """``cost`` of ``metrics.json``: that of ``task_cost``, and of a thousand requests.

    Args:
        milliseconds: who answers (``policy``, ``trm``) → a request.
        accelerators: who answers → how many were there while it was timed.

    Returns:
        ``tasks`` and ``total`` as of ``task_cost``; ``per_1000`` by who answers, each with ``seconds``,
        ``accelerators`` and ``price``.
    """
    requests = {name: Spent(value * REQUESTS / 1000, accelerators.get(name, 0)) for name, value in milliseconds.items()}
    return {**task_cost(tasks, per_hour), f"per_{REQUESTS}": _rows(requests, per_hour)}


def task_cost(tasks: Mapping[str, Spent], per_hour: PriceConfig) -> JsonDict:
    """What tasks cost, and all of them.

    Args:
        tasks: task → what it spent, in their order.

    Returns:
        ``tasks``, each with ``seconds``, ``accelerators`` and ``price``; and ``total`` with ``seconds`` and ``price``.
        A price is None where none is configured.
    """
    seconds = round(sum(spent.seconds for spent in tasks.values()), 3)
    price = sum(spent.price(per_hour) for spent in tasks.values()) if _priced(per_hour) else None
    return {"tasks": _rows(tasks, per_hour), "total": {"seconds": seconds, "price": price}}


def _rows(found: Mapping[str, Spent], per_hour: PriceConfig) -> JsonDict:
    return {
        name: {
            "seconds": round(spent.seconds, 3),
            "accelerators": spent.accelerators,
            "price": spent.price(per_hour) if _priced(per_hour) else None,
        }
        for name, spent in found.items()
    }


def _priced(per_hour: PriceConfig) -> bool:
    return bool(per_hour.cpu or per_hour.accelerator)


def cost_sentence(found: JsonDict) -> str:
    """What the run cost and what answering costs; empty without a price."""
    total, answers = found["total"], found[f"per_{REQUESTS}"]
    if total["price"] is None:
        return ""
    each = ", ".join(
        f"{money(row['price'])} by the {'TRM' if name == 'trm' else name}" for name, row in answers.items()
    )
    return (
        f"The tasks up to the evaluation took {total['seconds'] / 60:.1f} minutes and cost {money(total['price'])}; "
        f"{REQUESTS:,} recommendations, asked one at a time, cost {each}."
    )


def cost_table(found: JsonDict) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: the tasks, their total, and a thousand recommendations; without a price no column of it."""
    named = {
        **found["tasks"],
        "all of these": {**found["total"], "accelerators": ""},
        **{
            f"{REQUESTS:,} recommendations, {'TRM' if name == 'trm' else name}": row
            for name, row in found[f"per_{REQUESTS}"].items()
        },
    }
    priced = found["total"]["price"] is not None
    rows = [
        (name, f"{row['seconds']:,.1f}", str(row["accelerators"]), *((money(row["price"]),) if priced else ()))
        for name, row in named.items()
    ]
    return ("", "seconds", "accelerators", *(("price",) if priced else ())), rows


def money(price: float) -> str:
    """A price with two decimals, or as many as show two digits of it."""
    return f"{price:,.2f}" if price >= 1 or price == 0 else f"{price:.2g}"
