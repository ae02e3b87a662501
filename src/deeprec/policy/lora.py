"""Low-rank adapters on a policy's linear layers, through peft (the extra ``train``).

The trainer wraps the model; adapters live in its own layers, so that the model that was given generates with them.
"""

from __future__ import annotations

from typing import Any

from deeprec.config import LoraConfig
from deeprec.errors import PolicyError


def adapters(lora: LoraConfig) -> Any | None:
    """What peft is to add to the model; None when all weights are trained.

    Raises:
        PolicyError: peft is not installed.
    """
    if not lora.rank:
        return None
    try:
        import peft
    except ImportError as error:
        raise PolicyError(
            f"policy.lora.rank is {lora.rank}, and peft cannot be imported ({error}); install deeprec[train], or set "
            f"the rank to 0"
        ) from error
    return peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,
        target_modules=list(lora.targets) or "all-linear",
        task_type="CAUSAL_LM",
    )


def without_wrapper(model: Any) -> Any:
    """The causal language model inside peft's wrapper, adapters included; any other model as it is."""
    inner = getattr(model, "get_base_model", None)
    return model if inner is None else inner()


def merge(model: Any) -> None:
    """Add the adapters' products to the weights of the model they were put on, and take them off it."""
    model.merge_and_unload()
