"""Component: assemble the bundle that serving loads, and publish it. It has side effects and is never cached."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_bundle(
    gate: str,
    text: dict,
    explore: dict,
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    trm: dsl.Input[dsl.Model],
    policy: dsl.Input[dsl.Model],
    evaluation: dsl.Input[dsl.Artifact],
    features: dsl.Input[dsl.Artifact],
    bundle: dsl.Output[dsl.Model],
):
    """Write the bundle, and put it where ``settings.uri`` says."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import Verdict, require
        from deeprec.config import BundleConfig, ExploreConfig, TextConfig
        from deeprec.serving.bundle import publish

        require(gate)
        inputs = [Path(artifact.path) for artifact in (dataset, trm, policy, evaluation, features)]
        raw = (TextConfig, text), (ExploreConfig, explore), (BundleConfig, settings)
        sections = [kind.model_validate(section) for kind, section in raw]
        publish(*inputs, *sections, Verdict.from_json(gate), Path(bundle.path))
