"""Component: train the TRM on everything before the validation item: what a policy with its own TRM has to beat."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_trm_everything(
    gate: str,
    trm: dict,
    text: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write the TRM and the figures of its validation targets."""
    from pathlib import Path

    from deeprec.components.boundary import checkpoints, reported

    with reported():
        from deeprec.bundle.former import former_trm
        from deeprec.checks.gate import require
        from deeprec.config import TextConfig, TrmConfig
        from deeprec.trm.training import train_everything

        require(gate)
        sections = TrmConfig.model_validate(trm), TextConfig.model_validate(text)
        kept = checkpoints("train-trm-everything", trm, text, seed, dataset.uri)
        begin = former_trm(sections[0])
        values = train_everything(Path(dataset.path), *sections, seed, Path(model.path), checkpoint=kept, begin=begin)
        for name, value in values.items():
            metrics.log_metric(name, value)
