"""One training of the TRM, step by step: the network, its optimiser, and the generator of all draws.

A step reads the item vectors it needs: all of them, or where the softmax is sampled those of its inputs, targets and
negatives alone, so that nothing of the size of the catalogue is computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from deeprec.errors import TrmError
from deeprec.trm.artifact import Vocabulary
from deeprec.trm.learning import loss as softmax
from deeprec.trm.learning.batches import Batch, Preferences, Rows, draw_batches, draw_preferences, draw_windows
from deeprec.trm.learning.optimiser import Optimiser
from deeprec.trm.learning.sampling import Drawn, Negatives
from deeprec.trm.model import Trm, mean_phrases
from deeprec.types import JsonDict

_NAMED = 5


@dataclass(frozen=True, slots=True)
class _Items:
    """What a step knows of the catalogue: ``table`` (n, width), and the batch as rows of it.

    ``inputs`` (batch, length), ``targets`` (questions,). Where the softmax is sampled, also the catalogue's ``rows``
    (n,), the ``leaf`` (n, width) of their ID embeddings, and the ``sample``.
    """

    table: Tensor
    inputs: Tensor
    targets: Tensor
    rows: Tensor | None = None
    leaf: Tensor | None = None
    sample: softmax.Sample | None = None


class Learner:
    """The state of one training; ``epoch`` moves it on, ``state``, ``tensors`` and ``load`` keep it."""

    def __init__(
        self,
        model: Trm,
        vocabulary: Vocabulary,
        phrases: NDArray[np.int32],
        users: Sequence[str],
        sequences: Sequence[Rows],
        seed: int,
        low: bool,
        epochs: int | None = None,
    ) -> None:
        """
        Args:
            phrases: the items' phrases, of ``batches.phrase_table``.
            users: the ids of those whose ``sequences`` of catalogue rows are trained on.
            low: multiply in bfloat16.
            epochs: how many the schedule is for; ``trm.epochs`` if not given.
        """
        self.model, self.trm = model, model.config
        self._phrases, self._users, self._sequences = phrases, users, sequences
        self._device = model.item_text.device
        self._phrase_text = torch.from_numpy(vocabulary.phrase_text).to(self._device)
        self._low = low
        self._generator = np.random.default_rng(seed)
        self._known = self._tensor(vocabulary.popularity > 0)
        with torch.no_grad():
            model.item_ids.weight.mul_(self._known[:, None])
        sampled = len(vocabulary.item_ids) > self.trm.sampled_above
        self._negatives = Negatives(vocabulary.popularity, self.trm.negatives) if sampled else None
        steps = (epochs or self.trm.epochs) * math.ceil(len(sequences) / self.trm.batch_size)
        self.optimiser = Optimiser(model, self.trm, steps, sampled)

    def epoch(self, number: int) -> tuple[float, int]:
        """One pass over the sequences: the mean loss of its batches, and how many positions were trained on.

        Raises:
            TrmError: a loss or gradient is not finite; the network was not changed by it.
        """
        self.model.train()
        windows = draw_windows(self._sequences, self.trm.max_length, self._generator)
        losses, positions = [], 0
        for index, batch in enumerate(draw_batches(windows, self.trm.batch_size, self.trm.max_length, self._generator)):
            losses.append(self.update(batch, f"epoch {number}, batch {index}"))
            positions += int(batch.real.sum())
        self.optimiser.synchronise()
        return float(np.mean(losses)), positions

    def update(self, batch: Batch, where: str) -> float:
        """One step; its loss. ``where`` names the batch in an error."""
        self.optimiser.clear()
        places = np.flatnonzero(batch.real)
        targets = batch.targets.ravel()[places]
        told = draw_preferences(targets, self._phrases, len(self._phrase_text), self.trm, self._generator)
        asked = np.concatenate([targets, targets[told.positions]])
        items = self._items(batch.inputs, asked)
        loss = self._loss(items, self._tensor(places), told)
        loss.backward()  # type: ignore[no-untyped-call]
        norm, value = self.optimiser.clip(items.leaf), float(loss.detach())
        if not math.isfinite(value) or not math.isfinite(norm):
            raise TrmError(self._complaint(batch, value, norm, where))
        self.optimiser.step(items.rows, items.leaf)
        return value

    def _loss(self, items: _Items, places: Tensor, told: Preferences) -> Tensor:
        """The encoder learns from the plain questions alone: false preferences would blur what it says of a history."""
        states = self.model.encode(items.inputs, items.table, places, low=self._low)
        weights = torch.ones(len(items.targets), device=self._device)
        if len(told.positions):
            weights[len(states) :] = self.trm.preference_weight
            twice = self._tensor(told.positions)
            again, places = states.detach().index_select(0, twice), torch.cat([places, places[twice]])
            again = again.masked_fill(self._tensor(told.blind)[:, None], 0.0)
            states = torch.cat([states, again + self._preferences(told.phrases)])
        return softmax.catalogue_loss(
            self.model.user(states),
            F.normalize(items.table, dim=-1),
            items.targets,
            self.trm.temperature,
            weights=weights,
            sample=items.sample,
            seen=softmax.Seen(items.inputs, places) if self.trm.skip_seen and items.sample is None else None,
            low=self._low,
        )

    def _preferences(self, phrases: NDArray[np.int32]) -> Tensor:
        """(n, width) preference encodings; only the phrases that occur pass through the adaptor."""
        used, places = np.unique(phrases, return_inverse=True)
        none = int(used[0] < 0)
        adapted = self.model.phrase_adaptor(self._phrase_text[self._tensor(used[none:])], self._low)
        return mean_phrases(self._tensor(places.reshape(phrases.shape) - none), adapted)

    # ---------------------------------------------------------------------------------------------------------- items

    def _items(self, inputs: Rows, targets: Rows) -> _Items:
        ids, text = self.model.item_ids.weight, self.model.item_text
        if self._negatives is None:
            return _Items(self._fuse(ids, text, self._known), self._tensor(inputs), self._tensor(targets))
        drawn = self._negatives.draw(self._generator)
        rows, places = np.unique(np.concatenate([inputs.ravel(), targets, drawn.rows]), return_inverse=True)
        read, wanted, negatives = np.split(places, [inputs.size, inputs.size + len(targets)])
        chosen = self._tensor(rows)
        leaf = ids[chosen].detach().requires_grad_()
        sample = softmax.Sample(
            self._tensor(negatives), self._tensor(drawn.weights), self._tensor(_hits(targets, drawn))
        )
        table = self._fuse(leaf, text[chosen], self._known[chosen])
        return _Items(table, self._tensor(read.reshape(inputs.shape)), self._tensor(wanted), chosen, leaf, sample)

    def _fuse(self, ids: Tensor, text: Tensor, known: Tensor) -> Tensor:
        """Item vectors, some of them without their ID embedding; an item without interactions never has one."""
        if self.trm.id_drop > 0:
            known = known & self._tensor(self._generator.random(len(ids)) >= self.trm.id_drop)
        return self.model.fuse(ids * known[:, None], text, low=self._low)

    # ----------------------------------------------------------------------------------------------------- checkpoint

    def state(self) -> JsonDict:
        """What is no tensor: the number of steps done, and the state of the generator of draws."""
        return {"step": self.optimiser.step_number, "generator": self._generator.bit_generator.state}

    def tensors(self) -> dict[str, Tensor]:
        """Weights, averages, the optimiser's moments, and torch's random state; not copied."""
        found = {**self.optimiser.tensors(), "random": torch.get_rng_state()}
        return {**found, "random.cuda": torch.cuda.get_rng_state()} if self._device.type == "cuda" else found

    def load(self, tensors: Mapping[str, Tensor], state: JsonDict) -> None:
        """Take over what ``tensors`` and ``state`` gave.

        Raises:
            KeyError, TypeError, ValueError, RuntimeError: they are not of this training.
        """
        self.optimiser.load(tensors, int(state["step"]))
        self._generator.bit_generator.state = state["generator"]
        torch.set_rng_state(tensors["random"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"])

    # ---------------------------------------------------------------------------------------------------------- parts

    def _tensor(self, values: NDArray[np.generic]) -> Tensor:
        wide = values.astype(np.int64, copy=False) if values.dtype.kind == "i" else values
        return torch.from_numpy(np.ascontiguousarray(wide)).to(self._device)

    def _complaint(self, batch: Batch, loss: float, norm: float, where: str) -> str:
        named = [repr(self._users[member]) for member in batch.members[:_NAMED]]
        more = f" and {len(batch.members) - _NAMED} more" if len(batch.members) > _NAMED else ""
        return (
            f"the loss is {loss} and the norm of its gradient {norm} at {where} of {len(batch.inputs)} sequences of up "
            f"to {batch.inputs.shape[1]} items (users {', '.join(named)}{more}); lower trm.learning_rate, or set "
            f"trm.bf16 to false"
        )


def _hits(targets: Rows, drawn: Drawn) -> Rows:
    """(n,) place of each target among the drawn rows, −1 where it was not drawn."""
    places = np.searchsorted(drawn.rows, targets)
    found = drawn.rows[np.minimum(places, len(drawn.rows) - 1)] == targets
    return np.where(found, places, -1)
