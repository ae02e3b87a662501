"""The arguments of TRL's trainer for a stage, as plain values: how batches are cut, shared, sharded and kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from deeprec.config import GenerationConfig, PolicyConfig, StageConfig
from deeprec.errors import PolicyError
from deeprec.policy.processes import world_size

MOST_CORRECTION = 2.0
"""Bound of the ratio π_trainer / π_vLLM that a token's loss is multiplied by (truncated importance sampling, F. Yao et
al., Your efficient RL framework secretly brings you off-policy training, 2025)."""


def arguments(
    stage: StageConfig,
    policy: PolicyConfig,
    weights: Mapping[str, float],
    temperature: float,
    longest: int,
    seed: int,
    checkpoints: Path,
) -> dict[str, Any]:
    """Keyword arguments of TRL's ``GRPOConfig``.

    Raises:
        PolicyError: the processes cannot share the batches, or FSDP is asked of a single process.
    """
    updates = stage.prompts_per_step * stage.rollouts // stage.sequences_per_update
    micro_batch, accumulation = shares(stage, world_size())
    cuda = torch.cuda.is_available()
    keep = 1 + math.ceil(stage.health.patience / stage.save_every)
    return {
        "output_dir": str(checkpoints),
        "use_cpu": not cuda,
        "bf16": policy.dtype == "bfloat16" and cuda,
        "seed": seed,
        "max_steps": stage.steps * updates,
        "per_device_train_batch_size": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "steps_per_generation": accumulation * updates,
        "num_generations": stage.rollouts,
        "num_iterations": 1,
        "shuffle_dataset": False,
        "learning_rate": stage.learning_rate,
        "reward_weights": list(weights.values()),
        "scale_rewards": "batch",
        "loss_type": "dapo",
        "beta": stage.kl,
        "epsilon": stage.clip,
        "temperature": temperature,
        "top_p": 1.0,
        "max_completion_length": None,
        "mask_truncated_completions": False,
        "pad_to_multiple_of": None,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "disable_tqdm": True,
        "report_to": "none",
        "save_strategy": "steps",
        "save_steps": stage.save_every * updates,
        "save_total_limit": max(2, keep),
        **_memory(policy),
        **_vllm(policy.generation, longest),
    }


def shares(stage: StageConfig, processes: int) -> tuple[int, int]:
    """One process's trajectories per forward pass, and forward passes per update.

    Raises:
        PolicyError: prompts or sequences do not divide by the number of processes, or a share not into micro-batches.
    """
    share = stage.sequences_per_update // processes
    micro_batch = min(stage.micro_batch, share)
    if (
        stage.prompts_per_step % processes
        or stage.sequences_per_update % processes
        or not micro_batch
        or share % micro_batch
    ):
        raise PolicyError(
            f"{processes} processes cannot share {stage.prompts_per_step} prompts per step and "
            f"{stage.sequences_per_update} sequences per update in micro-batches of {stage.micro_batch}; make both "
            f"multiples of {processes}, and a process's sequences a multiple of micro_batch"
        )
    return micro_batch, share // micro_batch


def _memory(policy: PolicyConfig) -> dict[str, Any]:
    """Sharding, and forgetting activations between the layers, which all but the tiny policy need."""
    forget = policy.model != "tiny"
    if policy.parallel.strategy == "ddp":
        return {"gradient_checkpointing": forget}
    if world_size() == 1:
        raise PolicyError(
            "policy.parallel.strategy is 'fsdp', but this process is the only one; start it with a launcher, or set "
            "the strategy to 'ddp'"
        )
    return {
        "gradient_checkpointing": False,
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": forget,
        },
    }


def _vllm(generation: GenerationConfig, longest: int) -> dict[str, Any]:
    """With vLLM a token's loss is weighed by how much likelier the trainer finds it than vLLM did."""
    if generation.engine == "trainer":
        return {"use_vllm": False}
    return {
        "use_vllm": True,
        "vllm_mode": "colocate" if generation.engine == "vllm" else "server",
        "vllm_gpu_memory_utilization": generation.gpu_memory_utilization,
        "vllm_max_model_length": longest or None,
        "vllm_enable_sleep_mode": generation.engine == "vllm" and generation.sleep,
        "vllm_server_base_url": generation.url or None,
        "vllm_server_timeout": generation.timeout,
        "vllm_importance_sampling_correction": True,
        "vllm_importance_sampling_mode": "token_truncate",
        "vllm_importance_sampling_clip_max": MOST_CORRECTION,
    }
