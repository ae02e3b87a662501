"""Component: roll a policy out over given users. The pipeline uses it for those who choose prompts and who evaluate."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def rollout(
    users: str,
    gate: str,
    select: dict,
    explore: dict,
    text: dict,
    timed: bool,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    trm: dsl.Input[dsl.Model],
    policy: dsl.Input[dsl.Model],
    rollouts: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write the trajectories, and how long single requests took where that is asked for."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require
        from deeprec.config import ExploreConfig, SelectConfig, TextConfig
        from deeprec.policy.rollouts import roll_policy_out

        require(gate)
        kinds, raw = (SelectConfig, ExploreConfig, TextConfig), (select, explore, text)
        sections = [kind.model_validate(section) for kind, section in zip(kinds, raw, strict=True)]
        inputs = [Path(artifact.path) for artifact in (dataset, trm, policy)]
        figures = roll_policy_out(users, *inputs, *sections, seed, Path(rollouts.path), timed=timed)
        for name, value in figures.items():
            metrics.log_metric(name, value)
