"""Generated tokens per second in a rollout beside the same engine alone: ``python -m benchmarks.rollout_throughput``.

Rollouts have training's shape, groups of 8 for each user. Each repeat has users of its own, whom neither engine nor TRM
has met before; one repeat comes first and is not counted. What a rollout asks of its engine was written down before,
with another copy of the TRM. In a repeat, in turns:

- rollout: users explore together; its tokens are those the policy wrote and a trajectory kept.
- same calls: the engine alone does what it was asked in the rollout: the same prompts, rows, segments and seeds, and
  the same lists appended between them. The ratio to it is what the environment costs: parsing, rendering, tokenising,
  bookkeeping and the TRM.
- lists at once: the engine alone writes a token after each prompt, reads all the lists that the row's rollout read, and
  writes the rest in one segment, every row the mean number of tokens. As many sequences read and write as many tokens,
  with no environment and no waiting for the slowest in every turn. The ratio to it is what environment and turns cost.
- no lists: the engine alone reads the prompts and writes as many tokens in one segment. How far this ratio is below the
  last one tells what reading the lists takes: little where a token is read much faster than it is written (a large
  model on an accelerator), about as much as writing where it is not (a tiny model on a CPU). No loop wins that back.

Wanted is 0.9 at least of the first two. A ratio is taken within each repeat; printed are medians, with the least and
the largest. The seconds are those of the rollouts. A user explored with once (``--group 1``) costs the TRM more: it
encodes a history once, however many calls follow.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from deeprec.config import (
    DataConfig,
    EngineConfig,
    ExploreConfig,
    PolicyConfig,
    SampleConfig,
    TextConfig,
    TrmConfig,
    WarmStartConfig,
)
from deeprec.explore.answers import AnswerRule
from deeprec.explore.loading import open_policy
from deeprec.explore.rollout import rollout
from deeprec.explore.timing import RolloutClock
from deeprec.policy.setting import Setting, sample
from deeprec.types import Example, Generation, Policy, Rule, Segment

WANTED = {"same calls": 0.9, "lists at once": 0.9}
"""Least ratios of a rollout's tokens per second to those of the engine alone."""


@dataclass
class Batch:
    """What one batch of a rollout asked of the engine: prompts, seed, and its calls in order."""

    prompts: list[list[int]]
    seed: int | None
    calls: list[Callable[[Generation], Sequence[Segment] | None]] = field(default_factory=list)
    lists: dict[int, list[int]] = field(default_factory=dict)
    """Row → tokens appended to it."""
    tokens: int = 0
    """Generated in all."""


class Recorder:
    """A policy that hands everything on to another and writes down what was asked."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self.batches: list[Batch] = []
        self.encode, self.decode, self.eos_id = policy.encode, policy.decode, policy.eos_id

    def start(self, prompts: Sequence[Sequence[int]], *, seed: int | None = None) -> Generation:
        self.batches.append(Batch([list(prompt) for prompt in prompts], seed))
        return _Recording(self._policy.start(prompts, seed=seed), self.batches[-1])


class _Recording:
    def __init__(self, generation: Generation, batch: Batch) -> None:
        self._generation, self._batch = generation, batch

    def generate(self, rows: Sequence[int], *, rules: Sequence[Rule] = (), **asked: Any) -> list[Segment]:
        described, kept = [rule.describe() for rule in rules], tuple(rows)
        segments = self._generation.generate(rows, rules=rules, **asked)
        self._batch.calls.append(
            lambda generation: generation.generate(kept, rules=[AnswerRule.read(one) for one in described], **asked)
        )
        self._batch.tokens += count(segments)
        return segments

    def append(self, rows: Sequence[int], token_ids: Sequence[Sequence[int]]) -> None:
        kept = [list(tokens) for tokens in token_ids]
        for row, tokens in zip(rows, kept, strict=True):
            self._batch.lists.setdefault(row, []).extend(tokens)
        self._batch.calls.append(lambda generation, rows=tuple(rows): generation.append(rows, kept))
        self._generation.append(rows, token_ids)


@dataclass(frozen=True)
class World:
    """What is measured: a setting, another to prepare with, a policy on its engine, and who explores in each repeat."""

    setting: Setting
    preparing: Setting
    policy: Policy
    explore: ExploreConfig
    users: list[list[Example]]
    temperature: float

    def record(self, examples: Sequence[Example]) -> list[Batch]:
        """What a rollout asks of its engine, batch by batch."""
        recorder = Recorder(self.policy)
        self.roll(self.preparing, recorder, examples)
        return recorder.batches

    def roll(
        self, setting: Setting, policy: Policy, examples: Sequence[Example], clock: RolloutClock | None = None
    ) -> int:
        """Tokens the policy wrote in one rollout."""
        found = rollout(
            policy, setting.retriever, setting.titles, examples, self.explore,
            temperature=self.temperature, seed=0, clock=clock,
        )  # fmt: skip
        return sum(sum(trajectory.loss_mask) for trajectory in found)


def main() -> None:
    """Build or open the world, measure, print, and write the figures."""
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as scratch:
        world = open_world(arguments, Path(scratch))
        figures = measure(world)
    figures = {"engine": arguments.engine, "rows": len(world.users[0]), **figures}
    show(figures)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(world: World) -> dict[str, Any]:
    """Rates, ratios and the rollouts' seconds by where they went, the first repeat left out."""
    prepared = [world.record(examples) for examples in world.users]
    rates: list[dict[str, float]] = []
    clock = RolloutClock()
    for repeat, (examples, batches) in enumerate(zip(world.users, prepared, strict=True)):
        clock = RolloutClock() if repeat <= 1 else clock
        ways = {
            "rollout": partial(world.roll, world.setting, world.policy, examples, clock),
            "same calls": partial(replay, world.policy, batches),
            "lists at once": partial(no_turns, world.policy, batches, world.temperature, lists=True),
            "no lists": partial(no_turns, world.policy, batches, world.temperature, lists=False),
        }
        order = list(ways) if repeat % 2 == 0 else list(ways)[::-1]
        rates.append({name: _rate(ways[name]) for name in order})
    rates = rates[1:]
    alone = [name for name in rates[0] if name != "rollout"]
    ratios = {name: [rate["rollout"] / rate[name] for rate in rates] for name in sorted(alone, key=list(ways).index)}
    batches = [batch for found in prepared[1:] for batch in found]
    return {
        "repeats": len(rates),
        "tokens_per_rollout": sum(batch.tokens for batch in batches) / len(rates),
        "tokens_read_per_rollout": sum(map(tokens_read, batches)) / len(rates),
        "engine_calls": sum(len(batch.calls) for batch in batches) / len(rates),
        "tokens_per_second": {name: statistics.median(rate[name] for rate in rates) for name in ways},
        "ratio": {name: statistics.median(values) for name, values in ratios.items()},
        "ratios": ratios,
        "seconds": {
            name: getattr(clock, name) / len(rates)
            for name in ("engine", "retrieval", "parsing", "environment", "total")
        },
    }


