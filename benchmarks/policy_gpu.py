"""Tokens per second of rollouts and updates, and peak memory, on a GPU: ``python -m benchmarks.policy_gpu``.

The model has random weights and the dimensions of a Qwen2.5, so that nothing is downloaded; sequences have the shape of
an exploration (prompt, then segments the policy writes with lists between them), all of them the same length, since a
random model never ends one by itself. Rollouts and updates are those of a stage: the same engine, trainer and settings,
without TRM and rewards. The first step warms up and is not counted; printed are medians of the others. A read token
(prompt and lists too) counts for the updates' rate, a written one for the rollouts'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.config import GenerationConfig, HealthConfig, LoraConfig, PolicyConfig, StageConfig
from deeprec.types import EndReason, Example, Policy, RewardPart, Trajectory

SIZES = {
    "toy": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "vocab_size": 512},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "7b": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip
"""Dimensions by name; the last two are those of Qwen2.5-0.5B and Qwen2.5-7B."""
FIRST = 2
"""The first token that is neither padding nor the end of text."""
Ids = tuple[int, ...]
NO_GPU = "no GPU: CUDA sees no device; --size toy --cpu runs the same code on the CPU, and measures nothing of use"


def main() -> None:
    """Measure, print, and write the figures. Exit status 3 where there is no GPU."""
    given = _arguments()
    import torch

    if not torch.cuda.is_available() and not given.cpu:
        print(NO_GPU)
        raise SystemExit(3)
    figures = measure(given)
    show(figures)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Rates and seconds of a step, medians, and the peak memory of rollouts and of the whole."""
    import torch

    from deeprec.policy.trl_adapter import train_grpo

    cuda = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        model, tokenizer = build(given.size, place / "model", given.lora > 0 and cuda)
        rolling = Rolling(given)
        records = train_grpo(
            model,
            tokenizer,
            [Example(f"u{number}", ("i0",), "i1") for number in range(given.prompts)],
            rolling,
            {"random": 1.0},
            _stage(given),
            temperature=1.0,
            seed=0,
            checkpoints=place / "checkpoints",
            policy=_policy(given),
            longest=rolling.length,
            progress=lambda line: print(line, file=sys.stderr),
        )
        rolling.note_peak(rolling.updating)
    counted = records[1:]
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "size": given.size,
        "engine": given.engine,
        "lora_rank": given.lora,
        "sequences": given.prompts * given.rollouts,
        "tokens_per_sequence": rolling.length,
        "tokens_written_per_sequence": given.segments * given.segment,
        "steps": len(counted),
        "rollout_tokens_per_second": _median(counted, "rollout_tokens_per_second"),
        "training_tokens_per_second": _median(counted, "training_tokens_per_second"),
        "rollout_seconds": _median(counted, "rollout_seconds"),
        "seconds": _median(counted, "seconds"),
        "logprob_gap": _median(counted, "logprob_gap"),
        "peak_gib": {"rollouts": max(rolling.rolling, default=None), "updates": max(rolling.updating, default=None)},
    }


