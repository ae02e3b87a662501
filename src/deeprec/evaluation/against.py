"""A new bundle against the one that is live: both answer for the same users, and one that answers worse is held back.

The interactions are the test targets of the new bundle's dataset, each user's last item; the histories are those before
them. Each bundle answers by what it serves, its policy (greedily; an answer that breaks a format rule is a miss) or its
TRM, from its own catalogue: it reads those items of a history that it knows, and a target it does not know is a miss.

No answer comes from weights that have seen its target. Both trainings were held away from the newest items of each user
in their own data, and what is newest in the live bundle's data is older than, or the same as, what is newest now. A TRM
that was trained anew on everything before it served is measured as the one that it stands in for, on both sides alike
(``trm.artifact.read_measured``); where the live bundle keeps no such weights nothing is compared.

The test targets are read once more here, after evaluation. No setting depends on them, only whether a bundle serves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deeprec.checks.gate import CheckRow, Verdict
from deeprec.config import ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.splits import test_examples
from deeprec.errors import DataError, TrmError
from deeprec.evaluation import significance
from deeprec.evaluation.baselines import trm_answers
from deeprec.evaluation.outcome import ranks_of, valid_answers
from deeprec.evaluation.setting import open_setting, rolled_out, violations_of
from deeprec.evaluation.significance import COMPARED, CONFIDENCE
from deeprec.types import Catalogue, Example, JsonDict

GATE = "against the live bundle"
K = 10
"""Places of an answer that count at most."""
SHOWN = {"ndcg@10": "NDCG", "recall@10": "hit share"}
Outcome = Literal["better", "no worse", "worse", "inconclusive"]
Sides = Mapping[str, Mapping[str, float]]
"""``new``, ``live`` and ``difference``, new minus live → ``mean``, ``low`` and ``high``."""


class Contender(Protocol):
    """What is asked of a bundle, opened with the parts that it runs; ``bundle.Bundle`` is one."""

    @property
    def version(self) -> str: ...
    @property
    def serve(self) -> Literal["policy", "trm"]: ...
    @property
    def catalogue(self) -> Catalogue: ...
    @property
    def explore(self) -> ExploreConfig: ...
    @property
    def text(self) -> TextConfig: ...
    def part(self, name: Literal["trm", "policy"]) -> Path: ...


@dataclass(frozen=True)
class Against:
    """How a new bundle stands to the live one.

    ``new`` and ``live`` are versions; ``users`` answered for; ``k`` places counted; ``unknown`` targets that the live
    bundle's catalogue does not have; ``metrics`` of ``COMPARED``, cut at ``k``, empty where nothing could be compared;
    ``releases`` whether the new one may take the live one's place, and ``reason`` one line that says why.
    """

    new: str
    live: str
    users: int
    k: int
    unknown: int
    verdict: Outcome
    releases: bool
    reason: str
    metrics: Mapping[str, Sides] = field(default_factory=dict)

    def to_json(self) -> JsonDict:
        """Plain values."""
        return asdict(self)

    def to_markdown(self) -> str:
        """The reason, then a table of the figures."""
        return self.gate().to_markdown() if not self.metrics else f"**{self.reason}**\n\n{self._table()}"

    def gate(self) -> Verdict:
        """The verdict as a gate's, for the task that follows to require."""
        rows = tuple(
            CheckRow(
                f"{SHOWN[name]}@{self.k}, new minus live", _signed(sides["difference"]), "not worse", self.releases
            )
            for name, sides in self.metrics.items()
            if name == COMPARED[0]
        )
        return Verdict(GATE, self.releases, self.reason, rows)

    def _table(self) -> str:
        lines = [f"| | new, `{self.new}` | live, `{self.live}` | new minus live |", "| --- | --- | --- | --- |"]
        for name, sides in self.metrics.items():
            cells = [f"{sides[side]['mean']:.4f}" for side in ("new", "live")] + [_signed(sides["difference"])]
            lines.append(f"| {SHOWN[name]}@{self.k} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def compare(
    new: Contender,
    live: Contender,
    dataset: Path,
    *,
    users: int = 2000,
    min_users: int = 200,
    margin: float = 0.0,
    release_inconclusive: bool = False,
    resamples: int = 2000,
    seed: int = 0,
    progress: Callable[[str], None] = print,
) -> Against:
    """Let both bundles answer for the same users, and judge.

    The new one is worse where the whole interval of the difference in NDCG is below −``margin`` times the live one's.

    Args:
        dataset: what the new bundle was made from, which holds the live one's data and what came since.
        users: that many at most, drawn at random with ``seed``.
        min_users: with fewer nothing is decided: ``inconclusive``.
        margin: share of the live bundle's NDCG that the new one may be shown to lose.
        release_inconclusive: a new bundle that could not be compared, or on too few users, may be released.
        resamples: of the paired bootstrap.

    Raises:
        ArtifactError, DataError, TrmError, PolicyError: the dataset or a part of a bundle cannot be read.
    """
    from deeprec.trm.artifact import keeps_measured

    data = read_dataset(dataset)
    examples = _drawn(test_examples(data), users, seed)
    k = min(K, new.explore.answer_size, live.explore.answer_size)
    unknown = sum(example.target not in live.catalogue for example in examples)
    found = Against(new.version, live.version, len(examples), k, unknown, "inconclusive", release_inconclusive, "")
    if live.serve == "trm" and not keeps_measured(live.part("trm")):
        why = "the live bundle's TRM was trained anew on everything and keeps no weights that these can measure"
        return replace(found, reason=_open(found, why))
    ranks = {}
    for name, bundle in (("new", new), ("live", live)):
        progress(f"{name} bundle, {bundle.version}: {len(examples):,} users")
        ranks[name] = _ranks(bundle, examples, k, progress)
    found = replace(found, metrics=_figures(ranks, resamples, seed))
    if len(examples) < min_users:
        why = f"{len(examples):,} users are too few to tell, at least {min_users:,} are asked for"
        return replace(found, reason=_open(found, why))
    verdict = _judged(found.metrics[COMPARED[0]], margin)
    return replace(found, verdict=verdict, releases=verdict != "worse", reason=_reason(found, verdict, margin))


