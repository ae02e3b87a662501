"""Weights that several processes hold in shards (PyTorch's FSDP2): whole for a while, or for good in one place.

Every forward pass of a sharded model gathers its weights from all processes, so that all of them would have to make
the same number of passes. Rollouts do not: each ends when it ends. Inside ``whole`` the weights are gathered once and
kept, and passes are each process's own affair. A model that is not sharded passes through everything here unchanged.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """Keep all weights in every process, each in the type that the passes compute in; passes must not need gradients.

    All processes enter and leave together.
    """
    parts = _shards(model)
    states = [part._get_fsdp_state() for part in parts]
    kept = [
        (group, None if state._auto_reshard_after_forward else group.post_forward_mesh_info)
        for state in states
        for group in state._fsdp_param_groups
    ]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
        # PyTorch has no way to read what it lets set: which parts stay whole between forward and backward pass.
        for group, mesh in kept:
            group.post_forward_mesh_info = mesh


def full_weights(model: Any) -> dict[str, Any] | None:
    """The weights of a sharded model by name, on the CPU of process 0 and nowhere else; None when it is not sharded.

    All processes ask together. Needs no room on the accelerator beyond one layer.
    """
    if not _shards(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return dict(get_model_state_dict(model, options=options))


def shard_on_cpu() -> None:
    """Have accelerate shard on a CPU too, where it would copy the model into every process without a word.

    To be called just before its ``Accelerator`` is made, which asks only whether the processes are ones that it shards.
    """
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    PartialState()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def _shards(model: Any) -> list[Any]:
    from torch.distributed.fsdp import FSDPModule

    return [module for module in model.modules() if isinstance(module, FSDPModule)]
