"""Component: build the start policy: the tiny one with its warm start, or a Hugging Face model."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def build_policy(
    gate: str,
    policy: dict,
    warm_start: dict,
    explore: dict,
    text: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    trm: dsl.Input[dsl.Model],
    start: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write the start policy."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require
        from deeprec.config import ExploreConfig, PolicyConfig, TextConfig
        from deeprec.policy.build import build_policy as run

        require(gate)
        raw = (PolicyConfig, {**policy, "warm_start": warm_start}), (ExploreConfig, explore), (TextConfig, text)
        sections = [kind.model_validate(section) for kind, section in raw]
        inputs = [Path(artifact.path) for artifact in (dataset, trm)]
        for name, value in run(*inputs, *sections, seed, Path(start.path)).items():
            metrics.log_metric(name, value)
