"""Component: see that all that a run will need is there, before anything is computed. It is never cached."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preflight(
    data: dict,
    features: dict,
    text: dict,
    explore: dict,
    policy: dict,
    bundle: dict,
    pods: dict,
    ready: dsl.OutputPath(str),
):
    """Run the checks of ``deeprec doctor``, print what each found, and fail with all that is missing."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.config import Config
        from deeprec.doctor import examine, require_all, training_checks

        sections = {"data": data, "features": features, "text": text, "explore": explore, "bundle": bundle}
        config = Config.model_validate({**sections, "policy": policy, "pipeline": pods})
        findings = examine(training_checks(config))
        for finding in findings:
            print(finding, flush=True)
        require_all(findings)
        Path(ready).write_text("yes", encoding="utf-8")
