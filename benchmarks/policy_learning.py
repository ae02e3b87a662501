"""What the two stages teach the policy: ``python -m benchmarks.policy_learning --data DIR`` (MovieLens-1M).

The profile ``ml-1m`` from the TRM on: warm start, prompt selection, stage 1, stage 2, each timed; the TRM is given
(``--trm``) or trained before the clock starts. Then all users answer greedily for the test target, which is read here
once: the TRM alone, the start, stage 1 and stage 2. An answer that breaks a format rule is a miss.

``--ablations`` goes on from the same warm start and prompts: stage 2 without stage 1, without the point-wise reward,
stage 1 without diversity, and one call only; each with equal and with half the steps, on the validation target.

``--start-only`` ends with the warm start and leaves the test target alone: the start's figures on the validation
target, valid or not, and what is to be gained: the TRM's first items ordered by the TRM, by what the policy expects
after its histories, and by both. ``--validation`` measures the whole table on the validation target, to choose settings
with. Where answers are held to retrieved titles (``explore.answers``), the share that would be valid without is beside.

``--keep DIR`` keeps every artifact, and goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trm_accuracy import CONFIGS
from deeprec.config import Config, DataConfig, load_config
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import test_examples, validation_examples
from deeprec.errors import PolicyError
from deeprec.evaluation.evaluate import baselines
from deeprec.evaluation.outcome import ranks_of
from deeprec.evaluation.setting import Setting, measure, open_setting, roll_out, violations_of
from deeprec.evaluation.significance import compare
from deeprec.explore.fusion import merged_weights
from deeprec.explore.loading import load_policy
from deeprec.explore.opinion import OwnOpinion
from deeprec.explore.scripted import HASTY_THOUGHTS
from deeprec.metrics import metrics_from_ranks
from deeprec.policy.build import build_policy, warm_start_policy
from deeprec.policy.select import select_prompts
from deeprec.policy.setting import Setting as PolicySetting
from deeprec.policy.stage import train_stage
from deeprec.rewards.diversity import diversity_values
from deeprec.trm.text import load_embedder
from deeprec.trm.training import train_trm
from deeprec.types import Query

LIMIT_MINUTES = 120.0
WANTED_DIFFERENCES = [("stage2", "stage1"), ("stage2", "trm"), ("stage1", "start")]
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "as it is": (),
    "without stage 1": ("policy.stage1.steps=0",),
    "without point-wise": ("rewards.stage2.pointwise=0.0",),
    "without diversity": ("rewards.stage1.diversity=0.0",),
    "one call only": ("explore.max_calls=1",),
}
"""Name → what it changes."""
Figures = dict[str, float]


def main() -> None:
    """Train, measure, print the table; then the ablations where they are wanted."""
    arguments = _arguments()
    overrides = tuple(arguments.set or ())
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        bench = Bench(root, arguments.data, arguments.trm, overrides)
        found: dict[str, Any] = {}
        if arguments.start_only:
            found = bench.start_table()
        elif not arguments.only_ablations:
            found = bench.main_table("validation" if arguments.validation else "test")
        if arguments.ablations or arguments.only_ablations:
            found["ablations"] = bench.ablations(arguments.ablation or list(ABLATIONS))
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class Bench:
    """A directory of artifacts, each made once: what is there already is gone on from."""

    def __init__(self, root: Path, data: Path, trm: Path | None, overrides: tuple[str, ...]) -> None:
        self.root, self.overrides = root, overrides
        self.config = load_config(CONFIGS / "ml-1m.yaml", overrides)
        self.dataset = data if (data / "dataset.json").exists() else root / "dataset"
        if not self.dataset.exists():
            section = self.config.data.model_dump() | {"path": str(data)}
            ingest(DataConfig.model_validate(section), 0, self.dataset)
        self.data = read_dataset(self.dataset)
        self.trm = trm or root / "trm"
        if not self.trm.exists():
            self._train_trm()

    def main_table(self, split: str) -> dict[str, Any]:
        """Warm start, both stages and their figures for the target of ``split``, with the minutes of each."""
        config = self.config
        minutes = {
            "histories": self.timed("histories", self.histories),
            "lessons": self.timed("start", self.lessons),
            "prompts": self.timed("prompts", lambda out: self.select(config, out)),
            "stage 1": self.timed("stage1", lambda out: self.stage("stage1", config, self.root / "start", out)),
            "stage 2": self.timed("stage2", lambda out: self.stage("stage2", config, self.root / "stage1", out)),
        }
        started = time.perf_counter()
        setting = self.setting(config, split)
        simple = baselines(setting, self.data, tell)
        figures = {name: one.metrics for name, one in simple.items()}
        ranks = {name: one.ranks for name, one in simple.items()}
        for name in ("start", "stage1", "stage2"):
            figures[name], ranks[name] = self.figures(setting, self.root / name)
        minutes["evaluation"] = (time.perf_counter() - started) / 60
        compared = compare(ranks, WANTED_DIFFERENCES, config.evaluation.bootstrap_samples, config.seed)
        differences = compared["differences"]
        print_table(figures, differences, minutes, split)
        return {"minutes": minutes, "figures": figures, "differences": differences}

    def start_table(self) -> dict[str, Any]:
        """The warm start on the validation target, beside what its teacher could choose from."""
        minutes = {"histories": self.timed("histories", self.histories), "lessons": self.timed("start", self.lessons)}
        setting = self.setting(self.config, "validation")
        made = roll_out(setting, "start", load_policy(self.root / "start"), tell)
        figures = measure(setting, made, [violations_of(setting, one) for one in made]).metrics
        size = self.config.explore.answer_size
        answers = [tuple(dict.fromkeys(filter(None, one.answer))) for one in made]
        figures["ndcg@10, valid or not"] = metrics_from_ranks(ranks_of(answers, setting.examples, size))["ndcg@10"]
        orders = {
            name: metrics_from_ranks(ranks_of(lists, setting.examples, size))["ndcg@10"]
            for name, lists in self._orders(setting).items()
        }
        print("\nall users, greedy, validation target")
        print("start   " + "".join(f"{key} {value:.4f}  " for key, value in figures.items()))
        first = self.config.explore.items_per_call
        for name, value in orders.items():
            print(
                f"the TRM's first {first}, ordered by {name:16} NDCG@10 {value:.4f}  {value / orders['the TRM']:.3f} ×"
            )
        print("minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))
        return {"minutes": minutes, "start": figures, "orders": orders}

    def _orders(self, setting: Setting) -> dict[str, list[tuple[str, ...]]]:
        """The first ``answer_size`` of each user's broad list, in three orders."""
        explore, examples = self.config.explore, setting.examples
        own = load_policy(self.root / "histories")
        world = PolicySetting.open(self.dataset, self.trm, self.config.text)
        judge = OwnOpinion(own.model, own.tokenizer, world.titles, explore)
        orders: dict[str, list[tuple[str, ...]]] = {"the TRM": [], "the policy": [], "both": []}
        for first in range(0, len(examples), explore.batch_size):
            part = examples[first : first + explore.batch_size]
            lists = setting.retriever.retrieve([Query(one.history) for one in part], explore.items_per_call)
            weights = [merged_weights([items]) for items in lists]
            for found, likely in zip(weights, judge(part, [list(one) for one in weights]), strict=True):
                liked = dict(zip(found, likely, strict=True))
                both = {item: math.log(weight) + liked[item] for item, weight in found.items()}
                for name, value in (("the TRM", found), ("the policy", liked), ("both", both)):
                    best = sorted(value, key=value.__getitem__, reverse=True)
                    orders[name].append(tuple(best[: explore.answer_size]))
        return orders

    def ablations(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Each of the ablations with equal and half the steps, measured on the validation target.

        One whose training collapsed has the reason as ``stopped`` in place of figures.
        """
        rows: list[dict[str, Any]] = []
        for name in names:
            for share in (1.0, 0.5):
                try:
                    figures: Mapping[str, Any] = self._ablation(name, share)
                except PolicyError as error:
                    figures = {"stopped": str(error)}
                rows.append({"name": name, "steps": share, **figures})
                print_ablation(rows[-1])
        return rows

    def _ablation(self, name: str, share: float) -> Figures:
        stages = {"stage1": self.config.policy.stage1.steps, "stage2": self.config.policy.stage2.steps}
        fewer = tuple(f"policy.{stage}.steps={round(share * steps)}" for stage, steps in stages.items())
        changes = ABLATIONS[name]
        config = load_config(CONFIGS / "ml-1m.yaml", (*self.overrides, *fewer, *changes))
        start = self.root / "start"
        if config.policy.stage1.steps:
            before = [change for change in changes if not change.startswith("rewards.stage2.")]
            place = self._place("stage1", share, before)
            self.timed(place, lambda out: self.stage("stage1", config, self.root / "start", out))
            start = place
        place = self._place("stage2", share, changes)
        self.timed(place, lambda out: self.stage("stage2", config, start, out))
        setting = self.setting(config, "validation")
        figures, ranks = self.figures(setting, place, free=False)
        pair = compare({"policy": ranks, "trm": self._trm_ranks(setting)}, [("policy", "trm")], 1000, config.seed)
        difference = pair["differences"]["policy_minus_trm"]["ndcg@10"]
        return figures | {"minus trm": difference["mean"], "low": difference["low"], "high": difference["high"]}

    def _place(self, stage: str, share: float, changes: Sequence[str]) -> Path:
        """Where a stage's policy is kept: what two ablations have in common is trained once, or by the main table."""
        if share == 1.0 and not changes:
            return self.root / stage
        place = self.root / "ablations"
        place.mkdir(exist_ok=True)
        return place / "-".join((stage, str(share), *changes))

    def timed(self, name: str | Path, make: Callable[[Path], object]) -> float:
        """Make an artifact unless it is there; its minutes, which are kept beside it."""
        out = self.root / name
        kept = out.with_name(out.name + ".minutes")
        if not out.exists():
            started = time.perf_counter()
            make(out)
            kept.write_text(str((time.perf_counter() - started) / 60), encoding="utf-8")
        return float(kept.read_text(encoding="utf-8"))

    def histories(self, out: Path) -> None:
        """The first half of the warm start: a new policy learns what follows what."""
        warm_start = self.config.policy.warm_start.model_copy(update={"trajectories": 0})
        policy, explore = self.config.policy.model_copy(update={"warm_start": warm_start}), self.config.explore
        build_policy(self.dataset, self.trm, policy, explore, self.config.text, self.config.seed, out, progress=tell)

    def lessons(self, out: Path) -> None:
        """The second half: the scripted lessons. Both halves are what one task of the pipeline does at a stretch."""
        warm_start = self.config.policy.warm_start
        warm_start = warm_start.model_copy(update={"histories": warm_start.histories.model_copy(update={"passes": 0})})
        policy, explore = self.config.policy.model_copy(update={"warm_start": warm_start}), self.config.explore
        warm_start_policy(
            self.dataset, self.trm, self.root / "histories", policy, explore, self.config.text, self.config.seed, out,
            progress=tell,
        )  # fmt: skip

    def select(self, config: Config, out: Path) -> None:
        """The prompts of both stages."""
        select_prompts(
            self.dataset, self.trm, self.root / "start", config.policy, config.explore, config.rewards, config.text,
            config.seed, out, progress=tell,
        )  # fmt: skip

    def stage(self, stage: Any, config: Config, start: Path, out: Path) -> None:
        """One stage, from ``start``."""
        train_stage(
            stage, self.dataset, self.trm, start, self.root / "prompts", config.policy, config.explore, config.rewards,
            config.text, config.seed, out, out.with_name(out.name + ".html"), progress=tell,
        )  # fmt: skip

    def setting(self, config: Config, split: str) -> Setting:
        """All users, for the target of ``split``."""
        examples = test_examples(self.data) if split == "test" else validation_examples(self.data)
        return open_setting(self.data, examples, self.trm, config.explore, config.rewards, config.text, config.seed)

    def figures(self, setting: Setting, policy: Path, *, free: bool = True) -> tuple[Figures, Any]:
        """A policy's figures, the mean diversity reward and the share of hasty answers too, and the targets' ranks.

        ``free`` rolls out once more where answers are held, for the share that would be valid without.
        """
        actor = load_policy(policy)
        made = roll_out(setting, policy.name, actor, tell)
        outcome = measure(setting, made, [violations_of(setting, one) for one in made])
        more = {
            "diversity": float(np.mean(diversity_values(made, setting.embedder))),
            "hasty": float(np.mean([any(thought in one.text for thought in HASTY_THOUGHTS) for one in made])),
        }
        if free and setting.explore.answers == "retrieved":
            loose = {"answers": "free", "list_weight": 0.0}
            unheld = replace(setting, explore=setting.explore.model_copy(update=loose))
            made = roll_out(unheld, f"{policy.name}, answers not held", actor, tell)
            more["valid_rate_free"] = float(np.mean([not violations_of(unheld, one) for one in made]))
        return outcome.metrics | more, outcome.ranks

    def _trm_ranks(self, setting: Setting) -> Any:
        return ranks_of(setting.trm_answers, setting.examples, setting.explore.answer_size)

    def _train_trm(self) -> None:
        from deeprec.data.splits import trm_sequences

        config = self.config
        print("training the TRM, outside the clock", flush=True)
        train_trm(
            self.data, trm_sequences(self.data), config.trm, config.text, load_embedder(config.text), config.seed,
            self.trm, progress=lambda line: tell(str(line)), validation=validation_examples(self.data),
        )  # fmt: skip


def print_table(
    figures: Mapping[str, Figures], differences: Mapping[str, Any], minutes: Mapping[str, float], split: str
) -> None:
    """Every figure beside what is wanted."""
    print(f"\nall users, greedy, {split} target")
    for name, row in figures.items():
        print(f"{name:11}" + "".join(f"{key} {row[key]:.4f}  " for key in SHOWN if key in row))
    start, first, second, trm = (figures[name] for name in ("start", "stage1", "stage2", "trm"))
    gain = second["ndcg@10"] / trm["ndcg@10"]
    above = differences["stage2_minus_stage1"]["ndcg@10"]
    beside = differences["stage2_minus_trm"]["ndcg@10"]
    for what, value, wanted in (
        ("warm start: valid_rate", f"{start['valid_rate']:.3f}", "0.3 to 0.9"),
        ("stage 1: valid_rate", f"{first['valid_rate']:.4f}", "at least 0.99"),
        ("stage 1: mean_calls", f"{first['mean_calls']:.3f}", "at least 2"),
        ("stage 1: diversity above the start's", f"{first['diversity'] - start['diversity']:+.4f}", "above 0"),
        ("stage 1: users with the top later preference", f"{first['top_preference_share']:.3f}", "at most 0.20"),
        ("stage 2: NDCG@10 above stage 1's", _interval(above), "interval above 0"),
        ("stage 2: valid_rate", f"{second['valid_rate']:.4f}", "at least 0.99"),
        ("stage 2: NDCG@10 / TRM alone", f"{gain:.3f}", "at least 1, aim 1.05"),
        ("stage 2: NDCG@10 above the TRM's", _interval(beside), ""),
        ("minutes in all", f"{sum(minutes.values()):.1f}", f"at most {LIMIT_MINUTES:.0f}"),
    ):
        print(f"{what:46} {value:32} {wanted}")
    print("minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))


def print_ablation(row: Mapping[str, Any]) -> None:
    """One row: steps as a share, figures on the validation target."""
    if "stopped" in row:
        print(f"{row['name']:20} {row['steps']:.0%} of the steps: {row['stopped']}", flush=True)
        return
    shown = "".join(f"{key} {row[key]:.4f}  " for key in SHOWN if key in row)
    print(
        f"{row['name']:20} {row['steps']:.0%} of the steps: {shown}minus TRM {row['minus trm']:+.4f} "
        f"[{row['low']:+.4f}, {row['high']:+.4f}]",
        flush=True,
    )


SHOWN = (
    "recall@10", "ndcg@10", "mrr", "valid_rate", "valid_rate_free", "mean_calls", "hasty", "diversity",
    "top_preference_share", "candidate_recall", "same_as_trm",
)  # fmt: skip


def _interval(difference: Mapping[str, float]) -> str:
    return f"{difference['mean']:+.4f} [{difference['low']:+.4f}, {difference['high']:+.4f}]"


def tell(line: str) -> None:
    """A progress line."""
    print(f"  {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python -m benchmarks.policy_learning --data ml-1m --keep learning --ablations",
    )
    parser.add_argument("--data", type=Path, required=True, help="a MovieLens-1M directory, or a deeprec dataset")
    parser.add_argument("--trm", type=Path, help="the TRM, trained for a policy; without it one is trained first")
    parser.add_argument("--keep", type=Path, help="keep all artifacts here, and go on from those that are there")
    parser.add_argument(
        "--start-only", action="store_true", help="end with the warm start; leaves the test target alone"
    )
    parser.add_argument(
        "--validation", action="store_true", help="measure on the validation target; leaves the test target alone"
    )
    parser.add_argument("--ablations", action="store_true", help="run the ablations as well")
    parser.add_argument("--only-ablations", action="store_true", help="run nothing else; leaves the test target alone")
    parser.add_argument("--ablation", action="append", choices=list(ABLATIONS), help="one of them; repeatable")
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration; repeatable")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
