"""Component, gate: train the TRM and measure it on the validation target."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_trm(
    gate: str,
    trm: dict,
    text: dict,
    seed: int,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    report: dsl.Output[dsl.HTML],
    outcome: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
):
    """Write the TRM, the gate's report and its verdict."""
    from pathlib import Path

    from deeprec.components.boundary import checkpoints, reported, show

    with reported():
        from deeprec.bundle.former import former_trm
        from deeprec.checks.gate import require
        from deeprec.config import TextConfig, TrmConfig
        from deeprec.trm.training import train

        require(gate)
        sections = TrmConfig.model_validate(trm), TextConfig.model_validate(text)
        kept = checkpoints("train-trm", trm, text, seed, dataset.uri)
        outputs, begin = (Path(model.path), Path(report.path)), former_trm(sections[0])
        result, values = train(Path(dataset.path), *sections, seed, *outputs, checkpoint=kept, begin=begin)
        Path(verdict).write_text(result.to_json(), encoding="utf-8")
        show(result, outcome)
        for name, value in values.items():
            metrics.log_metric(name, value)
        print(result.reason, flush=True)
