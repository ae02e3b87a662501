"""The evaluation task: every recommender on the same users, with the test targets that are read here and only here.

Baselines (popularity, the TRM alone, the scripted explorer) and the policy after its start, stage 1 and stage 2 answer
for every user with ``answer_size`` items, greedily; a rollout whose answer breaks a format rule counts as a miss. The
policies generate on ``explore.engine``, one after another. The artifact, of kind ``evaluation``, holds
``metrics.json``, ``trajectories.parquet`` (stage 2) and ``report.html``.

Limits: one system's trajectories are in memory at a time, some 20 kB a user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from deeprec.checks.gate import Verdict
from deeprec.config import EvaluationConfig, ExploreConfig, RewardsConfig, TextConfig
from deeprec.data.dataset import Dataset, read_dataset
from deeprec.data.splits import popularity, test_examples
from deeprec.errors import ArtifactError, ConfigError
from deeprec.evaluation.baselines import popularity_answers
from deeprec.evaluation.outcome import Outcome, ranks_of
from deeprec.evaluation.reading import ReadTrajectory
from deeprec.evaluation.report import ReportData, render
from deeprec.evaluation.setting import (
    Progress,
    Setting,
    measure,
    open_setting,
    roll_out,
    scored,
    stories,
    violations_of,
)
from deeprec.evaluation.significance import compare
from deeprec.evaluation.verdict import judge, sentences, served
from deeprec.explore.loading import open_policy, same_policy
from deeprec.explore.trajectories import write_trajectories
from deeprec.store import read_artifact, write_artifact, write_text
from deeprec.types import JsonDict, Trajectory

KIND = "evaluation"
BASELINES = ("popularity", "trm", "scripted")
POLICIES = ("start", "stage1", "stage2")
DIFFERENCES = (("stage2", "trm"), ("stage2", "stage1"), ("stage2", "start"))
"""Pairs whose difference has an interval of its own."""


def say(line: str) -> None:
    """Print a line at once, so that a log is current while the task runs."""
    print(line, flush=True)


def evaluate(
    dataset: Path,
    trm: Path,
    start: Path,
    stage1: Path,
    stage2: Path,
    explore: ExploreConfig,
    rewards: RewardsConfig,
    text: TextConfig,
    evaluation: EvaluationConfig,
    seed: int,
    out: Path,
    report: Path,
    progress: Progress = say,
) -> tuple[Verdict, JsonDict]:
    """Evaluate everything, write the artifact to ``out`` and the report to the file ``report`` as well.

    Returns:
        The gate's verdict and what ``metrics.json`` holds: ``data``, ``baselines``, ``policy``, ``users_evaluated``,
        ``significance`` and ``serve`` (``policy`` or ``trm``).

    Raises:
        ArtifactError, DataError, TrmError, PolicyError: a part cannot be read or does not belong to the others.
        ConfigError: the engine is a server, which has one policy and not these three.
        StoreError: the results cannot be written.
    """
    if explore.engine.kind == "server":
        raise ConfigError(
            f"explore.engine.kind is 'server', and what {explore.engine.url} serves cannot be the start and both "
            f"stages; set it to 'transformers' or 'vllm', or measure the served policy with `deeprec policy evaluate`"
        )
    paths = {"start": Path(start), "stage1": Path(stage1), "stage2": Path(stage2)}
    data = read_dataset(dataset)
    setting = open_setting(data, test_examples(data), Path(trm), explore, rewards, text, seed)
    progress(f"evaluating {len(setting.examples)} users")
    outcomes = baselines(setting, data, progress)
    sections: dict[str, Any] = {"explore": explore, "rewards": rewards, "text": text, "evaluation": evaluation}
    configuration = {name: section.model_dump(mode="json") for name, section in sections.items()}
    parents = [Path(dataset), Path(trm), *paths.values()]
    with write_artifact(out, KIND, config=configuration, parents=parents, seed=seed) as work:
        policies, to_read = _policies(setting, paths, evaluation.trajectories, work, progress)
        outcomes |= policies
        metrics = assemble(data, outcomes, evaluation, seed)
        verdict = judge(metrics, evaluation.gate, work / "report.html")
        page = render(
            ReportData(
                metrics=metrics,
                verdict=verdict,
                sentences=sentences(metrics, evaluation.gate),
                behaviours={name: one.behaviour for name, one in outcomes.items() if one.behaviour is not None},
                curves={"trm": _curve(Path(trm)), **{name: _curve(path) for name, path in paths.items()}},
                trajectories=to_read,
                configuration={"seed": seed, **configuration, "trm": _json(Path(trm) / "config.json")},
            )
        )
        (work / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
        (work / "report.html").write_text(page, encoding="utf-8")
    write_text(report, page)
    for line in sentences(metrics, evaluation.gate):
        progress(line)
    return verdict, metrics


def assemble(data: Dataset, outcomes: Mapping[str, Outcome], evaluation: EvaluationConfig, seed: int) -> JsonDict:
    """``metrics.json`` but for the seconds, which the pipeline's runner knows."""
    ranks = {name: outcomes[name].ranks for name in (*BASELINES, *POLICIES)}
    metrics: JsonDict = {
        "data": {
            "users": len(data.sequences),
            "items": len(data.catalogue),
            "interactions": sum(len(items) for items in data.sequences.values()),
        },
        "baselines": {name: outcomes[name].metrics for name in BASELINES},
        "policy": {name: outcomes[name].metrics for name in POLICIES},
        "users_evaluated": len(ranks["trm"]),
        "significance": compare(ranks, DIFFERENCES, evaluation.bootstrap_samples, seed),
    }
    return {**metrics, "serve": served(metrics, evaluation.gate)}