# ---------------------------------------------------------------------------------------------------------- answering


def _drawn(examples: Sequence[Example], users: int, seed: int) -> list[Example]:
    if not examples:
        raise DataError("the dataset has no users, so that bundles cannot be compared on it; import data with some")
    if users >= len(examples):
        return list(examples)
    places = np.random.default_rng(seed).choice(len(examples), size=users, replace=False)
    return [examples[place] for place in sorted(places)]


def _ranks(
    bundle: Contender, examples: Sequence[Example], k: int, progress: Callable[[str], None]
) -> NDArray[np.int64]:
    """(users,) ranks of the targets among the first ``k`` items that the bundle answers."""
    if bundle.serve == "policy":
        return ranks_of(_policy_answers(bundle, examples, progress), examples, k)
    return ranks_of(_trm_answers(bundle, examples, k), examples, k)


def _policy_answers(
    bundle: Contender, examples: Sequence[Example], progress: Callable[[str], None]
) -> Sequence[Sequence[str | None]]:
    from deeprec.explore.loading import open_policy

    world = Dataset(bundle.catalogue, {})
    setting = open_setting(world, examples, bundle.part("trm"), bundle.explore, RewardsConfig(), bundle.text)
    with closing(open_policy(bundle.part("policy"), bundle.explore.engine)) as policy:
        trajectories = rolled_out(setting, policy, progress)
    return valid_answers(trajectories, [violations_of(setting, trajectory) for trajectory in trajectories])


def _trm_answers(bundle: Contender, examples: Sequence[Example], k: int) -> Sequence[Sequence[str]]:
    from deeprec.trm.artifact import read_measured
    from deeprec.trm.retriever import TrmRetriever
    from deeprec.trm.text import load_embedder

    trained, held_out = read_measured(bundle.part("trm"))
    if held_out == 0:
        raise TrmError(
            f"the TRM of bundle {bundle.version} has seen the items that it would be measured with; name one of a run"
        )
    return trm_answers(TrmRetriever(trained, bundle.catalogue, load_embedder(bundle.text)), examples, k)


# ------------------------------------------------------------------------------------------------------------ judging


def _figures(ranks: Mapping[str, NDArray[np.int64]], resamples: int, seed: int) -> dict[str, Sides]:
    found: dict[str, Any] = significance.compare(ranks, [("new", "live")], resamples, seed)
    return {
        metric: {
            **{side: found["intervals"][side][metric] for side in ("new", "live")},
            "difference": found["differences"]["new_minus_live"][metric],
        }
        for metric in COMPARED
    }


def _judged(sides: Sides, margin: float) -> Outcome:
    if sides["difference"]["high"] < -margin * sides["live"]["mean"]:
        return "worse"
    return "better" if sides["difference"]["low"] > 0 else "no worse"


def _reason(found: Against, verdict: Outcome, margin: float) -> str:
    allowed = f", more than the {margin:.1%} that it may lose" if margin and verdict == "worse" else ""
    ending = f"{allowed}; it is not released, and {found.live} stays live" if verdict == "worse" else ""
    return f"{GATE}: the new bundle {found.new} is {verdict} than {found.live}: {_told(found)}{ending}"


def _open(found: Against, why: str) -> str:
    ending = "it may be released all the same" if found.releases else f"it is not released, and {found.live} stays live"
    figures = f" ({_told(found)})" if found.metrics else ""
    return f"{GATE}: whether the new bundle {found.new} is worse than {found.live} is open: {why}{figures}; {ending}"


def _told(found: Against) -> str:
    sides = found.metrics[COMPARED[0]]
    return (
        f"NDCG@{found.k} {sides['new']['mean']:.4f} against {sides['live']['mean']:.4f} on {found.users:,} users, "
        f"difference {_signed(sides['difference'])} at {CONFIDENCE:.0%}"
    )


def _signed(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
