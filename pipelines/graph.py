"""The tasks of the training pipeline and what flows between them, part by part; ``training`` gives each its pod.

Gates succeed and hand their verdict on; the next task refuses. No ``dsl.If``: KFP's local runner takes every condition
for false.
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl

from deeprec.components.build_policy import build_policy
from deeprec.components.check_data import check_data
from deeprec.components.compare_with_live import compare_with_live
from deeprec.components.evaluate import evaluate
from deeprec.components.ingest import ingest
from deeprec.components.publish_bundle import publish_bundle
from deeprec.components.publish_features import publish_features
from deeprec.components.refit import refit
from deeprec.components.release_end import release_end
from deeprec.components.release_step import release_step
from deeprec.components.resolve_data import resolve_data
from deeprec.components.rollout import rollout
from deeprec.components.select_prompts import select_prompts
from deeprec.components.train_stage import train_stage
from deeprec.components.train_trm import train_trm
from deeprec.components.train_trm_everything import train_trm_everything
from deeprec.release import STEPS


class Graph:
    """The tasks after the first; what one part makes the later ones find here.

    Args:
        place: gives a task its name and its pod.
        let_through: what stands behind a gate: its name and the gate's task → the verdict, as the next task takes it.
        in_turn: tasks that could run beside one another wait, so that there is one order.
        given: the sections, as the first task has settled them.
    """

    def __init__(
        self,
        place: Callable[[str, Any], Any],
        let_through: Callable[[str, Any], Any],
        in_turn: bool,
        given: Any,
    ) -> None:
        self._place, self._let_through, self._in_turn, self._given = place, let_through, in_turn, given

    def prepare(self, data_version: Any) -> None:
        """From the source to a dataset that has been checked, and published features."""
        given, place = self._given, self._place
        resolved = place(
            "resolve-data",
            resolve_data(data=given["data"], data_version=data_version, features=given["features"]),
        )
        ingested = place(
            "ingest",
            ingest(
                data=given["data"],
                data_version=resolved.outputs["version"],
                features=given["features"],
                seed=given["seed"],
            ),
        )
        self._dataset = ingested.outputs["dataset"]
        checking = place("check-data", check_data(checks=given["checks"], dataset=self._dataset))
        self._checked = self._let_through("require-data", checking)
        self._published = place(
            "publish-features",
            publish_features(gate=self._checked, features=given["features"], dataset=self._dataset),
        )

    def retrieve(self) -> None:
        """The TRM that the policy calls."""
        given = self._given
        self._recipe = {"trm": given["trm"], "text": given["text"], "seed": given["seed"], "dataset": self._dataset}
        self._trm = self._place("train-trm", train_trm(gate=self._checked, **self._recipe)).after(self._published)
        self._retrieves = self._let_through("require-trm", self._trm)
        shared = {name: given[name] for name in ("explore", "text", "seed")}
        self._world = {"dataset": self._dataset, "trm": self._trm.outputs["model"], **shared}

    def learn(self) -> None:
        """The start, the prompts, and both stages."""
        given, place, rewards = self._given, self._place, self._given["rewards"]
        self._start = place(
            "build-policy",
            build_policy(gate=self._retrieves, policy=given["policy"], warm_start=given["warm_start"], **self._world),
        ).outputs["start"]
        self._candidates = self._rolled("candidates", "candidates", self._retrieves, self._start).outputs["rollouts"]
        sections = ("policy", "select", "stage1", "stage2", "explore", "rewards", "seed")
        self._prompts = place(
            "select-prompts",
            select_prompts(
                rollouts=self._candidates, dataset=self._dataset, **{name: given[name] for name in sections}
            ),
        ).outputs["prompts"]
        learning = {"policy": given["policy"], "rewards": rewards, "prompts": self._prompts, **self._world}
        first = place(
            "train-stage-1",
            train_stage(stage="stage1", gate=self._retrieves, settings=given["stage1"], start=self._start, **learning),
        )
        self._first = first.outputs["trained"]
        self._explores = self._let_through("require-stage-1", first)
        self._second = place(
            "train-stage-2",
            train_stage(stage="stage2", gate=self._explores, settings=given["stage2"], start=self._first, **learning),
        )
        self._ranks = self._let_through("require-stage-2", self._second)

    def judge(self) -> None:
        """What stands beside the policy, every policy's rollouts, and the evaluation."""
        given, place = self._given, self._place
        everything = place("train-trm-everything", train_trm_everything(gate=self._retrieves, **self._recipe))
        if self._in_turn:
            everything.after(self._second)
        trained = self._second.outputs["trained"]
        started = self._rolled("test", "start", self._retrieves, self._start)
        explored = self._rolled("test", "stage-1", self._explores, self._first)
        ranked = self._rolled("test", "stage-2", self._ranks, trained, timed=True)
        if self._in_turn:
            ranked.after(explored.after(started.after(everything)))
        self._evaluated = place(
            "evaluate",
            evaluate(
                gate=self._ranks,
                rewards=given["rewards"],
                evaluation=given["evaluation"],
                name=given["name"],
                trm_everything=everything.outputs["model"],
                start=self._start,
                candidates=self._candidates,
                prompts=self._prompts,
                stage1=self._first,
                stage2=trained,
                start_rollouts=started.outputs["rollouts"],
                stage1_rollouts=explored.outputs["rollouts"],
                stage2_rollouts=ranked.outputs["rollouts"],
                **self._world,
            ),
        )

    def publish(self) -> None:
        """The bundle, with the TRM that it serves."""
        given, place = self._given, self._place
        serves = self._let_through("require-evaluation", self._evaluated)
        serving = place(
            "refit",
            refit(
                gate=serves,
                serve=self._evaluated.outputs["serve"],
                settings=given["bundle"],
                policy_trm=self._trm.outputs["model"],
                **self._recipe,
            ),
        )
        self._bundled = place(
            "publish-bundle",
            publish_bundle(
                gate=serves,
                text=given["text"],
                explore=given["explore"],
                settings=given["bundle"],
                dataset=self._dataset,
                trm=serving.outputs["model"],
                policy=self._second.outputs["trained"],
                evaluation=self._evaluated.outputs["results"],
                features=self._published.outputs["published"],
            ),
        )

    def release(self, settings: dict[str, Any], bundle: Any, overrides: Any) -> None:
        """What was published to users, and back where that fails.

        The task behind all steps can take no other's output, so it is given what the run was asked for.

        Args:
            settings: the section ``release``.
            bundle: the section of that name as the run was asked for it, before ``overrides``.
        """
        place, run = self._place, dsl.PIPELINE_JOB_ID_PLACEHOLDER
        compared = place(
            "compare-with-live",
            compare_with_live(
                settings=self._given["bundle"],
                dataset=self._dataset,
                bundle=self._bundled.outputs["bundle"],
            ),
        )
        passed = self._let_through("require-compare", compared)
        end = place("release-end", release_end(run=run, overrides=overrides, release=settings, bundle=bundle))
        with dsl.ExitHandler(end, name="release"):
            gate = passed
            for step in STEPS:
                made = release_step(
                    step=step,
                    gate=gate,
                    run=run,
                    version=self._bundled.outputs["version"],
                    release=settings,
                    bundle=self._given["bundle"],
                )
                gate = place(f"release-{step}", made).outputs["passed"]

    def _rolled(self, users: str, who: str, gate: Any, policy: Any, timed: bool = False) -> Any:
        made = rollout(users=users, gate=gate, select=self._given["select"], policy=policy, timed=timed, **self._world)
        return self._place(f"rollout-{who}", made)
