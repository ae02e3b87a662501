"""What each step of a policy gives: ``python -m benchmarks.policy_learning --data DIR`` (MovieLens-1M).

The profile ``ml-1m``, or another (``--profile``), as ``deeprec run`` does it: the TRM, the warm start (histories, then
lessons), prompt selection, both stages, and the TRM trained on everything, each timed. Then all users answer greedily
for the test target, which is read here once, and the tables are those of ``deeprec run``: every baseline, the start,
stage 1 and stage 2, paired differences, and the verdict. ``--validation`` reads the validation target instead, to
choose settings with. An answer that breaks a format rule is a miss.

``--start-ablations`` leaves out one part of the warm start at a time and runs no stage: what a part is worth before
anything is rewarded. ``--stage-ablations`` goes on from the start and the prompts of the profile: stage 2 without
stage 1, without the point-wise reward, stage 1 without diversity, and one call only. Both read the validation target.

``--keep DIR`` keeps every artifact, and goes on from what is there.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.trm_accuracy import CONFIGS
from deeprec.cli.run import step_table, table
from deeprec.config import Config, load_config
from deeprec.data.dataset import read_dataset
from deeprec.data.ingest import ingest
from deeprec.data.splits import standalone_sequences, test_examples, trm_sequences, validation_examples
from deeprec.errors import PolicyError
from deeprec.evaluation.evaluate import POLICIES, Made, assemble, measure_all
from deeprec.evaluation.outcome import ranks_of
from deeprec.evaluation.setting import Setting, measure, open_setting, rolled_out, violations_of
from deeprec.evaluation.significance import compare, ratio
from deeprec.explore.loading import load_policy
from deeprec.policy.build import build_policy, warm_start_policy
from deeprec.policy.rollouts import roll_policy_out
from deeprec.policy.select import select_prompts
from deeprec.policy.stage import train_stage
from deeprec.rewards.diversity import diversity_values
from deeprec.trm.text import load_embedder
from deeprec.trm.training import train_trm

START_ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "as it is": (),
    "answers ranked by the lists": ("policy.warm_start.judge=lists",),
    "lists not weighed": ("explore.list_weight=0",),
    "no upper layer": ("policy.tiny.upper_layers=0",),
    "no upper layer, a lower one instead": ("policy.tiny.upper_layers=0", "policy.tiny.layers={depth}"),
    "histories not rehearsed": ("policy.warm_start.histories.rehearse=0",),
}
STAGE_ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "as it is": (),
    "without stage 1": ("policy.stage1.steps=0",),
    "without point-wise": ("rewards.stage2.pointwise=0.0",),
    "without diversity": ("rewards.stage1.diversity=0.0",),
    "one call only": ("explore.max_calls=1",),
}
"""Name → what it changes; ``{depth}`` is the number of all the profile's layers."""
SHOWN = ("ndcg@10", "recall@10", "valid_rate", "mean_calls", "diversity", "top_preference_share", "candidate_recall")
Row = dict[str, Any]


