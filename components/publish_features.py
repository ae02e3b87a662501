"""Component: publish histories and items to the feature store. It has side effects and is never cached."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_features(
    gate: str,
    features: dict,
    dataset: dsl.Input[dsl.Dataset],
    published: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
):
    """Apply, materialise and read back; write what was published."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require
        from deeprec.config import FeaturesConfig
        from deeprec.features.publish import publish

        require(gate)
        counts = publish(Path(dataset.path), FeaturesConfig.model_validate(features), Path(published.path))
        for name, value in counts.items():
            metrics.log_metric(name, value)
