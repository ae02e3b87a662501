"""How a task's end is told to whoever runs it."""

import errno
from pathlib import Path

import pytest

from deeprec.components.boundary import CHECKPOINTS, CLAIM, checkpoints, flatten, read_error, reported
from deeprec.config import TrmConfig
from deeprec.errors import CheckFailed, DataError, StoreError


def ends(error: Exception, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    with pytest.raises(SystemExit) as caught, reported():
        raise error
    return caught.value.code, capsys.readouterr().out


def test_an_error_of_ours_is_one_line_and_its_own_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert ends(DataError("no\n  rows"), capsys) == (2, "error: DataError: no rows\n")
    assert ends(CheckFailed("too few"), capsys) == (1, "error: CheckFailed: too few\n")


def test_a_full_disk_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    status, line = ends(OSError(errno.ENOSPC, "No space left on device", "/a/b"), capsys)
    assert status == 2
    assert line.startswith("error: StoreError: the disk is full while writing /a/b")


def test_a_section_that_is_not_valid_is_a_configuration_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught, reported():
        TrmConfig.model_validate({"epochs": 0})
    assert caught.value.code == 2
    assert capsys.readouterr().out.startswith("error: ConfigError: TrmConfig:")


def test_other_errors_pass_through() -> None:
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


def test_read_error_is_the_inverse() -> None:
    found = read_error("error: StoreError: the disk: is full\n")
    assert type(found) is StoreError
    assert str(found) == "the disk: is full"


@pytest.mark.parametrize("line", ["", "error: 3", "error: Path: x", "error: Unknown: x", "Traceback"])
def test_read_error_of_another_line_is_none(line: str) -> None:
    assert read_error(line) is None


def test_flatten_keeps_numbers_under_dotted_names() -> None:
    nested = {"a": {"b": 1, "c": {"d": 0.5}}, "e": None, "f": "text", "g": True}
    assert flatten(nested) == {"a.b": 1.0, "a.c.d": 0.5}


def test_checkpoints_are_kept_where_the_next_attempt_finds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runner names a task's own directory; on a claim that all share, what goes into the task names it."""
    for name in (CHECKPOINTS, CLAIM):
        monkeypatch.delenv(name, raising=False)
    assert checkpoints("stage1", {"steps": 3}) is None
    monkeypatch.setenv(CLAIM, str(tmp_path / "claim"))
    first = checkpoints("stage1", {"steps": 3, "clip": 0.2}, 7)
    assert first is not None
    assert first.parent == tmp_path / "claim"
    assert first == checkpoints("stage1", {"clip": 0.2, "steps": 3}, 7)
    assert (
        len({first, checkpoints("stage2", {"steps": 3, "clip": 0.2}, 7), checkpoints("stage1", {"steps": 4}, 7)}) == 3
    )
    monkeypatch.setenv(CHECKPOINTS, str(tmp_path / "own"))
    assert checkpoints("stage1", {"steps": 3}) == tmp_path / "own"
