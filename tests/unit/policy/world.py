"""A small world that stages are trained in: a tiny policy that has learnt the protocol, and prompts chosen with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from deeprec.config import (
    ExploreConfig,
    PolicyConfig,
    RewardsConfig,
    SelectConfig,
    TextConfig,
    TinyConfig,
    WarmStartConfig,
)
from deeprec.policy.build import build_policy
from deeprec.policy.rollouts import roll_policy_out
from deeprec.policy.select import select_prompts

TEXT = TextConfig(provider="hashing", width=32)
EXPLORE = ExploreConfig(
    prompt="compact", items_per_call=5, answer_size=3, prompt_history=4, max_calls=3, max_new_tokens=40, max_context=300
)
POLICY = PolicyConfig(
    tiny=TinyConfig(width=32, layers=1, heads=2, inner=32),
    warm_start=WarmStartConfig(trajectories=200, epochs=8, batch_size=16, learning_rate=1e-2),
    select=SelectConfig(candidates=24, rollouts=2),
)


def choose_prompts(
    dataset: Path,
    trm: Path,
    start: Path,
    policy: PolicyConfig,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    seed: int,
    out: Path,
) -> dict[str, float]:
    """Roll a start out for its candidates, beside ``out``, and choose both stages' prompts."""
    rollouts = out.with_name(f"{out.name}.rollouts")
    roll_policy_out(
        "candidates", dataset, trm, start, policy.select, explore, text, seed, rollouts, progress=lambda line: None
    )
    return select_prompts(dataset, rollouts, policy, explore, rewards, seed, out, progress=lambda line: None)


@dataclass(frozen=True)
class World:
    """What a stage is given."""

    dataset: Path
    trm: Path
    start: Path
    prompts: Path

    @classmethod
    def build(cls, dataset: Path, trm: Path, place: Path) -> World:
        start, prompts = place / "start", place / "prompts"
        build_policy(dataset, trm, POLICY, EXPLORE, TEXT, 0, start, progress=lambda line: None)
        choose_prompts(dataset, trm, start, POLICY, EXPLORE, RewardsConfig(), TEXT, 0, prompts)
        return cls(dataset, trm, start, prompts)
