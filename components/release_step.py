"""Component: one step of a release. The pipeline uses it once for each; it is never cached, and may run again."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def release_step(
    step: str,
    gate: str,
    run: str,
    version: str,
    release: dict,
    bundle: dict,
    outcome: dsl.Output[dsl.Markdown],
    passed: dsl.OutputPath(str),
):
    """Make the step ``canary``, ``smoke``, ``ramp``, ``promote`` or ``soak`` of this run's release."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require
        from deeprec.release.steps import run_step, to_markdown

        require(gate)
        record = run_step(step, run, version, release, bundle)
        Path(outcome.path).write_text(to_markdown(record), encoding="utf-8")
        Path(passed).write_text(gate, encoding="utf-8")
