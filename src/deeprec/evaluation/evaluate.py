"""The evaluation task: every recommender on the same users, with the test targets that are read here and only here.

Baselines (popularity; the TRM; the TRM trained on everything before the validation item; one list as long as all calls
together; fusion of the first list with the policy's next title; the scripted explorer where it differs from the TRM)
and the policy after its start, stage 1 and stage 2 answer for every user with ``answer_size`` items. The policies have
been rolled out by tasks of their own, greedily (``explore.rollouts``): here nothing is generated. A rollout whose
answer breaks a format rule counts as a miss. The artifact, of kind ``evaluation``, holds ``metrics.json``,
``trajectories.parquet`` (stage 2) and ``report.html``.

Limits: one system's trajectories are in memory at a time, some 20 kB a user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deeprec.checks.gate import Verdict
from deeprec.config import EvaluationConfig, ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.splits import popularity, test_examples
from deeprec.errors import ArtifactError, PolicyError
from deeprec.evaluation.baselines import fusion_answers, one_list, popularity_answers, trm_answers
from deeprec.evaluation.cost import Spent, cost, cost_sentence, spent_on
from deeprec.evaluation.outcome import Outcome, ranks_of
from deeprec.evaluation.report import ReportData, render
from deeprec.evaluation.setting import (
    Setting,
    measure,
    open_setting,
    scored,
    stories,
    violations_of,
)
from deeprec.evaluation.significance import compare, ratio
from deeprec.evaluation.verdict import POLICY, STEPS, best, decide, judge, sentences
from deeprec.explore.opinion import open_opinion
from deeprec.explore.rollouts import Progress, open_rollouts, rollouts_of
from deeprec.explore.trajectories import write_trajectories
from deeprec.store import read_artifact, write_artifact, write_text
from deeprec.types import JsonDict, Opinion, Trajectory

KIND = "evaluation"
BASELINES = ("popularity", "trm", "trm_everything", "one_list", "fusion")
POLICIES = ("start", "stage1", "stage2")


@dataclass(frozen=True)
class Made:
    """The artifacts of a run: what is evaluated, and what it was made from; ``..._rollouts`` are those to measure."""

    dataset: Path
    trm: Path
    trm_everything: Path
    start: Path
    candidates: Path
    prompts: Path
    stage1: Path
    stage2: Path
    start_rollouts: Path
    stage1_rollouts: Path
    stage2_rollouts: Path

    @property
    def policies(self) -> dict[str, Path]:
        """The policies, in the order in which they were made."""
        return {"start": self.start, "stage1": self.stage1, "stage2": self.stage2}

    @property
    def rollouts(self) -> dict[str, Path]:
        """The policies' rollouts to measure."""
        return {"start": self.start_rollouts, "stage1": self.stage1_rollouts, "stage2": self.stage2_rollouts}

    def minutes(self) -> dict[str, float]:
        """What making the TRM that saw everything took, and the policy with all that it needs, its own TRM included."""
        policy = [self.trm, self.start, self.candidates, self.prompts, self.stage1, self.stage2]
        return {"trm_everything": minutes([self.trm_everything]), "policy": minutes(policy)}

    def spent(self) -> dict[str, Spent]:
        """What each task spent that made one of these, by the task's name and in their order."""
        tasks = {
            "ingest": self.dataset,
            "train-trm": self.trm,
            "build-policy": self.start,
            "rollout-candidates": self.candidates,
            "select-prompts": self.prompts,
            "train-stage-1": self.stage1,
            "train-stage-2": self.stage2,
            "train-trm-everything": self.trm_everything,
            "rollout-start": self.start_rollouts,
            "rollout-stage-1": self.stage1_rollouts,
            "rollout-stage-2": self.stage2_rollouts,
        }
        return {task: spent_on(artifact) for task, artifact in tasks.items()}


def minutes(artifacts: Sequence[Path]) -> float:
    """Minutes that the processes took which wrote these artifacts, their starts included."""
    return sum(read_artifact(path, verify=False).seconds for path in artifacts) / 60


@dataclass(frozen=True)
class Measured:
    """What every recommender scored; ``fusion`` is absent where the policy has no opinion of single titles."""

    outcomes: dict[str, Outcome]
    milliseconds: dict[str, float]
    trajectories: list[Trajectory]
    violations: list[tuple[str, ...]]


def say(line: str) -> None:
    """Print a line at once, so that a log is current while the task runs."""
    print(line, flush=True)


