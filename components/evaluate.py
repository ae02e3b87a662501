"""Component, gate: evaluate every policy and baseline on the test target, once."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    gate: str,
    name: str,
    explore: dict,
    rewards: dict,
    text: dict,
    evaluation: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    trm: dsl.Input[dsl.Model],
    trm_everything: dsl.Input[dsl.Model],
    start: dsl.Input[dsl.Model],
    candidates: dsl.Input[dsl.Artifact],
    prompts: dsl.Input[dsl.Artifact],
    stage1: dsl.Input[dsl.Model],
    stage2: dsl.Input[dsl.Model],
    start_rollouts: dsl.Input[dsl.Artifact],
    stage1_rollouts: dsl.Input[dsl.Artifact],
    stage2_rollouts: dsl.Input[dsl.Artifact],
    results: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    outcome: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
    serve: dsl.OutputPath(str),
):
    """Write metrics, trajectories, the report, the verdict, and which of policy and TRM is to serve."""
    from pathlib import Path

    from deeprec.components.boundary import flatten, reported, show

    with reported():
        from deeprec.checks.gate import require
        from deeprec.config import EvaluationConfig, ExploreConfig, RewardsConfig, TextConfig
        from deeprec.evaluation.evaluate import Made
        from deeprec.evaluation.evaluate import evaluate as run

        require(gate)
        kinds = ExploreConfig, RewardsConfig, TextConfig, EvaluationConfig
        raw = explore, rewards, text, evaluation
        sections = [kind.model_validate(section) for kind, section in zip(kinds, raw, strict=True)]
        parts = dataset, trm, trm_everything, start, candidates, prompts, stage1, stage2
        rolled = start_rollouts, stage1_rollouts, stage2_rollouts
        made = Made(*(Path(artifact.path) for artifact in (*parts, *rolled)))
        result, values = run(made, *sections, seed, Path(results.path), Path(report.path), name=name)
        Path(verdict).write_text(result.to_json(), encoding="utf-8")
        show(result, outcome)
        Path(serve).write_text(values["verdict"]["serve"], encoding="utf-8")
        for key, value in flatten(values).items():
            metrics.log_metric(key, value)
        print(result.reason, flush=True)
