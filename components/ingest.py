"""Component: read the source, clean it, split it, and write the dataset."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    data: dict,
    data_version: str,
    seed: int,
    dataset: dsl.Output[dsl.Dataset],
):
    """Write the dataset. ``data_version`` names the source's contents, so that a change of them is not served stale."""
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.config import DataConfig
        from deeprec.data.ingest import ingest as run

        report = run(DataConfig.model_validate(data), seed, Path(dataset.path))
        print("\n".join(report.lines), flush=True)
