"""Component: stand before what costs, and let nothing through that a gate has refused."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def require(gate: str, passed: dsl.OutputPath(str)):
    """Hand a verdict on where the gate passed; fail with its reason otherwise.

    A small pod that is never started again, so that no accelerator is asked for on account of a refusal.
    """
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.checks.gate import require as check

        check(gate)
        Path(passed).write_text(gate, encoding="utf-8")