def evaluate(
    made: Made,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    evaluation: EvaluationConfig,
    seed: int,
    out: Path,
    report: Path,
    *,
    name: str = "",
    progress: Progress = say,
) -> tuple[Verdict, JsonDict]:
    """Evaluate everything, write the artifact to ``out`` and the report to the file ``report`` as well.

    Args:
        name: of the run, for the report's heading.

    Returns:
        The gate's verdict and what ``metrics.json`` holds: see ``assemble``, and ``cost`` as of ``cost.cost``.

    Raises:
        ArtifactError, DataError, TrmError, PolicyError: a part cannot be read or does not belong to the others.
        StoreError: the results cannot be written.
    """
    data = read_dataset(made.dataset)
    setting = open_setting(data, test_examples(data), made.trm, explore, rewards, text)
    sections: dict[str, Any] = {"explore": explore, "rewards": rewards, "text": text, "evaluation": evaluation}
    configuration = {name: section.model_dump(mode="json") for name, section in sections.items()}
    parents = [made.dataset, made.trm, made.trm_everything, made.prompts, *made.policies.values()]
    parents += made.rollouts.values()
    with write_artifact(out, KIND, config=configuration, parents=parents, seed=seed) as work:
        measured = measure_all(setting, data, made, progress)
        metrics = assemble(data, measured, made.minutes(), evaluation, seed)
        metrics["cost"] = _cost(made, measured.milliseconds, evaluation)
        told = [*sentences(metrics), *filter(None, [cost_sentence(metrics["cost"])])]
        trajectories = scored(setting, measured.trajectories)
        write_trajectories(work / "trajectories.parquet", trajectories)
        verdict = judge(metrics, evaluation.gate, work / "report.html")
        outcomes = measured.outcomes
        page = render(
            ReportData(
                name=name,
                metrics=metrics,
                verdict=verdict,
                sentences=told,
                behaviours={name: one.behaviour for name, one in outcomes.items() if one.behaviour is not None},
                curves={
                    "trm": _curve(made.trm),
                    "trm_everything": _curve(made.trm_everything),
                    **{name: _curve(path) for name, path in made.policies.items()},
                },
                trajectories=stories(setting, trajectories, measured.violations, evaluation.trajectories),
                configuration={"seed": seed, **configuration, "trm": _json(made.trm / "config.json")},
            )
        )
        (work / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (work / "report.html").write_text(page, encoding="utf-8")
    write_text(report, page)
    for line in told:
        progress(line)
    return verdict, metrics


def assemble(
    data: Dataset, measured: Measured, taken: Mapping[str, float], evaluation: EvaluationConfig, seed: int
) -> JsonDict:
    """``metrics.json`` but for the seconds, which the pipeline's runner knows.

    Returns:
        ``data``, ``users_evaluated``; ``baselines`` and ``policy``, the metrics of each recommender (``fusion`` is null
        where the policy has no opinion of single titles); ``minutes`` of making; ``intervals`` of every metric and
        ``steps``, paired differences, both with ``mean``, ``low`` and ``high``; ``verdict``, see ``verdict.decide``.
    """
    outcomes = measured.outcomes
    ranks = {name: one.ranks for name, one in outcomes.items()}
    known = [pair for pair in STEPS if set(pair) <= set(ranks)]
    compared = compare(ranks, known, evaluation.bootstrap_samples, seed)
    names = [*BASELINES, *(["scripted"] if "scripted" in outcomes else [])]
    metrics: JsonDict = {
        "data": {
            "users": len(data.sequences),
            "items": len(data.catalogue),
            "interactions": sum(len(items) for items in data.sequences.values()),
        },
        "users_evaluated": len(ranks["trm"]),
        "baselines": {name: outcomes[name].metrics if name in outcomes else None for name in names},
        "policy": {name: outcomes[name].metrics for name in POLICIES},
        "minutes": {name: round(value, 3) for name, value in taken.items()},
        "intervals": compared["intervals"],
        "steps": compared["differences"],
    }
    over = best(metrics["baselines"])
    beside = ratio(ranks[POLICY], ranks[over], evaluation.bootstrap_samples, seed)
    return {**metrics, "verdict": decide(metrics, over, beside, measured.milliseconds, evaluation.gate)}


def measure_all(setting: Setting, data: Dataset, made: Made, progress: Progress) -> Measured:
    """Every recommender on the setting's users; those that answer by themselves first, then the policies.

    Raises:
        ArtifactError: rollouts cannot be read, are of another policy or of other users, or the last ones' were not
            timed.
    """
    progress(f"evaluating {len(setting.examples)} users")
    outcomes = _answering(setting, data, made, progress)
    policies, last = _policies(setting, made, progress)
    lengths = [
        sum(len(call.items) for call in one.calls) or setting.explore.items_per_call for one in last.trajectories
    ]
    outcomes["one_list"] = _one_list(setting, lengths)
    progress(_line("one_list", outcomes["one_list"]))
    return Measured(outcomes | policies, last.milliseconds, last.trajectories, last.violations)


def _answering(setting: Setting, data: Dataset, made: Made, progress: Progress) -> dict[str, Outcome]:
    """The baselines that no rollout is needed for."""
    examples, k = setting.examples, setting.explore.answer_size
    outcomes = {
        "popularity": _outcome(setting, popularity_answers(popularity(data), data.catalogue, examples, k)),
        "trm": _outcome(setting, setting.trm_answers),
        "trm_everything": _outcome(setting, _answers_of(made.trm_everything, setting)),
    }
    opinion = _opinion(made.start, setting, progress)
    if opinion is not None:
        first = setting.explore.items_per_call
        outcomes["fusion"] = _outcome(setting, fusion_answers(setting.retriever, opinion, examples, first, k))
    scripted = _scripted(setting)
    if not np.array_equal(scripted.ranks, outcomes["trm"].ranks):
        outcomes["scripted"] = scripted
    for name, outcome in outcomes.items():
        progress(_line(name, outcome))
    return outcomes


def _outcome(setting: Setting, answers: Sequence[Sequence[str]]) -> Outcome:
    return Outcome(ranks_of(answers, setting.examples, setting.explore.answer_size))


def _answers_of(trm: Path, setting: Setting) -> list[tuple[str, ...]]:
    """Another TRM's answers for the same users."""
    from deeprec.trm.retriever import TrmRetriever

    retriever = TrmRetriever.load(trm, setting.catalogue, setting.embedder)
    return trm_answers(retriever, setting.examples, setting.explore.answer_size)


def _opinion(start: Path, setting: Setting, progress: Progress) -> Opinion | None:
    """What the start expects to come next, None where it has no opinion of single titles."""
    try:
        return open_opinion(start, setting.titles, setting.explore)
    except PolicyError as error:
        progress(f"fusion: left out, {error}")
        return None


def _one_list(setting: Setting, lengths: Sequence[int]) -> Outcome:
    lists = one_list(setting.retriever, setting.examples, lengths)
    found = [example.target in items for example, items in zip(setting.examples, lists, strict=True)]
    figures = {"candidate_recall": float(np.mean(found)), "mean_length": float(np.mean(lengths))}
    return Outcome(ranks_of(lists, setting.examples, setting.explore.answer_size), figures)


@dataclass(frozen=True)
class _Last:
    """What is kept of the last policy."""

    trajectories: list[Trajectory]
    violations: list[tuple[str, ...]]
    milliseconds: dict[str, float]


def _policies(setting: Setting, made: Made, progress: Progress) -> tuple[dict[str, Outcome], _Last]:
    """Outcomes of the policies, and what is kept of the last one."""
    outcomes: dict[str, Outcome] = {}
    last = _Last([], [], {})
    for name, path in made.rollouts.items():
        described = open_rollouts(path, [made.dataset, made.trm, made.policies[name]])
        trajectories = [one for _, own in rollouts_of(path, described.repeats, setting.examples) for one in own]
        last = _Last(trajectories, [violations_of(setting, one) for one in trajectories], described.milliseconds)
        outcomes[name] = measure(setting, last.trajectories, last.violations)
        progress(_line(name, outcomes[name]))
    if not last.milliseconds:
        raise ArtifactError(f"the requests of the rollouts in {made.stage2_rollouts} were not timed; roll it out again")
    return outcomes, last


def _scripted(setting: Setting) -> Outcome:
    from deeprec.explore.scripted import explore

    trajectories = explore(setting.examples, setting.retriever, setting.titles, setting.explore)
    return measure(setting, trajectories, [()] * len(trajectories), figures=False)


def _line(name: str, outcome: Outcome) -> str:
    metrics = outcome.metrics
    shown = [f"NDCG@10 {metrics['ndcg@10']:.4f}", f"Recall@10 {metrics['recall@10']:.4f}"]
    shown += [f"{key} {metrics[key]:.3f}" for key in ("valid_rate", "mean_calls", "candidate_recall") if key in metrics]
    return f"{name}: " + ", ".join(shown)


def _cost(made: Made, milliseconds: Mapping[str, float], evaluation: EvaluationConfig) -> JsonDict:
    """Requests were timed by the last policy's rollouts, with the accelerators that they had."""
    tasks = made.spent()
    timed = dict.fromkeys(milliseconds, tasks["rollout-stage-2"].accelerators)
    return cost(tasks, milliseconds, timed, evaluation.price_per_hour)


def _curve(artifact: Path) -> list[Mapping[str, object]]:
    """Rows of an artifact's ``curves.json``; none where it has no such file."""
    curve = _json(artifact / "curves.json")
    return curve if isinstance(curve, list) else []


def _json(path: Path) -> Any:
    """Parsed JSON, None where there is no such file."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read {path}: {error}; run the task that writes it again") from error