class Rolling:
    """Makes trajectories of one shape with whatever engine it is given; the reward is drawn.

    ``rolling`` and ``updating``: most memory that PyTorch had allocated in each batch's rollouts and updates, in GiB.
    What vLLM took for itself is in both, also while it sleeps and the card has it back.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self.length = given.prompt + given.segments * given.segment + (given.segments - 1) * given.list
        self.rolling: list[float] = []
        self.updating: list[float] = []

    def __call__(self, examples: Sequence[Example], step: int, policy: Policy) -> list[Trajectory]:
        self.note_peak(self.updating if step else [])
        rewards = np.random.default_rng(step).random(len(examples))
        written = self._explore(policy, len(examples), step)
        self.note_peak(self.rolling)
        return [
            Trajectory(
                example.key, example.user_id, *parts, "", (), (), EndReason.ANSWERED,
                (RewardPart("random", float(reward), 1.0),),
            )
            for example, reward, parts in zip(examples, rewards, written, strict=True)
        ]  # fmt: skip

    def note_peak(self, peaks: list[float]) -> None:
        """Write down the peak since it was last asked for."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() / 2**30)
            torch.cuda.reset_peak_memory_stats()

    def _explore(self, policy: Policy, count: int, seed: int) -> list[tuple[Ids, Ids, Ids, tuple[float, ...]]]:
        """Prompt, completion, mask and log-probabilities of each sequence; groups share their prompt."""
        given = self._given
        generator = np.random.default_rng(seed)
        vocabulary = SIZES[given.size]["vocab_size"]

        def draw(length: int) -> list[int]:
            return list(generator.integers(FIRST, vocabulary, length).tolist())

        groups = [draw(given.prompt) for _ in range(-(-count // given.rollouts))]
        prompts = [groups[row // given.rollouts] for row in range(count)]
        generation = policy.start(prompts, seed=seed)
        ids: list[list[int]] = [[] for _ in prompts]
        mask: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        rows = range(count)
        for segment in range(given.segments):
            if segment:
                lists = [draw(given.list) for _ in rows]
                generation.append(rows, lists)
                for row, tokens in enumerate(lists):
                    ids[row] += tokens
                    mask[row] += [0] * len(tokens)
                    logprobs[row] += [0.0] * len(tokens)
            made = generation.generate(rows, stop_ids=frozenset(), max_new_tokens=given.segment, temperature=1.0)
            for row, one in enumerate(made):
                ids[row] += one.token_ids
                mask[row] += [1] * len(one.token_ids)
                logprobs[row] += one.logprobs
        return [tuple(map(tuple, parts)) for parts in zip(prompts, ids, mask, logprobs, strict=True)]  # type: ignore[misc]


def build(size: str, place: Path, low: bool) -> tuple[Any, Any]:
    """A model of random weights, as if loaded from ``place`` onto the device, and a tokenizer that is only asked for
    its special tokens; ``low``: in bfloat16, as a stage has it whose weights get adapters."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    words = Tokenizer(WordLevel({str(number): number for number in range(SIZES[size]["vocab_size"])}, unk_token="0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1")
    config = Qwen2Config(
        **SIZES[size], max_position_embeddings=32768, tie_word_embeddings=size != "7b", bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        Qwen2ForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(place)
    tokenizer.save_pretrained(place)
    dtype = torch.bfloat16 if low else torch.float32
    model = Qwen2ForCausalLM.from_pretrained(place, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval(), tokenizer


def show(figures: dict[str, Any]) -> None:
    """Print the figures as lines."""
    peaks = {name: "–" if gib is None else f"{gib:.1f} GiB" for name, gib in figures["peak_gib"].items()}
    print(f"{figures['size']} on {figures['device']}, generating with {figures['engine']}")
    print(f"sequences of a step         {figures['sequences']} of {figures['tokens_per_sequence']} tokens")
    print(f"rollouts, written tokens/s  {figures['rollout_tokens_per_second']:,.0f}")
    print(f"updates, read tokens/s      {figures['training_tokens_per_second']:,.0f}")
    print(f"seconds of a step           {figures['seconds']:.2f}, of them {figures['rollout_seconds']:.2f} in rollouts")
    print(f"log-probability gap         {figures['logprob_gap']:.4f} nats per token")
    vllm = ", vLLM's own share in both" if figures["engine"] == "vllm" else ""
    print(f"peak memory                 rollouts {peaks['rollouts']}, updates {peaks['updates']}{vllm}")


def _stage(given: argparse.Namespace) -> StageConfig:
    batch = given.prompts * given.rollouts
    return StageConfig(
        steps=given.steps + 1,
        prompts_per_step=given.prompts,
        rollouts=given.rollouts,
        sequences_per_update=batch // 2 if batch // 2 % given.micro_batch == 0 else batch,
        micro_batch=given.micro_batch,
        save_every=given.steps + 2,
        health=HealthConfig(min_mean_calls=0, max_logprob_gap=0, kl_trajectories=0),
    )


def _policy(given: argparse.Namespace) -> PolicyConfig:
    return PolicyConfig(
        model=given.size,
        dtype="bfloat16",
        lora=LoraConfig(rank=given.lora),
        generation=GenerationConfig(
            engine=given.engine, gpu_memory_utilization=given.vllm_memory, sleep=not given.awake
        ),
    )


def _median(records: Sequence[dict[str, Any]], name: str) -> float:
    return statistics.median(record[name] for record in records)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--engine", choices=("trainer", "vllm"), default="trainer", help="what generates")
    parser.add_argument("--lora", type=int, default=0, help="rank of adapters; 0 trains all weights")
    parser.add_argument("--steps", type=int, default=3, help="counted rollout batches")
    parser.add_argument("--prompts", type=int, default=16, help="prompts of a rollout batch")
    parser.add_argument("--rollouts", type=int, default=8, help="sequences per prompt")
    parser.add_argument("--micro-batch", type=int, default=8, help="sequences per forward pass of an update")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--segments", type=int, default=4, help="segments that the policy writes")
    parser.add_argument("--segment", type=int, default=128, help="tokens of a segment")
    parser.add_argument("--list", type=int, default=256, help="tokens of a list between two segments")
    parser.add_argument("--vllm-memory", type=float, default=0.4, help="share of the GPU's memory for vLLM")
    parser.add_argument("--awake", action="store_true", help="vLLM keeps its memory during the updates")
    parser.add_argument("--cpu", action="store_true", help="run without a GPU")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    return parser.parse_args()


if __name__ == "__main__":
    main()
