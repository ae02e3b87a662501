from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from deeprec.cli.data import app
from deeprec.data.dataset import read_dataset
from deeprec.errors import ConfigError, DataError


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_sample_then_inspect(tmp_path: Path) -> None:
    place = str(tmp_path / "out")
    assert "kept 40 users" in run(
        "sample", place, "--users", "40", "--items", "40", "--mean-history", "14", "--seed", "1"
    )
    shown = run("inspect", place, "--rows", "2")
    assert "sparsity" in shown
    assert "history length" in shown
    assert "studio" in shown


def test_import_with_mapping_and_settings(tmp_path: Path) -> None:
    rows = [f"{user},{item},{item}" for user in range(6) for item in range(6)]
    (tmp_path / "orders.csv").write_text("customer,sku,when\n" + "\n".join(rows))
    (tmp_path / "items.csv").write_text("sku,title,brand\n" + "\n".join(f"{i},T{i},B{i % 2}" for i in range(6)))
    columns = [text for pair in ("user_id=customer", "item_id=sku", "timestamp=when") for text in ("--column", pair)]
    settings = [
        text
        for pair in ("interactions=orders.csv", "data.items=items.csv", "text_columns=[brand]")
        for text in ("--set", pair)
    ]
    assert "kept 6 users, 6 items, 36 interactions" in run(
        "import", "table", str(tmp_path), str(tmp_path / "out"), *columns, *settings
    )
    assert read_dataset(tmp_path / "out").catalogue.phrases == ("b0", "b1")


def test_inspect_reads_a_source(tmp_path: Path) -> None:
    rows = [f"{user}::{item}::5::{1000 + item}" for user in range(6) for item in range(6)]
    (tmp_path / "ratings.dat").write_text("\n".join(rows))
    (tmp_path / "movies.dat").write_text("\n".join(f"{item}::T{item} (1999)::Drama" for item in range(6)))
    assert "1990s" in run("inspect", str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("import", "floppy", "x", "out"), ConfigError, "source"),
        (("import", "table", "x", "out", "--set", "nonsense=1"), ConfigError, "unknown key data.nonsense"),
        (("import", "table", "x", "out", "--column", "user_id"), ConfigError, "key=value"),
        (("import", "table", "nowhere", "out"), DataError, "does not exist"),
        (("inspect", "nowhere"), DataError, "not a directory"),
    ],
)
def test_bad_arguments(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    error: type[Exception],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        run(*arguments)
    assert list(tmp_path.iterdir()) == []
