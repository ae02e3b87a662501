"""Component, gate: check the dataset against the configured expectations."""

from kfp import dsl

from deeprec.components import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def check_data(
    checks: dict,
    dataset: dsl.Input[dsl.Dataset],
    report: dsl.Output[dsl.HTML],
    outcome: dsl.Output[dsl.Markdown],
    metrics: dsl.Output[dsl.Metrics],
    verdict: dsl.OutputPath(str),
):
    """Write the report and the verdict; succeed either way, for what follows to refuse."""
    from pathlib import Path

    from deeprec.components.boundary import reported, show

    with reported():
        from deeprec.checks.data import check_dataset
        from deeprec.config import ChecksConfig

        result = check_dataset(Path(dataset.path), ChecksConfig.model_validate(checks), Path(report.path))
        Path(verdict).write_text(result.to_json(), encoding="utf-8")
        show(result, outcome)
        for name in ("passed", "failed", "skipped"):
            metrics.log_metric(f"checks_{name}", sum(row.outcome == name for row in result.rows))
        print(result.reason, flush=True)
