"""Component: the end of a run's release, however the run has ended.

It takes what a run is asked for and no task's output, so that it can stand behind all of them.
"""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def release_end(run: str, overrides: str, release: dict, bundle: dict):
    """Finish the release that this run has begun where it was promoted, else roll it back; or nothing to do."""
    from deeprec.components.boundary import reported

    with reported():
        from deeprec.release.steps import end_run

        end_run(run, overrides, release, bundle)
