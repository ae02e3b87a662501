"""A bandit that trains in a moment, and a program that trains it in a process of its own.

Two sampled tokens with tokens of the environment between them; 1 for each that is ``GOOD``. What is sampled depends on
the weights, the step, the prompt and the place in its group, and on nothing else: neither on the process nor on what it
did before; with ``chance`` it depends on what the process drew before, and on nothing else but the weights.

``python -m tests.unit.policy.toy PLACE ddp|fsdp`` trains ``SCHEDULES`` and ``LONGER`` below ``PLACE``, as one of
several processes if a launcher says so, and writes down what this process saw. With ``killed`` at the end process 1 is
killed in the middle of ``LONGER``, and nothing is written down; the next time what was killed is gone on with.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from deeprec.config import HealthConfig, ParallelConfig, PolicyConfig, StageConfig
from deeprec.policy.processes import join, rank
from deeprec.policy.sharding import full_weights, whole
from deeprec.policy.trl_adapter import train_grpo
from deeprec.types import EndReason, Example, JsonDict, RewardPart, Trajectory

WORDS = 12
PROMPT = (3, 4)
ENVIRONMENT = 9
GOOD = 5
EXAMPLES = [Example(f"u{number}", ("i0",), "i1") for number in range(6)]
STAGE = StageConfig(
    steps=2, prompts_per_step=4, rollouts=4, sequences_per_update=8, micro_batch=4, learning_rate=1e-2, save_every=1,
    health=HealthConfig(min_mean_calls=0),
)  # fmt: skip
LONGER = STAGE.model_copy(update={"steps": 4, "schedule": "linear"})
SCHEDULES = {"two updates": STAGE, "one update": STAGE.model_copy(update={"sequences_per_update": 16})}


def build(*, tied: bool = True) -> tuple[Any, Any]:
    """The same small model and tokenizer every time; ``tied``: one matrix embeds tokens and predicts them."""
    words = Tokenizer(WordLevel({str(number): number for number in range(WORDS)}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    config = Qwen2Config(
        vocab_size=WORDS, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=tied, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Qwen2ForCausalLM(config), tokenizer


def explore(model: Any, example: Example, place: int, step: int, *, chance: bool = False) -> Trajectory:
    """One rollout of the bandit, the ``place``-th of its group.

    With ``chance`` its tokens, its length and its reward are drawn from the random states of torch, numpy and Python.
    """
    seed = 1000 * step + 10 * int(example.user_id[1:]) + place
    generator = None if chance else torch.Generator().manual_seed(seed)
    ids: list[int] = []
    logprobs: list[float] = []
    mask: list[int] = []
    for turn in range(2):
        with torch.no_grad():
            scores = model(torch.tensor([[*PROMPT, *ids]])).logits[0, -1].log_softmax(-1)
        token = int(torch.multinomial(scores.exp(), 1, generator=generator))
        listed = 2 + (int(np.random.randint(3)) if chance else place % 3) if turn == 0 else 0
        ids += [token] + [ENVIRONMENT] * listed
        logprobs += [float(scores[token])] + [0.0] * listed
        mask += [1] + [0] * listed
    value = float(sum(token == GOOD for token, own in zip(ids, mask, strict=True) if own))
    value += random.random() if chance else 0.0
    return Trajectory(
        example.key, example.user_id, PROMPT, tuple(ids), tuple(mask), tuple(logprobs), "", (), (),
        EndReason.ANSWERED, (RewardPart("good", value, 1.0),),
    )  # fmt: skip


def train(
    place: Path,
    stage: StageConfig,
    *,
    die_at: int | None = None,
    die_after: int = 0,
    chance: bool = False,
    progress: Callable[[str], None] = print,
    policy: PolicyConfig = PolicyConfig(),
    tied: bool = True,
) -> tuple[Any, list[JsonDict], list[list[str]]]:
    """The trained model, its records, and the keys of each step's examples.

    Killed in step ``die_at`` (0-based): in its rollout, or right after so many of its updates as ``die_after`` says.
    """
    model, tokenizer = build(tied=tied)
    seen: list[list[str]] = []

    def roll(examples: Sequence[Example], step: int, engine: Any) -> list[Trajectory]:
        if step == die_at:
            die(die_after)
        seen.append([example.key for example in examples])
        return [
            explore(engine.model, example, row % stage.rollouts, step, chance=chance)
            for row, example in enumerate(examples)
        ]

    records = train_grpo(
        model, tokenizer, EXAMPLES, roll, {"good": 1.0}, stage,
        temperature=1.0, seed=0, checkpoints=place, policy=policy, progress=progress,
    )  # fmt: skip
    return model, records, seen


def die(updates: int) -> None:
    """Kill this process: now, or after so many more updates of the optimiser."""
    if not updates:
        os.kill(os.getpid(), signal.SIGKILL)
    register_optimizer_step_post_hook(lambda *_: die(updates - 1))


def main() -> None:
    place, strategy, killed = Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["killed"]
    join()
    shared = PolicyConfig(model="toy", parallel=ParallelConfig(per_node=2, strategy=strategy))  # type: ignore[arg-type]
    if killed:
        # An update is made together: process 0 has written the checkpoint before it when process 1 dies after it.
        last = 2 if rank() == 1 else None
        train(place / "killed", LONGER, die_at=last, die_after=1, chance=True, policy=shared)
    for name, stage in SCHEDULES.items():
        # One schedule with its two embeddings tied and one without: they are sharded in different ways.
        keep(place, name, *train(place / name, stage, policy=shared, tied=strategy == "ddp" or name != "one update"))
    for name in ("not killed", "killed"):
        keep(place, name, *train(place / name, LONGER, chance=True, policy=shared))


def keep(place: Path, name: str, model: Any, records: list[JsonDict], seen: list[list[str]]) -> None:
    """Write down the whole weights, as many forward passes of this process alone as its rank says, and what it saw."""
    weights = full_weights(model)
    with whole(model), torch.no_grad():
        scores = [model(torch.tensor([PROMPT])).logits[0, -1].tolist() for _ in range(1 + 2 * rank())]
    torch.save(model.state_dict() if weights is None else weights, place / f"{name} {rank()}.pt")
    noted = {"records": records, "seen": seen, "scores": scores[-1], "sharded": weights is not None}
    (place / f"{name} {rank()}.json").write_text(json.dumps(noted))


if __name__ == "__main__":
    main()
