"""Component: train the TRM anew on everything where it is what serves; hand it on where the policy does."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def refit(
    gate: str,
    serve: str,
    trm: dict,
    text: dict,
    settings: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    policy_trm: dsl.Input[dsl.Model],
    model: dsl.Output[dsl.Model],
):
    """Write the TRM that the bundle holds. ``settings`` is the section ``bundle``, ``policy_trm`` the policy's TRM."""
    from pathlib import Path

    from deeprec.components.boundary import checkpoints, reported

    with reported():
        from deeprec.bundle.refit import refit as run
        from deeprec.checks.gate import require
        from deeprec.config import BundleConfig, TextConfig, TrmConfig

        require(gate)
        raw = (TrmConfig, trm), (TextConfig, text), (BundleConfig, settings)
        sections = [kind.model_validate(section) for kind, section in raw]
        inputs = [Path(artifact.path) for artifact in (dataset, policy_trm)]
        kept = checkpoints("refit", trm, text, seed, dataset.uri, policy_trm.uri)
        run(*inputs, serve, *sections, seed, Path(model.path), checkpoint=kept)
