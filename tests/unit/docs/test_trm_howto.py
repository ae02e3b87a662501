"""The how-to page of the TRM: its Python runs, and its commands have the options it names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from deeprec import config
from deeprec.cli import app
from deeprec.data.dataset import Dataset

PAGE = (Path(__file__).parents[3] / "docs" / "how-to" / "trm.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("number", range(2))
def test_python_runs(
    number: int, toy_trm: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = blocks("python")[number]
    names = {"Toy Story (1995)": dataset.catalogue.items[0].title, "Heat (1995)": dataset.catalogue.items[1].title}
    for shown, real in {'"models/trm"': repr(str(toy_trm)), "models/trm-2": str(tmp_path / "two"), **names}.items():
        code = code.replace(shown, real)
    assert str(toy_trm) in code
    exec(compile(code, "docs/how-to/trm.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    if "print" in code:
        assert len(lines) == 5
        assert all(re.fullmatch(r"[01]\.\d\d  \S.*", line) for line in lines)
    else:
        assert (tmp_path / "two" / "catalogue.json").read_text().count("The Long Night (2031)") == 1


def test_there_are_no_other_python_blocks() -> None:
    assert len(blocks("python")) == 2


@pytest.mark.parametrize("line", [line for block in blocks("sh") for line in block.splitlines()])
def test_commands_exist_with_their_options(line: str) -> None:
    program, group, name, *arguments = shlex.split(line)
    assert program == "deeprec"
    command = get_command(app).commands[group].commands[name]  # type: ignore[attr-defined]
    with command.make_context(name, arguments, resilient_parsing=False):
        pass


def test_keys_and_defaults_that_it_names_are_those_of_the_configuration() -> None:
    trm = config.TrmConfig()
    for key in re.findall(r"`trm\.([a-z_.]+)`", PAGE.partition("## Large catalogues")[2]):
        value: object = trm
        for part in key.split("."):
            value = getattr(value, part)
    assert f"`trm.sampled_above` items ({trm.sampled_above:,})" in PAGE
    assert f"`trm.index.approximate_above` items ({trm.index.approximate_above:,})" in PAGE