def replay(policy: Policy, batches: Sequence[Batch]) -> int:
    """Make the same calls of the engine again; tokens it generated."""
    tokens = 0
    for batch in batches:
        generation = policy.start(batch.prompts, seed=batch.seed)
        tokens += sum(count(call(generation) or ()) for call in batch.calls)
    return tokens


def no_turns(policy: Policy, batches: Sequence[Batch], temperature: float, *, lists: bool) -> int:
    """Let every row of a batch write the batch's mean number of tokens, without a stop; tokens generated.

    With ``lists`` each reads what was appended to it after its first token.
    """
    tokens = 0
    for batch in batches:
        rows = range(len(batch.prompts))
        generation = policy.start(batch.prompts, seed=batch.seed)
        write = partial(generation.generate, rows, stop_ids=frozenset(), temperature=temperature)
        left = max(1, round(batch.tokens / len(rows)))
        if lists:
            tokens += count(write(max_new_tokens=1))
            generation.append(rows, [batch.lists.get(row, []) for row in rows])
            left -= 1
        tokens += count(write(max_new_tokens=left))
    return tokens


def tokens_read(batch: Batch) -> int:
    """Tokens of the prompts and of the lists."""
    return sum(map(len, batch.prompts)) + sum(map(len, batch.lists.values()))


def count(segments: Sequence[Segment]) -> int:
    """Tokens of all segments."""
    return sum(len(segment.token_ids) for segment in segments)


def _rate(way: Callable[[], int]) -> float:
    started = time.perf_counter()
    tokens = way()
    return tokens / (time.perf_counter() - started)


def show(figures: dict[str, Any]) -> None:
    """Print rates, ratios and where the seconds went."""
    rates, ratios, seconds = (figures[name] for name in ("tokens_per_second", "ratios", "seconds"))
    print(
        f"{figures['engine']}: {figures['repeats']} times {figures['rows']} rollouts, "
        f"{figures['tokens_per_rollout']:,.0f} tokens written and {figures['tokens_read_per_rollout']:,.0f} read"
    )
    print(f"{'rollout':36} {rates['rollout']:10,.0f} tokens/s")
    for name, values in ratios.items():
        wanted = f", wanted {WANTED[name]}" if name in WANTED else ""
        spread = f"ratio {statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f}{wanted})"
        print(f"{'engine alone, ' + name:36} {rates[name]:10,.0f} tokens/s, {spread}")
    for name in ("engine", "retrieval", "parsing", "environment"):
        print(f"{name:36} {seconds[name]:10.3f} s, {seconds[name] / seconds['total']:6.1%} of a rollout")


