"""The README: its Python runs as it stands, and the commands it names exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from deeprec.cli import app

PAGE = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_python_runs(sample_dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [code] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert '"data/sample"' in code
    code = code.replace('"data/sample"', repr(str(sample_dataset))).replace("models/trm", str(tmp_path / "trm"))
    code = code.replace('"i0001", "i0002"', '"i001", "i002"')  # numbers are as wide as the largest needs
    exec(compile(code, "README.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()[-5:]
    assert all(re.match(r"[01]\.\d\d  \S", line) for line in lines)
    assert len(lines) == 5


def test_commands_exist() -> None:
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, flags=re.DOTALL))
    commands = get_command(app).commands  # type: ignore[attr-defined]
    named = re.findall(r"\bdeeprec (\w+)(?: (\w+))?", shell)
    assert {"run", "serve", "data", "explore", "policy"} <= {first for first, _ in named}
    for first, second in named:
        assert first in commands, first
        below = getattr(commands[first], "commands", None)
        assert below is None or second in below, (first, second)
