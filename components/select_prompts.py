"""Component: choose both stages' prompts by difficulty, from rollouts of the start."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select_prompts(
    policy: dict,
    select: dict,
    stage1: dict,
    stage2: dict,
    explore: dict,
    rewards: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    rollouts: dsl.Input[dsl.Artifact],
    prompts: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write the prompts of the two stages, disjoint."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.config import ExploreConfig, PolicyConfig, RewardsConfig
        from deeprec.policy.select import select_prompts as run

        parts = {**policy, "select": select, "stage1": stage1, "stage2": stage2}
        raw = (PolicyConfig, parts), (ExploreConfig, explore), (RewardsConfig, rewards)
        sections = [kind.model_validate(section) for kind, section in raw]
        inputs = [Path(artifact.path) for artifact in (dataset, rollouts)]
        for name, value in run(*inputs, *sections, seed, Path(prompts.path)).items():
            metrics.log_metric(name, value)
