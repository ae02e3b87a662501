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
    version: dsl.OutputPath(str),
):
    """Write the bundle, push it to ``settings.uri``, and say which version it is."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.bundle.answers import make_answers
        from deeprec.bundle.delivery import deliver, sweep_features
        from deeprec.bundle.publish import publish
        from deeprec.checks.gate import Verdict, require
        from deeprec.config import BundleConfig, ExploreConfig, TextConfig
        from deeprec.data.dataset import read_dataset

        require(gate)
        inputs = [Path(artifact.path) for artifact in (dataset, trm, policy, evaluation, features)]
        sections = TextConfig.model_validate(text), ExploreConfig.model_validate(explore)
        kept = Path(evaluation.path) / "trajectories.parquet"
        answers = make_answers(read_dataset(inputs[0]), inputs[1], kept, sections[1].answer_size)
        publish(*inputs, *sections, Verdict.from_json(gate), Path(bundle.path), answers)
        found = deliver(Path(bundle.path), BundleConfig.model_validate(settings), inputs[0], print)
        sweep_features(inputs[-1], BundleConfig.model_validate(settings))
        Path(version).write_text(found, encoding="utf-8")
