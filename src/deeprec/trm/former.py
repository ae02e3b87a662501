"""The TRM that a training begins with: which one may be, and what of it is taken over.

All weights are taken over, ID embeddings by their items' ids. An item that the former TRM did not know, or saw no
interaction of, begins as new items do (``extend``): with its text alone. Optimiser, average and schedule begin anew.

What it has seen must not be measured. A split of data that only grew holds out the newest interactions of each user,
and those of a user who has not come back are the same as before. So the former TRM must have been held away from at
least as many of them as the training to come is; of one that was trained anew on everything this is so of the weights
it keeps from before (``artifact.read_measured``), and with these a training begins.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from deeprec.config import TrmConfig
from deeprec.errors import TrmError
from deeprec.trm.artifact import TrainedTrm, read_measured
from deeprec.trm.model import Trm

SHAPES = ("width", "layers", "heads", "max_length")
"""Keys of the section that decide the shapes of the weights."""


def read_former(path: Path, held_out: int) -> TrainedTrm:
    """The TRM of the artifact at ``path``, to begin a training with that leaves out so many newest interactions.

    Raises:
        ArtifactError: there is none, it cannot be read, or it keeps no weights from before it was trained anew.
        TrmError: it has seen interactions that the training leaves out, or does not say.
    """
    trained, own = read_measured(path)
    if own is None:
        raise TrmError(
            f"the TRM at {path} does not say how many of each user's newest interactions it was held away from, and "
            f"figures of what continues from it could be of what it has seen; leave trm.continue_from empty once"
        )
    if own < held_out:
        raise TrmError(
            f"the TRM at {path} was held away from the newest {own} interactions of each user, but this training is "
            f"from {held_out}, some of which it has seen; leave trm.continue_from empty, or lower data.policy_positions"
        )
    return trained


def check_shapes(trm: TrmConfig, former: TrmConfig) -> None:
    """See that weights of the one configuration fit a network of the other.

    Raises:
        TrmError: they do not; every key that differs is named with both values.
    """
    differing = [
        f"trm.{key} is {getattr(trm, key)} and was {getattr(former, key)}"
        for key in SHAPES
        if getattr(trm, key) != getattr(former, key)
    ]
    if differing:
        raise TrmError(
            f"the training cannot continue from this TRM: {'; '.join(differing)}; set what it was, or leave "
            f"trm.continue_from empty"
        )


def check_text(identity: str, former: str) -> None:
    """See that both have the same text encoder.

    Raises:
        TrmError: they have not.
    """
    if identity != former:
        raise TrmError(
            f"the training cannot continue from this TRM: its text encoder is {former}, and the section text says "
            f"{identity}; set that as it was, or leave trm.continue_from empty"
        )


def take_over(model: Trm, item_ids: Sequence[str], former: TrainedTrm) -> None:
    """Give the network, whose rows are these items, the former's weights; rows of items it did not know become zero."""
    state = former.model.state_dict()
    theirs = {item_id: row for row, item_id in enumerate(former.vocabulary.item_ids)}
    pairs = [(row, theirs[item_id]) for row, item_id in enumerate(item_ids) if item_id in theirs]
    rows = torch.zeros_like(model.item_ids.weight)
    if pairs:
        own, old = torch.tensor(pairs, device=rows.device).T
        rows[own] = state["item_ids.weight"].to(rows.device)[old]
    model.load_state_dict({**state, "item_ids.weight": rows})


def digest(former: TrainedTrm) -> str:
    """sha256 of what is taken over: weights, and the ids of their rows."""
    found = hashlib.sha256("\n".join(former.vocabulary.item_ids).encode())
    state: Mapping[str, torch.Tensor] = former.model.state_dict()
    for name, value in sorted(state.items()):
        found.update(name.encode())
        found.update(value.contiguous().cpu().numpy().data)
    return found.hexdigest()
