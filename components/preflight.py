"""Component: settle what a run is to do, and see that all it will need is there. It is never cached."""

from typing import NamedTuple

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def preflight(
    name: str,
    overrides: str,
    data: dict,
    checks: dict,
    features: dict,
    text: dict,
    trm: dict,
    explore: dict,
    rewards: dict,
    policy: dict,
    warm_start: dict,
    select: dict,
    stage1: dict,
    stage2: dict,
    evaluation: dict,
    bundle: dict,
    seed: int,
    pods: dict,
) -> NamedTuple(
    "Settled",
    name=str,
    data=dict,
    checks=dict,
    features=dict,
    text=dict,
    trm=dict,
    explore=dict,
    rewards=dict,
    policy=dict,
    warm_start=dict,
    select=dict,
    stage1=dict,
    stage2=dict,
    evaluation=dict,
    bundle=dict,
    seed=int,
):
    """Give the sections with ``overrides`` laid over them, after the checks of ``deeprec doctor``, or fail with all
    that is missing. From here on ``trm.continue_from`` names one version. ``pods`` says what cannot be seen of the
    tasks to come; it is empty where they are processes.
    """
    given = {**locals()}

    from collections import namedtuple

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.bundle.former import pinned
        from deeprec.config.run import check_paths, from_parameters, to_parameters
        from deeprec.doctor import examine, require_all, training_checks

        config = from_parameters(given, overrides, pods.get("pipeline", {}))
        if pods:
            check_paths(config, pods["mounted"])
        if pods.get("release"):
            from deeprec.release.steps import look

            look(pods["release"], config.bundle.model_dump(mode="json"))
        findings = examine(training_checks(config))
        for finding in findings:
            print(finding, flush=True)
        require_all(findings)
        settled = to_parameters(config.model_copy(update={"trm": pinned(config.trm)}))
    return namedtuple("Settled", settled)(**settled)
