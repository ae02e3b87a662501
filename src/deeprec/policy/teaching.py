"""What a tiny policy is taught in its warm start: histories first, then scripted explorations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.config import ExploreConfig, PolicyConfig
from deeprec.errors import PolicyError
from deeprec.explore.prompt import NEXT
from deeprec.policy.setting import Setting, derived_seed
from deeprec.policy.upper import look_back, lower_layers, lower_weights
from deeprec.types import JsonDict

if TYPE_CHECKING:
    import torch

LOOKED_AT = 256
"""Lessons whose states tell the upper layers where to look first."""


@dataclass(frozen=True)
class Taught:
    """One curve with steps counted on, and the parameters as they were after histories; none where none were taught."""

    curve: list[JsonDict]
    histories: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Teaching:
    """A model, trained in place, and what it is taught with."""

    setting: Setting
    model: Any
    tokenizer: Any
    policy: PolicyConfig
    explore: ExploreConfig
    seed: int
    progress: Callable[[str], None]

    def teach(self) -> Taught:
        """Teach all of it.

        Raises:
            PolicyError: model and configuration do not fit, or there is nothing to learn from.
        """
        self._check()
        config = self.policy.warm_start
        curve: list[JsonDict] = []
        weights: dict[str, torch.Tensor] = {}
        if config.histories.passes:
            curve = self._histories()
            weights = {name: one.detach().clone() for name, one in self.model.named_parameters()}
        if config.trajectories or not curve:
            curve = _continued(curve, self._explorations())
        return Taught(curve, weights)

    def _check(self) -> None:
        histories, tiny = self.policy.warm_start.histories, self.policy.tiny
        if (histories.passes or histories.rehearse) and self.explore.prompt != "compact":
            raise PolicyError(
                "policy.warm_start.histories continue the compact prompt, but explore.prompt is 'full'; set "
                "policy.warm_start.histories.passes and rehearse to 0"
            )
        has = self.model.config.num_hidden_layers
        if tiny.upper_layers and has != tiny.layers + tiny.upper_layers:
            raise PolicyError(
                f"the policy has {has} layers, but policy.tiny says {tiny.layers} and {tiny.upper_layers} "
                f"upper_layers; warm-start it with the configuration it was built with"
            )

    def _histories(self) -> list[JsonDict]:
        """The lower layers learn what follows what."""
        from deeprec.policy.lessons import history_lessons
        from deeprec.policy.warm_start import warm_start

        config = self.policy.warm_start
        passes = config.histories.passes
        windows = history_lessons(self.setting, self.tokenizer, self.explore, passes, derived_seed(self.seed, 3))
        self.progress(f"learning what follows what on {len(windows)} windows of histories")
        settings = config.histories.model_dump(include={"batch_size", "learning_rate"}) | {"epochs": 1}
        with lower_layers(self.model, self.policy.tiny.upper_layers):
            return warm_start(
                self.model, windows, config.model_copy(update=settings), derived_seed(self.seed, 4), self.progress,
                dropout=config.histories.dropout, name="histories",
            )  # fmt: skip

    def _explorations(self) -> list[JsonDict]:
        """All layers learn from the scripted explorer, with windows of histories among its lessons."""
        from deeprec.explore.engine import TransformersPolicy
        from deeprec.policy.lessons import rehearsal, scripted_lessons
        from deeprec.policy.warm_start import warm_start

        config, upper = self.policy.warm_start, self.policy.tiny.upper_layers
        actor = TransformersPolicy(self.model, self.tokenizer)
        lessons = scripted_lessons(
            self.setting, actor, config, self.explore, derived_seed(self.seed, 1), progress=self.progress
        )
        shown = [(*one.prompt_ids, *one.completion_ids) for one in lessons.trajectories[:LOOKED_AT]]
        if upper and shown and self.explore.prompt == "compact":
            look_back(self.model, upper, self.tokenizer.encode(NEXT, add_special_tokens=False)[0], shown)
        count = round(config.histories.rehearse * config.epochs * len(lessons.trajectories))
        again = rehearsal(self.setting, self.tokenizer, self.explore, count, derived_seed(self.seed, 2, 1))
        beside = f" and {count} windows of histories" if count else ""
        self.progress(f"warm start on {len(lessons.trajectories)} scripted trajectories{beside}")
        return warm_start(
            self.model, lessons.trajectories, config, derived_seed(self.seed, 2), self.progress,
            allowed=lessons.allowed, rehearsal=again, settled=lower_weights(self.model, upper) if upper else (),
        )  # fmt: skip


def _continued(curve: Sequence[JsonDict], more: Sequence[JsonDict]) -> list[JsonDict]:
    before = curve[-1]["step"] if curve else 0
    return [*curve, *(point | {"step": before + point["step"]} for point in more)]
