"""The command line as a user meets it: help, bad input, exit statuses.

What needs a process of its own is forked from one that is preloaded; one test runs the installed command.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from deeprec.cli import app, main
from deeprec.cli.run import table
from deeprec.errors import PipelineError
from tests import forkserver


def deeprec(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forkserver.run(
        forkserver.deeprec(*arguments),
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
        env={**os.environ, "COLUMNS": "99"},
    )


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
    done = CliRunner().invoke(app, [*command, "--help"], prog_name="deeprec")
    assert done.exit_code == 0
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
    done = deeprec("pipeline", "compile", "-o", "train.yaml", "--set", "trm.epochs=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    spec = next(yaml.safe_load_all((tmp_path / "train.yaml").read_text(encoding="utf-8")))
    assert spec["root"]["inputDefinitions"]["parameters"]["trm"]["defaultValue"]["epochs"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["train.yaml"]


def test_compile_refuses_what_is_not_yaml(tmp_path: Path) -> None:
    assert deeprec("pipeline", "compile", "-o", "train.json", cwd=tmp_path).returncode == 2


def test_compile_into_a_directory_that_does_not_exist(tmp_path: Path) -> None:
    assert "cannot write" in fails("pipeline", "compile", "-o", "absent/train.yaml", cwd=tmp_path, status=1)


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
    command = forkserver.deeprec("run", "--workdir", "out")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with forkserver.Popen(command, cwd=tmp_path, text=True, **pipes) as process:
        assert process.stdout
        while "ingest" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130


def test_table_leaves_blank_what_does_not_apply() -> None:
    shown = table({"baselines": {"trm": {"ndcg@10": 0.5}}, "policy": {}, "users_evaluated": 3})
    assert shown.row_count == 6
    assert list(shown.columns[1].cells) == ["", "0.5000", "", "", "", ""]