def open_world(arguments: argparse.Namespace, scratch: Path) -> World:
    """The world that the arguments name, or the toy, built in ``scratch``."""
    from deeprec.data.splits import policy_examples
    from deeprec.policy.build import read_explore

    if arguments.toy:
        paths, text = build_toy(scratch), TOY_TEXT
    else:
        paths = {name: _place(arguments, name) for name in ("dataset", "trm", "policy")}
        config = arguments.config or (arguments.run and arguments.run / "config.yaml")
        sections = yaml.safe_load(config.read_text(encoding="utf-8")) if config else {}
        text = TextConfig.model_validate(sections.get("text", {}))
    setting, preparing = (Setting.open(paths["dataset"], paths["trm"], text) for _ in range(2))
    explore = read_explore(paths["policy"]).model_copy(update={"batch_size": arguments.batch_size})
    engine = EngineConfig(kind=arguments.engine, url=arguments.url, dtype=arguments.dtype)
    known = policy_examples(setting.dataset)
    drawn = sample(known, arguments.users * (arguments.repeats + 1), seed=0)
    width = len(drawn) // (arguments.repeats + 1)
    users = [
        [user for user in drawn[repeat * width : (repeat + 1) * width] for _ in range(arguments.group)]
        for repeat in range(arguments.repeats + 1)
    ]
    temperature = explore.temperature if arguments.temperature is None else arguments.temperature
    return World(setting, preparing, open_policy(paths["policy"], engine), explore, users, temperature)


def _place(arguments: argparse.Namespace, name: str) -> Path:
    """The artifact that was named, or that of the run."""
    given: Path | None = getattr(arguments, name)
    if given or not arguments.run:
        if not given:
            raise SystemExit(f"name --{name}, or a run that has one with --run, or build a small world with --toy")
        return given
    if name != "dataset":
        return Path(arguments.run) / "bundle" / name
    found = sorted(Path(arguments.run).glob("pipeline/*/ingest/dataset"), key=lambda place: place.stat().st_mtime)
    if not found:
        raise SystemExit(f"{arguments.run} has no pipeline/*/ingest/dataset; name the dataset with --dataset")
    return found[-1]


TOY_TEXT = TextConfig(provider="hashing", width=32)


def build_toy(place: Path) -> dict[str, Path]:
    """A generated dataset, a TRM and a tiny policy of the usual size, each trained for seconds."""
    from deeprec.data.ingest import ingest
    from deeprec.policy.build import build_policy
    from deeprec.trm.training import train

    paths = {name: place / name for name in ("dataset", "trm", "policy")}
    ingest(DataConfig(sample=SampleConfig(users=300, items=200, mean_history=16)), 0, paths["dataset"])
    trm = TrmConfig(width=32, layers=1, heads=2, max_length=20, epochs=2)
    train(paths["dataset"], trm, TOY_TEXT, 0, paths["trm"], place / "trm.html")
    explore = ExploreConfig(
        prompt="compact", prompt_history=10, items_per_call=10, max_calls=4, max_new_tokens=64, max_context=640,
        temperature=0.4,
    )  # fmt: skip
    policy = PolicyConfig(warm_start=WarmStartConfig(trajectories=1200, epochs=1, batch_size=16))
    build_policy(paths["dataset"], paths["trm"], policy, explore, TOY_TEXT, 0, paths["policy"])
    return paths


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="examples:\n  python -m benchmarks.rollout_throughput --toy\n"
        "  python -m benchmarks.rollout_throughput --run runs/ml-1m --out rollout.json\n"
        "  python -m benchmarks.rollout_throughput --run runs/ml-1m --users 256 --group 1 --temperature 0\n"
        "  python -m benchmarks.rollout_throughput --policy P --trm T --dataset D --engine vllm --dtype bfloat16\n"
        "  python -m benchmarks.rollout_throughput --run runs/ml-1m --engine server --url http://policy:8000",
    )
    parser.add_argument("--toy", action="store_true", help="on a small world that is built first")
    parser.add_argument("--run", type=Path, help="a run's directory: its bundle, dataset and config.yaml")
    for name in ("policy", "trm", "dataset"):
        parser.add_argument(f"--{name}", type=Path, help=f"a {name} artifact (default: the run's)")
    parser.add_argument("--config", type=Path, help="YAML whose text section the TRM was trained with")
    parser.add_argument("--engine", default="transformers", choices=("transformers", "vllm", "server"))
    parser.add_argument("--url", default="", help="address of the server")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"), help="of the weights")
    parser.add_argument("--users", type=int, default=32, help="of a repeat, where there are as many (default: 32)")
    parser.add_argument("--group", type=int, default=8, help="rollouts of each user (default: 8)")
    parser.add_argument("--batch-size", type=int, default=256, help="rollouts that advance together (default: 256)")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the policy's own)")
    parser.add_argument("--repeats", type=int, default=5, help="(default: 5)")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
