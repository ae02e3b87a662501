"""What a tiny policy is taught in its warm start, one after the other: histories, a careful teacher, a careless one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeprec.config import ExploreConfig, PolicyConfig, WarmStartConfig
from deeprec.errors import PolicyError
from deeprec.explore.prompt import NEXT
from deeprec.policy.setting import Setting, derived_seed, sample
from deeprec.policy.upper import look_back, lower_layers, lower_weights
from deeprec.types import JsonDict, Policy

if TYPE_CHECKING:
    from deeprec.policy.lessons import Lessons

CARELESS_RATE = 0.5
"""Share of the warm start's learning rate for a careless teacher's lessons, so that the careful ones are not lost."""
ANSWERED = 400
"""Examples whose greedy answers tell how many are valid."""
LOOKED_AT = 256
"""Lessons whose states tell the upper layers where to look first."""


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

    def curve(self) -> list[JsonDict]:
        """Teach all of it; one curve with steps counted on.

        Raises:
            PolicyError: model and configuration do not fit, or there is nothing to learn from.
        """
        self._check()
        config = self.policy.warm_start
        curve: list[JsonDict] = []
        if config.histories.passes:
            curve = self._histories()
        if config.trajectories or not curve:
            for taught in self._explorations():
                curve = _continued(curve, taught)
        return curve

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

    def _explorations(self) -> Iterator[list[JsonDict]]:
        """All layers learn from the careful teacher, then from the careless one."""
        from deeprec.explore.engine import TransformersPolicy
        from deeprec.policy.lessons import scripted_lessons

        config, upper = self.policy.warm_start, self.policy.tiny.upper_layers
        actor = TransformersPolicy(self.model, self.tokenizer)
        careful, careless = scripted_lessons(
            self.setting, actor, config, self.explore, derived_seed(self.seed, 1), progress=self.progress
        )
        shown = [(*one.prompt_ids, *one.completion_ids) for one in careful.trajectories[:LOOKED_AT]]
        if upper and shown and self.explore.prompt == "compact":
            look_back(self.model, upper, self.tokenizer.encode(NEXT, add_special_tokens=False)[0], shown)
        yield self._learn("warm start", careful, config, 2, settled=lower_weights(self.model, upper) if upper else ())
        if careless.trajectories:
            yield self._careless(careless, actor)

    def _careless(self, lessons: Lessons, actor: Policy) -> list[JsonDict]:
        """What is not to be lost of the careful lessons is kept by a lower rate, and by drawing the weights back."""
        config = self.policy.warm_start
        slower = config.model_copy(update={"learning_rate": CARELESS_RATE * config.learning_rate, "epochs": 1})
        if not config.careless.valid:
            return self._learn("careless", lessons, slower, 5)
        before = {name: weights.detach().clone() for name, weights in self.model.named_parameters()}
        curve = self._learn("careless", lessons, slower, 5)
        self._draw_back(before, actor)
        return curve

    def _learn(
        self, name: str, lessons: Lessons, how: WarmStartConfig, place: int, settled: Sequence[Any] = ()
    ) -> list[JsonDict]:
        """Lessons with windows of histories among them; ``place`` in the run's seeds."""
        from deeprec.policy.lessons import rehearsal
        from deeprec.policy.warm_start import warm_start

        count = round(how.histories.rehearse * how.epochs * len(lessons.trajectories))
        again = rehearsal(self.setting, self.tokenizer, self.explore, count, derived_seed(self.seed, place, 1))
        beside = f" and {count} windows of histories" if count else ""
        self.progress(f"{name} on {len(lessons.trajectories)} scripted trajectories{beside}")
        return warm_start(
            self.model, lessons.trajectories, how, derived_seed(self.seed, place), self.progress,
            allowed=lessons.allowed, rehearsal=again, settled=settled, name=name,
        )  # fmt: skip

    def _draw_back(self, before: Mapping[str, Any], actor: Policy) -> None:
        """Go some of the way back to the careful lessons, where fewer answers are valid than wanted."""
        from deeprec.data.splits import policy_examples
        from deeprec.policy.draw_back import draw_back
        from deeprec.rewards.format import format_violations

        seed = derived_seed(self.seed, 6)
        asked = sample(policy_examples(self.setting.dataset), ANSWERED, seed)

        def valid() -> float:
            found = self.setting.roll(actor, asked, self.explore, 0.0, seed)
            return sum(not format_violations(trajectory, self.explore) for trajectory in found) / len(found)

        way, share = draw_back(self.model, before, valid, self.policy.warm_start.careless.valid)
        self.progress(f"{way:.0%} of the careless lessons kept: {share:.3f} of {len(asked)} greedy answers are valid")


def _continued(curve: Sequence[JsonDict], more: Sequence[JsonDict]) -> list[JsonDict]:
    before = curve[-1]["step"] if curve else 0
    return [*curve, *(point | {"step": before + point["step"]} for point in more)]
