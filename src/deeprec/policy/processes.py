"""The processes that train one policy together: which of them this is, and what they tell one another.

A launcher (torchrun, accelerate, a TrainJob) starts the same command once per device and numbers the processes in the
environment; without one there is a single process. Every process has to make the same calls here in the same order.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import TypeVar

T = TypeVar("T")

PATIENCE = timedelta(hours=1)
"""How long processes wait for one another: rollouts end when they end, and process 0 writes large models alone."""


def world_size() -> int:
    """Number of processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's number, from 0; process 0 writes files and speaks."""
    return int(os.environ.get("RANK", "0"))


def join() -> None:
    """Take this process's own accelerator, and meet the others; nothing to do for a single process."""
    if world_size() == 1:
        return
    import torch
    from accelerate import PartialState

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def gather(values: Sequence[T]) -> list[T]:
    """Everybody's values in the order of the processes; they are pickled, so keep them small."""
    if world_size() == 1:
        return list(values)
    from accelerate.utils import gather_object

    found: list[T] = gather_object(list(values))
    return found
