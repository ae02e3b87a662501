"""Component, gate: one stage of RL. The pipeline uses it twice."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_stage(
    stage: str,
    gate: str,
    policy: dict,
    settings: dict,
    explore: dict,
    rewards: dict,
    text: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    trm: dsl.Input[dsl.Model],
    start: dsl.Input[dsl.Model],
    prompts: dsl.Input[dsl.Artifact],
    trained: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    outcome: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
):
    """Write the trained policy, the gate's report and its verdict."""
    from pathlib import Path

    from deeprec.components.boundary import checkpoints, reported, show

    with reported():
        from deeprec.checks.gate import require
        from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig, TextConfig
        from deeprec.policy.launch import train_stage as run

        require(gate)
        parts = {**policy, stage: settings}
        raw = (PolicyConfig, parts), (ExploreConfig, explore), (RewardsConfig, rewards), (TextConfig, text)
        sections = [kind.model_validate(section) for kind, section in raw]
        inputs = [Path(artifact.path) for artifact in (dataset, trm, start, prompts)]
        learning = {name: value for name, value in settings.items() if name != "health"}  # its bounds may change
        uris = [artifact.uri for artifact in (dataset, trm, start, prompts)]
        kept = checkpoints(stage, policy, learning, explore, rewards, text, seed, uris)
        result, values = run(stage, *inputs, *sections, seed, Path(trained.path), Path(report.path), kept)
        Path(verdict).write_text(result.to_json(), encoding="utf-8")
        show(result, outcome)
        for name, value in values.items():
            metrics.log_metric(name, value)
        print(result.reason, flush=True)
