"""Component, gate: the new bundle beside the live one, on the same held-out interactions. It is never cached."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare_with_live(
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    bundle: dsl.Input[dsl.Model],
    outcome: dsl.Output[dsl.Markdown],
    verdict: dsl.OutputPath(str),
):
    """Write the verdict: a bundle that is worse is not released, with the reason."""
    from functools import partial
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.bundle.compared import against_live
        from deeprec.checks.gate import Verdict
        from deeprec.config import BundleConfig

        wanted = BundleConfig.model_validate(settings)
        say, rule = partial(print, flush=True), wanted.compare.model_dump()
        found = against_live(bundle.path, wanted.uri, Path(dataset.path), progress=say, **rule)
        nothing = Verdict("against the live bundle", True, "against the live bundle: nothing else is live", ())
        gate = found.gate() if found else nothing
        Path(outcome.path).write_text(found.to_markdown() if found else gate.to_markdown(), encoding="utf-8")
        outcome.metadata |= {"gate": gate.gate, "passed": gate.passed}
        Path(verdict).write_text(gate.to_json(), encoding="utf-8")
