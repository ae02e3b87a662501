"""Component: name what the source holds now, so that what follows is cached for these contents and no others."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def resolve_data(data: dict, data_version: str, features: dict, version: dsl.OutputPath(str)):
    """Name the source's contents and what the feature place adds or takes away, as ``version``: who was forgotten, and
    the position of the event log where ``data.events`` joins it.

    ``data_version`` is the caller's own name of the contents, where reading all of them for one would take too long.
    """
    from pathlib import Path

    from deeprec.components.boundary import reported

    with reported():
        from deeprec.config import DataConfig, FeaturesConfig
        from deeprec.data.version import source_version
        from deeprec.features.places import accepted_position, forgotten_digest

        source, place = DataConfig.model_validate(data), FeaturesConfig.model_validate(features)
        contents = data_version or source_version(source)
        events = accepted_position(place) if source.events else ""
        found = "-".join(part for part in (contents, events, forgotten_digest(place)) if part)
        Path(version).write_text(found, encoding="utf-8")
        print(f"version of the data: {found}", flush=True)
