"""The command line as a user meets it: help, bad input, exit statuses, in the tests' process.

One test runs the installed command, and one interrupts a process.
"""

import io
import os
import signal
import subprocess
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import yaml
from rich.console import Console

from deeprec.cli import main
from deeprec.cli.run import step_table, table
from deeprec.errors import PipelineError
from deeprec.evaluation.charts import NAMES

pytestmark = pytest.mark.usefixtures("quick_stacks")


def deeprec(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    output, errors = io.StringIO(), io.StringIO()
    with (
        chdir(cwd or Path.cwd()),
        mock.patch.object(sys, "argv", ["deeprec", *arguments]),
        mock.patch.dict(os.environ, {"COLUMNS": "99"}),
        redirect_stdout(output),
        redirect_stderr(errors),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess(arguments, ended.value.code, output.getvalue(), errors.getvalue())


def fails(*arguments: str, cwd: Path, status: int = 2) -> str:
    done = deeprec(*arguments, cwd=cwd)
    assert done.returncode == status, done.stdout + done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


def test_help_lists_the_commands_and_loads_nothing_heavy() -> None:
    probe = (
        "import sys; sys.argv = ['deeprec', '--help']\n"
        "from deeprec.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'kfp', 'polars', 'transformers', 'feast', 'kserve', 'numpy', 'plotly'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for command in ("run", "data", "trm", "policy", "explore", "serve", "evaluate", "pipeline"):
        assert command in done.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["run"],
        ["pipeline", "compile"],
        ["serve", "recommender"],
        ["serve", "trm"],
        ["serve", "policy"],
        ["serve", "events"],
        ["evaluate", "shadow"],
        ["data", "sample"],
        ["data", "events"],
        ["trm", "train"],
        ["policy", "train"],
        ["explore"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    done = deeprec(*command, "--help")
    assert done.returncode == 0
    assert "Example" in done.stdout


def test_the_installed_command_explains_itself() -> None:
    installed = str(Path(sys.executable).with_name("deeprec"))
    done = subprocess.run([installed, "run", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout


def test_unknown_key(tmp_path: Path) -> None:
    line = fails("run", "--set", "trm.epoch=3", cwd=tmp_path)
    assert "unknown key trm.epoch" in line
    assert not list(tmp_path.iterdir())


def test_value_out_of_range(tmp_path: Path) -> None:
    assert "trm.epochs" in fails("run", "--set", "trm.epochs=0", cwd=tmp_path)


def test_missing_configuration(tmp_path: Path) -> None:
    assert "profiles: cluster, ml-1m, ml-1m-accurate, quickstart" in fails(
        "run", "--config", "absent.yaml", cwd=tmp_path
    )


def test_configuration_that_is_not_yaml(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: [", encoding="utf-8")
    assert "bad.yaml is not valid YAML" in fails("run", "--config", "bad.yaml", cwd=tmp_path)


def test_missing_data(tmp_path: Path) -> None:
    line = fails("run", "--config", "ml-1m", "--set", "data.path=nowhere", cwd=tmp_path)
    assert f"there is nothing at {tmp_path / 'nowhere'}" in line


def test_empty_source_fails_in_its_task_with_its_own_status(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    line = fails("run", "--config", "ml-1m", "--set", "data.path=source", "--workdir", "out", cwd=tmp_path)
    assert line.startswith("error: ingest: ")
    assert (tmp_path / "out" / "logs" / "ingest.log").exists()
    assert not (tmp_path / "out" / "metrics.json").exists()


def test_workdir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    assert "name another --workdir" in fails("run", "--workdir", "out", cwd=tmp_path)


def test_unknown_option_is_bad_usage(tmp_path: Path) -> None:
    assert deeprec("run", "--epochs", "3", cwd=tmp_path).returncode == 2


def test_compile_writes_the_pipeline(tmp_path: Path) -> None:
    image = f"pipeline.image=registry.example/deeprec-train@sha256:{'0' * 64}"
    done = deeprec("pipeline", "compile", "-o", "train.yaml", "--set", "trm.epochs=3", "--set", image, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = next(yaml.safe_load_all((tmp_path / "train.yaml").read_text(encoding="utf-8")))
    assert spec["root"]["inputDefinitions"]["parameters"]["trm"]["defaultValue"]["epochs"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]


def test_compile_refuses_what_is_not_yaml(tmp_path: Path) -> None:
    assert deeprec("pipeline", "compile", "-o", "train.json", cwd=tmp_path).returncode == 2


def test_compile_into_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    tags = ("--set", "pipeline.allow_tags=true")
    assert "cannot write" in fails("pipeline", "compile", "-o", "absent/train.yaml", *tags, cwd=tmp_path, status=1)


def test_an_error_is_one_line_and_its_own_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise PipelineError("a\n  b")

    monkeypatch.setattr("deeprec.cli.app", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "error: a b\n"


def test_a_full_disk_is_bad_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device", "/a")

    monkeypatch.setattr("deeprec.cli.app", fail)
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert "the disk is full while writing /a" in capsys.readouterr().err


def test_interrupt_ends_the_task_and_has_its_status(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from deeprec.cli import main; main()", "run", "--workdir", "out"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        while "ingest" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_table_leaves_blank_what_does_not_apply() -> None:
    shown = table({"baselines": {"trm": {"ndcg@10": 0.5}}, "policy": {}, "users_evaluated": 3})
    assert shown.row_count == 1, "who was not measured has no row"
    cells = {str(column.header): list(column.cells) for column in shown.columns}
    assert cells["ndcg@10"] == ["0.5000"]
    assert [cells[name] for name in ("recall@10", "mean\ncalls", "candidate\nrecall")] == [[""]] * 3


def test_steps_have_their_intervals_and_the_minutes_are_below() -> None:
    step = {"ndcg@10": {"mean": 0.0125, "low": -0.001, "high": 0.02}}
    shown = step_table({"steps": {"start_minus_trm": step}, "minutes": {"trm_everything": 9.04, "policy": 61.2}})
    row = [next(iter(column.cells)) for column in shown.columns]
    assert row == ["policy, start − TRM alone", "+0.0125", "-0.0010", "+0.0200"]
    assert "9.0, policy with its TRM 61.2" in str(shown.caption)


def test_tables_of_a_run_fit_a_terminal_of_eighty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    figures = dict.fromkeys(("recall@10", "ndcg@10", "valid_rate", "mean_calls", "candidate_recall"), 0.5)
    steps = {"stage2_minus_fusion": {"ndcg@10": dict.fromkeys(("mean", "low", "high"), -0.1)}}
    metrics = {"baselines": dict.fromkeys(NAMES, figures), "users_evaluated": 1500, "steps": steps}
    console = Console(width=80)
    console.print(table(metrics))
    console.print(step_table(metrics | {"minutes": {"trm_everything": 1.0, "policy": 2.0}}))
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert all(
        any(title in line and line.count("0.5000") == 5 for line in shown.splitlines()) for title in NAMES.values()
    )
    assert any("policy, after stage 2 − fusion, first list × policy  -0.1000" in line for line in shown.splitlines())
