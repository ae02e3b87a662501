"""Component: read the source, clean it, split it, and write the dataset."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def ingest(
    data: dict,
    data_version: str,
    features: dict,
    seed: int,
    dataset: dsl.Output[dsl.Dataset],
):
    """Write the dataset, without users who were forgotten in the feature place.

    ``data_version`` names the source's contents and who was forgotten, so that KFP's cache sees a change of either.
    """
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from functools import partial

        from deeprec.config import DataConfig, FeaturesConfig
        from deeprec.data.ingest import ingest as run
        from deeprec.features.places import accepted_in, forgotten_in

        place = FeaturesConfig.model_validate(features)
        beside = {"forgotten": partial(forgotten_in, place), "accepted": partial(accepted_in, place)}
        report = run(DataConfig.model_validate(data), seed, Path(dataset.path), **beside)
        print("\n".join(report.lines), flush=True)