def baselines(setting: Setting, data: Dataset, progress: Progress) -> dict[str, Outcome]:
    """What each of ``BASELINES`` reaches."""
    k = setting.explore.answer_size
    popular = popularity_answers(popularity(data), data.catalogue, setting.examples, k)
    outcomes = {
        "popularity": Outcome(ranks_of(popular, setting.examples, k)),
        "trm": Outcome(ranks_of(setting.trm_answers, setting.examples, k)),
        "scripted": _scripted(setting),
    }
    for name, outcome in outcomes.items():
        progress(_line(name, outcome))
    return outcomes


def _policies(
    setting: Setting, paths: Mapping[str, Path], count: int, work: Path, progress: Progress
) -> tuple[dict[str, Outcome], list[ReadTrajectory]]:
    """Outcomes of the policies, and the last one's trajectories: some to read, all of them in a file under ``work``.

    A policy whose files equal an earlier one's (a stage that took no steps) is not rolled out again.
    """
    manifests = {name: read_artifact(path, "policy") for name, path in paths.items()}
    outcomes: dict[str, Outcome] = {}
    trajectories: list[Trajectory] = []
    violations: list[tuple[str, ...]] = []
    previous = ""
    for name, path in paths.items():
        if previous and same_policy(manifests[previous], manifests[name]):
            outcomes[name] = outcomes[previous]
            progress(f"{name}: the same files as {previous}, so the same answers")
        else:
            with closing(open_policy(path, setting.explore.engine)) as policy:
                trajectories = roll_out(setting, name, policy, progress)
            violations = [violations_of(setting, trajectory) for trajectory in trajectories]
            outcomes[name] = measure(setting, trajectories, violations)
        progress(_line(name, outcomes[name]))
        previous = name
    trajectories = scored(setting, trajectories)
    write_trajectories(work / "trajectories.parquet", trajectories)
    return outcomes, stories(setting, trajectories, violations, count)


def _scripted(setting: Setting) -> Outcome:
    from deeprec.explore.scripted import explore

    trajectories = explore(setting.examples, setting.retriever, setting.titles, setting.explore)
    return measure(setting, trajectories, [()] * len(trajectories), figures=False)


def _line(name: str, outcome: Outcome) -> str:
    metrics = outcome.metrics
    shown = [f"NDCG@10 {metrics['ndcg@10']:.4f}", f"Recall@10 {metrics['recall@10']:.4f}"]
    shown += [f"{key} {metrics[key]:.3f}" for key in ("valid_rate", "mean_calls", "candidate_recall") if key in metrics]
    return f"{name}: " + ", ".join(shown)


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