def main() -> None:
    """Train, measure, print the tables."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.keep or Path(scratch)
        root.mkdir(parents=True, exist_ok=True)
        bench = Bench(root, arguments.profile, arguments.data, arguments.trm, tuple(arguments.set or ()))
        found: Row = {}
        if arguments.start_ablations:
            found["start ablations"] = bench.start_ablations(arguments.ablation or list(START_ABLATIONS))
        if arguments.stage_ablations:
            found["stage ablations"] = bench.stage_ablations(arguments.ablation or list(STAGE_ABLATIONS))
        if not found:
            found = bench.main_table("validation" if arguments.validation else "test")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


class Bench:
    """A directory of artifacts, each made once: what is there already is gone on from."""

    def __init__(
        self, root: Path, profile: str, data: Path | None, trm: Path | None, overrides: tuple[str, ...]
    ) -> None:
        self.root, self.profile, self.overrides = root, profile, overrides
        self.config = self._load()
        self.dataset = data if data and (data / "dataset.json").exists() else root / "dataset"
        if not self.dataset.exists():
            path = {"path": str(data)} if data else {}
            ingest(self.config.data.model_copy(update=path), self.config.seed, self.dataset)
        self.data = read_dataset(self.dataset)
        self.trm = trm or root / "trm"

    def main_table(self, split: str) -> Row:
        """Every recommender for the target of ``split``, and the minutes of each step."""
        config = self.config
        minutes = {"TRM": self.timed("trm", lambda out: self.train_trm(out, trm_sequences(self.data)))} | {
            "histories": self.timed("histories", lambda out: self.histories(config, out)),
            "lessons": self.timed("start", lambda out: self.lessons(config, self.root / "histories", out)),
            "candidates": self.timed("candidates", lambda out: self.roll_out("candidates", "start", out)),
            "prompts": self.timed("prompts", self.select),
            "stage 1": self.timed("stage1", lambda out: self.stage("stage1", config, self.root / "start", out)),
            "stage 2": self.timed("stage2", lambda out: self.stage("stage2", config, self.root / "stage1", out)),
            "TRM on everything": self.timed(
                "trm_everything", lambda out: self.train_trm(out, standalone_sequences(self.data))
            ),
        }
        made = ("trm_everything", "start", "candidates", "prompts", "stage1", "stage2")
        places = {name: self.root / name for name in made} | self.rollouts(split)
        setting = self.setting(config, split)
        measured = measure_all(setting, self.data, Made(self.dataset, self.trm, **places), tell)
        taken = {
            "trm_everything": minutes["TRM on everything"],
            "policy": sum(value for name, value in minutes.items() if name != "TRM on everything"),
        }
        metrics = assemble(self.data, measured, taken, config.evaluation, config.seed)
        print_metrics(metrics, split)
        print("minutes: " + ", ".join(f"{name} {value:.1f}" for name, value in minutes.items()))
        return {"split": split, "minutes of each": minutes, **metrics}

    def start_ablations(self, names: Sequence[str]) -> list[Row]:
        """The warm start with a part of it left out, on the validation target."""
        rows: list[Row] = []
        whole = self._start_ablation("as it is")
        for name in names:
            row, ranks = whole if name == "as it is" else self._start_ablation(name)
            beside = compare({"it": ranks, "whole": whole[1]}, [("it", "whole")], 1000, self.config.seed)
            rows.append({**row, "minus as it is": beside["differences"]["it_minus_whole"]["ndcg@10"]})
            print_row(rows[-1])
        return rows

    def _start_ablation(self, name: str) -> tuple[Row, Any]:
        tiny = self.config.policy.tiny
        changes = tuple(change.format(depth=tiny.layers + tiny.upper_layers) for change in START_ABLATIONS[name])
        config = self._load(changes)
        self.timed("trm", lambda out: self.train_trm(out, trm_sequences(self.data)))
        deeper = tuple(change for change in changes if change.startswith("policy.tiny"))
        first, start = self._place("histories", deeper), self._place("start", changes)
        self.timed(first, lambda out: self.histories(config, out))
        self.timed(start, lambda out: self.lessons(config, first, out))
        return self.row(name, config, start)

    def stage_ablations(self, names: Sequence[str]) -> list[Row]:
        """Both stages with a part left out, on the validation target; ``stopped`` is why a training collapsed."""
        rows: list[Row] = []
        for name in names:
            try:
                rows.append(self._stage_ablation(name))
            except PolicyError as error:
                rows.append({"name": name, "stopped": str(error)})
            print_row(rows[-1])
        return rows

    def _stage_ablation(self, name: str) -> Row:
        changes = STAGE_ABLATIONS[name]
        config, start = self._load(changes), self.root / "start"
        if config.policy.stage1.steps:
            earlier = tuple(change for change in changes if not change.startswith("rewards.stage2."))
            place = self._place("stage1", earlier)
            self.timed(place, lambda out: self.stage("stage1", config, self.root / "start", out))
            start = place
        place = self._place("stage2", changes)
        self.timed(place, lambda out: self.stage("stage2", config, start, out))
        return self.row(name, config, place)[0]

    def row(self, name: str, config: Config, policy: Path) -> tuple[Row, Any]:
        """A policy's figures on the validation target beside the TRM's, and its ranks."""
        setting = self.setting(config, "validation")
        made = rolled_out(setting, load_policy(policy), lambda line: tell(f"{name}: {line}"))
        outcome = measure(setting, made, [violations_of(setting, one) for one in made])
        trm = ranks_of(setting.trm_answers, setting.examples, setting.explore.answer_size)
        beside = ratio(outcome.ranks, trm, 1000, config.seed)
        diversity = float(np.mean(diversity_values(made, setting.embedder)))
        figures = {**outcome.metrics, "diversity": diversity}
        return {"name": name, **figures, "over the TRM": None if beside is None else asdict(beside)}, outcome.ranks

    def timed(self, name: str | Path, make: Callable[[Path], object]) -> float:
        """Make an artifact unless it is there; its minutes, which are kept beside it."""
        out = self.trm if name == "trm" else self.root / name
        kept = out.with_name(out.name + ".minutes")
        if not out.exists():
            started = time.perf_counter()
            make(out)
            kept.write_text(str((time.perf_counter() - started) / 60), encoding="utf-8")
        return float(kept.read_text(encoding="utf-8")) if kept.exists() else float("nan")

    def train_trm(self, out: Path, sequences: Mapping[str, Sequence[str]]) -> None:
        """A TRM with the profile's settings."""
        config = self.config
        train_trm(
            self.data, sequences, config.trm, config.text, load_embedder(config.text), config.seed, out,
            progress=lambda line: tell(str(line)), validation=validation_examples(self.data),
        )  # fmt: skip

    def histories(self, config: Config, out: Path) -> None:
        """The first half of the warm start: a new policy learns what follows what."""
        warm_start = config.policy.warm_start.model_copy(update={"trajectories": 0})
        policy = config.policy.model_copy(update={"warm_start": warm_start})
        build_policy(self.dataset, self.trm, policy, config.explore, config.text, config.seed, out, progress=tell)

    def lessons(self, config: Config, histories: Path, out: Path) -> None:
        """The second half: the scripted lessons. Both halves are what one task of the pipeline does at a stretch."""
        warm_start = config.policy.warm_start
        warm_start = warm_start.model_copy(update={"histories": warm_start.histories.model_copy(update={"passes": 0})})
        policy = config.policy.model_copy(update={"warm_start": warm_start})
        warm_start_policy(
            self.dataset, self.trm, histories, policy, config.explore, config.text, config.seed, out, progress=tell
        )

    def roll_out(self, users: Any, policy: str, out: Path, timed: bool = False) -> None:
        """A policy over given users."""
        config = self.config
        roll_policy_out(
            users, self.dataset, self.trm, self.root / policy, config.policy.select, config.explore, config.text,
            config.seed, out, timed=timed, progress=tell,
        )  # fmt: skip

    def rollouts(self, split: str) -> dict[str, Path]:
        """Every policy before the item of ``split``, the last one's requests timed."""
        places: dict[str, Path] = {}
        for name in POLICIES:
            place, timed = self.root / f"{name}-{split}", name == POLICIES[-1]
            self.timed(place.name, partial(self.roll_out, split, name, timed=timed))
            places[f"{name}_rollouts"] = place
        return places

    def select(self, out: Path) -> None:
        """The prompts of both stages."""
        config = self.config
        select_prompts(
            self.dataset, self.root / "candidates", config.policy, config.explore, config.rewards, config.seed, out,
            progress=tell,
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
        return open_setting(self.data, examples, self.trm, config.explore, config.rewards, config.text)

    def _load(self, changes: Sequence[str] = ()) -> Config:
        return load_config(CONFIGS / f"{self.profile}.yaml", (*self.overrides, *changes))

    def _place(self, what: str, changes: Sequence[str]) -> Path:
        """Where an artifact is kept: what two ablations have in common is trained once, or by the main table."""
        if not changes:
            return self.root / what
        place = self.root / "ablations"
        place.mkdir(exist_ok=True)
        return place / "-".join((what, *changes))


def print_metrics(metrics: Mapping[str, Any], split: str) -> None:
    """The tables of ``deeprec run``."""
    from rich.console import Console

    console = Console(width=200)
    console.print(table(metrics, f"{split.capitalize()} target"))
    console.print(step_table(metrics))
    console.print(metrics["verdict"]["sentence"], highlight=False, soft_wrap=True, markup=False)


def print_row(row: Mapping[str, Any]) -> None:
    """An ablation's figures."""
    if "stopped" in row:
        print(f"{row['name']:31} {row['stopped']}", flush=True)
        return
    shown = "".join(f"{key} {row[key]:.4f}  " for key in SHOWN)
    beside, whole = row["over the TRM"], row.get("minus as it is")
    over = f"{beside['mean']:.3f} × the TRM ({beside['low']:.3f} to {beside['high']:.3f})" if beside else ""
    minus = f", minus as it is {whole['mean']:+.4f} ({whole['low']:+.4f} to {whole['high']:+.4f})" if whole else ""
    print(f"{row['name']:31} {shown}{over}{minus}", flush=True)


def tell(line: str) -> None:
    """A progress line."""
    print(f"  {line}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.policy_learning --data ml-1m --keep learning\n"
        "  python -m benchmarks.policy_learning --profile quickstart --keep sample --start-ablations",
    )
    parser.add_argument("--profile", default="ml-1m", help="a committed profile with a tiny policy")
    parser.add_argument(
        "--data", type=Path, help="the profile's data, or a deeprec dataset; quickstart generates its own"
    )
    parser.add_argument("--trm", type=Path, help="the TRM, trained for a policy; without it one is trained first")
    parser.add_argument("--keep", type=Path, help="keep all artifacts here, and go on from those that are there")
    parser.add_argument(
        "--validation", action="store_true", help="measure on the validation target; leaves the test target alone"
    )
    parser.add_argument("--start-ablations", action="store_true", help="the warm start's parts, and nothing else")
    parser.add_argument("--stage-ablations", action="store_true", help="the stages' parts, and nothing else")
    parser.add_argument(
        "--ablation", action="append", choices=[*START_ABLATIONS, *STAGE_ABLATIONS], help="one of them; repeatable"
    )
    parser.add_argument("--set", action="append", help="KEY=VALUE of the configuration; repeatable")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
